"""The two ways to look at a window: at its vectors and predictions, and at its
predictions and labels. Each says what it depends on, so that a window is measured again
when that has changed, and only then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring import days
from embedding_tasks.monitoring.baseline import Baseline, noise
from embedding_tasks.monitoring.days import Day
from embedding_tasks.monitoring.labels import entities, outcomes, performance
from embedding_tasks.monitoring.labels.outcomes import Selection
from embedding_tasks.monitoring.labels.performance import Performance
from embedding_tasks.monitoring.measured import Measured, Window
from embedding_tasks.monitoring.results import Kind, digest
from embedding_tasks.monitoring.rowwise import by_row
from embedding_tasks.monitoring.rowwise.by_row import Check
from embedding_tasks.monitoring.rowwise.comparison import Settings
from embedding_tasks.monitoring.rowwise.sample import Sample
from embedding_tasks.monitoring.sums import cells
from embedding_tasks.monitoring.sums.drift import FEWEST_WINDOWS, Drift
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.use_case.monitoring import BY_PREDICTION, Monitoring


class Look(Protocol):
    @property
    def kind(self) -> Kind: ...

    @property
    def baseline(self) -> int | None:
        """The number of what it compares with, where that is frozen."""

    def days(self) -> Sequence[Day]:
        """Those that are watched."""

    def depends_on(self) -> Any:
        """What the measures of every window depend on beside its days."""

    def measure(self, window: Window) -> list[Measured]: ...


@dataclass(frozen=True)
class OfVectors:
    """Drift, from sums: `frozen` is what is compared with."""

    store: Connection
    version: ModelVersion
    monitoring: Monitoring
    frozen: Baseline
    kind: Kind = "drift"

    @property
    def baseline(self) -> int:
        return self.frozen.id

    def days(self) -> Sequence[Day]:
        return days.of(
            self.store,
            self.version,
            "rollup_day",
            environments=self.monitoring.environment,
            without=self.monitoring.not_watched,
        )

    def depends_on(self) -> Any:
        return self.frozen.fingerprint

    def measure(self, window: Window) -> list[Measured]:
        found = cells.of_days(
            self.store,
            self.version,
            window.since,
            window.until,
            environments=self.monitoring.environment,
            without=self.monitoring.not_watched,
            classes=self._drift.baseline.classes,
        )
        return [
            *self._drift.measure(window, found),
            *self._of_rows(window),
        ]

    def _of_rows(self, window: Window) -> list[Measured]:
        return [
            replace(measured, noise=self._noise.get(measured.metric))
            for measured in by_row.measure(self.store, self._check, self._usual, window)
        ]

    @cached_property
    def _check(self) -> Check:
        most = self.monitoring.sample_rows
        rows = Settings(
            most_of_baseline=most,
            most_of_window=most // 3,
            mmd=self.monitoring.mmd,
        )
        return Check.of(
            *(self.version, self.monitoring),
            frozen_at=self.frozen.frozen_at,
            settings=rows,
        )

    @cached_property
    def _usual(self) -> Sample:
        return by_row.baseline(self.store, self._check)

    @cached_property
    def _noise(self) -> Mapping[str, float]:
        """The largest of the baseline's own windows, where there are enough of them."""
        window_days = self.monitoring.window_days
        settings = digest(
            window_days, self.monitoring.least_rows, asdict(self._check.settings)
        )

        def measure() -> dict[str, float]:
            found = by_row.noise(self.store, self._check, self._usual, days=window_days)
            return {
                metric: max(values)
                for metric, values in found.items()
                if len(values) >= FEWEST_WINDOWS
            }

        return noise(self.store, self.frozen.id, settings, measure)

    @cached_property
    def _drift(self) -> Drift:
        found = cells.of_baseline(self.store, self.frozen.id, self.version)
        return Drift(found, self.monitoring)


@dataclass(frozen=True)
class OfLabels:
    """Performance, from counts. Labels come late to the baseline's days, too: it is
    compared with as they are now."""

    store: Connection
    version: ModelVersion
    monitoring: Monitoring
    kind: Kind = "performance"
    baseline: None = None

    def refresh(self) -> None:
        count = entities if self._is_of_parts else outcomes
        count.refresh(self.store, self.version, self.monitoring.tags)

    def days(self) -> Sequence[Day]:
        return days.of(
            self.store,
            self.version,
            "outcome_day",
            environments=self.monitoring.environment,
            without=self.monitoring.not_watched,
        )

    def depends_on(self) -> Any:
        return days.of(
            self.store,
            self.version,
            "outcome_day",
            environments=self.monitoring.labelled_baseline.environment,
            since=self._before.since,
            until=self._before.until,
        )

    def measure(self, window: Window) -> list[Measured]:
        selection = Selection.of(
            window, self.monitoring.environment, self.monitoring.not_watched
        )
        if not self._is_of_parts:
            return self._performance.measure(window, selection)
        return entities.measure(
            *(self.store, self.version, window, selection, self._before),
            least=self.monitoring.least_effect.performance,
            least_rows=self.monitoring.least_rows,
        )

    @property
    def _is_of_parts(self) -> bool:
        return self.version.unit in ("word", "entity")

    @property
    def _before(self) -> Selection:
        wanted = self.monitoring.labelled_baseline
        return Selection(wanted.since, wanted.last_day, wanted.environment)

    @cached_property
    def _performance(self) -> Performance:
        settings = performance.Settings(
            least=self.monitoring.least_effect.performance,
            least_rows=self.monitoring.least_rows,
            window_days=self.monitoring.window_days,
            by_prediction=BY_PREDICTION in self.monitoring.slices,
        )
        return Performance(self.store, self.version, self._before, settings)
