"""The words that tell some texts from others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# A word of fewer texts than these names nobody's topic, and might tell who wrote it.
_FEWEST_TEXTS = 3
_WORD = r"(?u)\b[^\W\d_]\w+\b"
# One word in a thousand is as telling by chance (chi-squared of one degree).
_TELLING = 10.83


def distinguishing(
    texts: Sequence[str], others: Sequence[str], most: int = 8
) -> list[str]:
    """At most so many words that more of `texts` have, the most telling first, each in
    at least three of them. By the log-likelihood ratio of how many texts have them,
    which unlike log-odds takes a word that was never seen before at its worth (Dunning
    1993, "Accurate Methods for the Statistics of Surprise and Coincidence")."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(token_pattern=_WORD, binary=True)
    try:
        has = counter.fit_transform([*texts, *others])
    except ValueError:  # none of them has a word
        return []
    own = np.asarray(has[: len(texts)].sum(axis=0), np.float64).ravel()
    theirs = np.asarray(has[len(texts) :].sum(axis=0), np.float64).ravel()
    ratio = _log_likelihood_ratio(own, len(texts), theirs, len(others))
    ratio[own < _FEWEST_TEXTS] = 0
    names = counter.get_feature_names_out()
    best = np.argsort(-ratio, kind="stable")[:most]
    return [str(names[word]) for word in best if ratio[word] > _TELLING]


def _log_likelihood_ratio(
    own: Floats, of_own: int, theirs: Floats, of_theirs: int
) -> Floats:
    """Negative where the others have a word more often."""
    from scipy.special import xlogy

    share = (own + theirs) / (of_own + of_theirs)
    ratio = np.zeros(len(own))
    for count, of in ((own, of_own), (theirs, of_theirs)):
        ratio += xlogy(count, count / of) + xlogy(of - count, 1 - count / of)
        ratio -= xlogy(count, share) + xlogy(of - count, 1 - share)
    return 2 * ratio * np.sign(own / of_own - share)
