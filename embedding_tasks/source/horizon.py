"""What holds the horizon of a source back: its oldest transaction that writes.

A sync reads again whatever was written since then, and the hash takes the excess away:
nothing is lost and nothing waits, but a transaction that is forgotten makes every sync
read more.
"""

from __future__ import annotations

from typing import Any

from psycopg.rows import dict_row

from embedding_tasks.connections import Connection


def held_back(connection: Connection, horizon: int) -> dict[str, Any] | None:
    """How many transaction ids lie between the snapshot's xmin (`horizon`) and its
    xmax, and what can be said of who holds the oldest. None where nothing does, and on
    a standby, which does not know its primary's transactions."""
    row = connection.execute(
        "SELECT pg_is_in_recovery(),"
        " pg_snapshot_xmax(pg_current_snapshot())::text::bigint - %s",
        [horizon],
    ).fetchone()
    assert row is not None
    on_standby, behind = row
    if on_standby or behind <= 0:
        return None
    return {"transactions": behind, **_holder(connection, horizon % 2**32)}


def _holder(connection: Connection, xid: int) -> dict[str, Any]:
    """Every role may see the locks; of other roles' sessions little else is shown
    without pg_read_all_stats. Empty where it has ended meanwhile."""
    with connection.cursor(row_factory=dict_row) as cursor:
        found = (
            cursor.execute(
                "SELECT l.pid, a.usename AS user, a.application_name AS application,"
                "  a.datname AS database, a.state, a.xact_start::text AS since"
                " FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid"
                " WHERE l.locktype = 'transactionid' AND l.granted"
                "  AND l.pid IS NOT NULL AND l.mode = 'ExclusiveLock'"
                "  AND l.transactionid::text::bigint = %s"
                " LIMIT 1",
                [xid],
            ).fetchone()
            or cursor.execute(
                "SELECT gid AS prepared, owner::text AS user, database::text,"
                "  prepared::text AS since"
                " FROM pg_prepared_xacts WHERE transaction::text::bigint = %s",
                [xid],
            ).fetchone()
        )
    return {k: v for k, v in (found or {}).items() if v not in (None, "")}
