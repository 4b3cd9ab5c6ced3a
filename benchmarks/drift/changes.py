"""What happens to the rows of a window, whatever they are of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.drift.rows import CLASSES, Floats, Rows

Change = Callable[[Rows, int, np.random.Generator], Rows]
"""Of rows that the baseline has not, in any order, so many."""


def nothing(left: Rows, rows: int, rng: np.random.Generator) -> Rows:
    return left.first(rows)


def jitter(
    points: float, usual: Rows, left: Rows, rows: int, rng: np.random.Generator
) -> Rows:
    """Each class by so many percentage points, as on any day: no drift."""
    shares = np.abs(usual.shares + rng.normal(0, points / 100, CLASSES))
    return _mixed(left, rows, shares / shares.sum(), rng)


def mean_shift(
    size: float, usual: Rows, left: Rows, rows: int, rng: np.random.Generator
) -> Rows:
    """In any one direction, by so many standard deviations of a vector."""
    direction = rng.normal(size=left.vectors.shape[1])
    spread = np.sqrt(usual.vectors.var(axis=0).sum())
    direction *= size * spread / np.linalg.norm(direction)
    return left.first(rows).moved(direction.astype(np.float32))


def wider(by: float, left: Rows, rows: int, rng: np.random.Generator) -> Rows:
    """Every row so much farther from the mean of its class, and back to length 1."""
    chosen = left.first(rows)
    means = np.stack(
        [left.vectors[left.classes == c].mean(axis=0) for c in range(CLASSES)]
    )[chosen.classes]
    vectors = means + (1 + by) * (chosen.vectors - means)
    return Rows(
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True), chosen.classes
    )


def prior(usual: Rows, left: Rows, rows: int, rng: np.random.Generator) -> Rows:
    """Half of the classes gain ten points together, the others lose them."""
    shares = usual.shares
    gains = rng.permutation(CLASSES) < CLASSES // 2
    shares[gains] *= 1 + 0.1 / shares[gains].sum()
    shares[~gains] *= 1 - 0.1 / shares[~gains].sum()
    return _mixed(left, rows, shares, rng)


def _mixed(left: Rows, rows: int, shares: Floats, rng: np.random.Generator) -> Rows:
    counts = rng.multinomial(rows, shares)
    chosen = [
        np.flatnonzero(left.classes == label)[:count]
        for label, count in enumerate(counts)
    ]
    return left.only(np.concatenate(chosen))


def of_the_mix(usual: Rows) -> dict[str, Change]:
    return {
        "no drift": nothing,
        "mix ±1 pp": partial(jitter, 1.0, usual),
        "mix ±1.5 pp": partial(jitter, 1.5, usual),
        "prior 10 pp": partial(prior, usual),
    }


def dealt(
    usual: Rows, baseline: int, change: Change, rows: int, rng: np.random.Generator
) -> tuple[Rows, Rows]:
    order = rng.permutation(len(usual))
    left = usual.only(order[baseline:])
    return usual.only(order[:baseline]), change(left, rows, rng)
