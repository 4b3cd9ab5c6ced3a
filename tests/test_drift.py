"""What is called drift is drift: levels hold, effects are those that were planted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from embedding_tasks.monitoring.sums import centroid, mix
from embedding_tasks.monitoring.sums.moments import Moments

DIMS, CLASSES, BUCKETS = 24, 5, 16
SPREAD = np.arange(1, DIMS + 1) ** -0.5


class World:
    """Normed vectors of classes whose centres and spreads differ, as a model's do."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.centres = self.rng.normal(size=(CLASSES, DIMS)) * SPREAD / 2
        self.direction = self.rng.normal(size=DIMS)
        self.direction /= np.linalg.norm(self.direction)

    def draw(
        self,
        rows: int,
        days: int = 1,
        shares: np.ndarray | None = None,
        moved: float = 0.0,
        only: int | None = None,
    ) -> Moments:
        """`moved` by so many standard deviations; `only` one class is."""
        classes = self.rng.choice(CLASSES, rows, p=shares)
        vectors = self.centres[classes] + self.rng.normal(size=(rows, DIMS)) * SPREAD
        whose = np.ones(rows, bool) if only is None else classes == only
        length = moved * np.sqrt(np.square(SPREAD).sum())
        vectors[whose] += length * self.direction
        buckets = self.rng.integers(0, BUCKETS, rows)
        return Moments.of_vectors(
            vectors, classes, self.rng.integers(0, days, rows), buckets
        )


def test_sums_of_parts_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(500, 8)) + 3
    named = [rng.integers(0, most, 500) for most in (3, 4, 5)]
    moments = Moments.of_vectors(vectors, *named)
    for merged in (moments, moments.without_classes()):
        assert len(merged) == 500
        np.testing.assert_allclose(merged.mean, vectors.mean(axis=0))
        assert merged.variance == pytest.approx(np.cov(vectors.T).trace())
    assert len(moments.of_days([1, 2])) == np.isin(named[1], [1, 2]).sum()


@pytest.mark.parametrize("rows", [200, 1000, 6000])
def test_without_drift_p_values_are_uniform(rows: int) -> None:
    world = World(1)
    found = []
    for seed in range(120):
        baseline, window = world.draw(3000, days=5), world.draw(rows)
        shift = centroid.shift(baseline, window, permutations=99, seed=seed)
        assert shift is not None
        found.append(shift.p_value)
    assert stats.kstest(found, "uniform").pvalue > 0.001
    assert np.mean(np.array(found) <= 0.05) < 0.12


def test_a_planted_shift_is_found_with_its_size_in_its_interval() -> None:
    world = World(2)
    inside = 0
    for seed in range(40):
        baseline, window = world.draw(3000, days=5), world.draw(1000, moved=0.2)
        shift = centroid.shift(baseline, window, permutations=99, seed=seed)
        assert shift is not None
        assert shift.p_value == 0.01
        assert shift.effect == pytest.approx(0.2, abs=0.06)
        inside += shift.low <= 0.2 <= shift.high
    assert inside >= 32


def test_a_day_of_another_mix_is_no_shift_within_classes_and_is_one_of_the_mix() -> (
    None
):
    world = World(3)
    shares = np.array([0.4, 0.3, 0.1, 0.1, 0.1])
    baseline, window = world.draw(5000, days=5), world.draw(2000, shares=shares)
    within = centroid.shift(baseline, window)
    plain = centroid.shift(baseline.without_classes(), window.without_classes())
    assert within is not None
    assert plain is not None
    assert within.p_value > 0.05
    assert plain.p_value < 0.01
    changed = mix.change(_counts(baseline), _counts(window))
    assert changed is not None
    assert changed.p_value < 1e-6
    assert changed.low < 0.3 < changed.high
    assert changed.changes["0"] == pytest.approx(0.2, abs=0.04)


def _counts(moments: Moments) -> dict[str, int]:
    counts = np.bincount(moments.classes, moments.counts)
    return {str(label): int(count) for label, count in enumerate(counts)}


def test_the_class_that_moved_is_named() -> None:
    world = World(4)
    baseline, window = world.draw(5000, days=5), world.draw(2000, moved=0.5, only=3)
    first, *others = centroid.by_class(baseline, window)
    assert first.label == 3
    assert first.effect == pytest.approx(0.5, abs=0.1)
    assert first.share > 0.8
    assert sum(own.share for own in (first, *others)) == pytest.approx(1)
    assert max(own.effect for own in others) < 0.25


def test_the_plain_distance_is_that_of_the_centroids_beside_its_noise() -> None:
    world = World(5)
    baseline, window = world.draw(3000), world.draw(300)
    shift = centroid.shift(baseline.without_classes(), window.without_classes())
    assert shift is not None
    assert shift.distance == pytest.approx(np.linalg.norm(baseline.mean - window.mean))
    expected = np.sqrt(window.variance / 300 + baseline.variance / 3000)
    assert shift.noise == pytest.approx(expected)


def test_only_classes_that_both_have_are_compared() -> None:
    world = World(6)
    baseline = world.draw(2000, shares=np.array([0.5, 0.5, 0, 0, 0]))
    window = world.draw(1000, shares=np.array([0, 0.25, 0.75, 0, 0]))
    shift = centroid.shift(baseline, window)
    assert shift is not None
    assert shift.covered == pytest.approx(0.25, abs=0.05)
    other = world.draw(100, shares=np.array([0, 0, 0, 0, 1.0]))
    assert centroid.shift(baseline, other) is None
    assert centroid.by_class(baseline, other) == []


def test_the_same_rows_give_the_same_result() -> None:
    world = World(7)
    baseline, window = world.draw(1000, days=3), world.draw(300)
    assert centroid.shift(baseline, window) == centroid.shift(baseline, window)


def test_without_a_change_of_the_mix_p_values_are_uniform() -> None:
    rng = np.random.default_rng(8)
    shares = [0.5, 0.3, 0.15, 0.04, 0.009, 0.001]  # some too rare for the test alone
    found = []
    for _ in range(300):
        drawn = (rng.multinomial(rows, shares) for rows in (5000, 400))
        baseline, window = ({str(i): int(n) for i, n in enumerate(d)} for d in drawn)
        changed = mix.change(baseline, window)
        assert changed is not None
        found.append(changed.p_value)
    assert stats.kstest(found, "uniform").pvalue > 0.001


def test_a_side_without_rows_has_no_mix() -> None:
    assert mix.change({}, {"a": 3}) is None
    only = mix.change({"a": 5}, {"a": 3})
    assert only is not None
    assert (only.effect, only.p_value) == (0, 1)
