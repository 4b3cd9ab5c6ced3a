"""Exact nearest neighbors in memory, by products of blocks of matrices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# Distances that are in memory at once: 64 MB of them.
_BLOCK = 16_000_000


@dataclass(frozen=True)
class Neighbors:
    """(rows, k), the nearest first: which rows of a pool, and their Euclidean
    distances. Where there is none it is infinitely far, and past the pool's end."""

    indices: Ints
    distances: Vectors

    def and_those(self, other: Neighbors) -> Neighbors:
        """The nearest k of both."""
        indices = np.concatenate([self.indices, other.indices], axis=1)
        distances = np.concatenate([self.distances, other.distances], axis=1)
        order = np.argsort(distances, axis=1, kind="stable")
        nearest = order[:, : self.indices.shape[1]]
        return Neighbors(
            np.take_along_axis(indices, nearest, axis=1),
            np.take_along_axis(distances, nearest, axis=1),
        )

    def from_place(self, offset: int) -> Neighbors:
        """As of a pool that begins with so many other rows."""
        return Neighbors(self.indices + offset, self.distances)


def nearest(
    vectors: Vectors, pool: Vectors, k: int, records: Ints, records_of_pool: Ints
) -> Neighbors:
    """Of each of `vectors` (rows, dims) in `pool` (pool, dims), but for those of its
    own record; `records` (rows,) and `records_of_pool` (pool,) number them."""
    found = list(_blocks(vectors, pool, k, records, records_of_pool))
    if not found:
        none = np.zeros((0, k), np.int64)
        return Neighbors(none, none.astype(np.float32))
    indices, squares = (np.concatenate(part) for part in zip(*found, strict=True))
    missing = k - indices.shape[1]
    if missing > 0:
        beside = ((0, 0), (0, missing))
        indices = np.pad(indices, beside)
        squares = np.pad(squares, beside, constant_values=np.inf)
    indices[np.isinf(squares)] = len(pool)
    return Neighbors(indices, np.sqrt(np.maximum(squares, 0)))


def _blocks(
    vectors: Vectors, pool: Vectors, k: int, records: Ints, records_of_pool: Ints
) -> Iterator[tuple[Ints, Vectors]]:
    lengths = np.square(pool).sum(axis=1)
    rows = max(1, _BLOCK // max(len(pool), 1))
    for start in range(0, len(vectors), rows):
        part = vectors[start : start + rows]
        squares = part @ pool.T
        squares *= -2
        squares += lengths
        squares += np.square(part).sum(axis=1)[:, None]
        own = records[start : start + rows, None] == records_of_pool
        squares[own] = np.inf
        yield _least(squares, k)


def _least(squares: Vectors, k: int) -> tuple[Ints, Vectors]:
    k = min(k, squares.shape[1])
    if k < squares.shape[1]:
        some = np.argpartition(squares, k, axis=1)[:, :k]
    else:
        some = np.broadcast_to(np.arange(k), (len(squares), k))
    values = np.take_along_axis(squares, some, axis=1)
    order = np.argsort(values, axis=1, kind="stable")
    return (
        np.take_along_axis(some, order, axis=1).astype(np.int64),
        np.take_along_axis(values, order, axis=1),
    )
