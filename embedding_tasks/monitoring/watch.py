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
from embedding_tasks.errors import ConfigError, StoreError
from embedding_tasks.monitoring import baseline, days, flags, results
from embedding_tasks.monitoring.looks import Look, OfLabels, OfVectors
from embedding_tasks.monitoring.maps import projection
from embedding_tasks.monitoring.measured import Window
from embedding_tasks.monitoring.quality import review
from embedding_tasks.monitoring.sums import rollup
from embedding_tasks.store import versions
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.use_case import UseCase
from embedding_tasks.use_case.monitoring import Monitoring

log = logging.getLogger(__name__)

# In place of a window's last day: of all there is.
_WHOLE = date.max

Tell = Callable[[str, int, int], None]
"""What is being done, how far, of how many."""


@dataclass(frozen=True)
class Watched:
    """Of one feature. `windows` were measured, `baseline` is what they were compared
    with (its fingerprint), `problems` say what could not be done, and why."""

    feature: str
    model_version: int
    windows: list[Window] = field(default_factory=list)
    baseline: str | None = None
    problems: list[str] = field(default_factory=list)


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
        version, monitoring = self.version, self.monitoring
        labels = OfLabels(self.store, version, monitoring)
        self._refresh(labels)
        if freeze:
            baseline.lift(self.store, version)
        frozen = baseline.freeze(self.store, version, monitoring, self.today)
        looks: list[Look] = [labels]
        if frozen is not None:
            looks.append(OfVectors(self.store, version, monitoring, frozen))
        measured = {w for look in looks for w in self._measure(look, again)}
        results.raise_alarms(self.store, version)
        problems = [] if frozen else [self._no_baseline()]
        return Watched(
            *(version.feature, version.version, sorted(measured)),
            baseline=frozen.fingerprint if frozen else None,
            problems=[*problems, *self._review(again)],
        )

    def _review(self, again: bool) -> Iterator[str]:
        """The list of suspects and the maps, where anything has changed. A list that
        could not be made is tried again by every run; what was done beside it stays."""
        seen = results.digest(
            days.of(self.store, self.version, "rollup_day"),
            days.of(self.store, self.version, "outcome_day"),
        )
        unlisted = results.digest(seen, "unlisted")
        known = results.known_inputs(self.store, self.version, "review").get(_WHOLE)
        if not again and known == seen:
            return
        self.tell("reviewing", 0, 2)
        if again or known != unlisted:
            projection.place(self.store, self.version)
            flags.clean(self.store, self.version)
        self.tell("reviewing", 1, 2)
        try:
            review.refresh(self.store, self.version)
        except StoreError as error:
            yield str(error)
            seen = unlisted
        results.note(self.store, self.version, "review", _WHOLE, seen)
        self.tell("reviewing", 2, 2)

    def _refresh(self, labels: OfLabels) -> None:
        self.tell("summing up", 0, 2)
        rollup.refresh(self.store, self.version, self.monitoring.tags)
        self.tell("summing up", 1, 2)
        labels.refresh()
        self.tell("summing up", 2, 2)

    def _measure(self, look: Look, again: bool) -> list[Window]:
        """Returns the windows that were measured anew."""
        wanted = self._inputs(look)
        known = results.known_inputs(self.store, self.version, look.kind)
        gone = known.keys() - {window.until for window in wanted}
        results.forget_windows(self.store, self.version, look.kind, gone)
        due = [w for w, i in wanted.items() if again or known.get(w.until) != i]
        phase = f"measuring {look.kind} of"
        for number, window in enumerate(due):
            self.tell(phase, number, len(due))
            results.save(
                *(self.store, self.version, look.kind, window, look.measure(window)),
                inputs=wanted[window],
                baseline=look.baseline,
            )
            log.info("measured version=%d until=%s", self.version.id, window.until)
        if due:
            self.tell(phase, len(due), len(due))
        return due

    def _inputs(self, look: Look) -> Mapping[Window, str]:
        """All windows that are over, in order, with the digest of what each is of."""
        settings = self.monitoring.model_dump(mode="json", exclude={"gate", "notify"})
        by_window: dict[Window, list[Any]] = {}
        for day, rows, digest in look.days():
            window = self._window(day)
            if window.until < self.today and self._is_watched(window):
                by_window.setdefault(window, []).append((day, rows, digest))
        shared = results.digest(look.depends_on(), settings)
        # a window of no rows, between others, is one without data
        return {
            window: results.digest(shared, by_window.get(window))
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
