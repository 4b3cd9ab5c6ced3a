"""Drift from sums alone: of the vectors, class by class, and of the mix of classes; of
all rows and of each slice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from embedding_tasks.monitoring.measured import Measured, Window
from embedding_tasks.monitoring.sums import centroid, mix
from embedding_tasks.monitoring.sums.cells import ALL, Cells
from embedding_tasks.monitoring.sums.moments import Moments
from embedding_tasks.use_case.monitoring import BY_PREDICTION, Monitoring

# Of the baseline's own windows: fewer do not tell how far days are apart.
FEWEST_WINDOWS = 5
# Shown of a metric's detail, the most moved first.
_MOST_CLASSES = 20


@dataclass(frozen=True)
class Noise:
    """How far the baseline's own windows are from the rest of it; None: unknown."""

    centroid: float | None
    mix: float | None


@dataclass(frozen=True)
class Drift:
    """A baseline, and how to look at it."""

    baseline: Cells
    monitoring: Monitoring

    def measure(self, window: Window, found: Cells) -> list[Measured]:
        """`found` has the classes' numbers of the baseline."""
        return [
            measured
            for name, rows in self._slices(found)
            for measured in self._of_slice(name, rows, window, found)
        ]

    def _of_slice(
        self, name: str, rows: Moments, window: Window, found: Cells
    ) -> Iterator[Measured]:
        before = self._compared[name]
        if len(rows) < self.monitoring.least_rows:
            yield Measured("centroid", name, window, len(rows))
            yield Measured("mix", name, window, len(rows))
            return
        yield self._shift(name, before, rows, window)
        if not name.startswith(f"{BY_PREDICTION}="):
            yield self._change(name, before, rows, window, found)

    def _shift(
        self, name: str, before: Moments, rows: Moments, window: Window
    ) -> Measured:
        shift = centroid.shift(before, rows)
        if shift is None:
            return Measured("centroid", name, window, len(rows))
        classes = centroid.by_class(before, rows)[:_MOST_CLASSES]
        return Measured(
            *("centroid", name, window, len(rows)),
            *(shift.effect, shift.low, shift.high, shift.p_value),
            excess=shift.effect,
            least=self.monitoring.least_effect.centroid,
            noise=self._noise[name].centroid,
            detail={
                "distance": shift.distance,
                "distance_by_chance": shift.noise,
                "rows_of_known_classes": shift.covered,
                "classes": {
                    self.baseline.classes[c.label]: {
                        "rows": c.rows,
                        "effect": c.effect,
                        "share": c.share,
                    }
                    for c in classes
                },
            },
        )

    def _change(
        self, name: str, before: Moments, rows: Moments, window: Window, found: Cells
    ) -> Measured:
        change = mix.change(self.baseline.counts(before), found.counts(rows))
        if change is None:
            return Measured("mix", name, window, len(rows))
        largest = sorted(change.changes.items(), key=lambda c: -abs(c[1]))
        return Measured(
            *("mix", name, window, len(rows)),
            *(change.effect, change.low, change.high, change.p_value),
            excess=change.effect,
            least=self.monitoring.least_effect.mix,
            noise=self._noise[name].mix,
            detail={"classes": dict(largest[:_MOST_CLASSES])},
        )

    def _slices(self, found: Cells) -> Iterator[tuple[str, Moments]]:
        """Those of the baseline; one that the window lacks has no row."""
        here = _with_classes(found, self.monitoring)
        none = found.all.only(np.zeros(len(found.all.counts), bool))
        for name in self._baseline:
            yield name, here.get(name, none)

    @cached_property
    def _baseline(self) -> Mapping[str, Moments]:
        slices = _with_classes(self.baseline, self.monitoring)
        least = self.monitoring.least_rows
        return {n: rows for n, rows in slices.items() if n == ALL or len(rows) >= least}

    @cached_property
    def _compared(self) -> Mapping[str, Moments]:
        few = centroid.DAY_GROUPS
        return {name: rows.of_few_days(few) for name, rows in self._baseline.items()}

    @cached_property
    def _noise(self) -> Mapping[str, Noise]:
        return {name: self._noise_of(rows) for name, rows in self._baseline.items()}

    def _noise_of(self, rows: Moments) -> Noise:
        """Each of its windows beside the rest of it."""
        parts = list(windows(rows, self.monitoring))
        if len(parts) < FEWEST_WINDOWS:
            return Noise(None, None)
        shifts = [centroid.shift(rest, own, permutations=0) for own, rest in parts]
        changes = [
            mix.change(self.baseline.counts(rest), self.baseline.counts(own))
            for own, rest in parts
        ]
        return Noise(
            max((s.effect for s in shifts if s), default=None),
            max((c.effect for c in changes if c), default=None),
        )


def windows(rows: Moments, monitoring: Monitoring) -> Iterator[tuple[Moments, Moments]]:
    """Those of a baseline that have rows enough, each with the rest of it."""
    of_cell = monitoring.window_of(rows.days)
    for number in np.unique(of_cell):
        own = rows.only(of_cell == number)
        if len(own) >= monitoring.least_rows:
            yield own, rows.only(of_cell != number)


def _with_classes(found: Cells, monitoring: Monitoring) -> dict[str, Moments]:
    """The slices, and those by predicted class where they are asked for."""
    slices = dict(found.slices)
    if BY_PREDICTION in monitoring.slices:
        for number, name in enumerate(found.classes):
            slices[f"{BY_PREDICTION}={name}"] = found.all.only(
                found.all.classes == number
            )
    return slices
