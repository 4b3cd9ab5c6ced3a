"""The rows that monitoring looks at: the vectors of a model version, each with its
record, what was predicted of it, and the day it belongs to."""

from __future__ import annotations

from typing import Any

from psycopg import sql

from embedding_tasks.store.versions import ModelVersion

_JOINED = sql.SQL(
    " FROM {vectors} v"
    " LEFT JOIN embedline.record r ON r.use_case = %(use_case)s AND r.key = v.key"
    " LEFT JOIN embedline.prediction p ON p.use_case = %(use_case)s"
    "  AND p.key = v.key AND p.unit = v.unit AND p.model_version = CASE WHEN"
    "  (SELECT predicted_by_source FROM embedline.use_case WHERE id = %(use_case)s)"
    "  THEN 0 ELSE %(version)s END"
    " CROSS JOIN LATERAL (SELECT (coalesce(r.event_time, p.predicted_at,"
    "  v.embedded_at) AT TIME ZONE 'UTC')::date AS day) d"
)
SLICES = sql.SQL(
    " CROSS JOIN LATERAL (SELECT '' AS tag, '' AS value UNION ALL"
    "  SELECT t, r.tags ->> t FROM unnest(%(tags)s::text[]) t"
    "  WHERE r.tags ->> t <> '') s"
)
"""Each row once as one of all, and once for each of the tags it has: `s.tag` and
`s.value` beside what `joined` has."""


def joined(version: ModelVersion) -> sql.Composed:
    """`FROM` and what follows: `v` is the vector, `r` its record, `p` its prediction
    and `d.day` its day, UTC: of the record's event time, else of the prediction, else
    of the vector. Takes the parameters of `ids`."""
    return _JOINED.format(vectors=version.table)


def ids(version: ModelVersion) -> dict[str, Any]:
    return {"use_case": version.use_case, "version": version.id}
