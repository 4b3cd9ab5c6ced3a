"""Rows that somebody should look at, as they are by now."""

from __future__ import annotations

from typing import Any

from psycopg.rows import dict_row

from embedding_tasks.connections import Connection
from embedding_tasks.errors import StoreError


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
