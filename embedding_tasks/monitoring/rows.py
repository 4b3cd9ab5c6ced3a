"""The rows that monitoring looks at: the vectors of a model version, each with its
record, what was predicted of it, and the day it belongs to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any, LiteralString

from psycopg import sql

from embedding_tasks.errors import ConfigError
from embedding_tasks.monitoring.measured import Window
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


@dataclass(frozen=True)
class Records:
    """Which records: of the days from `since` to `until`, both included (None: without
    end), of `environments` (none: of any), of none of `other_environments`, and in the
    store by `added_by`. `slice` is `tag=value`, `prediction=class`, or empty."""

    since: date | None = None
    until: date | None = None
    environments: tuple[str, ...] = ()
    other_environments: tuple[str, ...] = ()
    slice: str = ""
    added_by: datetime | None = None

    def of(self, window: Window) -> Records:
        return replace(self, since=window.since, until=window.until)

    def condition(self) -> sql.Composed:
        return _CONDITION.format(slice=sql.SQL(self._slice()))

    def parameters(self) -> dict[str, Any]:
        tag, _, value = self.slice.partition("=")
        return {
            "since": self.since,
            "until": self.until,
            "environments": list(self.environments),
            "other_environments": list(self.other_environments),
            "tag": tag,
            "value": value,
            "added_by": self.added_by,
        }

    def _slice(self) -> LiteralString:
        tag, is_one, _ = self.slice.partition("=")
        if not self.slice:
            return ""
        if not is_one:
            raise ConfigError(
                f"slice {self.slice!r}: valid: 'tag=value', 'prediction=class', ''"
            )
        if tag == "prediction":
            return " AND p.prediction = %(value)s"
        return " AND r.tags ->> %(tag)s = %(value)s"


_CONDITION = sql.SQL(
    " WHERE d.day BETWEEN coalesce(%(since)s::date, '-infinity')"
    "  AND coalesce(%(until)s::date, 'infinity')"
    " AND (%(environments)s::text[] = '{{}}'"
    "  OR r.environment = ANY (%(environments)s::text[]))"
    " AND (r.environment = ANY (%(other_environments)s::text[])) IS NOT TRUE"
    " AND (r.added_at > %(added_by)s::timestamptz) IS NOT TRUE{slice}"
)
