"""Sums of a model version's vectors by day."""

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString

from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring import days, rows
from embedding_tasks.monitoring.days import Daily, Refreshed
from embedding_tasks.store.migrate import schema_of_vector
from embedding_tasks.store.versions import ModelVersion

# Enough for p-values and intervals by buckets, few enough that a day's cells are few.
BUCKETS = 16


def refresh(
    store: Connection, version: ModelVersion, tags: Sequence[str] = ()
) -> Refreshed:
    """Of all rows, and for each of these tags of those that have it."""
    parts = {
        "rows": rows.joined(version),
        "slices": rows.SLICES,
        "bucket": _bucket("v.key"),
        "pgvector": sql.Identifier(schema_of_vector(store)),
    }
    daily = Daily(
        "rollup_day",
        digests=_DIGESTS.format(rows=parts["rows"]),
        insert=_SUM_UP.format(**parts),
        given={**rows.ids(version), "buckets": BUCKETS},
    )
    return days.refresh(store, version, tags, daily)


_DIGESTS = sql.SQL(
    "SELECT d.day, count(*), sum(hashtextextended(ROW(v.key, v.unit,"
    " v.input_hash, extract(epoch FROM v.embedded_at), r.environment, p.prediction,"
    " (SELECT array_agg((t, r.tags ->> t)) FROM unnest(%(tags)s::text[]) t)"
    " )::text, 0)){rows} GROUP BY d.day"
)
# avg of vectors adds up in double precision; sum does not
_SUM_UP = sql.SQL(
    "INSERT INTO embedline.rollup (model_version, day, environment, tag, value,"
    " class, bucket, rows, centroid, square)"
    " SELECT %(version)s, d.day, coalesce(r.environment, ''), s.tag, s.value,"
    "  coalesce(p.prediction, ''), {bucket}, count(*),"
    "  {pgvector}.avg(v.embedding::{pgvector}.vector),"
    "  avg({pgvector}.vector_norm(v.embedding::{pgvector}.vector) ^ 2)"
    "{rows}{slices} WHERE d.day = ANY (%(days)s) GROUP BY 1, 2, 3, 4, 5, 6, 7"
)


def erase(store: Connection, use_case: int, key: str) -> None:
    """Every sum that may hold a vector of this record: those of its bucket, those that
    a baseline was frozen of included. All days are summed up anew at the next
    refresh."""
    ids = {"use_case": use_case, "key": key, "buckets": BUCKETS}
    for statement in _ERASE:
        store.execute(statement.format(bucket=_bucket("%(key)s::text")), ids)


_ERASE = (
    sql.SQL(
        "DELETE FROM embedline.rollup WHERE bucket = {bucket} AND model_version IN"
        " (SELECT id FROM embedline.model_version WHERE use_case = %(use_case)s)"
    ),
    sql.SQL(
        "DELETE FROM embedline.baseline_cell WHERE bucket = {bucket} AND baseline IN"
        " (SELECT b.id FROM embedline.baseline b JOIN embedline.model_version m"
        "  ON m.id = b.model_version WHERE m.use_case = %(use_case)s)"
    ),
    sql.SQL(
        "UPDATE embedline.rollup_day SET digest = -1 WHERE model_version IN"
        " (SELECT id FROM embedline.model_version WHERE use_case = %(use_case)s)"
    ),
)


def _bucket(key: LiteralString) -> sql.Composed:
    return sql.SQL("abs(hashtextextended({}, 0) %% %(buckets)s)").format(sql.SQL(key))
