"""Whether a window's rows lie farther out than the baseline's, or off the directions in
which those vary.

All is fitted on one part of the baseline and calibrated on another that was held out.
Rows are closer to what was fitted on them than any others are: rules that overlook this
alarm on every window (measured, NannyML's PCA reconstruction at 5,000 rows: 100 %).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from embedding_tasks.monitoring.rowwise import permutation
from embedding_tasks.monitoring.rowwise.comparison import Comparison
from embedding_tasks.monitoring.rowwise.novelty import Rate, distances, interval, reach
from embedding_tasks.monitoring.rowwise.permutation import Mask
from embedding_tasks.monitoring.sums import centroid
from embedding_tasks.monitoring.sums.moments import Moments
from embedding_tasks.monitoring.sums.rollup import BUCKETS

Floats = npt.NDArray[np.float64]

OUTLIERS = 0.01
# Of the baseline's variance the principal components keep so much.
_KEPT = 0.65
_MOST_FITTED = 10_000
_FEATURES = 512
_PAIRS = 2000
_CELLS = 5


def outliers(compared: Comparison) -> Rate:
    """A row is one when its fifth nearest neighbour in the baseline is farther than
    those of 99 % of the held-out rows."""
    beyond, rate = _beyond(compared, compared.in_window)
    dealt = [_beyond(compared, mask)[1] for mask in compared.deals]
    return Rate(
        rate,
        *interval(rate, compared.records_in_window),
        p_value=permutation.p_value(rate, dealt),
        usual=OUTLIERS,
        found=beyond,
        scores=distances(compared)[compared.in_window] / reach(compared),
        detail={"beyond_distance": reach(compared)},
    )


@dataclass(frozen=True)
class Change:
    """`change` is relative to the baseline's held-out rows: negative where the window
    is closer. `value` is its size, with its 95 % interval."""

    value: float
    low: float
    high: float
    p_value: float
    change: float


def residual(compared: Comparison) -> Change | None:
    """Of the mean distance to the principal components of the baseline. None where its
    rows are all the same."""
    if not np.ptp(compared.rest.vectors, axis=0).any():
        return None
    found = _by_record(compared, _residuals(compared))
    window, usual = found
    mean = max(float(usual.mean()), 1e-12)
    test = stats.ttest_ind(window, usual, equal_var=False)
    if np.isnan(test.pvalue):
        return None
    ends = test.confidence_interval(0.95)
    low, high = float(ends.low) / mean, float(ends.high) / mean
    change = float(window.mean()) / mean - 1
    return Change(
        value=abs(change),
        low=max(low, -high, 0.0),
        high=max(-low, high),
        p_value=float(test.pvalue),
        change=change,
    )


def mmd(compared: Comparison) -> centroid.Shift | None:
    """The kernel distance of the whole distributions (a Gaussian kernel as wide as the
    median distance), in linear time by random Fourier features (Rahimi and Recht 2007):
    it is the distance of the features' centroids. Worth it from some thousand rows on:
    it sees changes of shape that leave the mean where it was."""
    rng = np.random.default_rng(compared.settings.seed)
    dims = compared.rest.vectors.shape[1]
    width = _median_distance(compared, rng)
    frequencies = (rng.normal(size=(dims, _FEATURES)) / width).astype(np.float32)
    usual = np.concatenate([compared.held_out.vectors, compared.rest.vectors])
    before, after = (
        _moments(vectors @ frequencies, cells, rng)
        for vectors, cells in ((usual, _CELLS), (compared.window.vectors, 1))
    )
    settings = compared.settings
    return centroid.shift(
        before, after, permutations=settings.permutations, seed=settings.seed
    )


def _beyond(compared: Comparison, in_window: Mask) -> tuple[Mask, float]:
    fifth = distances(compared)
    beyond = fifth[in_window] > np.quantile(fifth[~in_window], 1 - OUTLIERS)
    return beyond, float(beyond.mean())


def _residuals(compared: Comparison) -> Floats:
    """(rows,)"""
    from sklearn.decomposition import PCA

    fitted = compared.rest.vectors[:_MOST_FITTED].astype(np.float64)
    model = PCA(_KEPT, svd_solver="covariance_eigh").fit(fitted)
    vectors = compared.vectors.astype(np.float64)
    off = vectors - model.inverse_transform(model.transform(vectors))
    lengths: Floats = np.linalg.norm(off, axis=1)
    return lengths


def _by_record(compared: Comparison, values: Floats) -> tuple[Floats, Floats]:
    """Means of the records of the window, and of those held out."""
    sides = []
    for side in (compared.in_window, ~compared.in_window):
        _, numbered = np.unique(compared.records[side], return_inverse=True)
        sides.append(np.bincount(numbered, values[side]) / np.bincount(numbered))
    return sides[0], sides[1]


def _median_distance(compared: Comparison, rng: np.random.Generator) -> float:
    vectors = compared.rest.vectors
    pairs = vectors[rng.integers(0, len(vectors), (2, _PAIRS))]
    apart = np.linalg.norm(pairs[0] - pairs[1], axis=1)
    return max(float(np.median(apart)), 1e-12)


def _moments(
    angles: npt.NDArray[np.float32], days: int, rng: np.random.Generator
) -> Moments:
    features = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    named = rng.integers(0, days, len(angles)), rng.integers(0, BUCKETS, len(angles))
    return Moments.of_vectors(features, np.zeros(len(angles)), *named)
