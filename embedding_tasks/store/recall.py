"""How much of what an exact search finds a search through the index finds, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import LiteralString

from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.store import migrate
from embedding_tasks.store.versions import ModelVersion

K = 10
# What `embeddings.nearest` sets for ten neighbours.
EF_SEARCH = 40
QUERIES = 200
# All exact searches together look at no more vectors than this: of a million that is
# some 30 seconds.
_MOST_LOOKS = 50_000_000
_LEAST_QUERIES = 20
# Two ways to the same distance may differ in the last digits of a float.
_TOLERANCE = 1e-6

_OPERATORS: dict[str, LiteralString] = {
    "cosine": "<=>",
    "l2": "<->",
    "inner_product": "<#>",
}


@dataclass(frozen=True)
class Recall:
    """`share` of the `k` nearest of so many stored vectors, each itself left out; None
    where the table holds too few."""

    share: float | None
    k: int
    ef_search: int
    queries: int


def measure(store: Connection, version: ModelVersion, rows: int) -> Recall:
    """A neighbour counts by its distance: of several that are equally far, either is
    right. Both searches read one snapshot; no vector leaves the server."""
    with _read_only(store):
        sample = _sample(store, version, rows)
        exact = _distances(store, version, sample, _EXACT)
        found = _distances(store, version, sample, _BY_INDEX)
    hits = [
        sum(distance <= true[-1] + _TOLERANCE for distance in got)
        for true, got in zip(exact, found, strict=True)
        if true
    ]
    all_of = sum(len(true) for true in exact)
    share = min(1.0, sum(hits) / all_of) if all_of else None
    return Recall(share, K, EF_SEARCH, len(sample))


@contextmanager
def _read_only(store: Connection) -> Iterator[None]:
    with store.transaction():
        store.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        store.execute("SET LOCAL statement_timeout = 0")
        yield


def _sample(
    store: Connection, version: ModelVersion, rows: int
) -> list[tuple[str, int]]:
    count = max(_LEAST_QUERIES, min(QUERIES, _MOST_LOOKS // max(1, rows)))
    percent = min(100.0, 100.0 * 4 * count / max(1, rows))
    statement = sql.SQL(
        "SELECT key, unit FROM {} TABLESAMPLE BERNOULLI (%s) ORDER BY random() LIMIT %s"
    ).format(version.table)
    return store.execute(statement, [percent, count]).fetchall()


# A lookup by key goes on by a bitmap, which no HNSW index gives.
_EXACT = {"enable_indexscan": "off"}
_BY_INDEX = {
    "enable_indexscan": "on",
    "enable_seqscan": "off",
    "enable_sort": "off",
    "hnsw.ef_search": str(EF_SEARCH),
    "hnsw.iterative_scan": "relaxed_order",
}


def _distances(
    store: Connection,
    version: ModelVersion,
    sample: list[tuple[str, int]],
    settings: dict[str, str],
) -> list[list[float]]:
    """Of each to its nearest, itself left out, the nearest first."""
    for name, value in settings.items():
        store.execute("SELECT set_config(%s, %s, true)", [name, value])
    statement = sql.SQL(
        "SELECT v.key, v.unit, v.embedding OPERATOR({0}.{2}) (SELECT embedding FROM {1}"
        "  WHERE key = %(key)s AND unit = %(unit)s) AS distance"
        " FROM {1} v ORDER BY distance LIMIT %(k)s"
    ).format(
        sql.Identifier(migrate.schema_of_vector(store)),
        version.table,
        sql.SQL(_OPERATORS[version.distance]),
    )
    found = []
    for key, unit in sample:
        rows = store.execute(statement, {"key": key, "unit": unit, "k": K + 1})
        others = [d for *which, d in rows if which != [key, unit]]
        found.append(sorted(others)[:K])
    return found
