"""How well a model does on its baseline, one slice of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from embedding_tasks.monitoring.labels.calibration import Calibrator
from embedding_tasks.monitoring.labels.figure import Figure
from embedding_tasks.monitoring.labels.outcomes import Outcomes
from embedding_tasks.monitoring.labels.scores import Scores

# From this share of labels on, those that lack are too few to matter.
MATURE = 0.9
# Of the baseline's own windows: fewer do not tell how far days are apart.
FEWEST_WINDOWS = 5
# Whether more of it is better. Precision and recall are told by F1.
GOOD = {
    "accuracy": True,
    "corrected_accuracy": True,
    "macro_f1": True,
    "auc": True,
    "calibration_error": False,
}


def excess(metric: str, usual: float, value: float) -> float:
    """How much worse a value is than the usual one."""
    return usual - value if GOOD[metric] else value - usual


@dataclass(frozen=True)
class Usual:
    """`outcomes` with at least `least_rows` labels; `area` finds their AUC."""

    outcomes: Outcomes
    area: Callable[[], Figure | None]
    window_days: int
    least_rows: int

    @cached_property
    def scores(self) -> Scores:
        return Scores(self.outcomes)

    @cached_property
    def figures(self) -> Mapping[str, Figure]:
        auc = self.area()
        return {**self.scores.figures, **({"auc": auc} if auc else {})}

    @cached_property
    def calibrator(self) -> Calibrator | None:
        """None: the predictions have no scores."""
        known = self.outcomes.labelled.scored
        return Calibrator(known) if len(known) >= self.least_rows else None

    @cached_property
    def noise(self) -> Mapping[str, float]:
        """By metric, the largest excess among the baseline's own windows. AUC has none:
        it would take reading all rows."""
        windows = [Scores(own).values for own in self._windows()]
        if len(windows) < FEWEST_WINDOWS:
            return {}
        usual = self.scores.values
        return {
            metric: max(excess(metric, usual[metric], own[metric]) for own in windows)
            for metric in GOOD.keys() & usual.keys()
            if all(metric in own for own in windows)
        }

    @cached_property
    def noise_of_residual(self) -> float | None:
        known = [own.labelled.scored for own in self._windows()]
        known = [own for own in known if len(own)]
        if self.calibrator is None or len(known) < FEWEST_WINDOWS:
            return None
        return max(self.calibrator.residual(own).value for own in known)

    def _windows(self) -> Iterator[Outcomes]:
        """Those that have labels enough."""
        number = self.outcomes.days // self.window_days
        for n in np.unique(number):
            own = self.outcomes.only(number == n)
            if len(own.labelled) >= self.least_rows:
                yield own
