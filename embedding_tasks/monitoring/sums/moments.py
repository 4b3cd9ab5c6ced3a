"""Vectors summed up by cell, so that any window is compared with any baseline without
reading a vector again.

A cell is what one day, one predicted class and one bucket of keys have in common. Cells
add up: a window is the cells of its days. Within a class the cells of one side are
exchangeable with those of the other when nothing has drifted, which is what gives
p-values and intervals from sums alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Moments:
    """`counts` (cells,) of vectors, `means` (cells, dims) of them, `squares` (cells,)
    the mean of their squared norms; `classes`, `days` and `buckets` (cells,) say which
    cell each is. A class is a number, the same on both sides of a comparison."""

    classes: Ints
    days: Ints
    buckets: Ints
    counts: Ints
    means: Floats
    squares: Floats

    @classmethod
    def of_vectors(
        cls,
        vectors: npt.NDArray[np.floating],
        classes: npt.ArrayLike,
        days: npt.ArrayLike,
        buckets: npt.ArrayLike,
    ) -> Moments:
        """Of vectors (rows, dims) in memory: as the store sums them up."""
        wide = vectors.astype(np.float64)
        return cls(
            classes=np.asarray(classes, np.int64),
            days=np.asarray(days, np.int64),
            buckets=np.asarray(buckets, np.int64),
            counts=np.ones(len(wide), np.int64),
            means=wide,
            squares=np.square(wide).sum(axis=1),
        )._merged()

    def __len__(self) -> int:
        """Vectors, not cells."""
        return int(self.counts.sum())

    def only(self, chosen: npt.NDArray[np.bool_]) -> Moments:
        return Moments(
            self.classes[chosen],
            self.days[chosen],
            self.buckets[chosen],
            self.counts[chosen],
            self.means[chosen],
            self.squares[chosen],
        )

    def of_days(self, days: Sequence[int]) -> Moments:
        return self.only(np.isin(self.days, days))

    def of_few_days(self, most: int) -> Moments:
        """Neighbouring days put together, as if there had been no more than so many."""
        days, rank = np.unique(self.days, return_inverse=True)
        if len(days) <= most:
            return self
        return replace(self, days=rank * most // len(days))._merged()

    def without_classes(self) -> Moments:
        """As if all were of one class."""
        return replace(self, classes=np.zeros_like(self.classes))._merged()

    def _merged(self) -> Moments:
        """Cells of one class, day and bucket become one."""
        if not len(self.counts):
            return self
        named = np.stack([self.classes, self.days, self.buckets], axis=1)
        cells, cell = np.unique(named, axis=0, return_inverse=True)
        order = np.argsort(cell, kind="stable")
        starts = np.searchsorted(cell[order], np.arange(len(cells)))
        counts = np.add.reduceat(self.counts[order], starts)
        sums = (self.means * self.counts[:, None])[order]
        means = np.add.reduceat(sums, starts, axis=0)
        squares = np.bincount(cell, self.squares * self.counts, len(cells))
        classes, days, buckets = cells.T
        return Moments(
            *(classes, days, buckets, counts),
            *(means / counts[:, None], squares / counts),
        )

    @property
    def mean(self) -> Floats:
        """(dims,)"""
        shares: Floats = self.counts / self.counts.sum()
        mean: Floats = shares @ self.means
        return mean

    @property
    def variance(self) -> float:
        """The trace of their covariance: the mean squared distance from the mean, of
        at least two vectors."""
        square = float(self.counts @ self.squares) / len(self)
        beyond = max(square - float(self.mean @ self.mean), 0.0)
        return beyond * len(self) / (len(self) - 1)
