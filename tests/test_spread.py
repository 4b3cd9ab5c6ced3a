"""A spread that changes is found; what was fitted is never judged by its own rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from embedding_tasks.monitoring.rowwise import comparison, sample, spread
from embedding_tasks.monitoring.rowwise.comparison import Comparison, Settings

DIMS = 48
SPREAD = np.arange(1, DIMS + 1) ** -0.5
QUICK = Settings(permutations=99, held_out=200)


def compared(
    seed: int,
    rows: int = 300,
    wider: float = 1.0,
    far: int = 0,
    turned: bool = False,
    baseline: int = 600,
) -> Comparison:
    """`wider` by this factor; `far`: so many rows are four times as far; `turned`: the
    directions change places."""
    rng = np.random.default_rng(seed)
    before = rng.normal(size=(baseline, DIMS)) * SPREAD
    after = rng.normal(size=(rows, DIMS)) * SPREAD * wider
    after[:far] *= 4
    if turned:
        after = after[:, ::-1]
    return comparison.compare(
        sample.of_vectors(before.astype(np.float32)),
        sample.of_vectors(after.astype(np.float32), baseline),
        replace(QUICK, seed=seed),
    )


def residual(of: Comparison) -> spread.Change:
    found = spread.residual(of)
    assert found is not None
    return found


def test_without_a_change_p_values_are_uniform() -> None:
    made = [compared(seed) for seed in range(80)]
    for p_values in (
        [residual(one).p_value for one in made],
        [spread.outliers(one).p_value for one in made],
    ):
        assert stats.kstest(p_values, "uniform").pvalue > 0.001
        assert np.mean(np.array(p_values) <= 0.05) < 0.13


def test_a_baseline_of_few_rows_makes_no_window_look_wide() -> None:
    """Principal components fit the rows they were made of better than any others."""
    found = [residual(compared(seed, baseline=200)) for seed in range(40)]
    assert abs(np.mean([change.change for change in found])) < 0.02
    assert np.mean([change.p_value <= 0.05 for change in found]) < 0.2


@pytest.mark.parametrize("wider", [1.1, 0.9])
def test_a_change_of_the_spread_is_found_with_its_size_in_its_interval(
    wider: float,
) -> None:
    made = [residual(compared(seed, wider=wider)) for seed in range(20)]
    assert np.median([change.p_value for change in made]) < 0.001
    assert np.mean([change.change for change in made]) == pytest.approx(
        wider - 1, abs=0.02
    )
    assert sum(change.low < 0.1 < change.high for change in made) >= 17


def test_rows_that_are_far_out_are_the_outliers() -> None:
    one = compared(1, far=12)
    rate = spread.outliers(one)
    assert rate.found[:12].all()
    assert rate.found[12:].mean() < 0.04
    assert rate.p_value < 0.01
    assert rate.low < 0.05 < rate.high
    assert rate.scores[:12].min() > 1
    assert (rate.scores > 1).tolist() == rate.found.tolist()


def test_mmd_sees_a_change_that_leaves_the_mean_where_it_was() -> None:
    shift = spread.mmd(compared(2, rows=600, turned=True))
    assert shift is not None
    assert shift.p_value <= 0.02
    assert shift.low > 0
    usual = [spread.mmd(compared(seed)) for seed in range(20)]
    assert np.mean([s is not None and s.p_value <= 0.05 for s in usual]) < 0.2


def test_rows_that_are_all_the_same_have_no_spread() -> None:
    same = np.ones((300, 8), np.float32)
    sides = sample.of_vectors(same), sample.of_vectors(same[:200], 300)
    assert spread.residual(comparison.compare(*sides, Settings())) is None
