"""Days whose predictions and labels are counted: which of them have changed.

A day is counted anew when anything of it has changed, which a digest over its rows
tells: a label that came late, was corrected or withdrawn, a prediction made again, a
record that is gone. No vector is read, and no sum of vectors touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from psycopg import sql

from embedding_tasks.connections import Connection, take_time
from embedding_tasks.monitoring.sums.rollup import Refreshed, require_few_values
from embedding_tasks.store.versions import ModelVersion

LABELLED = sql.SQL(
    " AND (SELECT labelled_unit FROM embedline.use_case WHERE id = %(use_case)s)"
    " = %(unit)s"
)
"""Only parts of records that labels are given to have labels."""


@dataclass(frozen=True)
class Count:
    """How the days of a version are counted. `digests` gives `day, rows, digest`;
    `insert` counts those of `%(days)s`. Both take the parameters of `parameters`."""

    digests: sql.Composed
    insert: sql.Composed


def refresh(
    store: Connection,
    version: ModelVersion,
    tags: Sequence[str],
    count: Count,
) -> Refreshed:
    """In one transaction, and two at once follow each other. Raises `ConfigError` for a
    tag of too many values."""
    asked = {**parameters(version), "tags": list(tags)}
    with store.transaction():
        take_time(store)
        lock(store, version.id)
        require_few_values(store, version, tags)
        found = _by_day(store, count.digests, asked)
        known = _by_day(store, _KNOWN, asked)
        changed = sorted(day for day in found if known.get(day) != found[day])
        gone = sorted(known.keys() - found.keys())
        store.execute(_FORGET, {**asked, "days": [*changed, *gone]})
        if changed:
            _note(store, version, {day: found[day] for day in changed})
            store.execute(count.insert, {**asked, "days": changed})
    return Refreshed(changed, gone, len(found))


def parameters(version: ModelVersion) -> dict[str, Any]:
    return {
        "use_case": version.use_case,
        "version": version.id,
        "unit": "record" if version.unit == "object" else version.unit,
    }


def erase(store: Connection, use_case: int) -> None:
    """Every count of the use case's versions: all are counted anew at the next refresh.
    Of one record alone they do not tell which it is in: it may have been of another
    day, or of another class."""
    found = store.execute(
        "SELECT id FROM embedline.model_version WHERE use_case = %s ORDER BY id",
        [use_case],
    )
    for (version,) in found.fetchall():
        lock(store, version)
        store.execute(
            "DELETE FROM embedline.outcome_day WHERE model_version = %s", [version]
        )


def lock(store: Connection, version: int) -> None:
    store.execute(
        "SELECT pg_advisory_xact_lock(hashtext('embedline.outcome'), %s)", [version]
    )


Digest = tuple[int, int]

_KNOWN = sql.SQL(
    "SELECT day, rows, digest FROM embedline.outcome_day"
    " WHERE model_version = %(version)s"
)
_FORGET = (
    "DELETE FROM embedline.outcome_day"
    " WHERE model_version = %(version)s AND day = ANY (%(days)s)"
)


def _by_day(
    store: Connection, query: sql.SQL | sql.Composed, asked: Mapping[str, Any]
) -> dict[date, Digest]:
    found = store.execute(query, asked)
    return {day: (rows, int(digest)) for day, rows, digest in found}


def _note(
    store: Connection, version: ModelVersion, days: Mapping[date, Digest]
) -> None:
    store.cursor().executemany(
        "INSERT INTO embedline.outcome_day (model_version, day, rows, digest)"
        " VALUES (%s, %s, %s, %s)",
        [(version.id, day, *digest) for day, digest in sorted(days.items())],
    )
