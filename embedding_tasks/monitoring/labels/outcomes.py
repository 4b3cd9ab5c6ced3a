"""Predictions of whole records beside their labels, counted by day.

A prediction belongs to the day of its record, whenever its label comes: a window says
the same of a model once all its labels are there, in whatever order they came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring import rows
from embedding_tasks.monitoring.days import Refreshed
from embedding_tasks.monitoring.labels import counted
from embedding_tasks.monitoring.labels.counted import LABELLED
from embedding_tasks.monitoring.measured import Window
from embedding_tasks.monitoring.sums.moments import Floats, Ints
from embedding_tasks.store.versions import ModelVersion

BINS = 20
NO_BIN = -1
ALL = ""
# What scikit-learn takes for the smallest probability, of a float64.
_LEAST_PROBABILITY = float(np.finfo(np.float64).eps)

Texts = npt.NDArray[np.object_]
Chosen = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Selection:
    """Records of the days from `since` to `until`, both included (None: all), of some
    environments (none named: all) but for those `without`."""

    since: date | None = None
    until: date | None = None
    environments: Sequence[str] = ()
    without: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        window: Window,
        environments: Sequence[str] = (),
        without: Sequence[str] = (),
    ) -> Selection:
        return cls(window.since, window.until, environments, without)

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "since": self.since,
            "until": self.until,
            "environments": list(self.environments),
            "without": list(self.without),
        }


SELECTED = sql.SQL(
    " AND {day} BETWEEN coalesce(%(since)s::date, '-infinity')"
    "  AND coalesce(%(until)s::date, 'infinity')"
    " AND (%(environments)s::text[] = '{{}}'"
    "  OR {environment} = ANY (%(environments)s))"
    " AND {environment} <> ALL (%(without)s::text[])"
)


@dataclass(frozen=True)
class Outcomes:
    """Cells (cells,): of one day, predicted class, label (None: there is none) and bin
    of the score. The sums are of the cell's rows: `scores`; `losses` log losses, which
    add up to `loss`, their squares to `loss_square`; `lags` in seconds."""

    days: Ints
    classes: Texts
    labels: Texts
    bins: Ints
    rows: Ints
    scores: Floats
    losses: Ints
    loss: Floats
    loss_square: Floats
    lags: Floats

    def __len__(self) -> int:
        """Predictions, not cells."""
        return int(self.rows.sum())

    def only(self, chosen: Chosen) -> Outcomes:
        return Outcomes(*(column[chosen] for column in self._columns))

    @property
    def labelled(self) -> Outcomes:
        return self.only(self.labels != None)  # noqa: E711 (element by element)

    @property
    def scored(self) -> Outcomes:
        return self.only(self.bins != NO_BIN)

    @property
    def is_right(self) -> Chosen:
        right: Chosen = np.asarray(self.classes == self.labels, bool)
        return right

    def merged(self) -> Outcomes:
        """As if all were of one day."""
        names = list(zip(self.classes, self.labels, self.bins, strict=True))
        numbers = {name: n for n, name in enumerate(dict.fromkeys(names))}
        cell = np.array([numbers[name] for name in names], np.int64)
        first = np.unique(cell, return_index=True)[1]

        def total(values: Ints | Floats) -> Any:
            sums = np.bincount(cell, values, len(numbers))
            return sums.astype(values.dtype)

        return Outcomes(
            np.zeros(len(numbers), np.int64),
            *(self.classes[first], self.labels[first], self.bins[first]),
            *(total(column) for column in self._columns[4:]),
        )

    @property
    def _columns(self) -> tuple[Any, ...]:
        return (
            *(self.days, self.classes, self.labels, self.bins, self.rows, self.scores),
            *(self.losses, self.loss, self.loss_square, self.lags),
        )


def refresh(
    store: Connection, version: ModelVersion, tags: Sequence[str] = ()
) -> Refreshed:
    """Counts of all predictions, and for each of these tags of those that have it."""
    return counted.refresh(store, version, tags, digests=_DIGESTS, insert=_INSERT)


def read(
    store: Connection, version: ModelVersion, selection: Selection
) -> dict[str, Outcomes]:
    """By slice, as `tag=value`; all predictions under the empty one."""
    found = store.execute(
        sql.SQL(
            "SELECT tag, value, day, class, label, bin, rows, score, losses, loss,"
            " loss_square, lag FROM embedline.outcome WHERE model_version = %(version)s"
            "{selected} ORDER BY day, tag, value, environment, class, label, bin"
        ).format(selected=CELLS),
        {**selection.parameters, "version": version.id},
        binary=True,
    )
    cells: dict[str, list[tuple[Any, ...]]] = {ALL: []}
    for tag, value, *cell in found:
        cells.setdefault(f"{tag}={value}" if tag else ALL, []).append(tuple(cell))
    return {name: _outcomes(own) for name, own in cells.items()}


def by_prediction(outcomes: Outcomes) -> Mapping[str, Outcomes]:
    """Slices by predicted class."""
    return {
        f"prediction={name}": outcomes.only(outcomes.classes == name)
        for name in sorted(set(outcomes.classes))
    }


def _outcomes(cells: Sequence[tuple[Any, ...]]) -> Outcomes:
    days, classes, labels, bins, *sums = (
        zip(*cells, strict=True) if cells else [()] * 10
    )
    counts, scores, losses, loss, squares, lags = sums
    return Outcomes(
        np.array([day.toordinal() for day in days], np.int64),
        np.array(classes, object),
        np.array(labels, object),
        np.array(bins, np.int64),
        np.array(counts, np.int64),
        np.array(scores, np.float64),
        np.array(losses, np.int64),
        np.array(loss, np.float64),
        np.array(squares, np.float64),
        np.array(lags, np.float64),
    )


CELLS = SELECTED.format(day=sql.SQL("day"), environment=sql.SQL("environment"))

PREDICTED = sql.SQL(
    " FROM embedline.prediction p"
    " JOIN embedline.model_version m ON m.id = %(version)s"
    " LEFT JOIN embedline.record r ON r.use_case = p.use_case AND r.key = p.key"
    " LEFT JOIN embedline.label l ON l.use_case = p.use_case AND l.key = p.key"
    "  AND l.unit = 0{labelled}"
    " CROSS JOIN LATERAL (SELECT coalesce(r.event_time, p.predicted_at) AS at) e"
    " CROSS JOIN LATERAL (SELECT (e.at AT TIME ZONE 'UTC')::date AS day) d"
).format(labelled=LABELLED)
"""`FROM` and what follows: `p` is the prediction, `r` its record, `l` its label and
`d.day` its day."""

WANTED = sql.SQL(
    " WHERE p.use_case = %(use_case)s AND p.prediction IS NOT NULL"
    " AND p.model_version = CASE WHEN (SELECT predicted_by_source"
    "  FROM embedline.use_case WHERE id = %(use_case)s) THEN 0 ELSE %(version)s END"
)

# As numbers: as texts they depend on the session's time zone.
_TIMES = sql.SQL(", ").join(
    sql.SQL("extract(epoch FROM {})").format(sql.Identifier(*column))
    for column in (
        ("p", "predicted_at"),
        ("r", "event_time"),
        ("l", "labeled_at"),
        ("l", "arrived_at"),
    )
)

# a prediction's time changes with its score and probabilities
_DIGESTS = sql.SQL(
    "SELECT d.day, count(*), sum(hashtextextended(ROW(p.key, p.unit, p.prediction,"
    " p.score, r.environment, l.label, {times},"
    " (SELECT array_agg((t, r.tags ->> t)) FROM unnest(%(tags)s::text[]) t)"
    " )::text, 0)){predicted}{wanted} GROUP BY d.day"
).format(predicted=PREDICTED, wanted=WANTED, times=_TIMES)
# sums of numeric are the same in any order
_INSERT = sql.SQL(
    "INSERT INTO embedline.outcome (model_version, day, environment, tag, value,"
    " class, label, bin, rows, score, losses, loss, loss_square, lag)"
    " SELECT %(version)s, d.day, coalesce(r.environment, ''), s.tag, s.value,"
    "  p.prediction, l.label, b.bin, count(*),"
    "  CASE WHEN b.bin < 0 THEN 0 ELSE sum(p.score::numeric) END,"
    "  count(o.loss), coalesce(sum(o.loss), 0), coalesce(sum(o.loss * o.loss), 0),"
    "  coalesce(sum(extract(epoch FROM"
    "   coalesce(l.labeled_at, l.arrived_at) - e.at)), 0)"
    "{predicted}{slices}"
    " CROSS JOIN LATERAL (SELECT CASE WHEN p.score BETWEEN 0 AND 1"
    "  THEN least(floor(p.score * {bins}), {bins} - 1) ELSE {no_bin} END AS bin) b"
    " CROSS JOIN LATERAL (SELECT p.probabilities["
    "  array_position(m.classes, l.label)]::float8 AS probability) q"
    " CROSS JOIN LATERAL (SELECT CASE WHEN q.probability IS NOT NULL"
    "  THEN -ln(greatest(q.probability, {least}))::numeric END AS loss) o"
    "{wanted} AND d.day = ANY (%(days)s) GROUP BY 2, 3, 4, 5, 6, 7, 8"
).format(
    predicted=PREDICTED,
    slices=rows.SLICES,
    wanted=WANTED,
    bins=sql.Literal(BINS),
    no_bin=sql.Literal(NO_BIN),
    least=sql.Literal(_LEAST_PROBABILITY),
)
