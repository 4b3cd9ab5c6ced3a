"""The rows of a window beside those of a baseline, of which some are held out: what is
usual is read off rows that nothing was fitted on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from embedding_tasks.monitoring.nearest import Apart, Neighbors, nearest
from embedding_tasks.monitoring.rowwise import permutation
from embedding_tasks.monitoring.rowwise.permutation import Mask
from embedding_tasks.monitoring.rowwise.sample import Ints, Sample, Vectors

NEIGHBORS = 10
# Of their spread vectors are moved at random: more than the rounding of a distance, and
# less than any that means something.
_APART = 2e-3


@dataclass(frozen=True)
class Settings:
    """What bounds the work, whatever the store holds: rows that are compared at most
    (12,000 with 50,000 of 384 dimensions: half a minute of one processor), and how
    often p-values deal them anew. `held_out` records of the baseline at least, and at
    most half of it. `mmd`: compare distributions by random Fourier features, too."""

    most_of_baseline: int = 50_000
    most_of_window: int = 10_000
    held_out: int = 2000
    permutations: int = 999
    seed: int = 0
    mmd: bool = False


@dataclass(frozen=True)
class Comparison:
    """`rows` of the window, then those `held out` of the baseline: `in_window` (rows,)
    says which are of the window, `records` (rows,) numbers their records. Their
    neighbors: `near` among themselves and the `rest` of the baseline, which follows
    them in the pool; `near_rest` in that alone."""

    window: Sample
    held_out: Sample
    rest: Sample
    in_window: Mask
    records: Ints
    near: Neighbors
    near_rest: Neighbors
    settings: Settings = field(default_factory=Settings)

    @property
    def records_in_window(self) -> int:
        return len(np.unique(self.records[self.in_window]))

    @property
    def rows_of_baseline(self) -> int:
        return len(self.held_out) + len(self.rest)

    @property
    def vectors(self) -> Vectors:
        return np.concatenate([self.window.vectors, self.held_out.vectors])

    @cached_property
    def deals(self) -> list[Mask]:
        settings = self.settings
        return permutation.deals(
            self.in_window, self.records, settings.permutations, settings.seed
        )


def compare(baseline: Sample, window: Sample, settings: Settings) -> Comparison:
    """A window larger than the baseline is cut to its size: among its neighbors alone
    every row would look new."""
    window = window.only(np.arange(min(len(window), len(baseline))))
    records_in_window = len(np.unique(window.keys.astype(str)))
    held_out, rest = _split(baseline, records_in_window, settings)
    names = np.concatenate([window.keys, held_out.keys, rest.keys])
    numbered = np.unique(names.astype(str), return_inverse=True)[1].astype(np.int64)
    rows = len(window) + len(held_out)
    own, others = numbered[:rows], numbered[rows:]
    every = [window.vectors, held_out.vectors, rest.vectors]
    vectors = _told_apart(np.concatenate(every), settings.seed)
    vectors, known_vectors = vectors[:rows], vectors[rows:]
    among = nearest(vectors, vectors, NEIGHBORS, Apart(own, own))
    known = nearest(vectors, known_vectors, NEIGHBORS, Apart(own, others))
    return Comparison(
        window,
        held_out,
        rest,
        in_window=np.arange(rows) < len(window),
        records=own,
        near=among.and_those(known.from_place(rows)),
        near_rest=known,
        settings=settings,
    )


def _told_apart(vectors: Vectors, seed: int) -> Vectors:
    """Of many that are the same, neighbors are any, and not those that stand first, who
    are of the window: measured, where three rows of ten were the same text every third
    window without drift had a p-value under 0.05."""
    spread = np.sqrt(np.square(vectors - vectors.mean(axis=0)).mean(dtype=np.float64))
    noise = np.random.default_rng(seed).standard_normal(vectors.shape, np.float32)
    noise *= np.float32(_APART * spread)
    noise += vectors
    return noise


def _split(baseline: Sample, as_many: int, settings: Settings) -> tuple[Sample, Sample]:
    """By records: all rows of one are on one side."""
    rng = np.random.default_rng(settings.seed)
    records, numbered = np.unique(baseline.keys.astype(str), return_inverse=True)
    wanted = min(len(records) // 2, max(as_many, settings.held_out))
    is_held_out = rng.permutation(len(records))[numbered] < wanted
    return baseline.only(is_held_out), baseline.only(~is_held_out)
