"""What is made of the rows of each day, kept in step with them.

A day is made anew when anything it was made of has changed: a late record, one that is
gone, a vector made again, another prediction or label. That is found by a digest of
each day, which reads no vector, so nothing needs to tell of a change, and none can be
missed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from psycopg import sql

from embedding_tasks.connections import Connection, take_time
from embedding_tasks.errors import ConfigError
from embedding_tasks.monitoring import locks
from embedding_tasks.store.versions import ModelVersion

Table = Literal["rollup_day", "outcome_day"]
Day = tuple[date, int, str]
"""With its rows, and a digest of what it is made of."""

# A tag of more values is no slice but a name.
MOST_VALUES = 200


@dataclass(frozen=True)
class Daily:
    """How a version's days are made. `table` has the days that are, and what was made
    of one goes with it. `digests` gives `day, rows, digest`; `insert` makes those of
    `%(days)s`. Both take `given`, and `tags`."""

    table: Table
    digests: sql.Composed
    insert: sql.Composed
    given: Mapping[str, Any]


@dataclass(frozen=True)
class Refreshed:
    """Days that were made, those that are gone, and all there are now."""

    changed: list[date]
    gone: list[date]
    days: int


def refresh(
    store: Connection, version: ModelVersion, tags: Sequence[str], daily: Daily
) -> Refreshed:
    """Of all rows, and for each of these tags of those that have it. In one
    transaction, and two at once follow each other. A row that is written meanwhile
    changes the digest of its day for the next time. Raises `ConfigError` for a tag of
    too many values to compare one by one."""
    given = {**daily.given, "tags": list(tags)}
    with store.transaction():
        take_time(store)
        locks.take(store, version, daily.table)
        _require_few_values(store, version, tags)
        found = _by_day(store, daily.digests, given)
        known = _known(store, version, daily.table)
        changed = sorted(day for day in found if known.get(day) != found[day])
        gone = sorted(known.keys() - found.keys())
        _forget(store, version, daily.table, [*changed, *gone])
        if changed:
            _note(store, version, daily.table, {day: found[day] for day in changed})
            store.execute(daily.insert, {**given, "days": changed})
    return Refreshed(changed, gone, len(found))


def of(
    store: Connection,
    version: ModelVersion,
    table: Table,
    *,
    since: date | None = None,
    until: date | None = None,
    environments: Sequence[str] = (),
    without: Sequence[str] = (),
) -> list[Day]:
    """From `since` to `until`, both included (None: all), those on which some
    environments (none named: all) but for those `without` have rows; with all rows of
    the day."""
    return store.execute(
        sql.SQL(
            "SELECT day, rows, digest::text FROM {} d"
            " WHERE model_version = %(version)s"
            " AND day BETWEEN coalesce(%(since)s::date, '-infinity')"
            "  AND coalesce(%(until)s::date, 'infinity')"
            " AND EXISTS (SELECT FROM {} c"
            "  WHERE c.model_version = d.model_version AND c.day = d.day AND tag = ''"
            "   AND (%(environments)s::text[] = '{{}}'"
            "    OR environment = ANY (%(environments)s))"
            "   AND environment <> ALL (%(without)s::text[])) ORDER BY day"
        ).format(_name(table), _MADE[table]),
        {
            **{"version": version.id, "since": since, "until": until},
            "environments": list(environments),
            "without": list(without),
        },
    ).fetchall()


_MADE: Mapping[Table, sql.SQL] = {
    "rollup_day": sql.SQL("embedline.rollup"),
    "outcome_day": sql.SQL(
        "(SELECT model_version, day, tag, environment FROM embedline.outcome UNION ALL"
        " SELECT model_version, day, tag, environment FROM embedline.entity_outcome)"
    ),
}


def _forget(
    store: Connection, version: ModelVersion, table: Table, days: Sequence[date]
) -> None:
    store.execute(
        sql.SQL("DELETE FROM {} WHERE model_version = %s AND day = ANY (%s)").format(
            _name(table)
        ),
        [version.id, list(days)],
    )


Digest = tuple[int, int]


def _known(
    store: Connection, version: ModelVersion, table: Table
) -> dict[date, Digest]:
    query = sql.SQL("SELECT day, rows, digest FROM {} WHERE model_version = %(id)s")
    return _by_day(store, query.format(_name(table)), {"id": version.id})


def _by_day(
    store: Connection, query: sql.Composed, given: Mapping[str, Any]
) -> dict[date, Digest]:
    found = store.execute(query, given)
    return {day: (rows, int(digest)) for day, rows, digest in found}


def _note(
    store: Connection, version: ModelVersion, table: Table, days: dict[date, Digest]
) -> None:
    store.cursor().executemany(
        sql.SQL(
            "INSERT INTO {} (model_version, day, rows, digest) VALUES (%s, %s, %s, %s)"
        ).format(_name(table)),
        [(version.id, day, *digest) for day, digest in sorted(days.items())],
    )


def _name(table: Table) -> sql.Identifier:
    return sql.Identifier("embedline", table)


def _require_few_values(
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
