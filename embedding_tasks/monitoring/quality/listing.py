"""Rows that somebody should look at, as they are by now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from embedding_tasks.connections import Connection, take_time
from embedding_tasks.errors import StoreError
from embedding_tasks.monitoring import locks, rows
from embedding_tasks.store.versions import ModelVersion


@dataclass(frozen=True)
class Flag:
    """Of a vector. The larger its score, the sooner somebody should look at it;
    `detail` is the evidence."""

    key: str
    unit: int
    kind: str
    score: float
    detail: Mapping[str, Any] = field(default_factory=dict)


def replace(
    store: Connection,
    version: ModelVersion,
    kinds: Sequence[str],
    flags: Iterable[Flag],
) -> None:
    """Flags of these kinds become what was found: others of them go, and those that are
    the same stay untouched. In one transaction; two at once follow each other. A vector
    that is gone by now gets none."""
    with store.transaction():
        take_time(store)
        locks.take(store, version, "flag")
        _stage(store, flags)
        _remove(store, version, kinds)
        _write(store, version)
        store.execute("DROP TABLE staged_flag")


def top(
    store: Connection, use_case: str, k: int, kind: str | None = None
) -> list[dict[str, Any]]:
    """The first k of a kind; None: the first of each kind, then the second ones, and so
    on."""
    with store.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "SELECT kind, rank, key, unit, label, suggested_label, prediction,"
            " left(data, 120) AS data, score, link, day FROM embedline.review"
            " WHERE use_case = %(use_case)s AND (kind = %(kind)s OR %(kind)s IS NULL)"
            " ORDER BY rank, kind LIMIT %(k)s",
            {"use_case": use_case, "kind": kind, "k": k},
        ).fetchall()


def dismiss(store: Connection, use_case: str, key: str, kind: str) -> None:
    """Raises `StoreError` where there is no such flag."""
    row = store.execute(
        "SELECT embedline.dismiss(%s, %s, %s)", [use_case, key, kind]
    ).fetchone()
    if row != (True,):
        raise StoreError(
            f"no flag {kind!r} of the record {key!r}; `embedline review {use_case}` "
            "lists those there are"
        )


def _stage(store: Connection, flags: Iterable[Flag]) -> None:
    store.execute(
        'CREATE TEMP TABLE staged_flag (key text COLLATE "C", unit int, kind text,'
        " score float8, detail jsonb, PRIMARY KEY (key, unit, kind)) ON COMMIT DROP"
    )
    with store.cursor().copy("COPY staged_flag FROM STDIN") as copy:
        for flag in flags:
            detail = Jsonb(flag.detail)
            copy.write_row((flag.key, flag.unit, flag.kind, flag.score, detail))
    store.execute("ANALYZE staged_flag")


def _remove(store: Connection, version: ModelVersion, kinds: Sequence[str]) -> None:
    """Those that were not found again, and those of a vector that was made since."""
    store.execute(
        sql.SQL(
            "DELETE FROM embedline.flag f WHERE model_version = %s AND kind = ANY (%s)"
            " AND NOT EXISTS (SELECT FROM staged_flag s JOIN {} v USING (key, unit)"
            "  WHERE v.key = f.key AND v.unit = f.unit AND s.kind = f.kind"
            "   AND v.embedded_at <= f.found_at)"
        ).format(version.table),
        [version.id, list(kinds)],
    )


def _write(store: Connection, version: ModelVersion) -> None:
    store.execute(
        sql.SQL(
            "INSERT INTO embedline.flag AS f"
            " (model_version, key, unit, kind, day, score, detail)"
            " SELECT %(version)s, s.key, s.unit, s.kind, d.day, s.score, s.detail"
            "{rows} JOIN staged_flag s ON s.key = v.key AND s.unit = v.unit"
            " ORDER BY s.key, s.unit, s.kind"
            " ON CONFLICT (model_version, key, unit, kind) DO UPDATE"
            " SET day = EXCLUDED.day, score = EXCLUDED.score, detail = EXCLUDED.detail"
            " WHERE (f.day, f.score, f.detail)"
            "  IS DISTINCT FROM (EXCLUDED.day, EXCLUDED.score, EXCLUDED.detail)"
        ).format(rows=rows.joined(version)),
        rows.ids(version),
    )
