"""Entities predicted and labelled, counted by day and type: strict precision, recall
and F1, as seqeval's strict mode has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring import rows
from embedding_tasks.monitoring.days import Refreshed
from embedding_tasks.monitoring.labels import counted
from embedding_tasks.monitoring.labels.counted import LABELLED
from embedding_tasks.monitoring.labels.figure import Figure, of_draws, p_value, wilson
from embedding_tasks.monitoring.labels.outcomes import ALL, CELLS, Selection
from embedding_tasks.monitoring.labels.usual import MATURE
from embedding_tasks.monitoring.measured import FEWEST_ROWS, Measured, Window
from embedding_tasks.monitoring.sums.moments import Floats
from embedding_tasks.store.versions import ModelVersion

RESAMPLES = 500
METRICS = ("entity_precision", "entity_recall", "entity_f1")


@dataclass(frozen=True)
class Entities:
    """Of some days: `records` that have a prediction, those that are `labelled`, the
    mean `lag_days` till then, and by type what was found, wrong and missed (3,)."""

    records: int
    labelled: int
    lag_days: float
    by_type: Mapping[str, Floats]

    @property
    def coverage(self) -> float:
        return self.labelled / max(self.records, 1)

    @property
    def counts(self) -> Floats:
        """(3,) of all types."""
        total: Floats = np.sum([np.zeros(3), *self.by_type.values()], axis=0)
        return total


def refresh(
    store: Connection, version: ModelVersion, tags: Sequence[str] = ()
) -> Refreshed:
    """Of a version of words or entities, and for each of these tags of the records that
    have it."""
    return counted.refresh(store, version, tags, digests=_DIGESTS, insert=_INSERT)


def read(
    store: Connection, version: ModelVersion, selection: Selection
) -> dict[str, Entities]:
    """By slice, as `tag=value`; all records under the empty one."""
    found = store.execute(
        sql.SQL(
            "SELECT tag, value, type, sum(records)::bigint, sum(labelled)::bigint,"
            " sum(lag ORDER BY day, environment), sum(found)::float8,"
            " sum(wrong)::float8, sum(missed)::float8"
            " FROM embedline.entity_outcome WHERE model_version = %(version)s{selected}"
            " GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
        ).format(selected=CELLS),
        {**selection.parameters, "version": version.id},
    )
    slices: dict[str, list[tuple[Any, ...]]] = {}
    for tag, value, *row in found:
        slices.setdefault(f"{tag}={value}" if tag else ALL, []).append(tuple(row))
    return {name: _entities(own) for name, own in slices.items()}


def _entities(found: Sequence[tuple[Any, ...]]) -> Entities:
    """The row without a type is of the records, and is the first."""
    (_, records, labelled, lag, *_), *types = found
    return Entities(
        records,
        labelled,
        lag / max(labelled, 1) / 86_400,
        {type_: np.array(counts, np.float64) for type_, _, _, _, *counts in types},
    )


def scores(counts: Floats) -> Floats:
    """Precision, recall and F1 (..., 3) of what was found, wrong and missed (..., 3);
    0 where there is nothing to divide by, as scikit-learn and seqeval have it."""
    found, wrong, missed = np.moveaxis(counts, -1, 0)
    parts = [
        (found, found + wrong),
        (found, found + missed),
        (2 * found, 2 * found + wrong + missed),
    ]
    return np.stack([a / np.maximum(b, 1) for a, b in parts], axis=-1)


def measure(
    store: Connection,
    version: ModelVersion,
    window: Window,
    selection: Selection,
    baseline: Selection | None = None,
    *,
    least: float = 0.03,
    least_rows: int = FEWEST_ROWS,
) -> list[Measured]:
    """Of each slice. `rows` are labelled records; both sides are to have `least_rows`
    of them to be compared."""
    before = read(store, version, baseline) if baseline else {}
    return [
        measured
        for name, own in read(store, version, selection).items()
        for measured in _of_slice(
            name, own, before.get(name), window, least, least_rows
        )
    ]


def _of_slice(
    name: str,
    own: Entities,
    before: Entities | None,
    window: Window,
    least: float,
    least_rows: int,
) -> Iterator[Measured]:
    yield Measured(
        *("label_coverage", name, window, own.records, own.coverage),
        *wilson(own.labelled, own.records),
        detail={"lag_days": own.lag_days},
    )
    if not own.labelled:
        return
    if before and min(own.labelled, before.labelled) < least_rows:
        before = None
    for metric, figure in _figures(own.counts).items():
        yield Measured(
            *(metric, name, window, own.labelled),
            *(figure.value, figure.low, figure.high),
            detail={
                "coverage": own.coverage,
                "lag_days": own.lag_days,
                "types": _types(own),
            },
            **(_compared(metric, figure, before, own, least) if before else {}),
        )


def _compared(
    metric: str,
    figure: Figure,
    before: Entities,
    own: Entities,
    least: float,
) -> dict[str, Any]:
    usual = _figures(before.counts)[metric]
    lost = usual.value - figure.value
    found = {"p_value": p_value(lost, float(np.hypot(figure.error, usual.error)))}
    if metric == "entity_f1" and min(own.coverage, before.coverage) >= MATURE:
        found |= {"excess": lost, "least": least}
    return found


def _figures(counts: Floats) -> dict[str, Figure]:
    """Entities are drawn one by one, as if those of a record had nothing to do with
    each other."""
    total = counts.sum()
    shares = counts / total if total else np.array([1.0, 0.0, 0.0])
    drawn = np.random.default_rng(0).multinomial(int(total), shares, RESAMPLES)
    values, resampled = scores(counts), scores(drawn.astype(np.float64))
    return {
        metric: of_draws(float(value), own)
        for metric, value, own in zip(METRICS, values, resampled.T, strict=True)
    }


def _types(own: Entities) -> dict[str, dict[str, float]]:
    keys = ("precision", "recall", "f1", "labelled")
    return {
        name: dict(
            zip(keys, [*scores(counts).tolist(), counts[0] + counts[2]], strict=True)
        )
        for name, counts in own.by_type.items()
    }


# A record without a row of a prediction has nothing that could be counted, or has not
# been looked at by the model.
_RECORDS = sql.SQL(
    " FROM (SELECT p.key, min(p.predicted_at) AS predicted_at,"
    "   sum(hashtextextended(ROW(p.unit, p.prediction,"
    "    extract(epoch FROM p.predicted_at))::text, 0)) AS digest"
    "  FROM embedline.prediction p WHERE p.use_case = %(use_case)s"
    "  AND p.model_version = %(version)s GROUP BY p.key) p"
    " LEFT JOIN embedline.record r ON r.use_case = %(use_case)s AND r.key = p.key"
    " LEFT JOIN LATERAL (SELECT min(coalesce(l.labeled_at, l.arrived_at)) AS at,"
    "   sum(hashtextextended(ROW(l.unit, l.span, l.label,"
    "    extract(epoch FROM l.labeled_at), extract(epoch FROM l.arrived_at)"
    "    )::text, 0)) AS digest"
    "  FROM embedline.label l WHERE l.use_case = %(use_case)s AND l.key = p.key"
    "  {labelled} HAVING bool_or(l.unit = -1)) l ON true"
    " CROSS JOIN LATERAL (SELECT coalesce(r.event_time, p.predicted_at) AS at) e"
    " CROSS JOIN LATERAL (SELECT (e.at AT TIME ZONE 'UTC')::date AS day) d"
).format(labelled=LABELLED)

_DIGESTS = sql.SQL(
    "SELECT d.day, count(*), sum(hashtextextended(ROW(p.key, p.digest, l.digest,"
    " r.environment, extract(epoch FROM e.at),"
    " (SELECT array_agg((t, r.tags ->> t)) FROM unnest(%(tags)s::text[]) t)"
    " )::text, 0)){records} GROUP BY d.day"
).format(records=_RECORDS)
_INSERT = sql.SQL(
    "INSERT INTO embedline.entity_outcome (model_version, day, environment, tag,"
    " value, type, records, labelled, lag, found, wrong, missed)"
    " WITH chosen AS MATERIALIZED (SELECT p.key, d.day, e.at, l.at AS labelled_at,"
    "   r.environment, r.tags{records} WHERE d.day = ANY (%(days)s)),"
    " counted AS MATERIALIZED (SELECT * FROM embedline.entity_counts(%(version)s,"
    "   ARRAY(SELECT key FROM chosen WHERE labelled_at IS NOT NULL)))"
    " SELECT %(version)s, r.day, coalesce(r.environment, ''), s.tag, s.value,"
    "  c.type, sum(c.records), sum(c.labelled), sum(c.lag), sum(c.found),"
    "  sum(c.wrong), sum(c.missed)"
    " FROM chosen r{slices} JOIN ("
    "  SELECT key, '' AS type, 1 AS records, count(labelled_at) AS labelled,"
    "   coalesce(sum(extract(epoch FROM labelled_at - at)), 0) AS lag,"
    "   0 AS found, 0 AS wrong, 0 AS missed FROM chosen GROUP BY key"
    "  UNION ALL SELECT key, type, 0, 0, 0, found, wrong, missed FROM counted"
    " ) c ON c.key = r.key GROUP BY 1, 2, 3, 4, 5, 6"
).format(records=_RECORDS, slices=rows.SLICES)
