"""Whether scores are the probabilities they claim to be, and what they say of a window
that has no labels."""

from __future__ import annotations

import numpy as np
from sklearn.isotonic import IsotonicRegression

from embedding_tasks.monitoring.labels.figure import Figure, of_error
from embedding_tasks.monitoring.labels.outcomes import BINS, Outcomes
from embedding_tasks.monitoring.sums.moments import Floats

# Of the expected calibration error: those of the store, two and two.
ERROR_BINS = 10


def error(outcomes: Outcomes, counts: Floats | None = None) -> Floats:
    """The expected calibration error (Guo et al., 2017) of labelled, scored outcomes:
    how far the mean score of a bin is from the share that is right, weighted by rows.
    `counts` (..., cells) in place of the rows that there are; None: one number."""
    rows = outcomes.rows.astype(np.float64)
    counts = rows if counts is None else counts
    bin_ = outcomes.bins * ERROR_BINS // BINS
    apart = outcomes.scores / rows - outcomes.is_right
    sums = (counts * apart) @ np.eye(ERROR_BINS)[bin_]
    total: Floats = np.abs(sums).sum(axis=-1) / np.maximum(counts.sum(axis=-1), 1)
    return total


class Calibrator:
    """The probability that a prediction of a score is right, by isotonic regression on
    rows whose labels are known (confidence-based performance estimation). Labels of
    more sure or less sure rows alone do not mislead it, drift of what scores mean
    does."""

    def __init__(self, baseline: Outcomes) -> None:
        known = baseline.labelled.scored
        rows, scores = _by_bin(known)
        right = np.bincount(known.bins, known.rows * known.is_right, BINS)
        self._known, some = rows, rows > 0
        self._model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        self._model.fit(
            scores[some], right[some] / rows[some], sample_weight=rows[some]
        )

    def accuracy(self, outcomes: Outcomes) -> Figure:
        """Of scored outcomes, their labels unseen. The error is of the rows there are
        and of those it was fitted on."""
        rows, scores = _by_bin(outcomes)
        right = np.where(rows > 0, self._model.predict(scores), 0)
        shares, spread = rows / rows.sum(), right * (1 - right)
        own = float(shares @ spread) / rows.sum()
        fitted = float((shares**2 * spread / np.maximum(self._known, 1)).sum())
        return of_error(float(shares @ right), float(np.sqrt(own + fitted)))

    def residual(self, labelled: Outcomes) -> Figure:
        """By how much scored, labelled outcomes are right more seldom than estimated of
        them. It does not depend on which rows have been labelled, as long as that was
        by their score or by chance."""
        expected = self.accuracy(labelled)
        realised = float(labelled.rows @ labelled.is_right) / len(labelled)
        return of_error(expected.value - realised, expected.error)


def _by_bin(outcomes: Outcomes) -> tuple[Floats, Floats]:
    """How many rows (bins,), and their mean score."""
    rows = np.bincount(outcomes.bins, outcomes.rows.astype(np.float64), BINS)
    scores = np.bincount(outcomes.bins, outcomes.scores, BINS)
    return rows.astype(np.float64), scores / np.maximum(rows, 1)
