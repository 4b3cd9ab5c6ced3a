"""Names for groups of texts: the words that tell each from the rest.

A word's weight in a group is how often it comes there, times log(1 + A / f): A words a
group has on average, f times the word comes in all of them (class tf-idf: Grootendorst,
BERTopic, https://arxiv.org/abs/2203.05794).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

WORDS = 4
# A name tells of many records, and not what one of them says.
FEWEST_TEXTS = 5
_MOST_WORDS = 50_000


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
    in_groups = np.stack(
        [
            np.asarray(counted[groups == group].sum(axis=0)).ravel()
            for group in range(count)
        ]
    )
    return [_name(row, words) for row in _weights(in_groups)]


def _weights(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    average = counts.sum() / len(counts)
    weights: npt.NDArray[np.float64] = counts * np.log1p(average / counts.sum(axis=0))
    weights[counts < FEWEST_TEXTS] = 0
    return weights


def _name(weights: npt.NDArray[np.float64], words: npt.NDArray[np.str_]) -> str:
    order = np.argsort(-weights, kind="stable")[:WORDS]
    return ", ".join(words[i] for i in order if weights[i] > 0)
