"""The nearest labelled vectors of every labelled vector.

Few are compared exactly, by products of matrices; many through the version's HNSW
index, a lookup each.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, LiteralString

import numpy as np
import numpy.typing as npt
from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.errors import StoreError
from embedding_tasks.monitoring import nearest
from embedding_tasks.monitoring.nearest import Apart, Neighbors
from embedding_tasks.monitoring.quality import vectors
from embedding_tasks.monitoring.quality.vectors import Block, Ints, Vectors
from embedding_tasks.store import decode, index, migrate
from embedding_tasks.store.versions import ModelVersion

# Measured at 384 dimensions on one processor: exactly, 38,000 take a minute, 100,000
# seven times that; through the index each takes 3 to 5 ms.
EXACT = 50_000
MOST_EXACT = 100_000

_OPERATORS: dict[str, LiteralString] = {
    "cosine": "<=>",
    "l2": "<->",
    "inner_product": "<#>",
}


def of_labelled(store: Connection, version: ModelVersion, k: int) -> Neighbors:
    """Of the rows of the temporary table `labelled` (n, key, unit), in the order of
    `n`, by the version's distance; an index may find fewer. Sets how the rest of the
    transaction is planned. Raises `StoreError` where they are too many to compare
    without an index."""
    row = store.execute("SELECT count(*) FROM labelled").fetchone()
    assert row is not None
    count = int(row[0])
    k = max(0, min(k, count - 1))
    has_index = any(i.serves(version) for i in index.existing(store, version))
    if count > EXACT and has_index:
        return _by_index(store, version, count, k)
    if count > MOST_EXACT:
        raise StoreError(
            f"{version.table_name} has {count:,} labelled vectors and no index to find "
            f"their neighbors by; valid: up to {MOST_EXACT:,}, or an index: "
            "embedline maintain builds it where storage.index allows one"
        )
    rows = sql.SQL("FROM labelled JOIN {} v USING (key, unit) ORDER BY n").format(
        version.table
    )
    of = Block.of(version, vectors.read(store, version, rows, {}))
    return exact(of.vectors, version.distance, k)


def exact(of: Vectors, distance: str, k: int) -> Neighbors:
    """Of vectors (rows, dims) among themselves, by what pgvector calls `distance`."""
    others = Apart.each(len(of))
    if distance == "inner_product":
        return nearest.largest_products(of, of, k, others)
    if distance == "l2":
        return nearest.nearest(of, of, k, others)
    compared = vectors.directions(of)
    found = nearest.nearest(compared, compared, k, others)
    distances = np.square(found.distances) / 2
    return replace(found, distances=distances.astype(np.float32, copy=False))


# A join would be made by hashing, and sorted, if the planner might.
_BY_INDEX = {
    "enable_seqscan": "off",
    "enable_sort": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "hnsw.iterative_scan": "relaxed_order",
}


def _by_index(
    store: Connection, version: ModelVersion, count: int, k: int
) -> Neighbors:
    settings = {**_BY_INDEX, "hnsw.ef_search": str(min(1000, max(40, 2 * (k + 1))))}
    for name, value in settings.items():
        store.execute("SELECT set_config(%s, %s, true)", [name, value])
    statement = sql.SQL(
        "COPY (SELECT a.n, b.n, b.distance FROM labelled a"
        " JOIN {vectors} v USING (key, unit) CROSS JOIN LATERAL (SELECT t.n,"
        "  w.embedding OPERATOR({pgvector}.{operator}) v.embedding AS distance"
        "  FROM {vectors} w JOIN labelled t USING (key, unit)"
        "  ORDER BY distance LIMIT {k}) b WHERE a.n <> b.n) TO STDOUT (FORMAT binary)"
    ).format(
        vectors=version.table,
        pgvector=sql.Identifier(migrate.schema_of_vector(store)),
        operator=sql.SQL(_OPERATORS[version.distance]),
        k=sql.Literal(k + 1),
    )
    parts: list[list[npt.NDArray[Any]]] = [[np.zeros(0, kind) for kind in _KINDS]]
    with store.cursor() as cursor, cursor.copy(statement) as copy:
        for raw in decode.blocks(copy, vectors.ROWS_PER_BLOCK):
            columns = zip(decode.cells(raw, len(_KINDS)), _KINDS, strict=True)
            parts.append([cells.fixed(kind) for cells, kind in columns])
    own, other, far = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _gathered(own, other, far, (count, k))


_KINDS = (">i4", ">i4", ">f8")


def _gathered(
    own: Ints, other: Ints, far: npt.NDArray[np.float64], shape: tuple[int, int]
) -> Neighbors:
    order = np.lexsort((other, far, own))
    own, other, far = own[order], other[order], far[order]
    place = np.arange(len(own)) - np.searchsorted(own, own)
    kept = place < shape[1]
    rows = np.full(shape, -1, np.int64)
    distances = np.full(shape, np.inf, np.float32)
    rows[own[kept], place[kept]] = other[kept]
    distances[own[kept], place[kept]] = far[kept]
    return Neighbors(rows, distances)
