"""MiniLM's vectors of the demo's tweets. Their classes are ten groups of k-means, in
place of a model's predictions; the new topic is a group of fifty that neither side has
otherwise."""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks import tweet_vectors
from benchmarks.drift import changes
from benchmarks.drift.rows import CLASSES, Corpus, Rows, groups, unit

BASELINE = 5000
TOPICS = 50


def corpus() -> Corpus:
    usual, topic = _usual_and_topic()
    happens: dict[str, changes.Change] = {
        **changes.of_the_mix(usual),
        "mean 0.05 SD": partial(changes.mean_shift, 0.05, usual),
        "mean 0.1 SD": partial(changes.mean_shift, 0.1, usual),
        "topic 1 %": partial(_new_topic, 0.01, topic),
        "topic 5 %": partial(_new_topic, 0.05, topic),
        "spread +5 %": partial(changes.wider, 0.05),
        "spread +10 %": partial(changes.wider, 0.10),
    }
    return Corpus(
        (200, 1000, 5000),
        {n: partial(changes.dealt, usual, BASELINE, c) for n, c in happens.items()},
    )


def _usual_and_topic() -> tuple[Rows, Rows]:
    vectors = unit(tweet_vectors.load())
    topics = groups(vectors, TOPICS).predict(vectors)
    chosen = int(np.argsort(np.bincount(topics))[TOPICS // 2])
    is_new = topics == chosen
    classes = groups(vectors[~is_new], CLASSES).predict(vectors).astype(np.int64)
    everything = Rows(vectors, classes)
    return (
        everything.only(np.flatnonzero(~is_new)),
        everything.only(np.flatnonzero(is_new)),
    )


def _new_topic(
    share: float, topic: Rows, left: Rows, rows: int, rng: np.random.Generator
) -> Rows:
    count = max(1, round(share * rows))
    new = topic.only(rng.permutation(len(topic))[:count])
    return left.first(rows - len(new)).and_those(new)
