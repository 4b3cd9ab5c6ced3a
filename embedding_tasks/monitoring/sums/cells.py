"""The stored sums of vectors, by slice: of a window's days, and of a baseline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring.sums.moments import Floats, Moments
from embedding_tasks.store.migrate import schema_of_vector
from embedding_tasks.store.versions import ModelVersion

ALL = ""
Row = tuple[Any, ...]


@dataclass(frozen=True)
class Cells:
    """By slice, all rows under the empty one. `classes` names what `Moments.classes`
    numbers."""

    slices: Mapping[str, Moments]
    classes: Sequence[str]

    @property
    def all(self) -> Moments:
        return self.slices[ALL]

    def counts(self, moments: Moments) -> dict[str, int]:
        """Rows by class."""
        rows = np.bincount(moments.classes, moments.counts, len(self.classes))
        return {name: int(n) for name, n in zip(self.classes, rows, strict=True) if n}


def of_days(
    store: Connection,
    version: ModelVersion,
    since: date | None = None,
    until: date | None = None,
    *,
    environments: Sequence[str] = (),
    without: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> Cells:
    """Of the days from `since` to `until`, both included (None: all), of some
    environments (none named: all) but for those `without`. The classes of another
    `Cells` given, theirs keep their numbers."""
    rows = store.execute(
        sql.SQL(
            "SELECT {columns} FROM embedline.rollup WHERE model_version = %(version)s"
            " AND day BETWEEN coalesce(%(since)s::date, '-infinity')"
            "  AND coalesce(%(until)s::date, 'infinity')"
            " AND (%(environments)s::text[] = '{{}}'"
            "  OR environment = ANY (%(environments)s))"
            " AND environment <> ALL (%(without)s) {order}"
        ).format(columns=_columns(store), order=_ORDER),
        {
            "version": version.id,
            "since": since,
            "until": until,
            "environments": list(environments),
            "without": list(without),
        },
        binary=True,
    )
    return _cells(rows, version.dims, classes)


def of_baseline(store: Connection, baseline: int, version: ModelVersion) -> Cells:
    rows = store.execute(
        sql.SQL(
            "SELECT {columns} FROM embedline.baseline_cell WHERE baseline = %s {order}"
        ).format(columns=_columns(store), order=_ORDER),
        [baseline],
        binary=True,
    )
    return _cells(rows, version.dims, ())


_ORDER = sql.SQL("ORDER BY tag, value, day, environment, class, bucket")


def _columns(store: Connection) -> sql.Composed:
    """The vector as bytes, which numpy reads a hundred times as fast as an array."""
    return sql.SQL(
        "tag, value, class, day, bucket, rows, square, {}.vector_send(centroid)"
    ).format(sql.Identifier(schema_of_vector(store)))


# Before a vector's numbers: how many there are, and two bytes that are not used.
_HEADER = 4


def _cells(rows: Iterable[Row], dims: int, known: Sequence[str]) -> Cells:
    by_slice: dict[str, list[Row]] = {ALL: []}
    for tag, value, *cell in rows:
        by_slice.setdefault(f"{tag}={value}" if tag else ALL, []).append(tuple(cell))
    found = {cell[0] for cell in by_slice[ALL]}
    classes = [*known, *sorted(found - set(known))]
    numbers = {name: number for number, name in enumerate(classes)}
    return Cells(
        {name: _moments(cells, numbers, dims) for name, cells in by_slice.items()},
        classes,
    )


def _moments(cells: Sequence[Row], numbers: Mapping[str, int], dims: int) -> Moments:
    names, days, buckets, counts, squares, centroids = (
        zip(*cells, strict=True) if cells else [()] * 6
    )
    return Moments(
        classes=np.array([numbers[name] for name in names], np.int64),
        days=np.array([day.toordinal() for day in days], np.int64),
        buckets=np.array(buckets, np.int64),
        counts=np.array(counts, np.int64),
        means=_vectors(centroids, dims),
        squares=np.array(squares, np.float64),
    )


def _vectors(sent: Sequence[bytes], dims: int) -> Floats:
    raw = np.frombuffer(b"".join(v[_HEADER:] for v in sent), ">f4")
    return raw.reshape(len(sent), dims).astype(np.float64)
