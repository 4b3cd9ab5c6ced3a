"""Sums of a model version's vectors by day, kept in step with its rows.

A day is summed up anew when anything it was made of has changed: a late record, one
that is gone, a vector made again, another prediction. That is found by a digest of each
day, which reads no vector, so nothing needs to tell the roll-up of a change, and none
can be missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import LiteralString

from psycopg import sql

from embedding_tasks.connections import Connection, take_time
from embedding_tasks.errors import ConfigError
from embedding_tasks.monitoring import rows
from embedding_tasks.store.migrate import schema_of_vector
from embedding_tasks.store.versions import ModelVersion

# Enough for p-values and intervals by buckets, few enough that a day's cells are few.
BUCKETS = 16
# A tag of more values is no slice but a name.
MOST_VALUES = 200


@dataclass(frozen=True)
class Refreshed:
    """Days that were summed up, those that are gone, and all there are now."""

    changed: list[date]
    gone: list[date]
    days: int


def refresh(
    store: Connection, version: ModelVersion, tags: Sequence[str] = ()
) -> Refreshed:
    """Of all rows, and for each of these tags of those that have it. In one
    transaction, and two at once follow each other. A row that is written meanwhile
    changes the digest of its day for the next time. Raises `ConfigError` for a tag of
    too many values to compare one by one."""
    with store.transaction():
        take_time(store)
        _lock(store, version)
        require_few_values(store, version, tags)
        found, known = _digests(store, version, tags), _known(store, version)
        changed = sorted(day for day in found if known.get(day) != found[day])
        gone = sorted(known.keys() - found.keys())
        _forget(store, version, [*changed, *gone])
        if changed:
            _note(store, version, {day: found[day] for day in changed})
            _sum_up(store, version, tags, changed)
    return Refreshed(changed, gone, len(found))


def days(
    store: Connection,
    version: ModelVersion,
    *,
    environments: Sequence[str] = (),
    without: Sequence[str] = (),
) -> list[tuple[date, int, str]]:
    """Each day on which some environments (none named: all) but for those `without`
    have rows; with all its rows, and the digest of what it was made of."""
    return store.execute(
        "SELECT day, rows, digest::text FROM embedline.rollup_day d"
        " WHERE model_version = %s AND EXISTS (SELECT FROM embedline.rollup r"
        "  WHERE r.model_version = d.model_version AND r.day = d.day AND tag = ''"
        "   AND (%s::text[] = '{}' OR environment = ANY (%s))"
        "   AND environment <> ALL (%s)) ORDER BY day",
        [version.id, list(environments), list(environments), list(without)],
    ).fetchall()


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


Digest = tuple[int, int]


def _bucket(key: LiteralString) -> sql.Composed:
    return sql.SQL("abs(hashtextextended({}, 0) %% %(buckets)s)").format(sql.SQL(key))


def require_few_values(
    store: Connection, version: ModelVersion, tags: Sequence[str]
) -> None:
    for tag in tags:
        row = store.execute(
            "SELECT count(DISTINCT tags ->> %s) FROM embedline.record"
            " WHERE use_case = %s",
            [tag, version.use_case],
        ).fetchone()
        assert row is not None
        if row[0] > MOST_VALUES:
            raise ConfigError(
                f"monitoring.slices: the tag {tag!r} has {row[0]} values; a slice is "
                f"one of at most {MOST_VALUES}"
            )


def _digests(
    store: Connection, version: ModelVersion, tags: Sequence[str]
) -> dict[date, Digest]:
    """Of each day: how many vectors, and what they depend on."""
    found = store.execute(
        sql.SQL(
            "SELECT d.day, count(*), sum(hashtextextended(ROW(v.key, v.unit,"
            " v.input_hash, v.embedded_at, r.environment, p.prediction,"
            " (SELECT array_agg((t, r.tags ->> t)) FROM unnest(%(tags)s::text[]) t)"
            " )::text, 0)){rows} GROUP BY d.day"
        ).format(rows=rows.joined(version)),
        {**rows.ids(version), "tags": list(tags)},
    )
    return {day: (count, int(digest)) for day, count, digest in found}


def _known(store: Connection, version: ModelVersion) -> dict[date, Digest]:
    found = store.execute(
        "SELECT day, rows, digest FROM embedline.rollup_day WHERE model_version = %s",
        [version.id],
    )
    return {day: (count, int(digest)) for day, count, digest in found}


def _forget(store: Connection, version: ModelVersion, days: Sequence[date]) -> None:
    store.execute(
        "DELETE FROM embedline.rollup_day WHERE model_version = %s AND day = ANY (%s)",
        [version.id, list(days)],
    )


def _note(store: Connection, version: ModelVersion, days: dict[date, Digest]) -> None:
    store.cursor().executemany(
        "INSERT INTO embedline.rollup_day (model_version, day, rows, digest)"
        " VALUES (%s, %s, %s, %s)",
        [(version.id, day, *digest) for day, digest in sorted(days.items())],
    )


def _sum_up(
    store: Connection, version: ModelVersion, tags: Sequence[str], days: Sequence[date]
) -> None:
    """avg of vectors adds up in double precision; sum does not."""
    pgvector = sql.Identifier(schema_of_vector(store))
    store.execute(
        sql.SQL(
            "INSERT INTO embedline.rollup (model_version, day, environment, tag, value,"
            " class, bucket, rows, centroid, square)"
            " SELECT %(version)s, d.day, coalesce(r.environment, ''), s.tag, s.value,"
            "  coalesce(p.prediction, ''), {bucket}, count(*),"
            "  {pgvector}.avg(v.embedding::{pgvector}.vector),"
            "  avg({pgvector}.vector_norm(v.embedding::{pgvector}.vector) ^ 2)"
            "{rows}{slices} WHERE d.day = ANY (%(days)s) GROUP BY 1, 2, 3, 4, 5, 6, 7"
        ).format(
            rows=rows.joined(version),
            slices=rows.SLICES,
            bucket=_bucket("v.key"),
            pgvector=pgvector,
        ),
        {
            **rows.ids(version),
            "tags": list(tags),
            "days": list(days),
            "buckets": BUCKETS,
        },
    )


def _lock(store: Connection, version: ModelVersion) -> None:
    store.execute(
        "SELECT pg_advisory_xact_lock(hashtext('embedline.rollup'), %s)", [version.id]
    )
