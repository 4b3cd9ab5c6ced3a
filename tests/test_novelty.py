"""Rows of a new kind are found, named and kept; none are where nothing is new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pgvector import Vector
from scipy import stats
from sklearn.neighbors import NearestNeighbors

from embedding_tasks import forgetting
from embedding_tasks.connections import Connection
from embedding_tasks.demo import corpora
from embedding_tasks.errors import ConfigError
from embedding_tasks.monitoring import nearest, words
from embedding_tasks.monitoring.measured import Measured, Window
from embedding_tasks.monitoring.nearest import Apart
from embedding_tasks.monitoring.rows import Records
from embedding_tasks.monitoring.rowwise import (
    by_row,
    clusters,
    comparison,
    novelty,
    sample,
)
from embedding_tasks.monitoring.rowwise.by_row import Check
from embedding_tasks.monitoring.rowwise.comparison import Comparison, Settings
from embedding_tasks.store import versions
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.use_case.monitoring import Monitoring
from tests.fix_project import Project

FIRST, SECOND, THIRD = (date(2026, 1, day) for day in (1, 2, 3))
BASELINE = Records(since=FIRST, until=FIRST)
QUICK = Settings(permutations=99, held_out=200)
DIMS, HEAPS, NEW = 32, 6, 24


def draw(rng: np.random.Generator, rows: int, new: int = 0) -> np.ndarray:
    """In heaps that are the same for all; the last `new` in one of their own."""
    centres = np.random.default_rng(1).normal(size=(HEAPS + 1, DIMS))
    heaps = rng.integers(0, HEAPS, rows)
    heaps[rows - new :] = HEAPS
    vectors = centres[heaps] + 0.8 * rng.normal(size=(rows, DIMS))
    vectors[rows - new :] = centres[HEAPS] + 0.3 * rng.normal(size=(new, DIMS))
    return vectors.astype(np.float32)


def compared(seed: int, rows: int, new: int = 0, baseline: int = 800) -> Comparison:
    rng = np.random.default_rng(seed)
    return comparison.compare(
        sample.of_vectors(draw(rng, baseline)),
        sample.of_vectors(draw(rng, rows, new), baseline),
        replace(QUICK, seed=seed),
    )


def test_neighbors_are_the_exact_ones_but_for_those_of_the_same_record() -> None:
    rng = np.random.default_rng(0)
    pool, queries = draw(rng, 500), draw(rng, 40)
    found = nearest.nearest(queries, pool, 10)
    exact = NearestNeighbors(n_neighbors=10).fit(pool).kneighbors(queries)
    np.testing.assert_array_equal(found.rows, exact[1])
    np.testing.assert_allclose(found.distances, exact[0], rtol=1e-4)
    records = rng.permutation(np.arange(500) // 5)
    own = nearest.nearest(pool, pool, 10, Apart(records, records))
    assert not (records[own.rows] == records[:, None]).any()


def test_neighbors_far_from_the_origin_are_the_same() -> None:
    pool = draw(np.random.default_rng(0), 300)
    near, far = (nearest.nearest(v, v, 5, Apart.each(300)) for v in (pool, pool + 500))
    assert (near.rows == far.rows).mean() > 0.99


def test_neighbors_that_are_not_there_are_infinitely_far() -> None:
    vectors = draw(np.random.default_rng(0), 4)
    found = nearest.nearest(vectors, vectors, 10, Apart.each(4))
    assert np.isfinite(found.distances).sum(axis=1).tolist() == [3, 3, 3, 3]
    assert ((found.rows == -1) == np.isinf(found.distances)).all()


def test_the_larger_the_window_the_more_neighbors_make_a_row_new() -> None:
    fewest = [novelty.fewest_neighbors(n, 5000) for n in (200, 1000, 2500, 5000)]
    assert fewest == [4, 7, 9, 10]


@pytest.mark.parametrize("rows", [200, 500])
def test_where_nothing_is_new_p_values_are_uniform(rows: int) -> None:
    found = [novelty.novelty(compared(seed, rows)) for seed in range(60)]
    p_values = [rate.p_value for rate in found]
    assert stats.kstest(p_values, "uniform").pvalue > 0.001
    assert np.mean(np.array(p_values) <= 0.05) < 0.13
    assert np.mean([rate.value for rate in found]) < 0.005


def test_texts_that_come_again_and_again_are_not_new() -> None:
    same = np.random.default_rng(9).normal(size=DIMS)

    def rate(seed: int) -> novelty.Rate:
        rng = np.random.default_rng(seed)
        baseline, window = draw(rng, 800), draw(rng, 500)
        for vectors in (baseline, window):
            vectors[rng.random(len(vectors)) < 0.3] = same
        sides = sample.of_vectors(baseline), sample.of_vectors(window, 800)
        return novelty.novelty(comparison.compare(*sides, replace(QUICK, seed=seed)))

    found = [rate(seed) for seed in range(20)]
    assert np.mean([rate.p_value < 0.05 for rate in found]) <= 0.15
    assert np.mean([rate.value for rate in found]) < 0.005


def test_rows_of_a_new_kind_are_those_that_are_found() -> None:
    rate = novelty.novelty(compared(3, rows=400, new=NEW))
    is_new = np.arange(400) >= 400 - NEW
    assert (rate.found & is_new).sum() >= NEW * 0.9
    assert (rate.found & ~is_new).sum() <= 2
    assert rate.p_value < 0.01
    assert rate.low < 24 / 400 < rate.high
    assert rate.usual < 0.005
    assert rate.scores[is_new].mean() > 1.2 * rate.scores[~is_new].mean()


def test_a_window_larger_than_its_baseline_is_cut_to_its_size() -> None:
    assert len(compared(4, rows=900, baseline=300).window) == 300


def test_the_rows_of_a_record_are_dealt_together() -> None:
    rng = np.random.default_rng(5)
    baseline, window = (
        replace(made, keys=np.array([f"{name}{i // 4}" for i in range(400)], object))
        for name, made in (
            ("b", sample.of_vectors(draw(rng, 400))),
            ("w", sample.of_vectors(draw(rng, 400))),
        )
    )
    found = comparison.compare(baseline, window, QUICK)
    assert not set(found.held_out.keys) & set(found.rest.keys)
    assert found.records_in_window == 100
    for mask in found.deals:
        sides = np.unique(np.stack([found.records, mask]), axis=1)
        assert len(sides.T) == len(np.unique(found.records))


def test_groups_are_apart_and_the_largest_is_the_first() -> None:
    rng = np.random.default_rng(6)
    centres = 3 * rng.normal(size=(2, DIMS))
    members = np.array([0] * 8 + [1] * 20)
    near = centres[members] + 0.1 * rng.normal(size=(28, DIMS))
    far = 9 * rng.normal(size=(2, DIMS))
    rows = np.concatenate([near, far]).astype(np.float32)
    found = clusters.numbers(rows, draw(rng, 500))
    assert found.tolist() == [2] * 8 + [1] * 20 + [0, 0]
    assert clusters.numbers(rows[:3], draw(rng, 500)).tolist() == [0, 0, 0]


def test_words_that_others_have_as_often_name_nothing() -> None:
    usual = [f"the flight number {n} was late" for n in range(200)]
    new = [f"the festival number {n} was loud" for n in range(10)]
    assert words.distinguishing(new, usual) == ["festival", "loud"]
    assert words.distinguishing(usual[:20], usual) == []
    assert words.distinguishing(["!", ""], ["?"]) == []


def test_a_word_of_one_or_two_records_is_not_told() -> None:
    usual = ["a late flight"] * 200
    assert words.distinguishing(["my name is Ada"] * 2, usual) == []


# In a store


def write(
    db: Connection, texts: list[str], day: date, first: int, author: str = "a"
) -> None:
    rows = [(first + i, text, author, day) for i, text in enumerate(texts)]
    db.cursor().executemany("INSERT INTO messages VALUES (%s, %s, %s, %s)", rows)


def topic_and_others(word: str, rows: int, others: int) -> tuple[list, list]:
    texts = corpora.tweets()["text"].drop_duplicates()
    has_it = texts.str.contains(word, case=False)
    topic = texts[has_it].sample(rows, random_state=0)
    return [*topic], [*texts[~has_it].sample(others, random_state=0)]


@pytest.fixture
def real(project: Project, db: Connection, minilm: Path) -> Project:
    """Tweets by MiniLM, a quarter of a minute of it: a day, the next with a topic in
    one row of twenty, and one without it."""
    topic, others = topic_and_others("coachella", 16, 1200)
    write(db, others[:700], FIRST, 0)
    write(db, others[700:984] + topic, SECOND, 2000)
    write(db, others[984:1184], THIRD, 4000)
    project.use_case(encoder={"model": str(minilm)}, pooling="mean")
    project.run()
    return project


def version_of(store: Connection) -> ModelVersion:
    return versions.active(store, "messages")


def check_of(store: Connection, **changes: Any) -> Check:
    return replace(Check(version_of(store), BASELINE, settings=QUICK), **changes)


def measure(store: Connection, check: Check, window: Window) -> list[Measured]:
    return by_row.measure(store, check, by_row.baseline(store, check), window)


def measured(
    store: Connection, day: date = SECOND, **changes: Any
) -> dict[str, Measured]:
    found = measure(store, check_of(store, **changes), Window(day, day))
    return {one.metric: one for one in found}


def flagged(store: Connection, kind: str = "novel") -> set[int]:
    found = store.execute("SELECT key FROM embedline.flag WHERE kind = %s", [kind])
    return {int(key) for (key,) in found}


def standing(store: Connection) -> set[int]:
    found = store.execute(
        "SELECT f.key FROM embedline.model_version m, embedline.flags(m) f"
        " WHERE f.kind = 'novel'"
    )
    return {int(key) for (key,) in found}


def test_a_new_topic_is_found_and_its_words_name_it_and_only_that_day(
    real: Project, store: Connection
) -> None:
    found = measured(store)["novelty"]
    planted = set(range(2284, 2300))
    assert len(flagged(store) & planted) >= 12
    assert len(flagged(store) - planted) <= 2
    assert found.rows == 300
    assert found.p_value is not None
    assert found.p_value < 0.01
    assert found.excess is not None
    assert 0.035 < found.excess < 0.065
    [cluster] = found.detail["clusters"]
    assert cluster["words"][0] == "coachella2015"
    assert cluster["share"] == pytest.approx(16 / 300, abs=0.015)
    quiet = measured(store, THIRD)["novelty"]
    assert quiet.excess is not None
    assert quiet.excess < 0.01
    assert quiet.detail["clusters"] == []
    assert len(flagged(store) - planted) <= 4


@pytest.fixture
def heaps(project: Project, db: Connection, store: Connection) -> Project:
    """Vectors that are drawn: a day of 500 and one of 250, the last ones new."""
    write(db, [f"usual {i}" for i in range(500)], FIRST, 0)
    texts = ["festival"] * NEW
    write(db, [f"usual {i}" for i in range(250 - NEW)] + texts, SECOND, 2000)
    project.use_case(source={"tags": ["author"]})
    project.run()
    rng = np.random.default_rng(7)
    vectors = np.concatenate([draw(rng, 500), draw(rng, 250, NEW)])
    keys = [*range(500), *range(2000, 2250)]
    put(store, dict(zip(keys, vectors, strict=True)))
    return project


def put(store: Connection, vectors: dict[int, np.ndarray]) -> None:
    store.cursor().executemany(
        "UPDATE embedline.vector_messages_v1 SET embedding = %s::text::vector"
        " WHERE key = %s",
        [(Vector(v).to_text(), str(key)) for key, v in vectors.items()],
    )


PLANTED = set(range(2250 - NEW, 2250))


def test_rows_that_are_no_longer_new_lose_their_flag(
    heaps: Project, store: Connection
) -> None:
    measured(store)
    assert len(flagged(store) & PLANTED) >= NEW * 0.9
    drawn = draw(np.random.default_rng(8), NEW)
    put(store, dict(zip(sorted(PLANTED), drawn, strict=True)))
    measured(store)
    assert len(flagged(store) & PLANTED) <= 1


def test_another_day_keeps_its_flags(
    heaps: Project, store: Connection, db: Connection
) -> None:
    measured(store)
    before = flagged(store)
    write(db, [f"usual {i}" for i in range(250)], THIRD, 4000)
    heaps.run()
    measured(store, THIRD)
    assert before <= flagged(store)


def test_a_flag_of_a_vector_that_is_gone_or_made_again_does_not_stand(
    heaps: Project, store: Connection, db: Connection
) -> None:
    measured(store)
    gone, edited = sorted(flagged(store) & PLANTED)[:2]
    db.execute("DELETE FROM messages WHERE id = %s", [gone])
    db.execute("UPDATE messages SET body = 'usual again' WHERE id = %s", [edited])
    heaps.run()
    assert {gone, edited} <= flagged(store)
    assert standing(store) == flagged(store) - {gone, edited}
    write(db, [f"usual {i}" for i in range(250)], THIRD, 4000)
    heaps.run()
    measured(store, THIRD)
    assert not {gone, edited} & flagged(store)


def test_no_flag_is_of_a_forgotten_record(heaps: Project, store: Connection) -> None:
    measured(store)
    key = str(min(flagged(store)))
    use_case = version_of(store).use_case
    assert forgetting.holdings(store, use_case, key)["flag"] >= 1
    forgetting.forget(store, use_case, key)
    assert int(key) not in flagged(store) | flagged(store, "outlier")


def test_a_dropped_version_leaves_no_flags(
    heaps: Project, store: Connection, make_model: Callable[..., Any]
) -> None:
    measured(store)
    heaps.use_case(encoder={"model": str(make_model(seed=12))})
    heaps.run()
    store.execute("UPDATE embedline.model_version SET retired_at = '2026-01-01'")
    heaps.run()
    assert store.execute("SELECT count(*) FROM embedline.flag").fetchone() == (0,)


def test_a_slice_is_of_its_records_and_flags_none(
    heaps: Project, store: Connection, db: Connection
) -> None:
    db.execute("UPDATE messages SET author = 'b' WHERE id % 5 = 0")
    heaps.run()
    records = Records(slice="author=a")
    found = measured(
        store, records=records, baseline=replace(BASELINE, slice="author=a")
    )
    assert found["novelty"].slice == "author=a"
    assert found["novelty"].rows == 200
    assert found["novelty"].detail["baseline_rows"] == 400
    assert found["novelty"].value is not None
    assert flagged(store) == set()
    with pytest.raises(ConfigError, match="'author': valid"):
        measured(store, records=Records(slice="author"))


def test_too_few_rows_tell_nothing(heaps: Project, store: Connection) -> None:
    found = measured(store, least_rows=300)
    assert {name: one.rows for name, one in found.items()} == dict.fromkeys(
        by_row.METRICS, 250
    )
    assert {one.value for one in found.values()} == {None}
    assert measured(store, THIRD)["novelty"].rows == 0


def test_no_record_is_compared_with_itself(heaps: Project, store: Connection) -> None:
    everything = measured(store, baseline=Records())["novelty"]
    assert everything.detail["baseline_rows"] == 750
    assert everything.detail["baseline_rows_compared"] == 500
    assert everything.value == measured(store)["novelty"].value


def test_a_sample_is_the_same_every_time_and_says_of_how_many(
    heaps: Project, store: Connection
) -> None:
    few = replace(QUICK, most_of_baseline=300, most_of_window=220)
    found = measured(store, settings=few)["novelty"]
    assert found.rows == 250
    assert found.detail["rows_compared"] == 220
    assert found.detail["baseline_rows"] == 500
    assert found.detail["baseline_rows_compared"] == 300
    assert measured(store, settings=few)["novelty"] == found


def test_only_asked_environments_are_looked_at(
    heaps: Project, store: Connection
) -> None:
    store.execute(
        "UPDATE embedline.record SET environment = CASE WHEN key::int % 2 = 0 THEN"
        " 'even' ELSE 'odd' END WHERE key::int % 3 > 0"
    )
    version = version_of(store)

    def count(**wanted: Any) -> int:
        return len(sample.read(store, version, Records(**wanted), 1000))

    even, odd = count(environments=("even",)), count(environments=("odd",))
    assert (even, odd) == (250, 250)
    assert count(environments=("even", "odd")) == 500
    assert count(other_environments=("odd",)) == 500


def test_a_sample_is_of_the_same_rows_whatever_else_there_is(
    heaps: Project, store: Connection
) -> None:
    version = version_of(store)
    every = sample.read(store, version, Records(), 1000)
    some = sample.read(store, version, Records(), 400)
    assert (every.of, some.of, len(some)) == (750, 750, 400)
    assert some.keys.tolist() == every.keys[:400].tolist()
    np.testing.assert_array_equal(some.vectors, every.vectors[:400])
    others = every.without_days(Window(FIRST, FIRST))
    read = sample.read(store, version, Records(since=SECOND), 1000)
    assert others.keys.tolist() == read.keys.tolist()


def test_a_check_is_what_the_use_case_says(heaps: Project, store: Connection) -> None:
    store.execute(
        "UPDATE embedline.record SET environment ="
        " CASE WHEN key::int < 500 THEN 'training' ELSE 'live' END"
    )
    by_days = {"since": "2026-01-01", "until": "2026-01-02"}
    for wanted in ({"environment": "training"}, by_days):
        said = Monitoring.model_validate(
            {"baseline": wanted, "least_effect": {"novelty": 0.03}}
        )
        check = Check.of(version_of(store), said, settings=QUICK)
        found = measure(store, check, Window(FIRST, SECOND))[0]
        assert found.detail["baseline_rows"] == 500
        assert found.least == 0.03
        assert found.rows == (250 if "environment" in wanted else 750)


def test_the_baseline_tells_how_new_its_own_days_are(
    heaps: Project, store: Connection
) -> None:
    check = check_of(store, baseline=Records(), least_rows=200)
    store.execute(
        "UPDATE embedline.record SET event_time = '2026-01-04' WHERE key::int < 250"
    )
    usual = by_row.baseline(store, check)
    found = by_row.noise(store, check, usual)
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(
        by_row.METRICS, 3
    )
    assert max(found["novelty"]) > 0.05  # the day of the planted ones
    assert sorted(found["novelty"])[1] < 0.02
    assert flagged(store) == set()
    assert len(by_row.noise(store, check, usual, most=2)["spread"]) == 2
