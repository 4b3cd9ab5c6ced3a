"""The words that tell some texts from others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# A word of fewer texts than these names nobody's topic, and might tell who wrote it.
_FEWEST_TEXTS = 3
_LETTERS = r"(?u)\b[^\W\d_]\w+\b"
# How sure the prior is: as if a word had been seen so many times beforehand.
_PRIOR = 500.0
_SURE = 1.96


def distinguishing(
    texts: Sequence[str], others: Sequence[str], most: int = 8
) -> list[str]:
    """At most so many words that are more frequent in `texts`, the most telling first,
    each in at least three of them. By their log-odds in units of their standard error,
    with the frequencies of both as the prior (Monroe, Colaresi and Quinn 2008,
    "Fightin' Words"): a rare word needs more evidence, a common one more difference."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(token_pattern=_LETTERS, binary=True)
    try:
        counts = counter.fit_transform([*texts, *others])
    except ValueError:  # they have no words
        return []
    own = np.asarray(counts[: len(texts)].sum(axis=0), np.float64).ravel()
    theirs = np.asarray(counts[len(texts) :].sum(axis=0), np.float64).ravel()
    scores = _log_odds(own, theirs)
    scores[own < _FEWEST_TEXTS] = -np.inf
    names = counter.get_feature_names_out()
    best = np.argsort(-scores, kind="stable")[:most]
    return [str(names[word]) for word in best if scores[word] > _SURE]


def _log_odds(own: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    prior = _PRIOR * (own + theirs) / (own + theirs).sum()
    weights = [side + prior for side in (own, theirs)]
    odds = [np.log(w / np.maximum(w.sum() - w, 1e-9)) for w in weights]
    error = np.sqrt(1 / weights[0] + 1 / weights[1])
    scores: np.ndarray = (odds[0] - odds[1]) / error
    return scores
