"""What is an alarm: a metric beyond its least effect, beyond chance and beyond what the
baseline's own days differ by, in two of three windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Literal

from scipy import stats

from embedding_tasks.monitoring.measured import Measured, Window

LEVEL = 0.05
# An alarm is raised when so many of the last `_LAST` windows are beyond, and ends with
# as many usual ones in a row.
_ENOUGH, _LAST = 2, 3

State = Literal["no data", "too few", "usual", "beyond"]


@dataclass(frozen=True)
class Judged:
    """`adjusted`: the p-value with all that were looked at with it taken into account
    (Benjamini and Hochberg's)."""

    measured: Measured
    state: State
    adjusted: float | None


def judge(measured: Sequence[Measured]) -> list[Judged]:
    """Of one window, all metrics and slices that are looked at together."""
    tested = [m for m in measured if m.p_value is not None]
    values = [m.p_value for m in tested]
    adjusted = stats.false_discovery_control(values).tolist() if values else []
    by_metric = {(m.metric, m.slice): p for m, p in zip(tested, adjusted, strict=True)}
    return [_judged(m, by_metric.get((m.metric, m.slice))) for m in measured]


def _judged(measured: Measured, adjusted: float | None) -> Judged:
    if measured.value is None:
        state: State = "too few" if measured.rows else "no data"
    else:
        state = "beyond" if _is_beyond(measured, adjusted) else "usual"
    return Judged(measured, state, adjusted)


def _is_beyond(measured: Measured, adjusted: float | None) -> bool:
    if measured.excess is None or measured.least is None:
        return False
    sure = adjusted is None or adjusted < LEVEL
    unusual = measured.noise is None or measured.excess > measured.noise
    return sure and unusual and measured.excess >= measured.least


@dataclass(frozen=True)
class Episode:
    """`since`: the first day that was beyond; `raised`, `last_seen`, `cleared`: the
    last days of the windows in which it became an alarm, was beyond for the last time,
    and ended (None: it is on)."""

    since: date
    raised: date
    last_seen: date
    cleared: date | None = None


def episodes(history: Sequence[tuple[Window, bool]]) -> list[Episode]:
    """Of one metric and slice: its windows in order, and whether each was beyond.
    Windows that could not be judged are left out."""
    found: list[Episode] = []
    for place, (window, beyond) in enumerate(history):
        on = found[-1] if found and found[-1].cleared is None else None
        last = history[max(0, place + 1 - _LAST) : place + 1]
        if on is None:
            unusual = [w for w, b in last if b]
            if beyond and len(unusual) >= _ENOUGH:
                until = window.until
                found.append(Episode(unusual[0].since, until, until))
        elif beyond:
            found[-1] = replace(on, last_seen=window.until)
        elif not any(b for _, b in last[-_ENOUGH:]):
            found[-1] = replace(on, cleared=window.until)
    return found
