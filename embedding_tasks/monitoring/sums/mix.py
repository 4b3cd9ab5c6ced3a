"""Whether a model predicts its classes as often as it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from embedding_tasks.monitoring.sums.moments import Floats

# Pearson's test is good from about so many expected rows in a cell; classes that have
# fewer are taken as one.
_EXPECTED = 5.0
_RESAMPLES = 2000


@dataclass(frozen=True)
class MixChange:
    """`effect`: the total variation distance, the share of rows that would have to be
    predicted otherwise; [`low`, `high`] its 95 % interval. `p_value` of Pearson's test
    of homogeneity. `changes`: each class' share in the window less that before."""

    effect: float
    low: float
    high: float
    p_value: float
    changes: Mapping[str, float]


def change(
    baseline: Mapping[str, int], window: Mapping[str, int], *, seed: int = 0
) -> MixChange | None:
    """Of counts by class. None where a side has no row."""
    names = sorted({*baseline, *window})
    before = np.array([baseline.get(name, 0) for name in names], np.float64)
    after = np.array([window.get(name, 0) for name in names], np.float64)
    if not before.sum() or not after.sum():
        return None
    differences = after / after.sum() - before / before.sum()
    effect = float(_total_variation(differences))
    low, high = _interval(before, after, seed)
    return MixChange(
        effect,
        low=min(low, effect),
        high=max(high, effect),
        p_value=_p_value(before, after),
        changes=dict(zip(names, differences.tolist(), strict=True)),
    )


def _p_value(before: Floats, after: Floats) -> float:
    table = _of_enough(np.stack([before, after]))
    if table.shape[1] < 2:
        return 1.0
    return float(stats.chi2_contingency(table, correction=False).pvalue)


def _of_enough(table: Floats) -> Floats:
    rows = table.sum(axis=1)
    expected = table.sum(axis=0) * rows.min() / rows.sum()
    rare = expected < _EXPECTED
    merged = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)])
    return merged[:, merged.sum(axis=0) > 0]


def _interval(before: Floats, after: Floats, seed: int) -> tuple[float, float]:
    """The basic bootstrap's, which takes off what resampling adds by itself."""
    rng = np.random.default_rng(seed)
    was, has = before / before.sum(), after / after.sum()
    drawn = [
        rng.multinomial(int(rows.sum()), share, _RESAMPLES) / rows.sum()
        for rows, share in ((before, was), (after, has))
    ]
    resampled = _total_variation(drawn[1] - drawn[0])
    value = _total_variation(has - was)
    low, high = 2 * value - np.quantile(resampled, [0.975, 0.025])
    return max(float(low), 0.0), min(float(high), 1.0)


def _total_variation(differences: Floats) -> Floats:
    total: Floats = np.abs(differences).sum(axis=-1) / 2
    return total
