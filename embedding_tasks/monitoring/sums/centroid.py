"""How far the centroid of a window has moved from that of a baseline.

The squared distance of two centroids is never zero, drift or none: each is off by the
spread of its rows over their number. What is reported has that taken off. Classes are
compared with themselves, so that a day with more of one class than usual is not drift
of the vectors (it is a change of the mix, which has a statistic of its own): measured,
days whose classes vary by a point alarm a plain comparison on two days of three, this
one on one of twenty.

p-values are of permutations of cells within classes, intervals of a jackknife over the
buckets of keys; both hold at their nominal level without an assumption about the shape
of the vectors' distribution, of which sentence embeddings satisfy none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import stats

from embedding_tasks.monitoring.sums.moments import Floats, Moments

PERMUTATIONS = 999
# Days of a baseline are put together to so many, which bounds what a window costs.
DAY_GROUPS = 5
# Below, neither side has a spread of its own.
_FEWEST = 2
_TINY = 1e-12


@dataclass(frozen=True)
class Shift:
    """`effect`: the distance beyond noise, in standard deviations of the baseline
    within its classes, so that models compare; [`low`, `high`] its 95 % interval.
    `p_value` of the hypothesis that there is none. `distance` is the plain one between
    the centroids, and `noise` what it would be without drift. `covered` is the share
    of the window's vectors whose class both sides have."""

    effect: float
    low: float
    high: float
    p_value: float
    distance: float
    noise: float
    covered: float


@dataclass(frozen=True)
class ClassShift:
    """Of one class alone. `share` is how much of the whole shift it accounts for; the
    shares add up to 1, and one that moved the other way has a negative one."""

    label: int
    rows: int
    effect: float
    share: float


def shift(
    baseline: Moments,
    window: Moments,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Shift | None:
    """Of the window from the baseline, class by class. None where they have no class
    in common of which each has two vectors."""
    strata = _strata(baseline.of_few_days(DAY_GROUPS), window)
    if not strata:
        return None
    rng = np.random.default_rng(seed)
    shares = _shares(strata)
    spread = _spread(strata, shares)
    observed = _squared([s.observed() for s in strata], strata, shares)
    permuted = _squared([s.permuted(permutations, rng) for s in strata], strata, shares)
    buckets = np.union1d(baseline.buckets, window.buckets)
    left_out = _squared([s.left_out(buckets) for s in strata], strata, shares)
    value = float(observed.beyond[0])
    low, high = _interval(value, left_out.beyond)
    at_least = int((permuted.in_noise >= observed.in_noise * (1 - _TINY)).sum())
    return Shift(
        effect=_root(value / spread),
        low=_root(low / spread),
        high=_root(high / spread),
        p_value=(1 + at_least) / (1 + permutations),
        distance=_root(float(observed.plain[0])),
        noise=_root(float(observed.noise[0])),
        covered=sum(len(s.window) for s in strata) / len(window),
    )


def by_class(baseline: Moments, window: Moments) -> list[ClassShift]:
    """The most moved first."""
    strata = _strata(baseline, window)
    if not strata:
        return []
    shares = _shares(strata)
    moves = np.stack([s.window.mean - s.baseline.mean for s in strata])
    whole = shares @ moves
    along = moves @ whole / max(float(whole @ whole), _TINY)
    found = []
    for stratum, share, part in zip(strata, shares, along, strict=True):
        own = _squared([stratum.observed()], [stratum], np.ones(1))
        effect = _root(float(own.beyond[0]) / max(stratum.baseline.variance, _TINY))
        rows = len(stratum.window)
        found.append(ClassShift(stratum.label, rows, effect, float(share * part)))
    return sorted(found, key=lambda own: -abs(own.share))


@dataclass(frozen=True)
class _Weights:
    """Of a class' cells in the window, and in both sides together, (variants, cells);
    or one row where all variants have the same."""

    window: Floats
    both: Floats


@dataclass(frozen=True)
class _Stratum:
    """One class. Its cells are those of the window, then those of the baseline."""

    label: int
    window: Moments
    baseline: Moments

    @cached_property
    def counts(self) -> Floats:
        both = [self.window.counts, self.baseline.counts]
        counts: Floats = np.concatenate(both).astype(np.float64)
        return counts

    @cached_property
    def means(self) -> Floats:
        return np.concatenate([self.window.means, self.baseline.means])

    @cached_property
    def squares(self) -> Floats:
        return np.concatenate([self.window.squares, self.baseline.squares])

    def observed(self) -> _Weights:
        return self._weights(self._in_window()[None])

    def permuted(self, times: int, rng: np.random.Generator) -> _Weights:
        several = np.tile(self._in_window(), (times, 1))
        return self._weights(rng.permuted(several, axis=1))

    def left_out(self, buckets: npt.NDArray[np.int64]) -> _Weights:
        own = np.concatenate([self.window.buckets, self.baseline.buckets])
        kept = own[None] != buckets[:, None]
        whole = self.observed()
        return _Weights(whole.window * kept, whole.both * kept)

    def _in_window(self) -> npt.NDArray[np.bool_]:
        cells = len(self.window.counts), len(self.baseline.counts)
        return np.repeat([True, False], cells)

    def _weights(self, in_window: npt.NDArray[np.bool_]) -> _Weights:
        return _Weights(in_window * self.counts, self.counts[None])


@dataclass(frozen=True)
class _Squared:
    """Squared distances of variants (variants,), and those to expect without drift."""

    plain: Floats
    noise: Floats

    @property
    def beyond(self) -> Floats:
        return self.plain - self.noise

    @property
    def in_noise(self) -> Floats:
        """Comparable between windows of any size: permuted ones have cells of the
        baseline, which are larger or smaller."""
        return self.plain / np.maximum(self.noise, _TINY)


def _squared(
    weights: Sequence[_Weights], strata: Sequence[_Stratum], shares: Floats
) -> _Squared:
    moved: Floats | float = 0.0
    noise: Floats | float = 0.0
    for own, stratum, share in zip(weights, strata, shares, strict=True):
        window = _Sums.of(own.window, stratum)
        baseline = _Sums.of(own.both, stratum).less(window)
        moved = moved + share * (window.centroids - baseline.centroids)
        noise = noise + share**2 * (window.noise + baseline.noise)
    plain: Floats = np.square(moved).sum(axis=-1)
    return _Squared(plain, np.asarray(noise))


@dataclass(frozen=True)
class _Sums:
    """Of one side's vectors: how many (variants,), their sum (variants, dims) and that
    of their squared norms (variants,)."""

    rows: Floats
    vectors: Floats
    squares: Floats

    @classmethod
    def of(cls, weights: Floats, stratum: _Stratum) -> _Sums:
        return cls(
            weights.sum(axis=1),
            weights @ stratum.means,
            weights @ stratum.squares,
        )

    def less(self, other: _Sums) -> _Sums:
        return _Sums(
            self.rows - other.rows,
            self.vectors - other.vectors,
            self.squares - other.squares,
        )

    @property
    def _counts(self) -> Floats:
        return np.maximum(self.rows, _FEWEST)

    @property
    def centroids(self) -> Floats:
        centroids: Floats = self.vectors / self._counts[:, None]
        return centroids

    @property
    def noise(self) -> Floats:
        """How far each centroid is off by chance, squared."""
        around = self.squares / self._counts - np.square(self.centroids).sum(axis=1)
        noise: Floats = np.maximum(around, 0) / (self._counts - 1)
        return noise


def _strata(baseline: Moments, window: Moments) -> list[_Stratum]:
    """Of the classes of which both sides have a centroid, and a spread around it."""
    return [
        _Stratum(label, own, other)
        for label, own, other in _by_label(baseline, window)
        if min(len(own), len(other)) >= _FEWEST
    ]


def _by_label(
    baseline: Moments, window: Moments
) -> Iterator[tuple[int, Moments, Moments]]:
    for label in np.intersect1d(baseline.classes, window.classes):
        yield (
            int(label),
            window.only(window.classes == label),
            baseline.only(baseline.classes == label),
        )


def _shares(strata: Sequence[_Stratum]) -> Floats:
    """The mix of the window, on both sides."""
    rows = np.array([len(s.window) for s in strata], np.float64)
    shares: Floats = rows / rows.sum()
    return shares


def _spread(strata: Sequence[_Stratum], shares: Floats) -> float:
    """Variance of the baseline within its classes."""
    return max(float(shares @ [s.baseline.variance for s in strata]), _TINY)


def _interval(value: float, left_out: Floats) -> tuple[float, float]:
    """The jackknife's, around a value that was made again without each bucket."""
    buckets = len(left_out)
    if buckets < _FEWEST:
        return float("-inf"), float("inf")
    off = left_out - left_out.mean()
    error = np.sqrt((buckets - 1) / buckets * float(off @ off))
    reach = float(stats.t.ppf(0.975, buckets - 1) * error)
    return value - reach, value + reach


def _root(value: float) -> float:
    return float(np.sqrt(max(value, 0.0)))
