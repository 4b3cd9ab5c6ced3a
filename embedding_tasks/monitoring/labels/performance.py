"""How well a model does in a window, by the labels that are there by now, and against a
baseline.

A window is of the days of its records. Its figures move for as long as labels come;
each says of which share of the predictions they are (`coverage`). Labels that come
early are seldom a fair sample, so until most are there only figures that do not depend
on which come first may alarm: the accuracy corrected for it, and the estimate's
residual.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from scipy import stats

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring.labels import outcomes, ranking, usual
from embedding_tasks.monitoring.labels.figure import Figure, p_value, wilson
from embedding_tasks.monitoring.labels.outcomes import ALL, Outcomes, Selection
from embedding_tasks.monitoring.labels.ranking import Ranked
from embedding_tasks.monitoring.labels.scores import Scores
from embedding_tasks.monitoring.labels.usual import GOOD, MATURE, Usual
from embedding_tasks.monitoring.measured import FEWEST_ROWS, Measured, Window
from embedding_tasks.store.versions import ModelVersion

_MOST_CELLS = 50
_BY_PREDICTION = "prediction="
# Meaningless where all rows are of one predicted class.
_OF_SEVERAL_CLASSES = ("macro_precision", "macro_recall", "macro_f1")

# Fields of `Measured`.
Comparison = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """`least` is the smallest loss of a share (accuracy, F1, AUC, calibration) that
    matters; `window_days` says what the baseline's own windows are; `by_prediction`
    adds slices by predicted class."""

    least: float = 0.03
    least_rows: int = FEWEST_ROWS
    window_days: int = 1
    by_prediction: bool = False


@dataclass(frozen=True)
class Performance:
    """Of a version whose vectors are of whole records or objects. Without a baseline
    nothing is compared, and nothing estimated. One object measures any number of
    windows: what is made of the baseline is made once."""

    store: Connection
    version: ModelVersion
    baseline: Selection | None = None
    settings: Settings = field(default_factory=Settings)

    def measure(self, window: Window, selection: Selection) -> list[Measured]:
        """`selection` is of the window's days. The counts are to be refreshed before,
        with the tags that make slices."""
        slices = self._slices(selection)
        ranked = self._ranked(selection, slices)
        return [
            measured
            for name, found in sorted(slices.items())
            if len(found)
            for measured in self._of_slice(name, found, window, ranked)
        ]

    def _of_slice(
        self, name: str, found: Outcomes, window: Window, ranked: Ranked
    ) -> Iterator[Measured]:
        scores, before = Scores(found), self._usual.get(name)
        yield _coverage(name, scores, len(found), window)
        if before is not None:
            yield from self._estimated(name, found, window, before)
        if not scores.rows:
            return
        figures = dict(scores.figures)
        if (auc := _area(ranked, name)) is not None:
            figures["auc"] = auc
        for metric, figure in figures.items():
            if not (name.startswith(_BY_PREDICTION) and metric in _OF_SEVERAL_CLASSES):
                yield Measured(
                    *(metric, name, window, scores.rows),
                    *(figure.value, figure.low, figure.high),
                    detail=_detail(metric, scores),
                    **self._compared(metric, figure, scores, before),
                )

    def _compared(
        self, metric: str, figure: Figure, scores: Scores, before: Usual | None
    ) -> Comparison:
        if (
            before is None
            or metric not in before.figures
            or scores.rows < self.settings.least_rows
        ):
            return {}
        wont = before.figures[metric]
        sure = (
            _of_two_proportions(before.scores, scores)
            if metric == "accuracy"
            else p_value(figure.value - wont.value, np.hypot(figure.error, wont.error))
        )
        is_mature = min(scores.coverage, before.scores.coverage) >= MATURE
        if metric not in GOOD or not (is_mature or metric == "corrected_accuracy"):
            return {"p_value": sure}
        return {
            "p_value": sure,
            "excess": usual.excess(metric, wont.value, figure.value),
            "least": self.settings.least,
            "noise": before.noise.get(metric),
        }

    def _estimated(
        self, name: str, found: Outcomes, window: Window, before: Usual
    ) -> Iterator[Measured]:
        """What the scores say, and how far the labels that are there are from it."""
        calibrator, scored = before.calibrator, found.scored
        if calibrator is None or not len(scored):
            return
        figure = calibrator.accuracy(scored)
        yield Measured(
            *("estimated_accuracy", name, window, len(scored)),
            *(figure.value, max(figure.low, 0.0), min(figure.high, 1.0)),
        )
        known = scored.labelled
        if not len(known):
            return
        residual = calibrator.residual(known)
        compared: Comparison = {}
        if len(known) >= self.settings.least_rows:
            compared = {
                "p_value": p_value(residual.value, residual.error),
                "excess": residual.value,
                "least": self.settings.least,
                "noise": before.noise_of_residual,
            }
        yield Measured(
            *("concept_drift", name, window, len(known)),
            *(residual.value, residual.low, residual.high),
            detail={"coverage": len(known) / len(scored)},
            **compared,
        )

    def _ranked(self, selection: Selection, slices: Iterable[str]) -> Ranked:
        tags = {
            name.partition("=")[0]
            for name in slices
            if name != ALL and not name.startswith(_BY_PREDICTION)
        }
        return ranking.read(self.store, self.version, selection, sorted(tags))

    def _slices(self, selection: Selection) -> Mapping[str, Outcomes]:
        found = outcomes.read(self.store, self.version, selection)
        by_class = outcomes.by_prediction(found[ALL])
        return {**found, **(by_class if self.settings.by_prediction else {})}

    @cached_property
    def _usual(self) -> Mapping[str, Usual]:
        """Of the slices with labels enough."""
        if self.baseline is None:
            return {}
        settings, slices = self.settings, self._slices(self.baseline)
        ranked = self._ranked(self.baseline, slices)
        return {
            name: Usual(
                own,
                partial(_area, ranked, name),
                settings.window_days,
                settings.least_rows,
            )
            for name, own in slices.items()
            if len(own.labelled) >= settings.least_rows
        }


def _area(ranked: Ranked, name: str) -> Figure | None:
    return None if name.startswith(_BY_PREDICTION) else ranking.area(ranked.of(name))


def _coverage(name: str, scores: Scores, rows: int, window: Window) -> Measured:
    low, high = wilson(scores.rows, rows)
    return Measured(
        *("label_coverage", name, window, rows),
        *(scores.coverage, low, high),
        detail={"lag_days": scores.lag_days},
    )


def _detail(metric: str, scores: Scores) -> dict[str, Any]:
    detail: dict[str, Any] = {
        "coverage": scores.coverage,
        "lag_days": scores.lag_days,
    }
    if metric == "macro_f1":
        detail["classes"] = scores.by_class()
    if metric == "accuracy":
        detail["confusion"] = scores.confusion()[:_MOST_CELLS]
    return detail


def _of_two_proportions(before: Scores, scores: Scores) -> float:
    table = [[own.right, own.rows - own.right] for own in (before, scores)]
    if 0 in np.sum(table, axis=0):
        return 1.0
    return float(stats.chi2_contingency(table, correction=False).pvalue)
