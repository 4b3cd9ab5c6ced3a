"""How many wrong labels are found, and how early in the list.

    python -m benchmarks.label_errors                    tweets and digits
    python -m benchmarks.label_errors --corpora digits   a first look

Five labels of a hundred are made another one at random, in real data whose own labels
are kept as right, though some of them are wrong, too: 38,158 tweets (MiniLM's vectors,
three sentiments, which neighbors and models agree with in three of four) and
5,000 handwritten digits (50 principal components of their pixels). The head is a
logistic regression that has learned from the wrong labels, as a model in production
has: on the same records ("own"), or by halves on the others ("held out").

Neighbors alone and the head alone are judged by cleanlab, as the list is; what the list
adds is that both are asked. `precision at 100`: of the first 100 of the list, those
whose label was planted. `precision` and `recall`: of the whole list.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import harness, tweet_vectors
from embedding_tasks.demo import corpora
from embedding_tasks.monitoring.nearest import Neighbors
from embedding_tasks.monitoring.quality import label_quality, neighbors
from embedding_tasks.monitoring.quality.label_quality import Labelled

Floats = npt.NDArray[np.floating[Any]]

SHARE = 0.05
SEEDS = (0, 1, 2)
RESULTS = Path(__file__).parent / "results" / "label_errors.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", nargs="+", default=list(CORPORA), choices=CORPORA)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--vectors", type=Path, default=tweet_vectors.FILE)
    parser.add_argument("--json", type=Path, default=RESULTS)
    asked = parser.parse_args()
    found = {}
    for name in asked.corpora:
        vectors, labels = CORPORA[name](asked.vectors)
        found[name] = measured(vectors, labels, asked.seeds)
        show(name, len(labels), found[name])
    harness.save(asked.json, found, seeds=list(asked.seeds), share=SHARE)


def tweets(file: Path) -> tuple[Floats, list[str]]:
    return tweet_vectors.load(file), corpora.tweets()["sentiment"].astype(str).tolist()


def digits(_: Path) -> tuple[Floats, list[str]]:
    from sklearn.decomposition import PCA

    pixels, shown = corpora.digits()
    components = PCA(50, random_state=0).fit_transform(pixels.to_numpy() / 255)
    return components.astype(np.float32), [str(digit) for digit in shown]


CORPORA = {"tweets": tweets, "digits": digits}


@dataclass(frozen=True)
class Planted:
    """Numbers of classes: the labels as they were, and with those that are `wrong`."""

    labels: npt.NDArray[np.int64]
    wrong: npt.NDArray[np.bool_]

    @classmethod
    def in_(cls, labels: npt.NDArray[np.int64], seed: int) -> Planted:
        rng = np.random.default_rng(seed)
        classes = int(labels.max()) + 1
        wrong = rng.random(len(labels)) < SHARE
        others = (labels + rng.integers(1, classes, len(labels))) % classes
        return cls(np.where(wrong, others, labels), wrong)


def measured(
    vectors: Floats, labels: list[str], seeds: list[int]
) -> dict[str, dict[str, list[float]]]:
    """By who judges and by figure, one value for each seed."""
    near = neighbors.exact(
        vectors.astype(np.float32), "cosine", label_quality.NEIGHBORS
    )
    classes, own = np.unique(labels, return_inverse=True)
    found: dict[str, dict[str, list[float]]] = {}
    for seed in seeds:
        planted = Planted.in_(own, seed)
        for name, figures in _judged(vectors, classes, planted, near, seed).items():
            for figure, value in figures.items():
                found.setdefault(name, {}).setdefault(figure, []).append(value)
    return found


def _judged(
    vectors: Floats,
    classes: npt.NDArray[np.str_],
    planted: Planted,
    near: Neighbors,
    seed: int,
) -> dict[str, dict[str, float]]:
    count = len(planted.labels)
    alone = Labelled(
        *([str(n) for n in range(count)], [0] * count),
        *([str(label) for label in classes[planted.labels]], [None] * count),
        *("cosine", near, [str(label) for label in classes], {}),
    )
    found = {"neighbors alone": _by_list(alone, planted)}
    for how, probabilities in _heads(vectors, planted, seed).items():
        given = dict(enumerate(probabilities.tolist()))
        both = replace(alone, probabilities=given)
        found[f"cleanlab alone, head {how}"] = _by_cleanlab(probabilities, planted)
        found[f"the list, head {how}"] = _by_list(both, planted)
    return found


def _heads(vectors: Floats, planted: Planted, seed: int) -> dict[str, Floats]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    head = LogisticRegression(C=10, max_iter=300)
    scaled = (vectors - vectors.mean(axis=0)) / vectors.std()
    halves = StratifiedKFold(2, shuffle=True, random_state=seed)
    held_out = cross_val_predict(
        head, scaled, planted.labels, cv=halves, method="predict_proba"
    )
    return {
        "own": head.fit(scaled, planted.labels).predict_proba(scaled),
        "held out": held_out,
    }


def _by_list(labelled: Labelled, planted: Planted) -> dict[str, float]:
    flags = label_quality.suspects(labelled)
    order = sorted(flags, key=lambda flag: -flag.score)
    return _figures(np.array([int(flag.key) for flag in order]), planted)


def _by_cleanlab(probabilities: Floats, planted: Planted) -> dict[str, float]:
    """As its documentation has it."""
    from cleanlab.filter import find_label_issues

    order = find_label_issues(
        planted.labels,
        probabilities,
        return_indices_ranked_by="self_confidence",
        n_jobs=1,
    )
    return _figures(order, planted)


def _figures(order: npt.NDArray[np.int64], planted: Planted) -> dict[str, float]:
    hits = planted.wrong[order]
    return {
        "precision at 100": float(hits[:100].mean()),
        "precision": float(hits.mean()),
        "recall": float(hits.sum() / planted.wrong.sum()),
        "listed": float(len(order)),
    }


def show(name: str, count: int, found: dict[str, dict[str, list[float]]]) -> None:
    figures = ("precision at 100", "precision", "recall", "listed")
    print(f"\n{name}, {count:,} labels, {SHARE:.0%} of them wrong")
    print(f"| judged by | {' | '.join(figures)} |\n|{'---|' * (len(figures) + 1)}")
    for judge, values in found.items():
        told = [f"{np.mean(values[f]):.3f}" for f in figures[:-1]]
        told.append(f"{np.mean(values['listed']):,.0f}")
        print(f"| {judge} | {' | '.join(told)} |")


if __name__ == "__main__":
    main()
