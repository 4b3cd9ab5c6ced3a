"""What only the rows themselves can tell of a window: those that are of a new kind, and
those that lie farther out. One reading of the vectors serves all."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring import flags, rows
from embedding_tasks.monitoring.flags import Flag
from embedding_tasks.monitoring.measured import FEWEST_ROWS, Measured, Window
from embedding_tasks.monitoring.rows import Records
from embedding_tasks.monitoring.rowwise import (
    clusters,
    comparison,
    novelty,
    sample,
    spread,
)
from embedding_tasks.monitoring.rowwise.comparison import Comparison, Settings
from embedding_tasks.monitoring.rowwise.novelty import Rate
from embedding_tasks.monitoring.rowwise.sample import Ints, Sample
from embedding_tasks.monitoring.rowwise.spread import Change
from embedding_tasks.monitoring.sums.centroid import Shift
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.use_case.monitoring import Monitoring

log = logging.getLogger(__name__)

NOVEL, OUTLIER = "novel", "outlier"
METRICS = ("novelty", "outliers", "spread")
# Of the baseline's own windows, each of which is read and compared as any other.
MOST_WINDOWS = 10
# What is usual is a mean over ways to deal records out: few are enough for that.
_NO_P_VALUE = 50
# However many words or entities each has.
_FEWEST_RECORDS = 50


@dataclass(frozen=True)
class Check:
    """What is compared with what. `records` are those that are watched, of whatever
    days; `least` is the smallest effect that matters, by metric. Rows of the whole,
    not of slices, are flagged."""

    version: ModelVersion
    baseline: Records
    records: Records = field(default_factory=Records)
    settings: Settings = field(default_factory=Settings)
    least_rows: int = FEWEST_ROWS
    least: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        version: ModelVersion,
        monitoring: Monitoring,
        *,
        frozen_at: datetime | None = None,
        slice: str = "",
        settings: Settings | None = None,
    ) -> Check:
        """As a use case has it. What came after the baseline was frozen is none of
        its rows."""
        usual = monitoring.baseline
        return cls(
            version,
            baseline=Records(
                since=usual.since,
                until=usual.last_day,
                environments=usual.environment,
                slice=slice,
                added_by=frozen_at,
            ),
            records=Records(
                environments=monitoring.environment,
                other_environments=monitoring.not_watched,
                slice=slice,
            ),
            settings=settings or Settings(),
            least_rows=monitoring.least_rows,
            least=monitoring.least_effect.model_dump(),
        )


def baseline(store: Connection, check: Check) -> Sample:
    """What windows are compared with: to be read once for all of them."""
    most = check.settings.most_of_baseline
    return sample.read(store, check.version, check.baseline, most)


def measure(
    store: Connection, check: Check, usual: Sample, window: Window
) -> list[Measured]:
    """`novelty`, `outliers`, `spread` and, if it is asked for, `mmd`; without values
    where a side has too few rows. Replaces the window's flags of novel rows and of
    outliers."""
    found = _read(store, check, window)
    usual = usual.without(found)
    blank = _blank(check, window, usual, found)
    if _too_few(check, usual, found):
        _flag(store, check, window, [])
        return list(blank.values())
    compared = comparison.compare(usual, found, check.settings)
    new, far = novelty.novelty(compared), spread.outliers(compared)
    groups = _groups(compared, new)
    new_ones = _flags(NOVEL, compared, new, window, groups)
    far_ones = _flags(OUTLIER, compared, far, window)
    _flag(store, check, window, [*new_ones, *far_ones])
    named = _named(store, check, compared, new, groups)
    return list(_filled(blank, compared, new, far, {"clusters": named}))


def noise(
    store: Connection,
    check: Check,
    usual: Sample,
    *,
    days: int = 1,
    most: int = MOST_WINDOWS,
) -> dict[str, list[float]]:
    """By metric the excess of each of the baseline's own windows of so many days over
    the rest of the baseline's sample: at most so many windows, drawn by the settings'
    seed. To be stored with the baseline; flags nothing."""
    found: dict[str, list[float]] = {}
    settings = replace(check.settings, permutations=_NO_P_VALUE)
    own = replace(check, records=check.baseline, settings=settings)
    for window in _own_windows(store, check, days, most):
        rows_ = _read(store, own, window)
        rest = usual.without_days(window).without(rows_)
        if _too_few(own, rest, rows_):
            continue
        compared = comparison.compare(rest, rows_, settings)
        new, far = novelty.novelty(compared), spread.outliers(compared)
        blank = _blank(own, window, rest, rows_)
        for measured in _filled(blank, compared, new, far, {}):
            if measured.excess is not None:
                found.setdefault(measured.metric, []).append(measured.excess)
    return found


def _read(store: Connection, check: Check, window: Window) -> Sample:
    records, most = check.records.of(window), check.settings.most_of_window
    return sample.read(store, check.version, records, most)


def _too_few(check: Check, *sides: Sample) -> bool:
    return any(
        len(side) < check.least_rows or len(set(side.keys)) < _FEWEST_RECORDS
        for side in sides
    )


def _blank(
    check: Check, window: Window, usual: Sample, found: Sample
) -> dict[str, Measured]:
    names = [*METRICS, "mmd"] if check.settings.mmd else METRICS
    facts = {
        "rows_compared": min(len(found), len(usual)),
        "baseline_rows": usual.of,
        "baseline_rows_compared": len(usual),
    }
    return {
        name: Measured(
            *(name, check.records.slice, window, found.of),
            least=check.least.get(name),
            detail=facts,
        )
        for name in names
    }


def _filled(
    blank: Mapping[str, Measured],
    compared: Comparison,
    new: Rate,
    far: Rate,
    more: Mapping[str, object],
) -> Iterator[Measured]:
    yield _rate(blank["novelty"], new, more)
    yield _rate(blank["outliers"], far, {})
    change = spread.residual(compared)
    if change is None:
        yield blank["spread"]
    else:
        yield _effect(blank["spread"], change, change.value, {"change": change.change})
    if "mmd" in blank and (shift := spread.mmd(compared)) is not None:
        yield _effect(blank["mmd"], shift, shift.effect, {})


def _rate(blank: Measured, rate: Rate, more: Mapping[str, object]) -> Measured:
    told = {"usual": rate.usual, **rate.detail, **more}
    measured = _effect(blank, rate, rate.value, told)
    return replace(measured, excess=rate.value - rate.usual)


def _effect(
    blank: Measured,
    found: Rate | Change | Shift,
    value: float,
    told: Mapping[str, object],
) -> Measured:
    return replace(
        blank,
        value=value,
        low=found.low,
        high=found.high,
        p_value=found.p_value,
        excess=value,
        detail={**blank.detail, **told},
    )


def _named(
    store: Connection, check: Check, compared: Comparison, new: Rate, groups: Ints
) -> list[dict[str, Any]]:
    novel = compared.window.only(new.found)
    rows_, usual = len(compared.window), compared.held_out
    found = clusters.named(store, check.version, novel, groups, rows_, usual)
    return [asdict(cluster) for cluster in found]


def _groups(compared: Comparison, new: Rate) -> Ints:
    return clusters.numbers(
        compared.window.vectors[new.found],
        compared.held_out.vectors,
        compared.settings.seed,
    )


def _flags(
    kind: str,
    compared: Comparison,
    rate: Rate,
    window: Window,
    groups: Ints | None = None,
) -> list[Flag]:
    chosen = np.flatnonzero(rate.found)
    numbers = np.zeros(len(chosen), np.int64) if groups is None else groups
    rows_ = compared.window
    return [
        Flag(
            key=rows_.keys[row],
            unit=int(rows_.units[row]),
            kind=kind,
            score=float(rate.scores[row]),
            cluster=int(number) or None,
            detail={"since": str(window.since), "until": str(window.until)},
        )
        for row, number in zip(chosen, numbers, strict=True)
    ]


def _flag(store: Connection, check: Check, window: Window, found: list[Flag]) -> None:
    if check.records.slice:
        return
    among = check.records.of(window)
    flags.replace(store, check.version, (NOVEL, OUTLIER), found, among)
    log.info(
        "flagged version=%d until=%s rows=%d",
        *(check.version.version, window.until, len(found)),
    )


def _own_windows(store: Connection, check: Check, days: int, most: int) -> list[Window]:
    """Windows of the baseline that are apart and have enough rows, drawn at random."""
    counted = _counts(store, check)
    if not counted:
        return []
    first, last = min(counted), max(counted)
    windows = []
    for start in range(first.toordinal(), last.toordinal() + 2 - days, days):
        since = date.fromordinal(start)
        window = Window(since, since + timedelta(days=days - 1))
        count = sum(counted.get(date.fromordinal(d), 0) for d in window.ordinals)
        if check.least_rows <= count <= sum(counted.values()) - check.least_rows:
            windows.append(window)
    rng = np.random.default_rng(check.settings.seed)
    return [windows[i] for i in np.sort(rng.permutation(len(windows))[:most])]


def _counts(store: Connection, check: Check) -> dict[date, int]:
    version, baseline = check.version, check.baseline
    found = store.execute(
        sql.SQL("SELECT d.day, count(*){rows}{condition} GROUP BY d.day").format(
            rows=rows.joined(version), condition=baseline.condition()
        ),
        {**rows.ids(version), **baseline.parameters()},
    )
    return dict(found.fetchall())
