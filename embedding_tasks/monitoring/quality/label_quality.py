"""Labels that are probably wrong, by two witnesses: the labels of near vectors, and the
model's own head.

A head that was trained on these very labels has learned some of the wrong ones; a
neighbor's label was never given by looking at this record. So the two are averaged, and
confident learning (Northcutt et al., https://arxiv.org/abs/1911.00068, by cleanlab)
says which labels their average speaks against, class by class, and in which order. With
5 % of labels flipped there are more of those among the first hundred than by either
witness alone (benchmarks/label_errors.py).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedding_tasks.connections import Connection, take_time
from embedding_tasks.monitoring.flags import Flag
from embedding_tasks.monitoring.nearest import Neighbors
from embedding_tasks.monitoring.quality import neighbors
from embedding_tasks.store.versions import ModelVersion

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# At most, and no more than the root of the labelled vectors: of a class with fewer, the
# others would outvote the right labels.
NEIGHBORS = 50
_FEWEST = 5
# Of labels that nearly every record has one of its own, none can be suspected.
MOST_CLASSES = 1000
# Probabilities, of vectors by classes: 800 MB, and as much again for each step.
MOST_CELLS = 100_000_000
# cleanlab's threshold of near duplicates, of the median distance to the nearest.
NEAR = 0.13
# What a float's rounding makes of no distance at all.
_ZERO = 1e-6


@dataclass(frozen=True)
class Labelled:
    """The labelled vectors of a version, in key order. `probabilities` are the head's,
    by number of the row, in the order of `classes`."""

    keys: list[str]
    units: list[int]
    labels: list[str]
    tenants: list[str | None]
    distance: str
    near: Neighbors
    classes: list[str]
    probabilities: dict[int, list[float]]


def find(store: Connection, version: ModelVersion, k: int = NEIGHBORS) -> list[Flag]:
    """Flags of the kinds `label` and `conflict`. Raises `StoreError` where there are
    too many vectors for exact comparison and no index."""
    labelled = read(store, version, k)
    return [*suspects(labelled), *conflicts(labelled)]


def read(store: Connection, version: ModelVersion, k: int = NEIGHBORS) -> Labelled:
    """All of one moment, so not to be called in a transaction. Leaves nothing in the
    session."""
    with store.transaction(force_rollback=True):
        store.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        take_time(store)
        store.execute(
            'CREATE TEMP TABLE labelled (n int, key text COLLATE "C", unit int,'
            " label text, PRIMARY KEY (key, unit)) ON COMMIT DROP"
        )
        store.execute(
            "INSERT INTO labelled SELECT row_number() OVER"
            '  (ORDER BY l.key COLLATE "C", l.unit) - 1, l.*'
            " FROM embedline.model_version m, embedline.labelled(m) l WHERE m.id = %s",
            [version.id],
        )
        store.execute("ANALYZE labelled")
        found = store.execute(
            "SELECT l.key, l.unit, l.label, r.tenant FROM labelled l"
            " LEFT JOIN embedline.record r ON r.use_case = %s AND r.key = l.key"
            " ORDER BY l.n",
            [version.use_case],
        ).fetchall()
        probabilities = _probabilities(store, version)
        k = min(k, max(_FEWEST, math.isqrt(len(found))))
        near = neighbors.of_labelled(store, version, k)
    keys, units, labels, tenants = zip(*found, strict=True) if found else [()] * 4
    return Labelled(
        *(list(keys), list(units), list(labels), list(tenants)),
        *(version.distance, near, version.classes or [], probabilities),
    )


def _probabilities(store: Connection, version: ModelVersion) -> dict[int, list[float]]:
    if not version.classes:
        return {}
    found = store.execute(
        "SELECT l.n, p.probabilities FROM labelled l JOIN embedline.prediction p"
        " USING (key, unit) WHERE p.use_case = %s AND p.model_version = %s"
        " AND cardinality(p.probabilities) = %s",
        [version.use_case, version.id, len(version.classes)],
        binary=True,
    )
    return dict(found.fetchall())


def suspects(labelled: Labelled) -> list[Flag]:
    """The score is 1 - the probability of the label: cleanlab's self-confidence, the
    other way round. Measured, it puts a tenth more of planted errors among the first of
    the list than the margin to the likeliest other class does."""
    from cleanlab.rank import get_label_quality_scores

    classes = set(labelled.labels)
    known = sorted(classes.union(labelled.classes))
    if len(classes) < 2 or _are_too_many(len(known), len(labelled.labels)):
        return []
    own = _numbered(labelled.labels, known)
    votes = _votes(labelled, own, len(known))
    head = _head(labelled, known, own)
    likely = np.where(np.isnan(head), votes, (head + votes) / 2)
    wrong = _issues(own, likely)
    scores = 1 - get_label_quality_scores(own, likely, method="self_confidence")
    likely[np.arange(len(own)), own] = -1
    others = likely.argmax(axis=1)
    return [
        Flag(
            *(labelled.keys[n], labelled.units[n], "label", float(scores[n])),
            detail={
                "label": labelled.labels[n],
                "suggested": known[others[n]],
                "neighbors": _of_both(votes[n], own[n], others[n]),
                "model": _of_both(head[n], own[n], others[n]),
            },
        )
        for n in np.flatnonzero(wrong).tolist()
    ]


def _are_too_many(classes: int, labels: int) -> bool:
    if classes <= MOST_CLASSES and classes * labels <= MOST_CELLS:
        return False
    log.warning(
        "%d labels of %d classes: errors are looked for among up to %d classes, and %d"
        " labels times classes",
        *(labels, classes, MOST_CLASSES, MOST_CELLS),
    )
    return True


def _votes(labelled: Labelled, own: Ints, classes: int) -> Floats:
    """Shares of the neighbors' labels (rows, classes), with one vote more that goes by
    how frequent the classes are."""
    counts = np.zeros((len(own), classes))
    weights = _weights(labelled)
    for neighbor, weight in zip(labelled.near.rows.T, weights.T, strict=True):
        there = np.flatnonzero(neighbor >= 0)
        counts[there, own[neighbor[there]]] += weight[there]
    frequent = np.bincount(own, minlength=classes) / len(own)
    shares: Floats = (counts + frequent) / (counts.sum(axis=1, keepdims=True) + 1)
    return shares


def _weights(labelled: Labelled) -> Floats:
    """(rows, k), on average 1: Epanechnikov's kernel, as wide as the farthest neighbor
    is away, which has a twentieth of a vote all the same. An inner product is no
    distance to weigh by."""
    there = labelled.near.rows >= 0
    if labelled.distance == "inner_product":
        return there.astype(np.float64)
    far = np.where(there, labelled.near.distances, 0).astype(np.float64)
    width = np.maximum(far.max(axis=1, keepdims=True, initial=0), _ZERO)
    kernel = there * (1 - np.square(far / width) + 0.05)
    mean = kernel.sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    weights: Floats = kernel / np.maximum(mean, _ZERO)[:, None]
    return weights


def _head(labelled: Labelled, known: Sequence[str], own: Ints) -> Floats:
    """The head's probabilities (rows, classes); NaN where it gave none, or does not
    know the label's class: of that it has nothing to say."""
    head = np.full((len(own), len(known)), np.nan)
    rows = np.fromiter(labelled.probabilities, np.int64, len(labelled.probabilities))
    if not len(rows):
        return head
    given = np.array(list(labelled.probabilities.values()))
    sums = given.sum(axis=1, keepdims=True)
    places = _numbered(labelled.classes, known)
    usable = np.isin(own[rows], places) & (np.isfinite(sums) & (sums > 0))[:, 0]
    head[rows[usable]] = 0
    head[rows[usable, None], places] = given[usable] / sums[usable]
    return head


def _issues(own: Ints, likely: Floats) -> npt.NDArray[np.bool_]:
    from cleanlab.filter import find_label_issues

    with warnings.catch_warnings():
        # of classes of which too few labels would be left
        warnings.simplefilter("ignore", UserWarning)
        found: npt.NDArray[np.bool_] = find_label_issues(own, likely, n_jobs=1)
    return found


def _of_both(shares: Floats, label: int, suggested: int) -> dict[str, float] | None:
    """Of the label and of the suggested class."""
    if np.isnan(shares).any():
        return None
    return {
        "label": round(float(shares[label]), 4),
        "suggested": round(float(shares[suggested]), 4),
    }


def conflicts(labelled: Labelled) -> list[Flag]:
    """Of two that are nearly the same and have different labels, both. Only within one
    tenant: nobody is told of another's record. The score is 1 for the same vector, 0 at
    the distance from which on vectors are not nearly the same."""
    nearest = labelled.near.distances[:, :1]
    nearest = nearest[np.isfinite(nearest)]
    if labelled.distance == "inner_product" or not len(nearest):
        return []
    near = max(NEAR * float(np.median(nearest)), _ZERO)
    return [
        Flag(
            *(labelled.keys[n], labelled.units[n], "conflict", 1 - far / near),
            detail={
                "label": labelled.labels[n],
                "suggested": labelled.labels[other],
                "other_key": labelled.keys[other],
                "other_unit": labelled.units[other],
                "distance": far,
            },
        )
        for n, other, far in _conflicting(labelled, near)
    ]


def _conflicting(labelled: Labelled, near: float) -> Iterator[tuple[int, int, float]]:
    """Each with the nearest that contradicts it."""
    own = _numbered(labelled.labels, sorted({*labelled.labels}))
    of = _numbered(labelled.tenants, list({*labelled.tenants}))
    rows = labelled.near.rows
    differ = (labelled.near.distances <= near) & (own[rows] != own[:, None])
    differ &= (of[rows] == of[:, None]) & (rows >= 0)
    first = differ.argmax(axis=1)
    for n in np.flatnonzero(differ.any(axis=1)).tolist():
        place = first[n]
        yield n, int(rows[n, place]), float(labelled.near.distances[n, place])


def _numbered(values: Sequence[str | None], among: Sequence[str | None]) -> Ints:
    numbers = {value: n for n, value in enumerate(among)}
    return np.array([numbers[value] for value in values], np.int64)
