"""Builds that are broken on purpose: what the product would be without one of its
guards. The verdict must find each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from embedding_tasks.connections import Connection
from embedding_tasks.ledger import Lease
from embedding_tasks.source import snapshot
from embedding_tasks.source.timestamp import Bound
from embedding_tasks.store import write

MUTANTS = {
    "watermark": "the cursor goes on from the newest transaction seen, not the horizon",
    "no fence": "what was computed is written, whatever has happened meanwhile",
    "no lease token": "the fence asks for the hash, and not who holds the record",
}


def break_build(mutant: str | None) -> None:
    if mutant is not None:
        assert mutant in MUTANTS, mutant
        globals()["_" + mutant.replace(" ", "_")]()


def _watermark() -> None:
    position = snapshot.position

    def newest(connection: Connection, *args: Any) -> snapshot.Position:
        found = position(connection, *args)
        row = connection.execute(
            "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint, now()"
        ).fetchone()
        assert row is not None
        bound = Bound(row[1], prepared=False) if found.bound else None
        return replace(found, horizon=row[0], bound=bound)

    snapshot.position = newest


def _no_fence() -> None:
    def accept_all(store: Connection, lease: Lease) -> int:
        return store.execute(
            "CREATE TEMP TABLE accepted ON COMMIT DROP AS"
            " SELECT s.key, false AS anew, l.ctid AS place FROM staged_record s"
            " LEFT JOIN embedline.ledger l ON l.model_version = %s AND l.key = s.key",
            [lease.version.id],
        ).rowcount

    write._fence = accept_all


def _no_lease_token() -> None:
    fence: Any = write._fence

    def whoever(store: Connection, lease: Lease) -> int:
        store.execute(
            "UPDATE embedline.ledger l SET lease_token = %s FROM staged_record s"
            " WHERE l.model_version = %s AND l.key = s.key",
            [lease.token, lease.version.id],
        )
        accepted: int = fence(store, lease)
        return accepted

    write._fence = whoever
