"""Rows that somebody should look at, as they were found last.

Whoever measures a window again replaces what it found there before. A flag is of the
vector that was measured: where that is gone, or was made again since, it says nothing,
and goes with the next measuring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring import locks, rows
from embedding_tasks.monitoring.measured import Window
from embedding_tasks.monitoring.rowwise.sample import Records
from embedding_tasks.store.versions import ModelVersion


@dataclass(frozen=True)
class Flag:
    """The larger the `score`, the sooner to be looked at."""

    key: str
    unit: int
    day: date
    score: float
    cluster: int | None = None
    detail: dict[str, Any] = field(default_factory=dict)


def replace(
    store: Connection,
    version: ModelVersion,
    kind: str,
    records: Records,
    window: Window,
    found: Sequence[Flag],
) -> None:
    """All flags of this kind of the records' rows in the window are these. In one
    transaction."""
    with store.transaction():
        locks.take(store, version, "flag")
        clean(store, version)
        _remove(store, version, kind, records.of(window))
        store.cursor().executemany(
            "INSERT INTO embedline.flag (model_version, key, unit, kind, day, score,"
            " cluster, detail) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
            " ON CONFLICT (model_version, key, unit, kind) DO UPDATE SET"
            " day = EXCLUDED.day, score = EXCLUDED.score, cluster = EXCLUDED.cluster,"
            " detail = EXCLUDED.detail, found_at = EXCLUDED.found_at",
            [
                [
                    *(version.id, f.key, f.unit, kind),
                    *(f.day, f.score, f.cluster, Jsonb(f.detail)),
                ]
                for f in found
            ],
        )


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


def _remove(
    store: Connection, version: ModelVersion, kind: str, records: Records
) -> None:
    store.execute(
        sql.SQL(
            "DELETE FROM embedline.flag f USING (SELECT v.key, v.unit{rows}{condition})"
            " AS m WHERE f.model_version = %(version)s AND f.kind = %(kind)s"
            " AND f.key = m.key AND f.unit = m.unit"
        ).format(rows=rows.joined(version), condition=records.condition()),
        {**rows.ids(version), **records.parameters(), "kind": kind},
    )
