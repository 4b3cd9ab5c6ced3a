"""Records erased on request: all the store has of them, and their way back.

Of a forgotten record only the hash of its key stays, so that no sync brings it back
while the source still has it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from typing import LiteralString

from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring import locks
from embedding_tasks.monitoring.labels import counted
from embedding_tasks.monitoring.sums import rollup
from embedding_tasks.store import versions

log = logging.getLogger(__name__)


def holdings(store: Connection, use_case: int, key: str) -> dict[str, int]:
    """How many rows each table has of a record."""
    counts: dict[str, int] = {}
    for name, condition in _places(store, use_case):
        statement = sql.SQL("SELECT count(*) FROM {} t WHERE {}").format(
            sql.Identifier("embedline", name), condition
        )
        row = store.execute(statement, {"use_case": use_case, "key": key}).fetchone()
        assert row is not None
        counts[name] = row[0]
    return counts


def forget(store: Connection, use_case: int, key: str) -> dict[str, int]:
    """Erase a record for good; returns the rows erased of each table. A worker that
    holds it loses it, as it does a deleted one: the ledger goes first, and what the
    worker had just written is seen by the statements that follow."""
    counts: dict[str, int] = {}
    with store.transaction():
        locks.take_all(store, use_case)
        versions.lock(store, use_case)
        for name, condition in _places(store, use_case):
            statement = sql.SQL("DELETE FROM {} t WHERE {}").format(
                sql.Identifier("embedline", name), condition
            )
            done = store.execute(statement, {"use_case": use_case, "key": key})
            counts[name] = done.rowcount
        rollup.erase(store, use_case, key)
        counted.erase(store, use_case)
        store.execute(
            "INSERT INTO embedline.forgotten (use_case, key_hash) VALUES (%s, %s)"
            " ON CONFLICT DO NOTHING",
            [use_case, _hash(key)],
        )
    log.info("forgot use_case=%d rows=%d", use_case, sum(counts.values()))
    return counts


def undo(store: Connection, use_case: int, key: str) -> bool:
    """Let a record come back with the next sync, which is to be an audit where a sync
    does not read all keys by itself. False where it was not forgotten."""
    with store.transaction():
        versions.lock(store, use_case)
        lifted = store.execute(
            "DELETE FROM embedline.forgotten WHERE use_case = %s AND key_hash = %s",
            [use_case, _hash(key)],
        ).rowcount
        if lifted:
            store.execute(
                "UPDATE embedline.source_cursor SET audited_at = 'epoch'"
                " WHERE use_case = %s AND relation = 'records'",
                [use_case],
            )
    return bool(lifted)


def forgotten_at(store: Connection, use_case: int, key: str) -> datetime | None:
    row = store.execute(
        "SELECT forgotten_at FROM embedline.forgotten"
        " WHERE use_case = %s AND key_hash = %s",
        [use_case, _hash(key)],
    ).fetchone()
    return row[0] if row else None


def hashes(store: Connection, use_case: int) -> set[bytes]:
    """Of the keys of all forgotten records."""
    rows = store.execute(
        "SELECT key_hash FROM embedline.forgotten WHERE use_case = %s", [use_case]
    )
    return {digest for (digest,) in rows}


def others(store: Connection, use_case: int, keys: list[str]) -> Sequence[str]:
    """Those of the keys that are not forgotten."""
    if not keys or not (forgotten := hashes(store, use_case)):
        return keys
    return [key for key in keys if _hash(key) not in forgotten]


def leave_out(store: Connection, use_case: int, table: str) -> None:
    """Take forgotten records out of a temporary table; where there are none, its rows
    are not looked at."""
    if hashes(store, use_case):
        store.execute(
            sql.SQL(
                "DELETE FROM {} t USING embedline.forgotten f WHERE f.use_case = %s"
                " AND f.key_hash = sha256(convert_to(t.key, 'UTF8'))"
            ).format(sql.Identifier(table)),
            [use_case],
        )


def _places(store: Connection, use_case: int) -> list[tuple[str, sql.SQL]]:
    """Where a record may have rows, and which; the ledger first."""
    version_of: LiteralString = (
        "t.model_version IN (SELECT id FROM embedline.model_version"
        " WHERE use_case = %(use_case)s)"
    )
    of_version: LiteralString = "t.key = %(key)s AND " + version_of
    # a flag of another record may name this one
    of_flag: LiteralString = (
        "%(key)s IN (t.key, t.detail ->> 'other_key') AND " + version_of
    )
    of_map: LiteralString = (
        "t.key = %(key)s AND t.projection IN (SELECT p.id FROM embedline.projection p"
        " JOIN embedline.model_version m ON m.id = p.model_version"
        " WHERE m.use_case = %(use_case)s)"
    )
    of_use_case: LiteralString = "t.key = %(key)s AND t.use_case = %(use_case)s"
    vectors = versions.all_table_names(store, use_case)
    return [
        ("ledger", sql.SQL(of_version)),
        *((name, sql.SQL("t.key = %(key)s")) for name in vectors),
        ("input", sql.SQL(of_version)),
        ("prediction", sql.SQL(of_use_case)),
        ("label", sql.SQL(of_use_case)),
        ("record", sql.SQL(of_use_case)),
        ("flag", sql.SQL(of_flag)),
        ("dismissed", sql.SQL(of_use_case)),
        ("projection_point", sql.SQL(of_map)),
    ]


def _hash(key: str) -> bytes:
    return sha256(key.encode()).digest()
