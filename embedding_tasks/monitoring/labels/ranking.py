"""The area under the ROC curve, which no counts give: of the labelled rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from psycopg import sql
from scipy import stats
from sklearn import metrics

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring.labels import counted
from embedding_tasks.monitoring.labels.figure import Figure, of_error
from embedding_tasks.monitoring.labels.outcomes import (
    ALL,
    PREDICTED,
    SELECTED,
    WANTED,
    Selection,
    Texts,
)
from embedding_tasks.monitoring.sums.moments import Floats, Ints
from embedding_tasks.store.versions import ModelVersion

# More are sampled, by a hash of their keys.
MOST_ROWS = 200_000


@dataclass(frozen=True)
class Ranked:
    """Rows whose label the model knows: `labels` (rows,) are numbers of the columns of
    `probabilities` (rows, classes); `tags` are the values (rows,) of each tag."""

    labels: Ints
    probabilities: Floats
    tags: Mapping[str, Texts]

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, slice_: str) -> Ranked:
        """Those of `tag=value`; empty: all."""
        if slice_ == ALL:
            return self
        tag, _, value = slice_.partition("=")
        own = self.tags[tag] == value
        return Ranked(self.labels[own], self.probabilities[own], {})


def read(
    store: Connection,
    version: ModelVersion,
    selection: Selection,
    tags: Sequence[str] = (),
) -> Ranked:
    """Without probabilities, of a prediction of two classes by its score."""
    found = store.execute(
        _LABELLED_ROWS,
        {
            **counted.parameters(version),
            **selection.parameters,
            **{"tags": list(tags), "most": MOST_ROWS},
        },
        binary=True,
    ).fetchall()
    if version.classes and any(row[3] is not None for row in found):
        return _of_probabilities(found, version.classes, tags)
    return _of_scores(found, tags)


def area(rows: Ranked) -> Figure | None:
    """One class against the rest, the mean over classes, as scikit-learn's
    `roc_auc_score(…, multi_class="ovr", average="macro")`; of two classes that of the
    second. Classes without a row, or with all of them, are left out; None: no class is
    left. The error is that of DeLong et al. (1988)."""
    columns = range(rows.probabilities.shape[1])
    of_class = [
        (rows.labels == n, rows.probabilities[:, n])
        for n in (columns[1:] if len(columns) == 2 else columns)
    ]
    told = [own for own in of_class if 0 < own[0].sum() < len(rows)]
    if not told:
        return None
    value = float(np.mean([metrics.roc_auc_score(*own) for own in told]))
    influence = np.mean([_influence(*own) for own in told], axis=0)
    return of_error(value, float(influence.std() / np.sqrt(len(rows))))


def _influence(is_class: npt.NDArray[np.bool_], scores: Floats) -> Floats:
    """Of each row on the area: how much of the other kind it is on the right side of,
    by the share of its own kind."""
    among_all = stats.rankdata(scores)
    placed = np.empty(len(scores))
    for kind in (True, False):
        own = is_class == kind
        others = (among_all[own] - stats.rankdata(scores[own])) / (~own).sum()
        placed[own] = (others if kind else 1 - others) / own.mean()
    return placed


Rows = list[tuple[str, str, float | None, list[float] | None, list[str | None]]]


def _of_probabilities(
    found: Rows, classes: Sequence[str], tags: Sequence[str]
) -> Ranked:
    numbers = {name: n for n, name in enumerate(classes)}
    known = [row for row in found if row[3] is not None and row[1] in numbers]
    return Ranked(
        np.array([numbers[row[1]] for row in known], np.int64),
        np.array([row[3] for row in known], np.float64).reshape(-1, len(classes)),
        _tags(known, tags),
    )


def _of_scores(found: Rows, tags: Sequence[str]) -> Ranked:
    names = sorted({name for row in found for name in row[:2]})
    scored = [row for row in found if row[2] is not None and 0 <= row[2] <= 1]
    if len(names) != 2:
        scored = []
    second = np.array(
        [row[2] if row[0] == names[1] else 1 - (row[2] or 0) for row in scored],
        np.float64,
    )
    return Ranked(
        np.array([names.index(row[1]) for row in scored], np.int64),
        np.stack([1 - second, second], axis=1),
        _tags(scored, tags),
    )


def _tags(rows: Rows, tags: Sequence[str]) -> dict[str, Texts]:
    return {
        tag: np.array([row[4][n] for row in rows], object) for n, tag in enumerate(tags)
    }


_LABELLED_ROWS = sql.SQL(
    "SELECT p.prediction, l.label, p.score, p.probabilities,"
    " ARRAY(SELECT r.tags ->> t.tag FROM unnest(%(tags)s::text[]) WITH ORDINALITY"
    "  AS t (tag, n) ORDER BY t.n){predicted}{wanted}"
    " AND l.label IS NOT NULL{selected}"
    " ORDER BY hashtextextended(p.key, 0), p.unit LIMIT %(most)s"
).format(
    predicted=PREDICTED,
    wanted=WANTED,
    selected=SELECTED.format(
        day=sql.SQL("d.day"), environment=sql.SQL("coalesce(r.environment, '')")
    ),
)
