"""Vectors to points of a plane, and into clusters: the arithmetic of a map.

Vectors are given so that Euclidean distances tell how alike they are (`comparable`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from embedding_tasks.errors import ConfigError
from embedding_tasks.monitoring.nearest import nearest
from embedding_tasks.monitoring.quality.vectors import Ints, Vectors, directions

Floats = npt.NDArray[np.float64]
Method = Literal["pca", "umap"]

# As the library has them: McInnes, Healy, Melville, https://arxiv.org/abs/1802.03426
UMAP: dict[str, Any] = {"n_neighbors": 15, "min_dist": 0.1}
PLACED_BY = 10
_TINY = 1e-9


@dataclass(frozen=True)
class Fitted:
    """`points` (rows, 2), the `clusters` (rows,) and their `centers` (clusters, dims).
    `center` (dims,) and `axes` (2, dims) are PCA's."""

    points: Floats
    clusters: Ints
    centers: Floats
    center: Floats | None = None
    axes: Floats | None = None


def comparable(of: Vectors, distance: str) -> Vectors:
    """What is compared by cosine as directions."""
    return directions(of) if distance == "cosine" else of


def fit(of: Vectors, method: Method, seed: int, clusters: int) -> Fitted:
    """On vectors (rows, dims). The same ones and the same seed give the same."""
    centers = _centers(of, clusters, seed)
    nearest = nearest_center(of, centers)
    if method == "umap":
        return Fitted(_umap_points(of, seed), nearest, centers)
    center, axes = _axes(of, seed)
    return Fitted(along(of, center, axes), nearest, centers, center, axes)


def along(of: Vectors, center: Floats, axes: Floats) -> Floats:
    """(rows, 2)"""
    points: Floats = (of - center) @ axes.T
    return points


def amidst(of: Vectors, fitted: Vectors, points: Floats) -> Floats:
    """Each at the mean of the points of the ten nearest that were fitted, the nearer
    the more it weighs: measured, half of its neighbors stay neighbors, three of five by
    UMAP's own transform, which takes 13 times as long and needs the model kept."""
    near = nearest(of, fitted, PLACED_BY)
    weights = 1 / (near.distances.astype(np.float64) + _TINY)
    weights /= weights.sum(axis=1, keepdims=True)
    placed: Floats = np.einsum("rk,rkd->rd", weights, points[near.rows])
    return placed


def nearest_center(of: Vectors, centers: Floats) -> Ints:
    return nearest(of, centers.astype(np.float32), 1).rows[:, 0]


def _centers(of: Vectors, clusters: int, seed: int) -> Floats:
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    means = MiniBatchKMeans(
        min(clusters, len(of)), random_state=seed, batch_size=4096, n_init=3
    )
    with warnings.catch_warnings():
        # of fewer distinct vectors than clusters
        warnings.simplefilter("ignore", ConvergenceWarning)
        found: Floats = means.fit(of).cluster_centers_.astype(np.float64)
    return found


def _axes(of: Vectors, seed: int) -> tuple[Floats, Floats]:
    from sklearn.decomposition import PCA

    pca = PCA(2, random_state=seed).fit(of.astype(np.float64))
    return pca.mean_, pca.components_


def _umap_points(of: Vectors, seed: int) -> Floats:
    settings = {**UMAP, "n_neighbors": min(UMAP["n_neighbors"], len(of) - 1)}
    # with a seed it works on one processor, and says so unless it was told
    model = umap()(n_components=2, random_state=seed, n_jobs=1, **settings)
    points: Floats = model.fit_transform(of).astype(np.float64)
    return points


def umap() -> Callable[..., Any]:
    """Raises `ConfigError` where the package is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it could use besides
            from umap import UMAP as model
    except ImportError:
        raise ConfigError(
            "a map by 'umap' needs umap-learn: pip install 'embedline[umap]'; "
            "'pca' does without"
        ) from None
    return model  # type: ignore[no-any-return]
