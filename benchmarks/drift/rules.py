"""Rules of when a window alarms: this package's, of each statistic alone at its nominal
level, and others' with their defaults, written here as their sources have them: the
distance of centroids, the share of drifted components and the AUC of a classifier as in
Evidently 0.7, and reconstruction by PCA as in NannyML 0.13."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from benchmarks.drift.rows import Rows, Vectors
from embedding_tasks.monitoring.rowwise import comparison, novelty, sample, spread
from embedding_tasks.monitoring.rowwise.comparison import Settings
from embedding_tasks.monitoring.sums import centroid, mix
from embedding_tasks.monitoring.sums.moments import Moments
from embedding_tasks.monitoring.sums.rollup import BUCKETS

DAYS = 5
PERMUTATIONS = 199
LEVEL = 0.05

Rule = Callable[[Rows, Rows, int], dict[str, bool]]
"""Of a baseline, a window and a seed: by statistic, whether it alarms."""


def sums(baseline: Rows, window: Rows, seed: int) -> dict[str, bool]:
    rng = np.random.default_rng(seed)
    before, after = _summed(baseline, DAYS, rng), _summed(window, 1, rng)
    within = centroid.shift(before, after, permutations=PERMUTATIONS, seed=seed)
    plain = centroid.shift(
        before.without_classes(),
        after.without_classes(),
        permutations=PERMUTATIONS,
        seed=seed,
    )
    mixed = mix.change(_named(baseline), _named(window), seed=seed)
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
    count = len(rows)
    named = rng.integers(0, days, count), rng.integers(0, BUCKETS, count)
    return Moments.of_vectors(rows.vectors, rows.classes, *named)


def _named(rows: Rows) -> dict[str, int]:
    return {str(label): count for label, count in enumerate(rows.counts.tolist())}


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


RULES: dict[str, Rule] = {
    "sums": sums,
    "rows": by_row,
    "Evidently": evidently,
    "NannyML": nannyml,
}
