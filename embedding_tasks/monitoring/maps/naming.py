"""Names for groups of texts: the words that tell each from the rest.

A word weighs the share of the group's texts that have it, times the logarithm of how
many times that is its share of the rest: what it adds to the divergence of the two
(Kullback and Leibler, 1951). With class tf-idf, which compares with all groups
together, "to" and "and" were among the names of tweets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

WORDS = 4
# A name tells of many records, and not what one of them says.
FEWEST_TEXTS = 5
_MOST_WORDS = 50_000
_TINY = 1e-12


def names(
    texts: Sequence[str | None], groups: npt.NDArray[np.int64], count: int
) -> list[str]:
    """Of groups 0 to `count` - 1, from the texts of each; empty where no word comes in
    enough of them."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(
        min_df=FEWEST_TEXTS, max_features=_MOST_WORDS, binary=True
    )
    try:
        counted = counter.fit_transform([text or "" for text in texts])
    except ValueError:  # no word is left
        return [""] * count
    words = counter.get_feature_names_out()
    sizes = np.bincount(groups, minlength=count)
    inside = np.stack(
        [
            np.asarray(counted[groups == group].sum(axis=0)).ravel()
            for group in range(count)
        ]
    )
    return [_name(row, words) for row in _weights(inside, sizes[:, None])]


def _weights(
    inside: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """`inside` (groups, words): texts of the group that have the word; `sizes`
    (groups, 1)."""
    shares = inside / np.maximum(sizes, 1)
    rest = (inside.sum(axis=0) - inside + 1) / (sizes.sum() - sizes + 1)
    weights: npt.NDArray[np.float64] = shares * np.log((shares + _TINY) / rest)
    weights[inside < FEWEST_TEXTS] = 0
    return weights


def _name(weights: npt.NDArray[np.float64], words: npt.NDArray[np.str_]) -> str:
    order = np.argsort(-weights, kind="stable")[:WORDS]
    return ", ".join(words[i] for i in order if weights[i] > 0)
