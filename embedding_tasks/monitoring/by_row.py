"""What only the rows themselves can tell of a window: those that are of a new kind, and
those that lie farther out. One reading of the vectors serves all."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date, timedelta

import numpy as np
from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring import (
    clusters,
    comparison,
    flags,
    novelty,
    rows,
    spread,
)
from embedding_tasks.monitoring.comparison import Comparison, Settings
from embedding_tasks.monitoring.flags import Flag
from embedding_tasks.monitoring.measured import FEWEST_ROWS, Measured, Window
from embedding_tasks.monitoring.novelty import Rate
from embedding_tasks.monitoring.sample import Ints, Records
from embedding_tasks.store.versions import ModelVersion

log = logging.getLogger(__name__)

NOVEL, OUTLIER = "novel", "outlier"
METRICS = ("novelty", "outliers", "spread")
# Of the baseline's own windows, each of which is read and compared as any other.
MOST_WINDOWS = 10


@dataclass(frozen=True)
class Check:
    """What is compared with what. `records` are those that are watched, of whatever
    days. Rows of the whole, not of slices, are flagged."""

    version: ModelVersion
    baseline: Records
    records: Records = field(default_factory=Records)
    settings: Settings = field(default_factory=Settings)
    least_rows: int = FEWEST_ROWS


def measure(store: Connection, check: Check, window: Window) -> list[Measured]:
    """`novelty`, `outliers`, `spread` and, if it is asked for, `mmd`; without values
    where a side has too few rows. Replaces the window's flags of novel rows and of
    outliers."""
    compared, found = _compare(store, check, window)
    if compared is None:
        return found
    new, far = novelty.novelty(compared), spread.outliers(compared)
    groups = _groups(compared, new)
    if not check.records.slice:
        _flag(store, check, window, compared, NOVEL, new, groups)
        _flag(store, check, window, compared, OUTLIER, far, None)
    named = clusters.named(
        store,
        check.version,
        compared.window.only(new.found),
        groups,
        len(compared.window),
        compared.held_out,
    )
    told = {"clusters": [asdict(cluster) for cluster in named]}
    by_name = {measured.metric: measured for measured in found}
    return [
        _rate(by_name["novelty"], new, told),
        _rate(by_name["outliers"], far, {}),
        *_changes(by_name, compared),
    ]


def noise(
    store: Connection,
    check: Check,
    *,
    days: int = 1,
    most: int = MOST_WINDOWS,
) -> dict[str, list[float]]:
    """By metric the excess of each of the baseline's own windows of so many days over
    the rest of the baseline: at most so many windows, drawn by the settings' seed. To
    be stored with the baseline; flags nothing."""
    found: dict[str, list[float]] = {}
    for window in _own_windows(store, check, days, most):
        own = replace(
            check,
            baseline=replace(check.baseline, without=window),
            records=check.baseline,
        )
        compared, unmeasured = _compare(store, own, window)
        if compared is None:
            continue
        by_name = {measured.metric: measured for measured in unmeasured}
        for measured in (
            _rate(by_name["novelty"], novelty.novelty(compared), {}),
            _rate(by_name["outliers"], spread.outliers(compared), {}),
            *_changes(by_name, compared),
        ):
            if measured.excess is not None:
                found.setdefault(measured.metric, []).append(measured.excess)
    return found


def _compare(
    store: Connection, check: Check, window: Window
) -> tuple[Comparison | None, list[Measured]]:
    """None where there are too few rows, and what is measured before it is."""
    usual, found = comparison.read(
        *(store, check.version, check.baseline, check.records, window, check.settings)
    )
    names = [*METRICS, "mmd"] if check.settings.mmd else METRICS
    facts = {
        "rows_compared": min(len(found), len(usual)),
        "baseline_rows": usual.of,
        "baseline_rows_compared": len(usual),
    }
    measured = [
        Measured(name, check.records.slice, window, found.of, detail=facts)
        for name in names
    ]
    if min(len(found), len(usual)) < check.least_rows:
        return None, measured
    return comparison.compare(usual, found, check.settings), measured


def _rate(measured: Measured, rate: Rate, more: Mapping[str, object]) -> Measured:
    return replace(
        measured,
        value=rate.value,
        low=rate.low,
        high=rate.high,
        p_value=rate.p_value,
        excess=rate.value - rate.usual,
        detail={**measured.detail, "usual": rate.usual, **rate.detail, **more},
    )


def _changes(by_name: dict[str, Measured], compared: Comparison) -> Iterator[Measured]:
    change = spread.residual(compared)
    yield replace(
        by_name["spread"],
        value=change.value,
        low=change.low,
        high=change.high,
        p_value=change.p_value,
        excess=change.value,
        detail={**by_name["spread"].detail, "change": change.change},
    )
    if "mmd" in by_name and (shift := spread.mmd(compared)) is not None:
        yield replace(
            by_name["mmd"],
            value=shift.effect,
            low=shift.low,
            high=shift.high,
            p_value=shift.p_value,
            excess=shift.effect,
        )


def _groups(compared: Comparison, new: Rate) -> Ints:
    return clusters.numbers(
        compared.window.vectors[new.found],
        compared.held_out.vectors,
        compared.settings.seed,
    )


def _flag(
    store: Connection,
    check: Check,
    window: Window,
    compared: Comparison,
    kind: str,
    rate: Rate,
    groups: Ints | None,
) -> None:
    chosen = np.flatnonzero(rate.found)
    cluster = groups if groups is not None else np.zeros(len(chosen), np.int64)
    found = [
        Flag(
            key=compared.window.keys[row],
            unit=int(compared.window.units[row]),
            day=date.fromordinal(int(compared.window.days[row])),
            score=float(rate.scores[row]),
            cluster=int(number) or None,
            detail={"window": [str(window.since), str(window.until)]},
        )
        for row, number in zip(chosen, cluster, strict=True)
    ]
    flags.replace(store, check.version, kind, check.records, window, found)
    log.info(
        "flagged version=%d kind=%s until=%s rows=%d",
        *(check.version.version, kind, window.until, len(found)),
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
