"""A number that was measured, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from embedding_tasks.monitoring.sums.moments import Floats

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval and its standard error."""

    value: float
    low: float
    high: float
    error: float


def of_error(value: float, error: float) -> Figure:
    """With the interval of the normal distribution."""
    reach = float(stats.norm.ppf(0.5 + _CONFIDENCE / 2)) * error
    return Figure(value, value - reach, value + reach, error)


def of_draws(value: float, drawn: Floats) -> Figure:
    """With the interval of draws (draws,), made to contain the value."""
    low, high = np.quantile(drawn, [0.5 - _CONFIDENCE / 2, 0.5 + _CONFIDENCE / 2])
    error = float(drawn.std(ddof=1))
    return Figure(value, min(float(low), value), max(float(high), value), error)


def wilson(count: int, rows: int) -> tuple[float, float]:
    """The interval of a share."""
    interval = stats.binomtest(count, rows).proportion_ci(_CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def p_value(difference: float, error: float) -> float:
    """That it is none, of a normal error, two-sided."""
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * stats.norm.sf(abs(difference) / error))
