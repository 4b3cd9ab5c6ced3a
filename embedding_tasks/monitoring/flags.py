"""Rows that somebody should look at, as they were found last.

A flag is of the vector that was looked at: where that is gone, or was made again since,
it says nothing, and goes with the next that are found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from embedding_tasks.connections import Connection, take_time
from embedding_tasks.monitoring import locks, rows
from embedding_tasks.monitoring.rows import Records
from embedding_tasks.store.versions import ModelVersion


@dataclass(frozen=True)
class Flag:
    """Of a vector. The larger its score, the sooner somebody should look at it;
    `cluster` is of those found with it, `detail` is the evidence."""

    key: str
    unit: int
    kind: str
    score: float
    cluster: int | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


def replace(
    store: Connection,
    version: ModelVersion,
    kinds: Sequence[str],
    found: Iterable[Flag],
    among: Records | None = None,
) -> None:
    """Flags of these kinds, `among` some records (None: all), become what was found:
    others of them go, and those that are the same stay untouched. In one transaction;
    two at once follow each other. A vector that is gone by now gets none."""
    with store.transaction():
        take_time(store)
        locks.take(store, version, "flag")
        _stage(store, found)
        clean(store, version)
        _remove(store, version, kinds, among or Records())
        _write(store, version)
        store.execute("DROP TABLE staged_flag")


def clean(store: Connection, version: ModelVersion) -> None:
    """Flags of vectors that are gone, or were made again."""
    store.execute(
        sql.SQL(
            "DELETE FROM embedline.flag f WHERE f.model_version = %s AND NOT EXISTS"
            " (SELECT FROM {} v WHERE v.key = f.key AND v.unit = f.unit"
            "  AND v.embedded_at <= f.found_at)"
        ).format(version.table),
        [version.id],
    )


def _stage(store: Connection, found: Iterable[Flag]) -> None:
    store.execute(
        'CREATE TEMP TABLE staged_flag (key text COLLATE "C", unit int, kind text,'
        " score float8, cluster int, detail jsonb, PRIMARY KEY (key, unit, kind))"
        " ON COMMIT DROP"
    )
    with store.cursor().copy("COPY staged_flag FROM STDIN") as copy:
        for f in found:
            detail = Jsonb(dict(f.detail))
            copy.write_row((f.key, f.unit, f.kind, f.score, f.cluster, detail))
    store.execute("ANALYZE staged_flag")


def _remove(
    store: Connection, version: ModelVersion, kinds: Sequence[str], among: Records
) -> None:
    """Those that were not found again."""
    store.execute(
        sql.SQL(
            "DELETE FROM embedline.flag f USING (SELECT v.key, v.unit{rows}{condition})"
            " AS m WHERE f.model_version = %(version)s AND f.kind = ANY (%(kinds)s)"
            " AND f.key = m.key AND f.unit = m.unit AND NOT EXISTS"
            "  (SELECT FROM staged_flag s"
            "    WHERE s.key = f.key AND s.unit = f.unit AND s.kind = f.kind)"
        ).format(rows=rows.joined(version), condition=among.condition()),
        {**rows.ids(version), **among.parameters(), "kinds": list(kinds)},
    )


def _write(store: Connection, version: ModelVersion) -> None:
    store.execute(
        sql.SQL(
            "INSERT INTO embedline.flag AS f"
            " (model_version, key, unit, kind, day, score, cluster, detail)"
            " SELECT %(version)s, s.key, s.unit, s.kind, d.day, s.score, s.cluster,"
            "  s.detail{rows} JOIN staged_flag s ON s.key = v.key AND s.unit = v.unit"
            " ORDER BY s.key, s.unit, s.kind"
            " ON CONFLICT (model_version, key, unit, kind) DO UPDATE"
            " SET day = EXCLUDED.day, score = EXCLUDED.score,"
            "  cluster = EXCLUDED.cluster, detail = EXCLUDED.detail"
            " WHERE (f.day, f.score, f.cluster, f.detail) IS DISTINCT FROM"
            "  (EXCLUDED.day, EXCLUDED.score, EXCLUDED.cluster, EXCLUDED.detail)"
        ).format(rows=rows.joined(version)),
        rows.ids(version),
    )
