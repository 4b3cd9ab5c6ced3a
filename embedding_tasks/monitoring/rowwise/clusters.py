"""What is new, put into groups of its kind, each named by its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring import words
from embedding_tasks.monitoring.rowwise.sample import Ints, Sample, Vectors
from embedding_tasks.store.versions import ModelVersion

# Fewer rows are no group.
FEWEST = 5
MOST = 20
# Groups are of rows that are closer, on average, than one pair of the baseline in so
# many.
_CLOSE = 0.05
# Distances of all pairs are in memory: 2,000 rows have two million.
_MOST_ROWS = 2000
_MOST_PAIRS = 20_000
_MOST_TEXTS = 5000


@dataclass(frozen=True)
class Cluster:
    """`number` from 1 on, the largest first; `share` of the window's rows."""

    number: int
    rows: int
    share: float
    words: list[str]


def numbers(novel: Vectors, baseline: Vectors, seed: int = 0) -> Ints:
    """Of each row (rows, dims) the number of its group, 0 for none. By average linkage,
    cut where pairs of the baseline are seldom closer."""
    from sklearn.cluster import AgglomerativeClustering

    found = np.zeros(len(novel), np.int64)
    several = novel[:_MOST_ROWS]
    if len(several) < FEWEST:
        return found
    model = AgglomerativeClustering(
        n_clusters=None,
        linkage="average",
        distance_threshold=_close(baseline, seed),
    )
    groups = model.fit_predict(several.astype(np.float64))
    sizes = np.bincount(groups)
    for number, group in enumerate(np.argsort(-sizes, kind="stable")[:MOST], 1):
        if sizes[group] >= FEWEST:
            found[: len(several)][groups == group] = number
    return found


def named(
    store: Connection,
    version: ModelVersion,
    novel: Sample,
    of: Ints,
    rows: int,
    baseline: Sample,
) -> list[Cluster]:
    """The groups that `of` (rows of novel,) numbers, in a window of so many rows."""
    usual = texts(store, version, baseline.only(np.arange(len(baseline)) < _MOST_TEXTS))
    found = []
    for number in range(1, int(of.max(initial=0)) + 1):
        own = of == number
        said = texts(store, version, novel.only(own)) if usual else []
        count = int(own.sum())
        telling = words.distinguishing(said, usual) if said else []
        found.append(Cluster(number, count, count / rows, telling))
    return found


def texts(store: Connection, version: ModelVersion, rows: Sample) -> Sequence[str]:
    """What is kept of the rows' inputs; of words and entities, they themselves. None
    where inputs are no texts."""
    if version.form.kind in ("image", "autoencoder", "gan"):
        return []
    found = store.execute(
        sql.SQL(
            "SELECT {text} FROM unnest(%(keys)s::text[], %(units)s::int[])"
            " AS n (key, unit) JOIN {vectors} v ON v.key = n.key AND v.unit = n.unit"
            " JOIN embedline.input i ON i.model_version = %(version)s AND i.key = n.key"
            " WHERE i.data IS NOT NULL"
        ).format(text=_text(version), vectors=version.table),
        {
            "keys": list(rows.keys),
            "units": rows.units.tolist(),
            "version": version.id,
        },
    )
    return [text for (text,) in found if text]


def _text(version: ModelVersion) -> sql.SQL:
    if version.unit in ("word", "entity"):
        return sql.SQL(
            "substr(i.data, lower(v.span) + 1, upper(v.span) - lower(v.span))"
        )
    return sql.SQL("i.data")


def _close(baseline: Vectors, seed: int) -> float:
    rng = np.random.default_rng(seed)
    pairs = baseline[rng.integers(0, len(baseline), (2, _MOST_PAIRS))]
    apart = np.linalg.norm(pairs[0] - pairs[1], axis=1)
    return float(np.quantile(apart[apart > 0], _CLOSE)) if (apart > 0).any() else 1e-6
