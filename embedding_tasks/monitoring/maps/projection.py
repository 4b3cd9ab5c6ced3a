"""Maps: the vectors of a model version in two dimensions, to be looked at.

A map is fitted on a sample, once, with a seed; all other vectors, and those that come
later, are placed on it as it is. So a point stays where it is until its record changes,
and a map that is fitted anew is another map. Clusters are of the vectors themselves.

    from embedding_tasks.monitoring.maps import projection

    projection.fit(store, version, method="umap", seed=7)
    projection.place(store, version)            # after each run
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import numpy as np
from psycopg import sql
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from embedding_tasks.connections import Connection, take_time
from embedding_tasks.errors import ConfigError, valid_choices
from embedding_tasks.monitoring import locks, words
from embedding_tasks.monitoring.maps import mapping
from embedding_tasks.monitoring.maps.mapping import Fitted, Floats, Method
from embedding_tasks.monitoring.quality import vectors
from embedding_tasks.monitoring.quality.vectors import Block, Ints, Vectors
from embedding_tasks.store.versions import ModelVersion

log = logging.getLogger(__name__)

SAMPLE = 20_000
CLUSTERS = 20
KEPT = 3
FEWEST = 20
# A cluster's name, and in how many of its texts each word is at least: it tells of many
# records, and not what one of them says.
_WORDS, _FEWEST_TEXTS = 4, 5


@dataclass(frozen=True)
class Placed:
    """What changed on a map: `placed` points are new on it, those of vectors of another
    input among them; `gone` ones were of vectors that are gone, or of another input."""

    projection: int
    method: Method
    placed: int
    gone: int


def fit(
    store: Connection,
    version: ModelVersion,
    *,
    method: Method = "pca",
    seed: int = 0,
    sample: int = SAMPLE,
    clusters: int = CLUSTERS,
    keep: int = KEPT,
) -> Placed:
    """A new map, fitted on at most `sample` vectors drawn by the seed; all others are
    placed on it. Of the maps by this method so many are kept, the new one included.
    Raises `ConfigError` for an unknown method, for too few vectors, and where the
    package that the method needs is not installed."""
    _require(method, sample, clusters, keep)
    drawn = _drawn(store, version, seed, sample)
    if len(drawn) < FEWEST:
        raise ConfigError(
            f"{version.table_name} has {len(drawn)} vectors; a map needs {FEWEST}"
        )
    of = mapping.comparable(drawn.vectors, version.distance)
    found = mapping.fit(of, method, seed, clusters)
    texts = _texts(store, version, drawn)
    telling = words.of_groups(
        [text or "" for text in texts],
        found.clusters,
        len(found.centers),
        _WORDS,
        _FEWEST_TEXTS,
    )
    names = [", ".join(group) for group in telling]
    settings = {"sample": sample, "clusters": clusters}
    settings |= mapping.UMAP if method == "umap" else {}
    with store.transaction():
        take_time(store)
        locks.take(store, version, "projection")
        made = _write(store, version, method, seed, settings, found)
        _write_clusters(store, made, names, found.centers)
        points = _Points(drawn, found.points, found.clusters)
        _write_points(store, made, [points], placed=False)
        _drop_older(store, version, method, keep)
        return _placed(store, version, _Map.latest(store, version)[method])


def place(store: Connection, version: ModelVersion) -> list[Placed]:
    """On the latest map of each method, whatever is not on it yet. Where nothing has
    changed nothing is written."""
    with store.transaction():
        take_time(store)
        locks.take(store, version, "projection")
        maps = _Map.latest(store, version)
        return [_placed(store, version, chosen) for chosen in maps.values()]


def clusters(store: Connection, map_: int) -> list[dict[str, Any]]:
    """Of a map: `cluster`, its `name` and how many `vectors`, the largest first."""
    with store.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "SELECT c.cluster, c.name, count(p.key) AS vectors"
            " FROM embedline.projection_cluster c"
            " LEFT JOIN embedline.projection_point p"
            "  ON p.projection = c.projection AND p.cluster = c.cluster"
            " WHERE c.projection = %s GROUP BY 1, 2 ORDER BY 3 DESC, 1",
            [map_],
        ).fetchall()


def _require(method: str, sample: int, clusters: int, keep: int) -> None:
    if method not in get_args(Method):
        raise ConfigError(f"method {valid_choices(method, list(get_args(Method)))}")
    for name, value, least in (
        ("sample", sample, FEWEST),
        ("clusters", clusters, 1),
        ("keep", keep, 1),
    ):
        if value < least:
            raise ConfigError(f"{name}: {value!r} must be {least} at least")
    if method == "umap":
        mapping.umap()


@dataclass(frozen=True)
class _Map:
    id: int
    method: Method
    center: list[float] | None
    axes: list[list[float]] | None

    @classmethod
    def latest(cls, store: Connection, version: ModelVersion) -> dict[Method, _Map]:
        with store.cursor(row_factory=class_row(cls)) as cursor:
            found = cursor.execute(
                "SELECT DISTINCT ON (method) id, method, center, axes"
                " FROM embedline.projection WHERE model_version = %s"
                " ORDER BY method, id DESC",
                [version.id],
            ).fetchall()
        return {one.method: one for one in found}


def _drawn(store: Connection, version: ModelVersion, seed: int, sample: int) -> Block:
    """By a hash of key and seed, so that it does not matter how the rows lie."""
    rows = sql.SQL(
        "FROM {} v JOIN (SELECT key, unit FROM {}"
        "  ORDER BY hashtextextended(key, %(seed)s), key, unit LIMIT %(sample)s) s"
        " USING (key, unit) ORDER BY v.key, v.unit"
    ).format(version.table, version.table)
    given = {"seed": seed, "sample": sample}
    return Block.of(version, vectors.read(store, version, rows, given))


def _texts(store: Connection, version: ModelVersion, drawn: Block) -> list[str | None]:
    """What is kept of their inputs. Of images that is an address, and no text."""
    if version.form.kind == "image":
        return [None] * len(drawn)
    found = store.execute(
        sql.SQL(
            "SELECT coalesce(substr(i.data, lower(v.span) + 1,"
            "  upper(v.span) - lower(v.span)), i.data)"
            " FROM unnest(%s::text[], %s::int[]) WITH ORDINALITY AS s (key, unit, n)"
            " LEFT JOIN {} v USING (key, unit) LEFT JOIN embedline.input i"
            "  ON i.model_version = %s AND i.key = v.key ORDER BY s.n"
        ).format(version.table),
        [drawn.keys, drawn.units, version.id],
    )
    return [text for (text,) in found]


def _write(
    store: Connection,
    version: ModelVersion,
    method: Method,
    seed: int,
    settings: dict[str, Any],
    found: Fitted,
) -> int:
    row = store.execute(
        "INSERT INTO embedline.projection"
        " (model_version, method, seed, settings, rows, center, axes)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s) RETURNING id",
        [
            *(version.id, method, seed, Jsonb(settings), len(found.points)),
            None if found.center is None else found.center.tolist(),
            None if found.axes is None else found.axes.tolist(),
        ],
    ).fetchone()
    assert row is not None
    return int(row[0])


def _write_clusters(
    store: Connection, projection: int, names: list[str], centers: Floats
) -> None:
    store.cursor().executemany(
        "INSERT INTO embedline.projection_cluster (projection, cluster, name, center)"
        " VALUES (%s, %s, %s, %s)",
        [
            (projection, cluster, name, center)
            for cluster, (name, center) in enumerate(
                zip(names, centers.tolist(), strict=True)
            )
        ],
    )


@dataclass(frozen=True)
class _Points:
    """Of the rows of a block: (rows, 2), and their clusters (rows,)."""

    block: Block
    points: Floats
    clusters: Ints

    def rows(self) -> Iterator[tuple[Any, ...]]:
        return zip(
            *(self.block.keys, self.block.units),
            *self.points.T.tolist(),
            *(self.clusters.tolist(), self.block.hashes),
            strict=True,
        )


def _write_points(
    store: Connection, projection: int, found: Iterable[_Points], *, placed: bool
) -> None:
    with store.cursor().copy(
        "COPY embedline.projection_point (projection, placed, key, unit, x, y, cluster,"
        " input_hash) FROM STDIN"
    ) as out:
        for part in found:
            for row in part.rows():
                out.write_row((projection, placed, *row))


def _drop_older(
    store: Connection, version: ModelVersion, method: Method, keep: int
) -> None:
    store.execute(
        "DELETE FROM embedline.projection WHERE id IN (SELECT id"
        "  FROM embedline.projection WHERE model_version = %s AND method = %s"
        "  ORDER BY id DESC OFFSET %s)",
        [version.id, method, keep],
    )


def _placed(store: Connection, version: ModelVersion, chosen: _Map) -> Placed:
    gone = _take_away(store, version, chosen)
    centers = _centers(store, chosen)
    position = _position(store, version, chosen)
    if position is None:
        return Placed(chosen.id, chosen.method, 0, gone)
    found = [
        _Points(block.without_vectors(), position(of), nearest)
        for block in _unplaced(store, version, chosen)
        for of in [mapping.comparable(block.vectors, version.distance)]
        for nearest in [mapping.nearest_center(of, centers)]
    ]
    _write_points(store, chosen.id, found, placed=True)
    count = sum(len(part.block) for part in found)
    log.info(
        "placed version=%d map=%d method=%s points=%d gone=%d",
        *(version.version, chosen.id, chosen.method, count, gone),
    )
    return Placed(chosen.id, chosen.method, count, gone)


def _take_away(store: Connection, version: ModelVersion, chosen: _Map) -> int:
    """Of older maps too: nobody places anything on those any more."""
    statement = sql.SQL(
        "DELETE FROM embedline.projection_point p WHERE projection IN (SELECT id"
        "  FROM embedline.projection WHERE model_version = %s AND method = %s)"
        " AND NOT EXISTS (SELECT FROM {} v WHERE v.key = p.key AND v.unit = p.unit"
        "  AND v.input_hash = p.input_hash) RETURNING projection"
    ).format(version.table)
    gone = store.execute(statement, [version.id, chosen.method]).fetchall()
    return sum(projection == chosen.id for (projection,) in gone)


def _centers(store: Connection, chosen: _Map) -> Floats:
    found = store.execute(
        "SELECT center FROM embedline.projection_cluster WHERE projection = %s"
        " ORDER BY cluster",
        [chosen.id],
    ).fetchall()
    return np.array([center for (center,) in found], np.float64)


def _unplaced(
    store: Connection, version: ModelVersion, chosen: _Map
) -> Iterator[Block]:
    rows = sql.SQL(
        "FROM {} v WHERE NOT EXISTS (SELECT FROM embedline.projection_point p"
        " WHERE p.projection = %(id)s AND p.key = v.key AND p.unit = v.unit)"
        " ORDER BY v.key, v.unit"
    ).format(version.table)
    return vectors.read(store, version, rows, {"id": chosen.id})


def _position(
    store: Connection, version: ModelVersion, chosen: _Map
) -> Callable[[Vectors], Floats] | None:
    """Takes comparable vectors (rows, dims), returns their points (rows, 2)."""
    if chosen.method == "pca":
        center, axes = np.array(chosen.center), np.array(chosen.axes)
        return partial(mapping.along, center=center, axes=axes)
    fitted, points = _fitted_on(store, version, chosen)
    if not len(fitted):
        log.warning(
            "all vectors that map %d was fitted on are gone: fit anew", chosen.id
        )
        return None
    of = mapping.comparable(fitted.vectors, version.distance)
    return partial(mapping.amidst, fitted=of, points=points)


def _fitted_on(
    store: Connection, version: ModelVersion, chosen: _Map
) -> tuple[Block, Floats]:
    """Those that are still there."""
    rows = sql.SQL(
        "FROM {} v JOIN embedline.projection_point p USING (key, unit)"
        " WHERE p.projection = %(id)s AND NOT p.placed ORDER BY v.key, v.unit"
    ).format(version.table)
    fitted = Block.of(version, vectors.read(store, version, rows, {"id": chosen.id}))
    points = {
        (key, unit): (x, y)
        for key, unit, x, y in store.execute(
            "SELECT key, unit, x, y FROM embedline.projection_point"
            " WHERE projection = %s AND NOT placed",
            [chosen.id],
        )
    }
    of = [points[whose] for whose in zip(fitted.keys, fitted.units, strict=True)]
    return fitted, np.array(of, np.float64).reshape(len(of), 2)
