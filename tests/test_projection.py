"""Maps stay as they are: the same seed gives the same, and what comes moves nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from embedding_tasks import forgetting
from embedding_tasks.connections import Connection
from embedding_tasks.errors import ConfigError
from embedding_tasks.monitoring import words
from embedding_tasks.monitoring.maps import projection
from embedding_tasks.monitoring.maps.projection import Placed
from embedding_tasks.store import versions
from embedding_tasks.store.versions import ModelVersion
from tests import labelled_store
from tests.fix_project import Project
from tests.labelled_store import digits, key_of

Point = tuple[float, float, bool, int]


def points(store: Connection, method: str = "pca") -> dict[str, Point]:
    """Of the latest map."""
    rows = store.execute(
        "SELECT key, x, y, placed, cluster FROM embedline.map WHERE method = %s",
        [method],
    ).fetchall()
    return {key: tuple(rest) for key, *rest in rows}  # type: ignore[misc]


@pytest.fixture
def things(store: Connection) -> ModelVersion:
    """500 digits."""
    vectors, labels = digits()
    return labelled_store.make(store, vectors[:500], labels[:500])


def add_hundred(store: Connection, version: ModelVersion) -> None:
    keys = [key_of(number) for number in range(500, 600)]
    labelled_store.add(store, version, keys, digits()[0][500:600])


def test_the_same_seed_gives_the_same_points_and_clusters(
    store: Connection, things: ModelVersion
) -> None:
    projection.fit(store, things, seed=3, sample=300)
    first = points(store)
    store.execute(  # the rows lie in another order then
        f"UPDATE embedline.{things.table_name} SET run_id = 2 WHERE key < %s",
        [key_of(200)],
    )
    made = projection.fit(store, things, seed=3, sample=300)
    assert points(store) == first
    other = projection.fit(store, things, seed=4, sample=300)
    assert points(store) != first
    assert made.projection < other.projection


def test_points_are_scikit_learns(store: Connection, things: ModelVersion) -> None:
    from sklearn.decomposition import PCA

    projection.fit(store, things)
    vectors = digits()[0][:500]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    wanted = PCA(2, random_state=0).fit_transform(unit.astype(np.float64))
    found = [points(store)[key_of(number)][:2] for number in range(500)]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_rows_beyond_the_sample_are_placed_where_fitting_would_have_them(
    store: Connection, things: ModelVersion
) -> None:
    done = projection.fit(store, things, sample=200)
    assert done == Placed(done.projection, "pca", placed=300, gone=0)
    few = points(store)
    assert sum(placed for _, _, placed, _ in few.values()) == 300
    row = store.execute(
        "SELECT rows, settings ->> 'sample' FROM embedline.projection"
    ).fetchone()
    assert row == (200, "200")
    projection.fit(store, things)
    every = points(store)
    for axis in (0, 1):
        pairs = [(few[key][axis], every[key][axis]) for key in few]
        assert abs(np.corrcoef(pairs, rowvar=False)[0, 1]) > 0.97


def test_new_rows_move_no_old_ones(store: Connection, things: ModelVersion) -> None:
    made = projection.fit(store, things)
    before = points(store)
    assert projection.place(store, things) == [Placed(made.projection, "pca", 0, 0)]
    add_hundred(store, things)
    assert projection.place(store, things) == [Placed(made.projection, "pca", 100, 0)]
    after = points(store)
    assert {key: after[key] for key in before} == before
    new = [point for key, point in after.items() if key not in before]
    assert len(new) == 100
    assert all(placed for _, _, placed, _ in new)


def test_a_new_row_lies_where_the_same_vector_lies(
    store: Connection, things: ModelVersion
) -> None:
    projection.fit(store, things)
    labelled_store.add(store, things, ["twin"], digits()[0][7:8])
    projection.place(store, things)
    x, y, placed, cluster = points(store)["twin"]
    of = points(store)[key_of(7)]
    assert (x, y) == pytest.approx(of[:2])
    assert (placed, cluster) == (True, of[3])


def test_an_older_map_stays_and_only_so_many_are_kept(
    store: Connection, things: ModelVersion
) -> None:
    made = [projection.fit(store, things, seed=seed, keep=2) for seed in range(3)]
    rows = store.execute("SELECT id FROM embedline.projection ORDER BY id").fetchall()
    assert [number for (number,) in rows] == [one.projection for one in made[1:]]
    add_hundred(store, things)
    assert [one.projection for one in projection.place(store, things)] == [
        made[2].projection
    ]


def test_clusters_are_of_the_vectors(store: Connection, things: ModelVersion) -> None:
    """What a person sees in a digit tells its cluster far better than chance."""
    projection.fit(store, things, clusters=10)
    rows = store.execute(
        "SELECT cluster, label, count(*) FROM embedline.map GROUP BY 1, 2"
    ).fetchall()
    clusters = {cluster for cluster, _, _ in rows}
    assert clusters == set(range(10))
    purest = sum(max(n for c, _, n in rows if c == own) for own in clusters)
    assert purest / 500 > 0.5


def test_clusters_are_named_by_the_words_that_tell_them_from_the_rest(
    store: Connection,
) -> None:
    rng = np.random.default_rng(0)
    topics = np.repeat([0, 1, 2], 40)
    vectors = np.eye(3)[topics] + 0.05 * rng.normal(size=(120, 3))
    pairs = ["delayed flight", "lost luggage", "kind crew"]
    texts = [f"the {pairs[topic]} was mine, and {n}" for n, topic in enumerate(topics)]
    version = labelled_store.make(store, vectors, [None] * 120, texts=texts)
    projection.fit(store, version, clusters=3)
    rows = store.execute("SELECT DISTINCT name FROM embedline.map").fetchall()
    told = {frozenset(name.split(", ")[:2]) for (name,) in rows}
    assert told == {frozenset(pair.split()) for pair in pairs}


def test_no_name_tells_what_few_records_say() -> None:
    texts = [*["flight delayed"] * 20, *["secret"] * 4, *["crew"] * 20, ""]
    groups = np.array([0] * 24 + [1] * 21)
    told = words.of_groups(texts, groups, 3, most=4, fewest=5)
    assert told == [["delayed", "flight"], ["crew"], []]
    assert words.of_groups([""] * 3, np.zeros(3, np.int64), 1, most=4) == [[]]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"method": "pac"}, "method 'pac': did you mean 'pca'"),
        ({"sample": 5}, "sample: 5 must be 20 at least"),
        ({"clusters": 0}, "clusters: 0 must be 1 at least"),
        ({"keep": 0}, "keep: 0 must be 1 at least"),
    ],
)
def test_what_makes_no_map_is_refused(
    store: Connection, things: ModelVersion, asked: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        projection.fit(store, things, **asked)


def test_too_few_vectors_make_no_map(store: Connection) -> None:
    version = labelled_store.make(store, digits()[0][:19], [None] * 19)
    with pytest.raises(ConfigError, match="has 19 vectors; a map needs 20"):
        projection.fit(store, version)


def test_a_map_by_umap_says_what_to_install(
    store: Connection, things: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigError, match=r"pip install 'embedline\[umap\]'"):
        projection.fit(store, things, method="umap")


@pytest.mark.slow
def test_a_map_by_umap_is_repeatable_and_new_rows_lie_among_their_like(
    store: Connection, things: ModelVersion
) -> None:
    """Numba compiles for twenty seconds before it works for one."""
    made = projection.fit(store, things, method="umap", seed=2, sample=300)
    assert (made.method, made.placed) == ("umap", 200)
    first = points(store, "umap")
    projection.fit(store, things, method="umap", seed=2, sample=300)
    assert points(store, "umap") == first
    add_hundred(store, things)
    [done] = projection.place(store, things)
    assert done.placed == 100
    after = points(store, "umap")
    assert {key: after[key] for key in first} == first
    labels = digits()[1]
    own = np.array([after[key_of(n)][:2] for n in range(600)])
    far = np.linalg.norm(own[500:, None] - own[None, :500], axis=2)
    nearest = far.argmin(axis=1)
    agree = np.mean([labels[500 + n] == labels[m] for n, m in enumerate(nearest)])
    assert agree > 0.5  # a tenth by chance
    store.execute("DELETE FROM embedline.projection_point WHERE NOT placed")
    assert projection.place(store, things)[0].placed == 0  # nothing to go by is left


# What follows runs a whole use case.


@pytest.fixture
def mapped(full_use_case: Project, store: Connection) -> Project:
    full_use_case.run()
    projection.fit(store, versions.active(store, "messages"))
    return full_use_case


def place(store: Connection) -> Placed:
    [done] = projection.place(store, versions.active(store, "messages"))
    return done


def test_rows_that_are_gone_go_and_changed_ones_are_placed_anew(
    mapped: Project, store: Connection, db: Connection
) -> None:
    before = points(store)
    db.execute("DELETE FROM messages WHERE id < 5")
    db.execute("UPDATE messages SET body = 'quite another text' WHERE id = 7")
    mapped.run()
    done = place(store)
    assert (done.placed, done.gone) == (1, 6)
    after = points(store)
    assert len(before) - len(after) == 5
    assert after["7"][:2] != before["7"][:2]
    assert after["7"][2]
    assert {k: p for k, p in before.items() if k in after and k != "7"} == {
        k: p for k, p in after.items() if k != "7"
    }


def test_a_map_shows_what_is_known_of_each_point(
    mapped: Project, store: Connection
) -> None:
    same = store.execute(
        "SELECT count(*) FROM embedline.map m JOIN embeddings.messages v"
        " USING (key, unit) WHERE m.use_case = 'messages' AND m.model_version = 1"
        " AND (m.prediction, m.score, m.label, m.data, m.event_time) IS NOT DISTINCT"
        "  FROM (v.prediction, v.score, v.label, v.data, v.event_time)"
    ).fetchone()
    assert same == (120,)


def test_a_forgotten_record_leaves_every_map(
    mapped: Project, store: Connection
) -> None:
    version = versions.active(store, "messages")
    projection.fit(store, version, seed=1)
    erased = forgetting.forget(store, version.use_case, "3")
    assert erased["projection_point"] == 2
    left = store.execute(
        "SELECT count(*) FROM embedline.projection_point WHERE key = '3'"
    ).fetchone()
    assert left == (0,)


def test_a_dropped_version_leaves_no_map(
    mapped: Project, store: Connection, make_model: Callable[..., Any]
) -> None:
    mapped.use_case(encoder={"model": str(make_model(seed=12))})
    mapped.run()
    store.execute("UPDATE embedline.model_version SET retired_at = '2026-01-01'")
    mapped.run()
    for table in ("projection", "projection_cluster", "projection_point"):
        row = store.execute(f"SELECT count(*) FROM embedline.{table}").fetchone()
        assert row == (0,)
