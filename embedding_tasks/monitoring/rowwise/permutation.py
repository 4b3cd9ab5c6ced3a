"""p-values by dealing records out anew.

When nothing has changed, the records of a window and those that were held out of the
baseline are exchangeable: whatever is computed from who is which has the distribution
that it has over all ways to deal them, however the vectors are distributed. Rows of one
record (its words, its entities) go together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


def deals(in_window: Mask, records: Ints, times: int, seed: int) -> list[Mask]:
    """Which rows (rows,) are of the window, dealt anew; `records` (rows,) numbers the
    record of each."""
    rng = np.random.default_rng(seed)
    _, first, numbered = np.unique(records, return_index=True, return_inverse=True)
    sides = in_window[first]
    return [rng.permutation(sides)[numbered] for _ in range(times)]


def p_value(observed: float, dealt: Sequence[float] | npt.NDArray[np.float64]) -> float:
    """Of a statistic that is larger when something has changed.

    The mid-p-value: of equal values half count. A rate of few rows takes few values,
    and would else alarm at a fraction of its level (Lancaster 1961, "Significance
    tests in discrete distributions")."""
    values = np.asarray(dealt, np.float64)
    equal = float((values == observed).sum())
    return (0.5 + float((values > observed).sum()) + 0.5 * equal) / (len(values) + 1)
