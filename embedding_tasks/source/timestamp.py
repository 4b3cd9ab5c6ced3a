"""Strategy `timestamp`: up to which moment has everything been seen?

It takes rows by a column that each writer sets to its transaction's `now()`, the time
at which that transaction began. What it may lose is a transaction that began before
the moment it remembers and was not yet visible in its snapshot. So the moment is the
least of the clock and of the beginnings of all open transactions, looked up *before*
the snapshot is taken. Of any transaction that the snapshot does not show:

* it was open when the sessions were looked at: then its beginning was counted;
* or it began afterwards: then its beginning is not before the clock's time, which was
  taken first;
* or it holds our own locks and nothing else, and never writes;
* or it was prepared, and belongs to no session. Its beginning is not known (`prepared`
  in `pg_prepared_xacts` is later than its rows' `now()`), so while there is one the
  moment does not move. These are looked at after the sessions: what is prepared in
  between has been counted among them already.

In the other order, snapshot first, a transaction that commits in between is neither
seen nor counted. A transaction's `now()` is when its first statement arrived, a little
before other sessions are shown that it is open: `slack_seconds` covers that, and a
clock that is set back a little.

All rows from that moment on come in one COPY of one snapshot. There are no pages, so
rows with the same time cannot be torn apart, and no keyset is needed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from psycopg import sql

from embedding_tasks.connections import KEEPER, Connection
from embedding_tasks.errors import SourceError
from embedding_tasks.source.relation import Relation

TYPE = "timestamp with time zone"


@dataclass(frozen=True)
class Bound:
    """`moment`: every transaction that began earlier, and is none of those prepared,
    is visible in the snapshot that is taken next."""

    moment: datetime
    prepared: bool


def bound(connection: Connection, slack_seconds: float) -> Bound:
    """Call before the snapshot is taken, outside of a transaction. Raises
    `SourceError` where other sessions cannot be seen."""
    require(connection)
    moment = connection.execute(
        # statement_timestamp: when this arrived, so before any session is looked at
        "SELECT least(statement_timestamp(), (SELECT min("
        # of a session with track_activities off no more is known than since when
        "   CASE state WHEN 'disabled' THEN backend_start ELSE xact_start END)"
        "   FROM pg_stat_activity WHERE datname = current_database()"
        "    AND pid <> pg_backend_pid()"
        "    AND application_name IS DISTINCT FROM %s"
        "    AND backend_type IS DISTINCT FROM 'autovacuum worker'))"
        "  - make_interval(secs => %s)",
        [KEEPER, slack_seconds],
    ).fetchone()
    prepared = connection.execute(
        "SELECT EXISTS (SELECT FROM pg_prepared_xacts"
        " WHERE database = current_database())"
    ).fetchone()
    assert moment is not None
    assert prepared is not None
    return Bound(moment[0], prepared[0])


def require(connection: Connection) -> None:
    """Raises `SourceError` on a standby, and where the role cannot see when other
    sessions' transactions began."""
    row = connection.execute(
        "SELECT pg_is_in_recovery(), current_user,"
        " pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')"
    ).fetchone()
    assert row is not None
    in_recovery, role, sees_others = row
    if in_recovery:
        raise SourceError(
            "source.strategy: 'timestamp' must see the open transactions of the "
            "primary, and this is a standby, where they cannot be seen; "
            "valid here: 'snapshot', 'outbox', 'scan'"
        )
    if not sees_others:
        grant = sql.SQL("GRANT pg_read_all_stats TO {}").format(sql.Identifier(role))
        raise SourceError(
            "source.strategy: 'timestamp' must see when other sessions' transactions "
            f"began, and the role {role!r} lacks the privilege pg_read_all_stats; "
            f"ask an administrator for: {grant.as_string(connection)}"
        )


def column(relation: Relation, name: str) -> sql.Composable:
    """Raises `SourceError` on a column of another type."""
    found = relation.column(name, "source.updated_at")
    type_ = relation.columns[name]
    if _plain(type_) != TYPE:
        raise SourceError(
            f"source.updated_at: column {name!r} is of type {type_!r}; valid: {TYPE}; "
            "without a time zone nobody can tell the moment, since the zone of "
            "whoever wrote it is not known"
        )
    return found


def rounding(relation: Relation, name: str) -> float:
    """By how many seconds a stored time may lie before the time that was written:
    `timestamptz(0)` rounds to the nearest second."""
    digits = re.search(r"\((\d)\)", relation.columns[name])
    return 10.0 ** -int(digits[1]) if digits else 0.0


def _plain(type_: str) -> str:
    return re.sub(r"\(\d\)", "", type_)
