"""What a model version is compared with, frozen: what comes late to its days, or is
changed in them, does not move it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring import locks
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.use_case.monitoring import Monitoring

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Baseline:
    """`fingerprint` is over the recipe of its vectors, its definition and its sums."""

    id: int
    fingerprint: str
    rows: int
    days: int
    frozen_at: datetime


def freeze(
    store: Connection, version: ModelVersion, monitoring: Monitoring, today: date
) -> Baseline | None:
    """The one in force, where it is of this definition; else one of the sums there are
    now takes its place. None where its days are not over yet or have too few rows."""
    definition = _definition(monitoring)
    with store.transaction():
        locks.take(store, version, "baseline")
        found = _in_force(store, version, definition)
        if found is None and _is_over(monitoring, today):
            found = _freeze(store, version, monitoring, definition)
    return None if found is None else Baseline(*found)


def lift(store: Connection, version: ModelVersion) -> None:
    """Have the next `freeze` take the sums of then."""
    store.execute(
        "UPDATE embedline.baseline SET superseded_at = now()"
        " WHERE model_version = %s AND superseded_at IS NULL",
        [version.id],
    )


def noise(
    store: Connection, baseline: int, settings: str, measure: Callable[[], Noise]
) -> Noise:
    """What `measure` gives, measured once for these settings (a digest of them)."""
    row = store.execute(
        "SELECT noise -> %s FROM embedline.baseline WHERE id = %s", [settings, baseline]
    ).fetchone()
    if row is not None and row[0] is not None:
        known: Noise = row[0]
        return known
    found = measure()
    store.execute(
        "UPDATE embedline.baseline SET noise = %s WHERE id = %s",
        [Jsonb({settings: found}), baseline],
    )
    return found


Noise = dict[str, float]
Found = tuple[int, str, int, int, datetime]


def _definition(monitoring: Monitoring) -> dict[str, Any]:
    return {
        **monitoring.baseline.model_dump(mode="json"),
        "slices": monitoring.tags,
    }


def _is_over(monitoring: Monitoring, today: date) -> bool:
    until = monitoring.baseline.until
    return until is None or until <= today


def _in_force(
    store: Connection, version: ModelVersion, definition: dict[str, Any]
) -> Found | None:
    return store.execute(
        "SELECT id, fingerprint, rows, days, frozen_at FROM embedline.baseline"
        " WHERE model_version = %s AND superseded_at IS NULL AND definition = %s",
        [version.id, Jsonb(definition)],
    ).fetchone()


def _freeze(
    store: Connection,
    version: ModelVersion,
    monitoring: Monitoring,
    definition: dict[str, Any],
) -> Found | None:
    lift(store, version)
    row = store.execute(
        "INSERT INTO embedline.baseline (model_version, definition, fingerprint, rows,"
        " days) VALUES (%s, %s, '', 0, 0) RETURNING id",
        [version.id, Jsonb(definition)],
    ).fetchone()
    assert row is not None
    _copy(store, version, monitoring, row[0])
    found = store.execute(_SUM_UP, {"id": row[0], "recipe": version.fingerprint})
    made: Found | None = found.fetchone()
    assert made is not None
    if made[2] < monitoring.least_rows:
        store.execute("DELETE FROM embedline.baseline WHERE id = %s", [row[0]])
        return None
    log.info(
        "baseline version=%d id=%d rows=%d days=%d", version.id, made[0], *made[2:4]
    )
    return made


def _copy(
    store: Connection, version: ModelVersion, monitoring: Monitoring, baseline: int
) -> None:
    wanted = monitoring.baseline
    store.execute(
        sql.SQL(
            "INSERT INTO embedline.baseline_cell (baseline, {columns})"
            " SELECT %(baseline)s, {columns} FROM embedline.rollup"
            " WHERE model_version = %(version)s"
            " AND day >= coalesce(%(since)s::date, '-infinity')"
            " AND day < coalesce(%(until)s::date, 'infinity')"
            " AND (%(environments)s::text[] = '{{}}'"
            "  OR environment = ANY (%(environments)s))"
        ).format(columns=_CELL),
        {
            "baseline": baseline,
            "version": version.id,
            "since": wanted.since,
            "until": wanted.until,
            "environments": list(wanted.environment),
        },
    )


_CELL = sql.SQL("tag, value, day, environment, class, bucket, rows, centroid, square")
_SUM_UP = """
UPDATE embedline.baseline b
   SET rows = c.rows, days = c.days,
       fingerprint = encode(sha256(convert_to(concat_ws(
           ' ', %(recipe)s::text, b.definition::text, c.cells), 'UTF8')), 'hex')
  FROM (SELECT coalesce(sum(rows) FILTER (WHERE tag = ''), 0) AS rows,
               count(DISTINCT day) AS days,
               string_agg(md5(ROW(tag, value, day, environment, class, bucket, rows,
                                  centroid, square)::text), ''
                          ORDER BY tag, value, day, environment, class, bucket) AS cells
          FROM embedline.baseline_cell WHERE baseline = %(id)s) c
 WHERE b.id = %(id)s
RETURNING b.id, b.fingerprint, b.rows, b.days, b.frozen_at
"""
