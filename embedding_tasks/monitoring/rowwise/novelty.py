"""Rows of a window that are of a kind the baseline has not: most of their nearest
neighbors came with them.

Neighbors are counted in the baseline and the window together (Schilling 1986,
"Multivariate two-sample tests based on nearest neighbors"), row by row: where nothing
is new a window of a sixth of all rows has a sixth of anybody's neighbors. A new topic
of one row in twenty is found so when neither centroids nor distances show it, and the
rows are named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from embedding_tasks.monitoring.rowwise import permutation
from embedding_tasks.monitoring.rowwise.comparison import NEIGHBORS, Comparison
from embedding_tasks.monitoring.rowwise.permutation import Mask

Floats = npt.NDArray[np.float64]

# One row in so many has as many neighbors of the window by chance.
_BY_CHANCE = 5e-4
# Of the p-value: rows that lack so many neighbors still count, if less. A topic that
# is not far enough from all others has many of them.
_NEARLY = 2


@dataclass(frozen=True)
class Rate:
    """Of a window's rows: `value` with its 95 % interval, what is `usual` where nothing
    has changed, and the p-value of that. `found` (rows of the window,) are they, and
    `scores` say how far each is from the baseline: 1 is as far as its farthest one in a
    hundred. `detail` is for people."""

    value: float
    low: float
    high: float
    p_value: float
    usual: float
    found: Mask
    scores: Floats
    detail: Mapping[str, Any]


def novelty(compared: Comparison) -> Rate:
    """A row is novel when at least `fewest` of its ten nearest neighbors are of the
    window: seven, where that is a sixth of all rows."""
    fewest = fewest_neighbors(len(compared.window), compared.rows_of_baseline)
    shared, rate, tail = _counts(compared, compared.in_window, fewest)
    dealt = [_counts(compared, mask, fewest)[1:] for mask in compared.deals]
    rates, tails = zip(*dealt, strict=True)
    return Rate(
        rate,
        *interval(rate, compared.records_in_window),
        p_value=permutation.p_value(tail, tails),
        usual=float(np.mean(rates)),
        found=shared >= fewest,
        scores=distances(compared)[compared.in_window] / reach(compared),
        detail={"of_ten_neighbors": fewest},
    )


def fewest_neighbors(window: int, baseline: int) -> int:
    """How many of the ten must be of the window: more than chance gives one row in two
    thousand, and more than a few."""
    share = window / max(window + baseline, 1)
    counts = np.arange(1, NEIGHBORS + 1)
    by_chance = stats.binom.sf(counts - 1, NEIGHBORS, share)
    enough = counts[(by_chance <= _BY_CHANCE) & (counts > NEIGHBORS // 3)]
    return int(enough[0]) if len(enough) else NEIGHBORS


def interval(rate: float, records: int) -> tuple[float, float]:
    """Wilson's, 95 %: rows of one record are no more evidence than one."""
    found = stats.binomtest(round(rate * records), max(records, 1))
    ends = found.proportion_ci(method="wilson")
    return float(min(ends.low, rate)), float(max(ends.high, rate))


def distances(compared: Comparison) -> Floats:
    """(rows,) to the fifth nearest of the rest of the baseline."""
    fifth: Floats = compared.near_rest.distances[:, 4].astype(np.float64)
    return fifth


def reach(compared: Comparison) -> float:
    """The distance beyond which one in a hundred of the held-out rows is."""
    held_out = distances(compared)[~compared.in_window]
    return max(float(np.quantile(held_out, 0.99)), 1e-12)


def _counts(
    compared: Comparison, in_window: Mask, fewest: int
) -> tuple[Floats, float, float]:
    """Of the rows that are dealt to the window: how many neighbors of each are, the
    share of rows that have enough, and a smoother statistic of the same."""
    padded = np.append(in_window, False)
    nowhere = len(in_window)
    own = compared.near.rows[in_window]
    shared = padded[np.minimum(own, nowhere)].sum(axis=1)
    above = np.maximum(shared - fewest + 1 + _NEARLY, 0)
    return shared, float((shared >= fewest).mean()), float(above.mean())
