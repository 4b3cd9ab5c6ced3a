"""What is wanted, what is stored, who holds it, what is dead.

A worker leases records in one short transaction, embeds with none open, and writes
through a fence (`store.write`). The lease token is the fence's first half: whoever
lost the lease, by time or because the record changed, can no longer write.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString
from uuid import UUID

from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.use_case import Retry

log = logging.getLogger(__name__)

# An error message may quote the record; this much of it is kept.
ERROR_LENGTH = 300


# A lease that runs longer than any that is given now was given before the server's
# clock was set back: nobody must wait for it.
_HELD: LiteralString = (
    "(lease_until BETWEEN now() AND now() + make_interval(secs => 2 * %(seconds)s))"
)
# Only what has failed or was put off has a pause to wait out: a time to come on any
# other was set before the clock was set back.
_DUE: LiteralString = "(next_attempt_at <= now() OR attempts = 0 AND NOT deferred)"
# Backfills whose records nobody takes, waits for or misses until they are resumed.
PAUSED: LiteralString = "SELECT id FROM embedline.run WHERE paused_at IS NOT NULL"
# What a version leaves to the fresh one that is filled beside it.
AWAITS_SWITCH: LiteralString = (
    "((model_version, backfill) IN"
    " (SELECT model_version, backfill FROM embedline.awaiting_switch))"
)
WANTED_NOW: LiteralString = (
    f"(backfill IS NULL OR backfill NOT IN ({PAUSED}) AND NOT {AWAITS_SWITCH})"
)

_LET_GO: LiteralString = "lease_token = NULL, lease_holder = NULL, lease_until = NULL"


@dataclass(frozen=True)
class Lease:
    """Records held until `seconds` from now, unless renewed."""

    version: ModelVersion
    token: UUID
    seconds: int
    hashes: Mapping[str, bytes]


@dataclass(frozen=True)
class Outstanding:
    """What is left of a version's queue: records that can be leased now, those
    somebody holds, and seconds until the first of these leases runs out."""

    claimable: int
    leased: int
    seconds: float


def claim(
    store: Connection,
    version: ModelVersion,
    holder: str,
    limit: int,
    seconds: int,
    token: UUID,
) -> Lease:
    """Lease up to `limit` records under a fresh `token`, scheduled ones before
    backfills, oldest first, and none of a paused backfill, nor of what awaits a switch.
    An empty lease means there is nothing to do now.

    By where they lie: a join by key reads the whole ledger once a lease is large. One
    that moves just now is locked at its new place and not leased: the next one has it.
    """
    rows = store.execute(
        "WITH next AS MATERIALIZED ("
        "  SELECT ctid FROM embedline.ledger"
        "  WHERE model_version = %(version)s AND pending AND dead_at IS NULL"
        f"    AND {_DUE} AND {_HELD} IS NOT TRUE AND {WANTED_NOW}"
        "  ORDER BY priority, queued_at, key LIMIT %(limit)s FOR UPDATE SKIP LOCKED)"
        " UPDATE embedline.ledger SET lease_token = %(token)s,"
        "   lease_holder = %(holder)s,"
        "   lease_until = now() + make_interval(secs => %(seconds)s)"
        " WHERE ctid = ANY (ARRAY(SELECT ctid FROM next))"
        " RETURNING key, want_hash",
        {
            "version": version.id,
            "limit": limit,
            "token": token,
            "holder": holder,
            "seconds": seconds,
        },
        binary=True,
    ).fetchall()
    return Lease(version, token, seconds, dict(rows))


def renew(store: Connection, *leases: Lease) -> None:
    """Leases of one worker. Records that are locked are just being written, or wanted
    anew by a sync: neither needs the lease, and waiting for either could wait for ever.
    """
    _update_held(
        store,
        "lease_until = now() + make_interval(secs => %(seconds)s)",
        {"tokens": [x.token for x in leases], "seconds": leases[0].seconds},
        which="lease_token = ANY (%(tokens)s)",
        lock="FOR UPDATE SKIP LOCKED",
    )


def release(store: Connection, token: UUID) -> None:
    """Give back what was not written, at once and without charge."""
    _update_held(store, _LET_GO, {"token": token})


def take_over(store: Connection, version: ModelVersion, holder: str) -> int:
    """Free what an earlier life of this same holder held: a task that is tried again
    need not wait for its own lease. Should the earlier one still be alive, the fence
    keeps it from writing."""
    return _update_held(
        store,
        _LET_GO,
        {"version": version.id, "holder": holder},
        which="lease_token IS NOT NULL AND lease_holder = %(holder)s"
        " AND model_version = %(version)s",
    )


def defer(store: Connection, lease: Lease, keys: Sequence[str], seconds: float) -> int:
    """Put records off without charge: the source has moved on since the sync, and the
    next sync, which looks at them again, sees to them."""
    return _update_held(
        store,
        f"{_LET_GO}, deferred = true,"
        " next_attempt_at = now() + make_interval(secs => %(seconds)s)",
        {"token": lease.token, "keys": list(keys), "seconds": seconds},
        which="lease_token = %(token)s AND key = ANY (%(keys)s)",
    )


def fail(
    store: Connection, lease: Lease, errors: Mapping[str, str], retry: Retry
) -> int:
    """Charge records with a failure of their own: tried again after a growing pause,
    dead after the last. A dead record's vector of older content leaves the store.
    Returns how many died."""
    keys = sorted(errors)
    version = lease.version
    with store.transaction():
        dead = store.execute(
            "WITH failure AS MATERIALIZED ("
            "  SELECT l.key, f.error FROM embedline.ledger l"
            "  JOIN unnest(%(keys)s::text[], %(errors)s::text[]) AS f (key, error)"
            "    ON f.key = l.key"
            "  WHERE l.model_version = %(version)s AND l.lease_token = %(token)s"
            "  ORDER BY l.key FOR UPDATE OF l)"
            " UPDATE embedline.ledger l SET attempts = l.attempts + 1,"
            "  error = failure.error, lease_token = NULL, lease_holder = NULL,"
            "  lease_until = NULL,"
            "  next_attempt_at = now()"
            "    + make_interval(secs => %(backoff)s * 2 ^ least(l.attempts, 10)),"
            "  dead_at = CASE WHEN l.attempts + 1 >= %(max)s THEN now() END"
            " FROM failure"
            " WHERE l.model_version = %(version)s AND l.key = failure.key"
            " RETURNING l.key, l.dead_at IS NOT NULL",
            {
                "keys": keys,
                "errors": [errors[key][:ERROR_LENGTH] for key in keys],
                "version": version.id,
                "token": lease.token,
                "backoff": retry.backoff_seconds,
                "max": retry.max_attempts,
            },
        ).fetchall()
        died = [key for key, is_dead in dead if is_dead]
        if died:
            drop_outdated(store, version, died)
    return len(died)


def outstanding(store: Connection, version: ModelVersion, seconds: int) -> Outstanding:
    """`seconds`: how long a lease is given for."""
    row = store.execute(
        f"SELECT count(*) FILTER (WHERE {_DUE} AND {_HELD} IS NOT TRUE),"
        f"  count(*) FILTER (WHERE {_HELD}),"
        "  coalesce(extract(epoch FROM"
        f"    min(lease_until) FILTER (WHERE {_HELD}) - now()), 0)::float8"
        " FROM embedline.ledger"
        " WHERE model_version = %(version)s AND pending AND dead_at IS NULL"
        f" AND {WANTED_NOW}",
        {"version": version.id, "seconds": seconds},
    ).fetchone()
    assert row is not None
    return Outstanding(*row)


def ahead(
    store: Connection, version: ModelVersion, waiting: Mapping[str, Any], seconds: int
) -> int:
    """How many records would be leased before this row of the ledger; `seconds`: how
    long a lease is given for."""
    row = store.execute(
        "SELECT count(*) FROM embedline.ledger"
        " WHERE model_version = %(version)s AND pending AND dead_at IS NULL"
        f"  AND {_DUE} AND {_HELD} IS NOT TRUE AND {WANTED_NOW}"
        "  AND (priority, queued_at, key)"
        "   < (%(priority)s, %(queued_at)s, %(key)s::text)",
        {**waiting, "version": version.id, "seconds": seconds},
    ).fetchone()
    assert row is not None
    return int(row[0])


def retry_dead(
    store: Connection, version: ModelVersion, keys: Sequence[str] | None = None
) -> int:
    """All of them, or those of these keys."""
    return _update_held(
        store,
        "dead_at = NULL, attempts = 0, error = NULL, next_attempt_at = now()",
        {"version": version.id, "keys": None if keys is None else list(keys)},
        "model_version = %(version)s AND dead_at IS NOT NULL"
        " AND (%(keys)s::text[] IS NULL OR key = ANY (%(keys)s))",
    )


def drop_outdated(store: Connection, version: ModelVersion, keys: list[str]) -> None:
    """All that is of another input than the wanted one, of records that may have had
    no vector to show for it."""
    store.execute(
        sql.SQL(
            "DELETE FROM {} v USING embedline.ledger l WHERE v.key = ANY (%s)"
            " AND l.model_version = %s AND l.key = v.key"
            " AND v.input_hash IS DISTINCT FROM l.want_hash"
        ).format(version.table),
        [keys, version.id],
    )
    rows = store.execute(
        sql.SQL(
            "SELECT key FROM unnest(%s::text[]) AS k (key)"
            " WHERE NOT EXISTS (SELECT FROM {} v WHERE v.key = k.key)"
        ).format(version.table),
        [keys],
    ).fetchall()
    outdated = [key for (key,) in rows]
    store.execute(
        "UPDATE embedline.ledger SET have_hash = NULL"
        " WHERE model_version = %s AND key = ANY (%s) AND have_hash IS NOT NULL",
        [version.id, outdated],
    )
    store.execute(
        "DELETE FROM embedline.input WHERE model_version = %s AND key = ANY (%s)",
        [version.id, outdated],
    )
    store.execute(
        "DELETE FROM embedline.prediction WHERE use_case = %s AND key = ANY (%s)"
        " AND model_version = %s",
        [version.use_case, outdated, version.id],
    )


def _update_held(
    store: Connection,
    change: LiteralString,
    parameters: dict[str, Any],
    which: LiteralString = "lease_token = %(token)s",
    lock: LiteralString = "FOR UPDATE",
) -> int:
    """Lock in key order first, as everybody does: an UPDATE alone locks in the order
    it happens to scan."""
    return store.execute(
        "WITH held AS MATERIALIZED ("
        f"  SELECT model_version, key FROM embedline.ledger WHERE {which}"
        f"   ORDER BY model_version, key {lock})"
        f" UPDATE embedline.ledger l SET {change} FROM held"
        " WHERE l.model_version = held.model_version AND l.key = held.key",
        parameters,
    ).rowcount
