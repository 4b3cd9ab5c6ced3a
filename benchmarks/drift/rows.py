"""Rows of vectors, and corpora of them that are dealt to a baseline and a window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.cluster import MiniBatchKMeans

Vectors = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SEED = 7
CLASSES = 10


@dataclass(frozen=True)
class Rows:
    """Vectors (rows, dims) and the class of each."""

    vectors: Vectors
    classes: Ints

    def __len__(self) -> int:
        return len(self.classes)

    def only(self, chosen: Ints) -> Rows:
        return Rows(self.vectors[chosen], self.classes[chosen])

    def first(self, rows: int) -> Rows:
        return Rows(self.vectors[:rows], self.classes[:rows])

    def and_those(self, other: Rows) -> Rows:
        return Rows(
            np.concatenate([self.vectors, other.vectors]),
            np.concatenate([self.classes, other.classes]),
        )

    def moved(self, by: Vectors) -> Rows:
        return Rows(self.vectors + by, self.classes)

    @property
    def counts(self) -> Ints:
        return np.bincount(self.classes, minlength=CLASSES)

    @property
    def shares(self) -> Floats:
        return self.counts / len(self)


Deal = Callable[[int, np.random.Generator], tuple[Rows, Rows]]
"""A baseline, and a window of so many rows that something has happened to."""


@dataclass(frozen=True)
class Corpus:
    """`sizes` of the windows that there are rows enough for, and by name what happens
    to them."""

    sizes: tuple[int, ...]
    changes: Mapping[str, Deal]


def unit(vectors: Vectors) -> Vectors:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def groups(vectors: Vectors, count: int) -> MiniBatchKMeans:
    return MiniBatchKMeans(count, random_state=SEED, n_init=3).fit(vectors)
