"""Monitoring a use case: sums brought up to date, every window measured that has not
been or whose rows have changed since, alarms raised and ended.

What is found follows from the rows alone, whenever it is run: a history that is made
again, or after late data, is the one that would have been made in time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from embedding_tasks.connections import Connection, blame
from embedding_tasks.errors import ConfigError
from embedding_tasks.monitoring import baseline, cells, results, rollup
from embedding_tasks.monitoring.baseline import Baseline
from embedding_tasks.monitoring.drift import Drift
from embedding_tasks.monitoring.measured import Window
from embedding_tasks.store import versions
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.use_case import UseCase
from embedding_tasks.use_case.monitoring import Monitoring

log = logging.getLogger(__name__)

Tell = Callable[[str, int, int], None]
"""What is being done, how far, of how many."""


@dataclass(frozen=True)
class Watched:
    """Of one feature. `windows` were measured, `baseline` is what they were compared
    with (its fingerprint), `problem` says why nothing could be."""

    feature: str
    model_version: int
    windows: list[Window] = field(default_factory=list)
    baseline: str | None = None
    problem: str | None = None


def watch(
    store: Connection,
    case: UseCase,
    *,
    again: bool = False,
    freeze: bool = False,
    tell: Tell = lambda *_: None,
) -> list[Watched]:
    """Every feature's serving version. `again` measures every window anew, `freeze`
    takes the baseline anew, of the rows there are now. What was measured stays when it
    is stopped. Raises `ConfigError` where the use case says nothing of monitoring."""
    if case.monitoring is None:
        raise ConfigError(
            f"use_cases/{case.name}.yaml has no `monitoring`; docs/monitoring.md says "
            "what it takes, at least: monitoring: {baseline: {environment: training}}"
        )
    with blame(store=store):
        today = _today(store)
        return [
            _Watch(store, version, case.monitoring, today, tell).run(again, freeze)
            for version in versions.live_by_name(store, case.name)
            if version.state == "active"
        ]


@dataclass(frozen=True)
class _Watch:
    store: Connection
    version: ModelVersion
    monitoring: Monitoring
    today: date
    tell: Tell

    def run(self, again: bool, freeze: bool) -> Watched:
        version = self.version
        self.tell("summing up", 0, 1)
        rollup.refresh(self.store, version, self.monitoring.tags)
        self.tell("summing up", 1, 1)
        if freeze:
            baseline.lift(self.store, version)
        found = baseline.freeze(self.store, version, self.monitoring, self.today)
        if found is None:
            return self._watched(problem=self._no_baseline())
        measured = self._measure(found, again)
        results.raise_alarms(self.store, version)
        return self._watched(windows=measured, baseline=found.fingerprint)

    def _watched(self, **more: Any) -> Watched:
        return Watched(self.version.feature, self.version.version, **more)

    def _measure(self, found: Baseline, again: bool) -> list[Window]:
        """Returns the windows that were measured anew."""
        wanted = self._inputs(found)
        known = results.known_inputs(self.store, self.version, "drift")
        gone = known.keys() - {window.until for window in wanted}
        results.forget_windows(self.store, self.version, "drift", gone)
        due = [
            (window, inputs)
            for window, inputs in wanted.items()
            if again or known.get(window.until) != inputs
        ]
        drift = Drift(found.cells, self.monitoring)
        for number, (window, inputs) in enumerate(due):
            self.tell("measuring", number, len(due))
            self._measure_window(drift, found, window, inputs)
        self.tell("measuring", len(due), len(due))
        return [window for window, _ in due]

    def _measure_window(
        self, drift: Drift, found: Baseline, window: Window, inputs: str
    ) -> None:
        rows = cells.of_days(
            self.store,
            self.version,
            window.since,
            window.until,
            environments=self.monitoring.environment,
            without=self._without(),
            classes=found.cells.classes,
        )
        results.save(
            *(self.store, self.version, "drift", window),
            drift.measure(window, rows),
            inputs=inputs,
            baseline=found.id,
        )
        log.info("measured version=%d until=%s", self.version.id, window.until)

    def _without(self) -> tuple[str, ...]:
        """Environments that are the baseline's, on whatever day."""
        wanted = self.monitoring.baseline
        return wanted.environment if wanted.since is None else ()

    def _inputs(self, found: Baseline) -> Mapping[Window, str]:
        """All windows that are over, in order, with the digest of what each is of."""
        settings = self.monitoring.model_dump(
            mode="json",
            include={
                "window_days",
                "least_rows",
                "least_effect",
                "slices",
                "environment",
                "baseline",
            },
        )
        by_window: dict[Window, list[Any]] = {}
        for day, rows, digest in rollup.days(
            self.store,
            self.version,
            environments=self.monitoring.environment,
            without=self._without(),
        ):
            window = self._window(day)
            if window.until < self.today and self._is_watched(window):
                by_window.setdefault(window, []).append((day, rows, digest))
        # a window of no rows, between others, is one without data
        return {
            window: results.digest(found.fingerprint, settings, by_window.get(window))
            for window in _between(by_window)
        }

    def _window(self, day: date) -> Window:
        number = self.monitoring.window_of(day.toordinal())
        since = self.monitoring.first_day_of(number)
        return Window(since, since + timedelta(days=self.monitoring.window_days - 1))

    def _is_watched(self, window: Window) -> bool:
        """Not before the days of the baseline are over."""
        until = self.monitoring.baseline.until
        return until is None or window.since >= until

    def _no_baseline(self) -> str:
        wanted = self.monitoring.baseline
        if wanted.until and wanted.until > self.today:
            return f"the days of the baseline are over on {wanted.until}"
        return (
            f"the baseline has fewer than {self.monitoring.least_rows} records "
            "(monitoring.least_rows)"
        )


def _between(windows: Mapping[Window, Any]) -> Iterator[Window]:
    if not windows:
        return
    first, last = min(windows), max(windows)
    days = timedelta(days=(first.until - first.since).days + 1)
    while first <= last:
        yield first
        first = Window(first.since + days, first.until + days)


def _today(store: Connection) -> date:
    row = store.execute("SELECT (now() AT TIME ZONE 'UTC')::date").fetchone()
    assert row is not None
    today: date = row[0]
    return today
