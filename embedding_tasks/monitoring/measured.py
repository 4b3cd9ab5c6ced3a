"""What a check finds in a window of days."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

# Fewer rows than these tell nothing that is worth a pager.
FEWEST_ROWS = 200


@dataclass(frozen=True, order=True)
class Window:
    """Days, the last one included, UTC."""

    since: date
    until: date

    @property
    def ordinals(self) -> range:
        return range(self.since.toordinal(), self.until.toordinal() + 1)


@dataclass(frozen=True)
class Measured:
    """One metric of one slice in one window. `value` with its 95 % interval
    [`low`, `high`]: None where it is not to be had. `p_value` is of the hypothesis that
    nothing has changed. Where a metric may alarm, `excess` says how far it is beyond
    what is usual in the direction that is bad, in its own unit: to be compared with
    `least`, the smallest effect that matters. `noise` is the largest excess among the
    baseline's own windows; None where there are too few of them."""

    metric: str
    slice: str
    window: Window
    rows: int
    value: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    excess: float | None = None
    least: float | None = None
    noise: float | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
