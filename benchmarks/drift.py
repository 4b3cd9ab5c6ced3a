"""How often the drift statistics alarm, with and without drift, beside others' rules.

    python -m benchmarks.drift                       38,158 tweets, 100 repetitions
    python -m benchmarks.drift --repetitions 20      a first look

Real embeddings: MiniLM's of the demo's tweets, dealt at random to a baseline of five
days and to windows, so that nothing has drifted but what is planted. Their classes are
ten groups of k-means, in place of a model's predictions; the new topic is a group of
fifty that neither side has otherwise. Every rule sees the same rows. At n = 5,000 the
same tweet is in several repetitions: their errors are a little more alike than those of
fresh rows would be.

Others' rules are written here as their sources have them, with their defaults: the
distance of centroids, the share of drifted components and the AUC of a classifier as in
Evidently 0.7, and reconstruction by PCA as in NannyML 0.13.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from benchmarks import harness, tweet_vectors
from embedding_tasks.monitoring.rowwise import comparison, novelty, sample, spread
from embedding_tasks.monitoring.rowwise.comparison import Settings
from embedding_tasks.monitoring.sums import centroid, mix
from embedding_tasks.monitoring.sums.moments import Moments
from embedding_tasks.monitoring.sums.rollup import BUCKETS

Vectors = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

SEED = 7
BASELINE, DAYS = 5000, 5
CLASSES, TOPICS = 10, 50
SIZES = (200, 1000, 5000)
PERMUTATIONS = 199
LEVEL = 0.05
RESULTS = Path(__file__).parent / "results" / "drift.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--json", type=Path, default=RESULTS)
    asked = parser.parse_args()
    tweets = Tweets.of(tweet_vectors.load())
    found = {
        str(rows): measured(tweets, rows, asked.repetitions) for rows in asked.sizes
    }
    for rows, rates in found.items():
        show(int(rows), asked.repetitions, rates)
    harness.save(asked.json, found, seed=SEED, repetitions=asked.repetitions)


@dataclass(frozen=True)
class Rows:
    """Vectors (rows, dims) and the class of each."""

    vectors: Vectors
    classes: Ints

    def only(self, chosen: Ints) -> Rows:
        return Rows(self.vectors[chosen], self.classes[chosen])

    def and_those(self, other: Rows) -> Rows:
        return Rows(
            np.concatenate([self.vectors, other.vectors]),
            np.concatenate([self.classes, other.classes]),
        )

    def moved(self, by: Vectors) -> Rows:
        return Rows(self.vectors + by, self.classes)


@dataclass(frozen=True)
class Tweets:
    """`usual` rows, by class, and those of a `topic` that is none of theirs."""

    usual: Rows
    topic: Rows
    spread: float

    @classmethod
    def of(cls, vectors: Vectors) -> Tweets:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        topics = _groups(unit, TOPICS)
        sizes = np.bincount(topics)
        chosen = int(np.argsort(sizes)[TOPICS // 2])
        is_new = topics == chosen
        classes = _groups(unit[~is_new], CLASSES, of=unit)
        usual = Rows(unit[~is_new], classes[~is_new])
        spread = float(np.sqrt(usual.vectors.var(axis=0).sum()))
        return cls(usual, Rows(unit[is_new], classes[is_new]), spread)

    def deal(self, rng: np.random.Generator) -> tuple[Rows, Rows]:
        """A baseline, and what is left for windows."""
        order = rng.permutation(len(self.usual.classes))
        return self.usual.only(order[:BASELINE]), self.usual.only(order[BASELINE:])

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        counts = np.bincount(self.usual.classes, minlength=CLASSES)
        return counts / counts.sum()


def _groups(vectors: Vectors, count: int, of: Vectors | None = None) -> Ints:
    fitted = MiniBatchKMeans(count, random_state=SEED, n_init=3).fit(vectors)
    return fitted.predict(vectors if of is None else of).astype(np.int64)


# What happens to a window


Change = Callable[[Tweets, Rows, int, np.random.Generator], Rows]


def nothing(tweets: Tweets, left: Rows, rows: int, rng: np.random.Generator) -> Rows:
    return left.only(np.arange(rows))


def jitter(
    points: float, tweets: Tweets, left: Rows, rows: int, rng: np.random.Generator
) -> Rows:
    """Each class by so many percentage points, as on any day: no drift."""
    shares = np.abs(tweets.shares + rng.normal(0, points / 100, CLASSES))
    return _mixed(left, rows, shares / shares.sum(), rng)


def mean_shift(
    size: float, tweets: Tweets, left: Rows, rows: int, rng: np.random.Generator
) -> Rows:
    """In any one direction, by so many standard deviations of a vector."""
    direction = rng.normal(size=left.vectors.shape[1])
    direction *= size * tweets.spread / np.linalg.norm(direction)
    return left.only(np.arange(rows)).moved(direction.astype(np.float32))


def new_topic(
    share: float, tweets: Tweets, left: Rows, rows: int, rng: np.random.Generator
) -> Rows:
    count = max(1, round(share * rows))
    chosen = rng.permutation(len(tweets.topic.classes))[:count]
    return left.only(np.arange(rows - len(chosen))).and_those(tweets.topic.only(chosen))


def wider(
    by: float, tweets: Tweets, left: Rows, rows: int, rng: np.random.Generator
) -> Rows:
    """Every row so much farther from the mean of its class, and back to length 1."""
    chosen = left.only(np.arange(rows))
    means = np.stack(
        [left.vectors[left.classes == c].mean(axis=0) for c in range(CLASSES)]
    )[chosen.classes]
    vectors = means + (1 + by) * (chosen.vectors - means)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return Rows(unit, chosen.classes)


def prior(tweets: Tweets, left: Rows, rows: int, rng: np.random.Generator) -> Rows:
    """Half of the classes gain ten points together, the others lose them."""
    shares = tweets.shares.copy()
    gains = rng.permutation(CLASSES) < CLASSES // 2
    shares[gains] *= 1 + 0.1 / shares[gains].sum()
    shares[~gains] *= 1 - 0.1 / shares[~gains].sum()
    return _mixed(left, rows, shares, rng)


def _mixed(
    left: Rows, rows: int, shares: npt.NDArray[np.float64], rng: np.random.Generator
) -> Rows:
    counts = rng.multinomial(rows, shares)
    chosen = [
        np.flatnonzero(left.classes == label)[:count]
        for label, count in enumerate(counts)
    ]
    return left.only(np.concatenate(chosen))


CHANGES: dict[str, Change] = {
    "no drift": nothing,
    "mix ±1 pp": partial(jitter, 1.0),
    "mix ±1.5 pp": partial(jitter, 1.5),
    "mean 0.05 SD": partial(mean_shift, 0.05),
    "mean 0.1 SD": partial(mean_shift, 0.1),
    "topic 1 %": partial(new_topic, 0.01),
    "topic 5 %": partial(new_topic, 0.05),
    "spread +5 %": partial(wider, 0.05),
    "spread +10 %": partial(wider, 0.10),
    "prior 10 pp": prior,
}


# Rules: whether each alarms


def ours(baseline: Rows, window: Rows, seed: int) -> dict[str, bool]:
    rng = np.random.default_rng(seed)
    before, after = _summed(baseline, DAYS, rng), _summed(window, 1, rng)
    within = centroid.shift(before, after, permutations=PERMUTATIONS, seed=seed)
    plain = centroid.shift(
        before.without_classes(),
        after.without_classes(),
        permutations=PERMUTATIONS,
        seed=seed,
    )
    mixed = mix.change(_counts(baseline), _counts(window), seed=seed)
    assert within is not None
    assert plain is not None
    assert mixed is not None
    return {
        "centroid within classes": within.p_value <= LEVEL,
        "centroid": plain.p_value <= LEVEL,
        "class mix": mixed.p_value <= LEVEL,
    }


def by_row(baseline: Rows, window: Rows, seed: int) -> dict[str, bool]:
    compared = comparison.compare(
        sample.of_vectors(baseline.vectors),
        sample.of_vectors(window.vectors, len(baseline.vectors)),
        Settings(permutations=PERMUTATIONS, seed=seed),
    )
    shift = spread.mmd(compared)
    assert shift is not None
    return {
        "novelty": novelty.novelty(compared).p_value <= LEVEL,
        "outliers": spread.outliers(compared).p_value <= LEVEL,
        "spread": spread.residual(compared).p_value <= LEVEL,
        "MMD": shift.p_value <= LEVEL,
    }


def _summed(rows: Rows, days: int, rng: np.random.Generator) -> Moments:
    count = len(rows.classes)
    named = rng.integers(0, days, count), rng.integers(0, BUCKETS, count)
    return Moments.of_vectors(rows.vectors, rows.classes, *named)


def _counts(rows: Rows) -> dict[str, int]:
    counts = np.bincount(rows.classes, minlength=CLASSES)
    return {str(label): int(count) for label, count in enumerate(counts)}


def evidently(baseline: Rows, window: Rows, seed: int) -> dict[str, bool]:
    before, after = baseline.vectors, window.vectors
    distance = np.linalg.norm(before.mean(axis=0) - after.mean(axis=0))
    scale = np.maximum(before.std(axis=0), 0.001)
    moved = [
        stats.wasserstein_distance(before[:, i], after[:, i]) / scale[i] > 0.1
        for i in range(before.shape[1])
    ]
    inputs = np.concatenate([before, after])
    side = np.repeat([0, 1], [len(before), len(after)])
    train, test, wanted, truth = train_test_split(
        inputs, side, test_size=0.5, random_state=seed, stratify=side
    )
    model = SGDClassifier(loss="log_loss", random_state=seed).fit(train, wanted)
    auc = roc_auc_score(truth, model.predict_proba(test)[:, 1])
    return {
        "Evidently distance": bool(distance > 0.2),
        "Evidently ratio": bool(np.mean(moved) > 0.2),
        "Evidently model": bool(auc > 0.55),
    }


def nannyml(baseline: Rows, window: Rows, seed: int) -> dict[str, bool]:
    """Mean and three standard deviations of the baseline's chunks, which the scaler and
    the PCA were fitted on, too."""
    usual = baseline.vectors.astype(np.float64)
    scaler = StandardScaler().fit(usual)
    pca = PCA(0.65, random_state=seed).fit(scaler.transform(usual))

    def error(vectors: Vectors) -> float:
        scaled = scaler.transform(vectors.astype(np.float64))
        back = pca.inverse_transform(pca.transform(scaled))
        return float(np.linalg.norm(scaled - back, axis=1).mean())

    chunks = [error(part) for part in np.array_split(baseline.vectors, 10)]
    off = abs(error(window.vectors) - np.mean(chunks))
    return {"NannyML reconstruction": bool(off > 3 * np.std(chunks))}


def measured(
    tweets: Tweets, rows: int, repetitions: int
) -> dict[str, dict[str, float]]:
    """By rule and by change, the share of windows that alarm."""
    alarms: dict[str, dict[str, list[bool]]] = {}
    for seed in range(repetitions):
        for name, change in CHANGES.items():
            rng = np.random.default_rng([SEED, seed, rows])
            baseline, left = tweets.deal(rng)
            window = change(tweets, left, rows, rng)
            for rule in (ours, by_row, evidently, nannyml):
                for called, alarm in rule(baseline, window, seed).items():
                    alarms.setdefault(called, {}).setdefault(name, []).append(alarm)
    return {
        rule: {name: float(np.mean(a)) for name, a in by_change.items()}
        for rule, by_change in alarms.items()
    }


def show(rows: int, repetitions: int, rates: dict[str, dict[str, Any]]) -> None:
    print(f"\nn = {rows:,}, {repetitions} windows each: share that alarms")
    print(f"| rule | {' | '.join(CHANGES)} |\n|{'---|' * (len(CHANGES) + 1)}")
    for rule, by_change in rates.items():
        cells = " | ".join(f"{by_change[name]:.2f}" for name in CHANGES)
        print(f"| {rule} | {cells} |")


if __name__ == "__main__":
    main()
