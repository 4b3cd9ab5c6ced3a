"""Searches by range, by several references, by words and vector, for variety; what lies
in the middle, and what is there twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import psycopg
import pytest
from psycopg.types.json import Jsonb

from embedding_tasks.connections import Connection
from tests.search_store import Made, add_index, ask, keys, make

DISTANCES = ["cosine", "l2", "inner_product"]


@pytest.mark.parametrize("distance", DISTANCES)
def test_within_a_distance_are_all_that_are_and_no_other(
    store: Connection, distance: str
) -> None:
    made = make(store, distance=distance)
    query = made.vectors[9]
    distances = np.sort(made.distances(query))
    edge = float(distances[40] + distances[41]) / 2
    call = "within('things', %s::vector, %s, %s)"
    assert keys(ask(store, call, query, edge, None)) == made.nearest(query, 41)
    assert keys(ask(store, call, query, edge, 300)) == made.nearest(query, 41)
    assert keys(ask(store, call, query, edge, 5)) == made.nearest(query, 5)
    assert ask(store, call, query, float(distances[0]) - 1, 5) == []


def directions(made: Made, vectors: np.ndarray) -> np.ndarray:
    if made.distance != "cosine":
        return vectors
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def mean(made: Made, names: Sequence[str]) -> np.ndarray:
    vectors = np.array([made.of(name) for name in names])
    return np.asarray(directions(made, vectors).mean(axis=0))


@pytest.mark.parametrize("distance", DISTANCES)
def test_references_are_averaged_and_subtracted_and_left_out(
    store: Connection, distance: str
) -> None:
    made = make(store, distance=distance)
    likes, dislikes = ["k1", "k2", "k3"], ["k7", "k8"]
    query = mean(made, likes)
    call = "nearest_to('things', %s, %s, 10)"
    wanted = [k for k in made.nearest(query, 20) if k not in likes]
    assert keys(ask(store, call, likes, [])) == wanted[:10]
    query = 2 * query - mean(made, dislikes)
    wanted = [k for k in made.nearest(query, 20) if k not in likes + dislikes]
    assert keys(ask(store, call, likes, dislikes)) == wanted[:10]


def test_a_reference_that_is_not_there_is_named(store: Connection) -> None:
    make(store, count=5)
    for call in (
        "nearest_to('things', ARRAY['k1', 'nobody'])",
        "nearest_to('things', ARRAY['k1'], ARRAY['nobody'])",
    ):
        with pytest.raises(psycopg.errors.NoDataFound, match="for key 'nobody'"):
            ask(store, call)
    with pytest.raises(psycopg.errors.NoDataFound, match="for key NULL"):
        ask(store, "nearest_to('things', ARRAY['k1', NULL])")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="names no key"):
        ask(store, "nearest_to('things', '{}')")
    assert ask(store, "nearest_to('things', ARRAY['k1'], ARRAY['k1', 'k2'], k => 9)")


@pytest.mark.parametrize("storage", ["vector", "halfvec"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_centroid_and_medoid_are_the_middle_of_what_a_filter_lets_through(
    store: Connection, distance: str, storage: str
) -> None:
    made = make(store, distance=distance, storage=storage)
    only = {"prediction": "red"}
    red = [i for i, row in enumerate(made.rows) if row.prediction == "red"]
    for chosen, filter in ((red, only), (range(len(made.rows)), None)):
        vectors = made.vectors[[*chosen]]
        row = store.execute(
            "SELECT embeddings.centroid('things', %s)::real[]",
            [filter and Jsonb(filter)],
        ).fetchone()
        assert row is not None
        middle = directions(made, vectors).mean(axis=0)
        np.testing.assert_allclose(row[0], middle, atol=1e-5)
        sums = [
            (made.distances(v)[[*chosen]] ** _power(distance)).sum() for v in vectors
        ]
        least = made.rows[[*chosen][int(np.argmin(sums))]].key
        assert keys(ask(store, "medoid('things', filter => %s)", filter)) == [least]
    nothing = {"prediction": "purple"}
    assert ask(store, "centroid('things', %s)", nothing) == [{"centroid": None}]
    assert ask(store, "medoid('things', filter => %s)", nothing) == []


def _power(distance: str) -> int:
    return 2 if distance == "l2" else 1


@pytest.mark.parametrize("indexed", [False, True])
def test_duplicates_are_each_pair_once_with_what_speaks_against_them(
    store: Connection, indexed: bool
) -> None:
    made = make(store, count=400)
    store.execute(
        f"UPDATE embedline.{made.table} SET embedding = (SELECT embedding"
        f" FROM embedline.{made.table} WHERE key = 'k2') WHERE key IN ('k9', 'k13')"
    )
    store.execute(
        "UPDATE embedline.label SET label = 'red' WHERE key IN ('k2', 'k9');"
        "UPDATE embedline.label SET label = 'blue' WHERE key = 'k13'"
    )
    if indexed:
        add_index(store, made)
    found = ask(store, "duplicates('things', 1e-6)")
    assert [(r["key"], r["other_key"], r["conflict"]) for r in found] == [
        ("k13", "k2", True),
        ("k13", "k9", True),
        ("k2", "k9", False),
    ]
    assert (found[0]["label"], found[0]["other_label"]) == ("blue", "red")
    assert found[0]["other_data"] == made.rows[2].data
    of_one = ask(store, "duplicates('things', 1e-6, filter => %s)", {"key": "k9"})
    assert {(r["key"], r["other_key"]) for r in of_one} == {("k13", "k9"), ("k2", "k9")}
    assert ask(store, "duplicates('things', -1)") == []


def test_duplicates_within_a_distance_are_those_of_brute_force(
    store: Connection,
) -> None:
    made = make(store, count=150)
    apart = np.array([made.distances(v) for v in made.vectors])
    wanted = {
        tuple(sorted((made.rows[i].key, made.rows[j].key)))
        for i, j in np.argwhere(apart <= 0.05)
        if i < j
    }
    found = ask(store, "duplicates('things', 0.05, 149)")
    assert {(r["key"], r["other_key"]) for r in found} == wanted
    assert len(found) == len(wanted) > 0


def greedy(made: Made, query: np.ndarray, k: int, lam: float, pool: int) -> list[str]:
    """Maximal marginal relevance, by its definition."""
    near = [int(key[1:]) for key in made.nearest(query, pool)]
    similar = -np.array([made.distances(v) for v in made.vectors])
    to_query = -made.distances(query)
    picked: list[int] = []
    while len(picked) < k:
        rest = [i for i in near if i not in picked]
        scores = [
            lam * to_query[i]
            - (1 - lam) * max((similar[i, j] for j in picked), default=0)
            for i in rest
        ]
        picked.append(rest[int(np.argmax(scores))])
    return [f"k{i}" for i in picked]


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_mmr_picks_what_its_definition_picks(store: Connection, distance: str) -> None:
    made = make(store, distance=distance)
    query = made.vectors[5]
    call = "mmr('things', %s::vector, 8, lambda => %s, candidates => 40)"
    for lam in (0.0, 0.3, 0.7, 1.0):
        found = keys(ask(store, call, query, lam))
        assert found == greedy(made, query, 8, lam, 40), lam
    assert len(ask(store, "mmr('things', %s::vector, 500)", query)) == 300
    for wrong in (-0.1, 1.1):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="lambda"):
            ask(store, call, query, wrong)


def test_hybrid_fuses_by_reciprocal_rank(store: Connection) -> None:
    made = make(store)
    query = made.vectors[4]
    near = made.nearest(query, 40)
    found = ask(store, "hybrid('things', 'heap3 -odd', %s::vector, 12)", query)
    for row in found:
        by_vector = near.index(row["key"]) + 1 if row["key"] in near else None
        assert row["vector_rank"] == by_vector
        matches = "heap3 even" in row["data"]
        assert (row["text_rank"] is not None) == matches
        ranks = [rank for rank in (row["vector_rank"], row["text_rank"]) if rank]
        assert row["fused"] == pytest.approx(sum(1 / (60 + rank) for rank in ranks))
        distance = made.distances(query)[int(row["key"][1:])]
        assert row["distance"] == pytest.approx(distance, abs=1e-5)
    fused = [row["fused"] for row in found]
    assert fused == sorted(fused, reverse=True)
    assert any(row["text_rank"] for row in found)
    call = "hybrid('things', 'heap3', %s::vector, 9, text_weight => 0)"
    assert keys(ask(store, call, query)) == near[:9]
    call = "hybrid('things', 'heap3', %s::vector, 9, vector_weight => 0)"
    assert all("heap3" in row["data"] for row in ask(store, call, query))
    call = "hybrid('things', 'nowhere', %s::vector, 9)"
    assert keys(ask(store, call, query)) == near[:9]


def test_hybrid_uses_an_index_of_words_where_there_is_one(store: Connection) -> None:
    made = make(store, count=3000)
    row = store.execute("SELECT id FROM embedline.model_version").fetchone()
    assert row is not None
    store.execute(
        "CREATE INDEX words ON embedline.input USING gin"
        f" (embeddings.words('english', data)) WHERE model_version = {row[0]}"
    )
    store.execute(
        "UPDATE embedline.input SET data = 'needles in a haystack' WHERE key = 'k77'"
    )
    store.execute("ANALYZE embedline.input")
    call = "hybrid('things', 'needle', %s::vector, 3, language => 'english')"
    found = ask(store, call, made.vectors[0])
    assert "k77" in keys(found)
    store.execute("SELECT pg_stat_force_next_flush()")
    used = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'words'"
    assert store.execute(used).fetchone() == (1,)
    simple = "hybrid('things', 'needle', %s::vector, 3)"
    assert "k77" not in keys(ask(store, simple, made.vectors[0]))


@pytest.mark.parametrize(
    "text",
    [
        " ".join(f"{chr(0x20000 + n)}" for n in range(42_000)),
        " ".join(f"w{n}" for n in range(60_000)),
        "x" * 3_000_000,
        "-".join(f"{chr(0x20000 + n)}{n}" for n in range(42_000)),
        "".join(f"http://h{n}.de/p{n}/q " for n in range(20_000)),
    ],
    ids=["wide letters", "many words", "one word", "hyphens", "addresses"],
)
def test_no_text_is_too_much_for_an_index_of_words(
    store: Connection, text: str
) -> None:
    make(store, count=3)
    store.execute(
        "CREATE INDEX ON embedline.input USING gin (embeddings.words('simple', data))"
    )
    store.execute(
        "UPDATE embedline.input SET data = %s || 'x' WHERE key = 'k1'", [text]
    )


def test_hybrid_without_kept_texts_says_so(store: Connection) -> None:
    make(store, count=3)
    store.execute("DELETE FROM embedline.input")
    with pytest.raises(psycopg.errors.UndefinedObject, match="keeps no text"):
        ask(store, "hybrid('things', 'x', %s::vector)", np.ones(16))
    with pytest.raises(psycopg.errors.UndefinedObject, match="no_such"):
        ask(
            store,
            "hybrid('things', 'x', %s::vector, language => 'no_such')",
            np.ones(16),
        )


WHOLE = (
    "nearest('things', %s::vector)",
    "within('things', %s::vector, 9)",
    "mmr('things', %s::vector)",
    "hybrid('things', 'x', %s::vector)",
    "explain_nearest('things', %s::vector)",
)


@pytest.mark.parametrize("call", WHOLE)
def test_a_vector_of_another_model_is_refused_everywhere(
    store: Connection, call: str
) -> None:
    make(store, count=5)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="has 8 dimensions"):
        ask(store, call, np.ones(8))
    other = call[:-1] + ", model_version => 7)"
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="version 7"):
        ask(store, other, np.ones(16))
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="all zeros"):
        ask(store, call, np.zeros(16))


def test_nulls_find_nothing_and_huge_counts_everything(store: Connection) -> None:
    made = make(store, count=50)
    for call in (
        "nearest('things', NULL)",
        "nearest('things', %s::vector, NULL)",
        "neighbors('things', NULL)",
        "within('things', NULL, 3)",
        "within('things', %s::vector, NULL)",
        "nearest_to('things', NULL)",
        "mmr('things', NULL)",
        "hybrid('things', NULL, %s::vector)",
        "hybrid('things', 'x', NULL)",
        "duplicates('things', NULL)",
    ):
        given = [made.vectors[0]] if "%s" in call else []
        assert ask(store, call, *given) == []
    huge = 2**31 - 1
    for call, count in (
        ("nearest('things', %s::vector, %s)", 50),
        ("hybrid('things', 'even', %s::vector, %s)", 50),
        ("within('things', %s::vector, 'infinity', %s)", 50),
    ):
        assert len(ask(store, call, made.vectors[0], huge)) == count
    assert len(ask(store, "neighbors('things', 'k1', %s)", huge)) == 49
    assert len(ask(store, "nearest_to('things', '{k1,k2}', k => %s)", huge)) == 48
    add_index(store, made)
    for call in (
        "nearest('things', %s::vector, 0)",
        "explain_nearest('things', %s::vector, -1)",
        "mmr('things', %s::vector, -1)",
    ):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="k must be"):
            ask(store, call, made.vectors[0])


def test_an_empty_use_case_has_nothing_near(store: Connection) -> None:
    make(store, count=0)
    query = np.ones(16)
    assert ask(store, "nearest('things', %s::vector)", query) == []
    assert ask(store, "mmr('things', %s::vector)", query) == []
    assert ask(store, "within('things', %s::vector, 9)", query) == []
    assert ask(store, "duplicates('things', 1)") == []
    assert ask(store, "medoid('things')") == []
    with pytest.raises(psycopg.errors.UndefinedObject, match="keeps no text"):
        ask(store, "hybrid('things', 'x', %s::vector)", query)


def test_every_function_has_its_page_of_the_manual(store: Connection) -> None:
    rows = store.execute(
        "SELECT p.proname, obj_description(p.oid, 'pg_proc') FROM pg_proc p"
        " WHERE pronamespace = 'embeddings'::regnamespace ORDER BY 1"
    ).fetchall()
    assert [name for name, _ in rows] == [
        *("centroid", "context", "duplicates", "explain_nearest", "hybrid", "medoid"),
        *("mmr", "nearest", "nearest_to", "neighbors", "within", "words"),
    ]
    assert all(len(comment or "") > 60 for _, comment in rows)
