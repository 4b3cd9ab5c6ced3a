"""Searches with a filter: what is let through, by which way, and that k come back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np
import psycopg
import pytest

import embedding_tasks
from embedding_tasks import search
from embedding_tasks.connections import Connection
from tests.search_store import Row, add_index, ask, keys, make

NEAREST = "nearest('things', %s::vector, %s, filter => %s)"

FILTERS: list[tuple[dict[str, Any], Callable[[Row], bool]]] = [
    ({}, lambda r: True),
    ({"prediction": "red"}, lambda r: r.prediction == "red"),
    ({"prediction": ["red", "blue"]}, lambda r: r.prediction != "green"),
    ({"label": "green"}, lambda r: r.label == "green"),
    ({"label": None}, lambda r: r.label is None),
    ({"label": ["red", None]}, lambda r: r.label in ("red", None)),
    ({"labelled": True}, lambda r: r.label is not None),
    ({"labelled": False}, lambda r: r.label is None),
    (
        {"misclassified": True},
        lambda r: r.label is not None and r.label != r.prediction,
    ),
    ({"misclassified": False}, lambda r: r.label == r.prediction),
    ({"score": [0.4, 0.6]}, lambda r: 0.4 <= r.score <= 0.6),
    ({"score": [None, 0.1]}, lambda r: r.score <= 0.1),
    (
        {"event_time": ["2026-03-01T00:10Z", "2026-03-01T01:00Z"]},
        lambda r: 10 <= r.minute < 60,
    ),
    ({"event_time": ["2026-03-01T04:00Z", None]}, lambda r: r.minute >= 240),
    ({"environment": "training"}, lambda r: r.environment == "training"),
    ({"tags": {"tenth": True}}, lambda r: r.tags["tenth"]),
    ({"tags": {"nested": {"parity": 1}}}, lambda r: r.tags["nested"]["parity"] == 1),
    ({"key": ["k3", "k4", "k400"]}, lambda r: r.key in ("k3", "k4")),
    ({"prediction": "purple"}, lambda r: False),
    ({"prediction": []}, lambda r: False),
    (
        {"prediction": "red", "label": "green", "score": [0.5, None]},
        lambda r: (r.prediction, r.label) == ("red", "green") and r.score >= 0.5,
    ),
]


@pytest.mark.parametrize("indexed", [False, True])
def test_a_filter_lets_through_what_it_says_and_nothing_else(
    store: Connection, indexed: bool
) -> None:
    made = make(store)
    if indexed:
        add_index(store, made)
    query = np.random.default_rng(1).normal(size=16)
    for filter, keep in FILTERS:
        found = keys(ask(store, NEAREST, query, 12, filter))
        assert found == made.nearest(query, 12, keep), filter
    assert keys(ask(store, NEAREST, query, 12, None)) == made.nearest(query, 12)


@pytest.mark.parametrize(
    ("distance", "storage"),
    [("cosine", "vector"), ("l2", "halfvec"), ("inner_product", "vector")],
)
def test_k_come_back_whenever_k_match_whichever_way_is_taken(
    store: Connection, distance: str, storage: str
) -> None:
    made = make(store, count=4000, distance=distance, storage=storage, dims=8)
    add_index(store, made, storage)
    query = made.vectors[17]
    ways = {}
    for filter, keep in (
        ({"prediction": "red"}, lambda r: r.prediction == "red"),
        ({"tags": {"tenth": True}}, lambda r: r.tags["tenth"]),
        ({"key": ["k7", "k8"]}, lambda r: r.key in ("k7", "k8")),
    ):
        wanted = made.nearest(query, 10, keep)
        found = keys(ask(store, NEAREST, query, 10, filter))
        assert len(found) == len(wanted)
        assert len({*found} & {*wanted}) >= 0.8 * len(wanted)
        plan = _plan(store, query, 10, filter)
        ways[next(iter(filter))] = plan["plan"]
        assert plan["rows"] == len(wanted)
        assert plan["index"] == "embedline.things_hnsw"
    assert ways == {"prediction": "hnsw", "tags": "exact", "key": "exact"}


def test_an_index_that_gives_up_is_followed_by_exact_search(store: Connection) -> None:
    """All that match lie far from the query, among the last the index would look at."""
    made = make(store, count=6000, dims=8)
    add_index(store, made)
    query = made.vectors[3]
    far = np.argsort(made.distances(query))[-1500:]
    store.execute(
        "UPDATE embedline.prediction SET prediction = 'far' WHERE key = ANY (%s)",
        [[made.rows[i].key for i in far]],
    )
    found = ask(store, NEAREST, query, 10, {"prediction": "far"})
    assert keys(found) == [made.rows[i].key for i in far[:10]]
    plan = _plan(store, query, 10, {"prediction": "far"})
    assert plan["plan"] == "hnsw, then exact"
    assert plan["matches"] == f"more than {plan['exact_up_to']}"


def test_without_a_valid_index_of_the_distance_search_is_exact(
    store: Connection,
) -> None:
    made = make(store, count=500)
    store.execute(
        f"CREATE INDEX ON embedline.{made.table} USING hnsw (embedding vector_l2_ops);"
        f" CREATE INDEX ON embedline.{made.table} USING hnsw"
        " (embedding vector_cosine_ops) WHERE key > 'k5'"
    )
    (plan,) = ask(store, "explain_nearest('things', %s::vector)", made.vectors[0])
    explained = plan["explain_nearest"]
    assert (explained["plan"], explained["index"]) == ("exact", None)
    assert explained["vectors"] == 500


def test_the_caller_s_settings_are_his_own(store: Connection) -> None:
    made = make(store, count=2000)
    add_index(store, made)
    names = ("hnsw.ef_search", "hnsw.iterative_scan", "hnsw.max_scan_tuples")
    names += ("ivfflat.iterative_scan",)
    names += ("enable_sort", "jit", "search_path")
    with store.transaction():
        store.execute("SET LOCAL hnsw.ef_search = 77; SET LOCAL jit = on")
        before = [store.execute(f"SHOW {name}").fetchone() for name in names]
        for filter in (None, {"prediction": "red"}, {"score": [0, 1]}):
            ask(store, NEAREST, made.vectors[0], 60, filter)
        ask(store, "duplicates('things', 0.01, 30)")
        assert [store.execute(f"SHOW {name}").fetchone() for name in names] == before


def test_ef_search_is_the_caller_s_to_choose(store: Connection) -> None:
    made = make(store, count=6000)
    add_index(store, made)
    call = "explain_nearest('things', %s::vector, 5, ef_search => %s)"
    for given, used in ((None, 40), (90, 90)):
        plan = ask(store, call, made.vectors[0], given)[0]["explain_nearest"]
        assert (plan["plan"], plan["ef_search"]) == ("hnsw", used)
    for wrong in (0, 1001):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="1 to 1000"):
            ask(store, call, made.vectors[0], wrong)


def test_values_too_long_for_an_index_are_stored_and_found(store: Connection) -> None:
    made = make(store, count=20)
    long = "ü" * 5000
    store.execute(
        "UPDATE embedline.prediction SET prediction = %s || key;", [long], prepare=False
    )
    store.execute("UPDATE embedline.label SET label = %s", [long])
    store.execute(
        "UPDATE embedline.record SET environment = %(long)s,"
        " tags = jsonb_build_object('t', %(long)s::text, 'p'::text, 'q')",
        {"long": long},
    )
    query = made.vectors[0]
    assert keys(ask(store, NEAREST, query, 9, {"prediction": f"{long}k5"})) == ["k5"]
    assert ask(store, NEAREST, query, 9, {"prediction": long}) == []
    assert len(ask(store, NEAREST, query, 30, {"label": long})) == 15
    everything: dict[str, Any] = {"environment": long, "tags": {"t": long}}
    assert len(ask(store, NEAREST, query, 30, everything)) == 20


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata", "UTC"])
def test_a_time_without_a_zone_is_utc_whatever_the_session_s_zone(
    store: Connection, zone: str
) -> None:
    made = make(store)
    store.execute("SELECT set_config('timezone', %s, false)", [zone])
    store.execute("SET datestyle = 'ISO, DMY'")
    wanted = {row.key for row in made.rows if 30 <= row.minute < 90}
    naive = datetime(2026, 3, 1, 0, 30), datetime(2026, 3, 1, 1, 30)
    for since, until in (
        ("2026-03-01T00:30", "2026-03-01T01:30"),
        ("2026-03-01T02:30+02:00", "2026-02-28T20:30-05:00"),
        naive,
    ):
        filter: dict[str, Any] = {"event_time": [since, until]}
        found = search.by_key(store, "things", "k0", 300, filter=filter)
        assert {row["key"] for row in found} == wanted
        assert {*embedding_tasks.read("things", filter, store=store)["key"]} == wanted
    day = {"event_time": ["2026-03-01", "2026-03-02"]}
    assert len(ask(store, NEAREST, made.vectors[0], 500, day)) == 300
    assert len(embedding_tasks.read("things", day, store=store)) == 300


@pytest.mark.parametrize(
    ("filter", "says"),
    [
        ({"predicted": "x"}, "a filter has no key 'predicted'"),
        ({"score": 0.5}, "filter score takes two ends in a list, not 0.5"),
        ({"score": [1]}, "takes two ends"),
        ({"score": ["a", 1]}, 'filter score: "a" is no number'),
        ({"score": [0, "1e999"]}, 'filter score: "1e999" is no number'),
        ({"event_time": "2026-03-01"}, "filter event_time takes two ends in a list"),
        ({"event_time": ["soon", None]}, 'filter event_time: "soon" is no time, as "2'),
        ({"event_time": [None, [1]]}, r"filter event_time: \[1\] is no time"),
        ({"event_time": ["01/02/2026", None]}, '"01/02/2026" is no time'),
        ({"event_time": ["2026-03-01T00:00 Mars/Base", None]}, "is no time"),
        ({"misclassified": "yes"}, 'filter misclassified takes true or false, not "y'),
        ({"labelled": None}, "filter labelled takes true or false"),
        ({"tags": ["de"]}, "filter tags takes an object"),
        ({"label": {"a": 1}}, "filter label takes a value or a list of values"),
        ({"key": [["a"]]}, "filter key takes a value or a list"),
    ],
)
def test_a_filter_that_says_nothing_sensible_is_refused_with_what_is_valid(
    store: Connection, filter: dict[str, Any], says: str
) -> None:
    make(store, count=3)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=says) as refused:
        ask(store, NEAREST, np.ones(16), 3, filter)
    assert "misclassified" in (refused.value.diag.message_hint or "")


def test_a_filter_is_an_object(store: Connection) -> None:
    make(store, count=3)
    for given in ("[]", '"red"', "null", "3"):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="JSON object"):
            store.execute(
                "SELECT embeddings.nearest('things', array_fill(1, ARRAY[16])::vector,"
                " 3, filter => %s::jsonb)",
                [given],
            )


def test_every_search_takes_the_filter(store: Connection) -> None:
    made = make(store)
    only = {"prediction": "red"}
    red = {row.key for row in made.rows if row.prediction == "red"}
    query = made.vectors[1]
    for call, *given in (
        ("neighbors('things', 'k1', 9, filter => %s)", only),
        ("within('things', %s::vector, 9, 9, filter => %s)", query, only),
        ("nearest_to('things', ARRAY['k1', 'k2'], k => 9, filter => %s)", only),
        ("hybrid('things', 'even', %s::vector, 9, filter => %s)", query, only),
        ("mmr('things', %s::vector, 9, filter => %s)", query, only),
        ("medoid('things', 9, %s)", only),
    ):
        found = {*keys(ask(store, str(call), *given))}
        assert len(found) == 9, call
        assert found <= red, call


def test_k_come_back_by_an_ivfflat_index_of_one_s_own(store: Connection) -> None:
    """It looks into one list of vectors, unless it may go on."""
    made = make(store, count=2000)
    store.execute(
        f"CREATE INDEX ON embedline.{made.table} USING ivfflat"
        " (embedding vector_cosine_ops) WITH (lists = 100); ANALYZE"
    )
    store.execute("SET enable_seqscan = off")
    query = made.vectors[3]
    plan = _plan(store, query, 300, None)
    assert (plan["plan"], plan["rows"], plan["probes"]) == ("ivfflat", 300, 1)
    assert plan["index"] == f"embedline.{made.table}_embedding_idx"
    plan = _plan(store, query, 300, {"score": [0.2, None]})
    assert (plan["plan"], plan["index"], plan["probes"]) == ("exact", None, None)
    assert len(ask(store, NEAREST, query, 300, None)) == 300
    assert len(ask(store, NEAREST, query, 300, {"score": [0.2, None]})) == 300
    of_one = {(r["key"], r["other_key"]) for r in _pairs_of(store, "k3")}
    assert len(of_one) == 300


def test_the_index_that_was_read_is_the_one_that_is_told(store: Connection) -> None:
    made = make(store, count=2000)
    add_index(store, made)
    store.execute(
        f"CREATE INDEX lists ON embedline.{made.table} USING ivfflat"
        " (embedding vector_cosine_ops) WITH (lists = 10)"
    )
    query = made.vectors[3]
    for kept, method in (("things_hnsw", "hnsw"), ("lists", "ivfflat")):
        with store.transaction(force_rollback=True):
            other = {"things_hnsw", "lists"} - {kept}
            store.execute(f"DROP INDEX embedline.{other.pop()}")  # type: ignore[arg-type]
            store.execute("SET enable_seqscan = off")
            plan = _plan(store, query, 10, None)
            assert (plan["plan"], plan["index"]) == (method, f"embedline.{kept}")
    plan = _plan(store, query, 10, {"key": "k7"})
    assert (plan["plan"], plan["index"]) == ("exact", "embedline.things_hnsw")


def _plan(store: Connection, *given: Any) -> dict[str, Any]:
    (row,) = ask(store, f"explain_{NEAREST}", *given)
    told: dict[str, Any] = row["explain_nearest"]
    return told


def _pairs_of(store: Connection, key: str) -> list[dict[str, Any]]:
    return ask(store, "duplicates('things', 9, 300, filter => %s)", {"key": key})
