"""The words that tell some texts from others.

By the log-likelihood ratio of how many texts have a word, which unlike log-odds takes a
word that was never seen before at its worth (Dunning 1993, "Accurate Methods for the
Statistics of Surprise and Coincidence").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# A word of fewer texts than these names nobody's topic, and might tell who wrote it.
FEWEST_TEXTS = 3
_MOST_WORDS = 50_000
_WORD = r"(?u)\b[^\W\d_]\w+\b"
# One word in a thousand is as telling by chance (chi-squared of one degree).
_TELLING = 10.83


def distinguishing(
    texts: Sequence[str], others: Sequence[str], most: int = 8
) -> list[str]:
    """At most so many words that more of `texts` have than of `others`, the most
    telling first, each in at least three of them."""
    groups = np.repeat([0, 1], [len(texts), len(others)])
    return of_groups([*texts, *others], groups, 1, most)[0]


def of_groups(
    texts: Sequence[str],
    groups: npt.NDArray[np.int64],
    count: int,
    most: int,
    fewest: int = FEWEST_TEXTS,
) -> list[list[str]]:
    """For each of the groups 0 to `count` - 1, `groups` (texts,) has them, at most so
    many words that tell its texts from all others, each in at least `fewest` of it."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(
        token_pattern=_WORD, min_df=fewest, max_features=_MOST_WORDS, binary=True
    )
    try:
        has = counter.fit_transform(texts)
    except ValueError:  # no word is in texts enough
        return [[] for _ in range(count)]
    names = counter.get_feature_names_out()
    everywhere = _texts_with(has)
    found = []
    for group in range(count):
        own, size = _texts_with(has[groups == group]), int((groups == group).sum())
        rest = everywhere - own
        ratio = _log_likelihood_ratio(own, size, rest, len(texts) - size)
        ratio[own < fewest] = 0
        best = np.argsort(-ratio, kind="stable")[:most]
        found.append([str(names[word]) for word in best if ratio[word] > _TELLING])
    return found


def _texts_with(has: npt.ArrayLike) -> Floats:
    return np.asarray(has.sum(axis=0), np.float64).ravel()  # type: ignore[union-attr]


def _log_likelihood_ratio(
    own: Floats, of_own: int, theirs: Floats, of_theirs: int
) -> Floats:
    """Negative where the others have a word more often."""
    from scipy.special import xlogy

    if not of_own or not of_theirs:
        return np.zeros(len(own))
    share = (own + theirs) / (of_own + of_theirs)
    ratio = np.zeros(len(own))
    for count, of in ((own, of_own), (theirs, of_theirs)):
        ratio += xlogy(count, count / of) + xlogy(of - count, 1 - count / of)
        ratio -= xlogy(count, share) + xlogy(of - count, 1 - share)
    return 2 * ratio * np.sign(own / of_own - share)
