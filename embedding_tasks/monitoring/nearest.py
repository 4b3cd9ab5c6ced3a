"""Exact nearest neighbors in memory, by products of blocks of matrices."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# Products that are in memory at once: 64 MB of them.
_BLOCK = 16_000_000
# The least of so many are found in one step of the processor for several: measured, to
# select ten of 20,000 takes a tenth of the time.
_GROUP = 32


@dataclass(frozen=True)
class Neighbors:
    """(rows, k), the nearest first: which rows of a pool, and how far they are; -1 and
    infinity where there are fewer."""

    rows: Ints
    distances: Vectors

    def and_those(self, other: Neighbors) -> Neighbors:
        """The nearest k of both."""
        rows = np.concatenate([self.rows, other.rows], axis=1)
        distances = np.concatenate([self.distances, other.distances], axis=1)
        order = np.argsort(distances, axis=1, kind="stable")
        nearest = order[:, : self.rows.shape[1]]
        return Neighbors(
            np.take_along_axis(rows, nearest, axis=1),
            np.take_along_axis(distances, nearest, axis=1),
        )

    def from_place(self, offset: int) -> Neighbors:
        """As of a pool that begins with so many other rows."""
        return replace(self, rows=np.where(self.rows < 0, -1, self.rows + offset))


@dataclass(frozen=True)
class Apart:
    """Rows of one record are not each other's neighbors: `records` (rows,) and
    `of_pool` (pool,) number them."""

    records: Ints
    of_pool: Ints

    @classmethod
    def each(cls, rows: int) -> Apart:
        """None is its own neighbor, in a pool of the same rows."""
        return cls(np.arange(rows), np.arange(rows))


def nearest(
    vectors: Vectors, pool: Vectors, k: int, apart: Apart | None = None
) -> Neighbors:
    """Of each of `vectors` (rows, dims) in `pool` (pool, dims), by the Euclidean
    distance."""
    # far from the origin nothing would be left of small distances
    center = pool.mean(axis=0) if len(pool) else np.float32(0)
    vectors, pool = vectors - center, pool - center
    found = _least(vectors, pool, np.square(pool).sum(axis=1), k, apart)
    squares = found.distances + np.square(vectors).sum(axis=1)[:, None]
    distances = np.sqrt(np.maximum(squares, 0)).astype(np.float32, copy=False)
    return replace(found, distances=distances)


def largest_products(
    vectors: Vectors, pool: Vectors, k: int, apart: Apart | None = None
) -> Neighbors:
    """By the inner product; its negative is the distance."""
    found = _least(vectors, pool, np.zeros(len(pool), np.float32), k, apart)
    return replace(found, distances=found.distances / np.float32(2))


def _least(
    vectors: Vectors, pool: Vectors, squares: Vectors, k: int, apart: Apart | None
) -> Neighbors:
    """Of `squares` (pool,) less twice the inner product."""
    rows = np.full((len(vectors), k), -1, np.int64)
    values = np.full((len(vectors), k), np.inf, np.float32)
    step = max(1, _BLOCK // max(len(pool), 1))
    width = min(k, len(pool))
    for start in range(0, len(vectors) if width else 0, step):
        part = slice(start, start + step)
        scores = (-2 * vectors[part]) @ pool.T
        scores += squares
        if apart is not None:
            _take_apart(scores, apart.records[part], apart.of_pool)
        rows[part, :width], values[part, :width] = _smallest(scores, width)
    rows[np.isinf(values)] = -1
    return Neighbors(rows, values)


def _take_apart(scores: Vectors, records: Ints, of_pool: Ints) -> None:
    order = np.argsort(of_pool, kind="stable")
    first, last = (
        np.searchsorted(of_pool[order], records, side) for side in ("left", "right")
    )
    counts = last - first
    before = np.repeat(np.cumsum(counts) - counts - first, counts)
    columns = order[np.arange(counts.sum()) - before]
    scores[np.repeat(np.arange(len(records)), counts), columns] = np.inf


def _smallest(scores: Vectors, k: int) -> tuple[Ints, Vectors]:
    """(rows, k), in order."""
    some = _candidates(scores, k)
    values = np.take_along_axis(scores, some, axis=1)
    chosen = np.argpartition(values, k - 1, axis=1)[:, :k]
    chosen_values = np.take_along_axis(values, chosen, axis=1)
    order = np.argsort(chosen_values, axis=1, kind="stable")
    return (
        np.take_along_axis(some, np.take_along_axis(chosen, order, axis=1), axis=1),
        np.take_along_axis(chosen_values, order, axis=1),
    )


def _candidates(scores: Vectors, k: int) -> Ints:
    """Columns among which are the k least of each row: no more than k groups of columns
    have any of them, and those are the groups of the least minima."""
    rows, columns = scores.shape
    groups = columns // _GROUP
    if groups <= k:
        return np.broadcast_to(np.arange(columns), scores.shape)
    grouped = groups * _GROUP
    minima = scores[:, :grouped].reshape(rows, _GROUP, groups).min(axis=1)
    best = np.argpartition(minima, k - 1, axis=1)[:, :k]
    members = best[:, :, None] + groups * np.arange(_GROUP)
    others = np.broadcast_to(np.arange(grouped, columns), (rows, columns - grouped))
    return np.concatenate([members.reshape(rows, -1), others], axis=1)
