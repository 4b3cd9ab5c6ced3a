"""The figures of classification, from counts: each a number of the rows that there are,
and many of rows drawn anew."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from sklearn import metrics

from embedding_tasks.monitoring.labels import calibration
from embedding_tasks.monitoring.labels.figure import Figure, of_draws, of_error, wilson
from embedding_tasks.monitoring.labels.outcomes import BINS, NO_BIN, Outcomes
from embedding_tasks.monitoring.sums.moments import Floats

RESAMPLES = 500


class Scores:
    """Of the outcomes of a window; `values` and `figures` of one that has labels. All
    that is random comes from the seed."""

    def __init__(self, outcomes: Outcomes, *, seed: int = 0) -> None:
        self._all = outcomes.merged()
        self._labelled = self._all.labelled
        self._seed = seed

    @property
    def rows(self) -> int:
        return len(self._labelled)

    @property
    def coverage(self) -> float:
        """The share of the predictions whose label is known."""
        return self.rows / len(self._all)

    @property
    def lag_days(self) -> float:
        """The mean, from the record to its label; 0 without labels."""
        return float(self._labelled.lags.sum()) / max(self.rows, 1) / 86_400

    @property
    def right(self) -> int:
        return int(self._labelled.rows @ self._labelled.is_right)

    @cached_property
    def values(self) -> Mapping[str, float]:
        """By the metric's name. What scores, probabilities or labels do not suffice for
        is left out."""
        every = self._all.rows[None].astype(np.float64)
        precision, recall, f1, _ = self._by_class(average="macro")
        found = {
            "accuracy": self.right / self.rows,
            "macro_precision": float(precision),
            "macro_recall": float(recall),
            "macro_f1": float(f1),
            "corrected_accuracy": float(_weighted_accuracy(self._all, every)[0]),
        }
        if self._losses:
            found["log_loss"] = float(self._labelled.loss.sum()) / self._losses
        if len(scored := self._labelled.scored):
            found["calibration_error"] = float(calibration.error(scored))
        return found

    @cached_property
    def figures(self) -> Mapping[str, Figure]:
        return {name: self._figure(name, value) for name, value in self.values.items()}

    def by_class(self) -> dict[str, dict[str, float]]:
        """Precision, recall, F1 and the rows that are so labelled, of each class."""
        names = self._names
        columns = self._by_class(labels=names, average=None)
        keys = ("precision", "recall", "f1", "rows")
        return {
            name: dict(zip(keys, map(float, row), strict=True))
            for name, *row in zip(names, *columns, strict=True)
        }

    def confusion(self) -> list[tuple[str, str, int]]:
        """Predicted class, label, and how many rows; the most frequent first."""
        cells = self._labelled
        table = metrics.confusion_matrix(
            *(cells.labels, cells.classes),
            labels=self._names,
            sample_weight=cells.rows,
        )
        found = [
            (self._names[said], self._names[true], int(table[true, said]))
            for true, said in zip(*np.nonzero(table), strict=True)
        ]
        return sorted(found, key=lambda cell: (-cell[2], cell))

    @cached_property
    def _names(self) -> list[str]:
        return sorted({*self._labelled.labels, *self._labelled.classes})

    def _by_class(self, **options: Any) -> Any:
        cells = self._labelled
        return metrics.precision_recall_fscore_support(
            *(cells.labels, cells.classes),
            sample_weight=cells.rows,
            zero_division=0.0,
            **options,
        )

    def _figure(self, name: str, value: float) -> Figure:
        match name:
            case "accuracy":
                error = float(np.sqrt(value * (1 - value) / self.rows))
                return Figure(value, *wilson(self.right, self.rows), error)
            case "log_loss":
                square = float(self._labelled.loss_square.sum()) / self._losses
                variance = max(square - value**2, 0.0)
                return of_error(value, float(np.sqrt(variance / self._losses)))
            case _:
                return of_draws(value, self._resampled[name])

    @property
    def _losses(self) -> int:
        return int(self._labelled.losses.sum())

    @cached_property
    def _resampled(self) -> Mapping[str, Floats]:
        """Of each metric (draws,)."""
        labelled = self._all.labels != None  # noqa: E711
        drawn = self._drawn[:, labelled]
        scored = self._labelled.bins != NO_BIN
        precision, recall, f1 = self._by_class_of(drawn)
        return {
            "macro_precision": precision,
            "macro_recall": recall,
            "macro_f1": f1,
            "corrected_accuracy": _weighted_accuracy(self._all, self._drawn),
            "calibration_error": calibration.error(
                self._labelled.only(scored), drawn[:, scored]
            ),
        }

    def _by_class_of(self, drawn: Floats) -> list[Floats]:
        """Macro precision, recall and F1 of counts (draws, cells)."""
        cells, names = self._labelled, np.array(self._names, object)
        says = cells.classes[:, None] == names
        is_ = cells.labels[:, None] == names
        right, said, true = (drawn @ which for which in (says & is_, says, is_))
        seen = np.maximum((said + true > 0).sum(axis=1), 1)
        parts = [(right, said), (right, true), (2 * right, said + true)]
        return [(a / np.maximum(b, 1)).sum(axis=1) / seen for a, b in parts]

    @cached_property
    def _drawn(self) -> Floats:
        """(draws, cells) as many rows as there are, each of any cell."""
        rows = self._all.rows
        rng = np.random.default_rng(self._seed)
        drawn = rng.multinomial(int(rows.sum()), rows / rows.sum(), RESAMPLES)
        return drawn.astype(np.float64)


def _weighted_accuracy(outcomes: Outcomes, counts: Floats) -> Floats:
    """Each labelled row stands for all of its bin (inverse propensity by confidence):
    labels that come early are often of rows that are sure, or of those that are not.
    Bins without a label are left out. (draws,) of counts (draws, cells)."""
    bins = np.eye(BINS + 1)[outcomes.bins - NO_BIN]
    labelled = outcomes.labels != None  # noqa: E711
    every, known, right = (
        (counts * which) @ bins for which in (1, labelled, outcomes.is_right)
    )
    told = every * (known > 0)
    weighted = (told * right / np.maximum(known, 1)).sum(axis=1)
    accuracy: Floats = weighted / np.maximum(told.sum(axis=1), 1)
    return accuracy
