"""Rows of a model version in memory: some records' vectors, or a sample of them.

A sample is by hash of the records' keys, so that it hardly changes from one day to the
next, and does not depend on where rows lie or on who asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring import rows
from embedding_tasks.monitoring.measured import Window
from embedding_tasks.monitoring.rows import Records
from embedding_tasks.store import decode
from embedding_tasks.store.migrate import schema_of_vector
from embedding_tasks.store.versions import ModelVersion

Vectors = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_ROWS_PER_BLOCK = 1000
_EPOCH = date(2000, 1, 1).toordinal()
_TINY = 1e-30


@dataclass(frozen=True)
class Sample:
    """`keys` and `units` name the rows, `days` (proleptic ordinals) and `vectors`
    (rows, dims) are theirs: of length 1 where the version's distance is the cosine, so
    that the Euclidean distance puts neighbors in the same order. `of` is how many rows
    there are."""

    keys: npt.NDArray[np.object_]
    units: Ints
    days: Ints
    vectors: Vectors
    of: int

    def __len__(self) -> int:
        return len(self.keys)

    def only(self, chosen: npt.NDArray[Any]) -> Sample:
        return replace(
            self,
            keys=self.keys[chosen],
            units=self.units[chosen],
            days=self.days[chosen],
            vectors=self.vectors[chosen],
        )

    def without(self, other: Sample) -> Sample:
        """No row is compared with itself, or with another of its record."""
        theirs = set(other.keys)
        kept = np.array([key not in theirs for key in self.keys], bool)
        return self.only(kept)

    def without_days(self, window: Window) -> Sample:
        return self.only(~np.isin(self.days, window.ordinals))


def read(
    store: Connection, version: ModelVersion, records: Records, most: int
) -> Sample:
    """At most so many of the records' rows."""
    parts = [_EMPTY, *_blocks(store, version, records, most)]
    counts, keys, units, days, vectors = zip(*parts, strict=True)
    wide = np.concatenate([v.reshape(-1, version.dims) for v in vectors])
    return Sample(
        keys=np.concatenate(keys),
        units=np.concatenate(units),
        days=np.concatenate(days),
        vectors=_normed(wide) if version.distance == "cosine" else wide,
        of=max(counts),
    )


def of_vectors(vectors: Vectors, first: int = 0) -> Sample:
    """Rows of no store, each a record of its own, numbered from `first` on."""
    count = len(vectors)
    zeros = np.zeros(count, np.int64)
    keys = np.array([str(first + i) for i in range(count)], object)
    return Sample(keys, zeros, zeros, vectors, count)


Part = tuple[int, npt.NDArray[np.object_], Ints, Ints, Vectors]
_EMPTY: Part = (
    0,
    np.zeros(0, object),
    np.zeros(0, np.int64),
    np.zeros(0, np.int64),
    np.zeros(0, np.float32),
)


def _blocks(
    store: Connection, version: ModelVersion, records: Records, most: int
) -> Sequence[Part]:
    """Rows are sorted without their vectors, which do not fit into memory: measured,
    a day of a million rows of 384 dimensions takes 3.5 s, and 15 s with them."""
    statement = sql.SQL(
        "COPY (SELECT s.rows, v.key, v.unit, s.day, v.embedding::{pgvector}.vector"
        " FROM (SELECT v.key, v.unit, d.day - '2000-01-01'::date AS day,"
        "  count(*) OVER () AS rows{rows}{condition} ORDER BY {order} LIMIT %(most)s) s"
        " JOIN {vectors} v USING (key, unit) ORDER BY {order})"
        " TO STDOUT (FORMAT binary)"
    ).format(
        pgvector=sql.Identifier(schema_of_vector(store)),
        rows=rows.joined(version),
        condition=records.condition(),
        vectors=version.table,
        order=_ORDER,
    )
    given = {**rows.ids(version), **records.parameters(), "most": most}
    with store.cursor() as cursor, cursor.copy(statement, given) as copy:
        return [
            _part(block, version.dims) for block in decode.blocks(copy, _ROWS_PER_BLOCK)
        ]


_ORDER = sql.SQL("hashtextextended(v.key, 0), v.key, v.unit")


def _part(block: Sequence[bytes], dims: int) -> Part:
    counts, keys, units, days, vectors = decode.cells(block, 5)
    offsets, raw = keys.texts()
    names = [raw[start:stop].decode() for start, stop in pairwise(offsets)]
    return (
        int(counts.fixed(">i8")[0]),
        np.array(names, object),
        units.fixed(">i4").astype(np.int64),
        days.fixed(">i4").astype(np.int64) + _EPOCH,
        vectors.vectors(dims, ">f4").astype(np.float32),
    )


def _normed(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    normed: Vectors = vectors / np.maximum(lengths, np.float32(_TINY))
    return normed
