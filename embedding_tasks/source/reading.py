"""What a sync reads this time, and why."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.source.extract import Extract
from embedding_tasks.source.snapshot import Position
from embedding_tasks.source.strategy import Strategy

log = logging.getLogger(__name__)

# An outbox is pruned of what was visible this long ago and a day: several stores may
# read it. Who has not looked for longer may have missed what is gone.
OUTBOX_DAYS = 3


@dataclass(frozen=True)
class Cursor:
    """How far the last look reached; `idle_days` since then, and `unaudited_days` since
    everything was looked at, both by the store's clock."""

    definition: Any
    server: str
    horizon: int
    bound: datetime | None
    audit_horizon: int | None
    idle_days: float
    unaudited_days: float


@dataclass(frozen=True)
class Reading:
    """`full`: `rows` are all rows. `key_scan`: the whole list of keys is read, too,
    and a record without one is gone; else only a record whose key is among those that
    `touched` selects can be, and is not where a row meets `present`. `audit`: after it,
    all is known to be in step. `afresh`: the cursor was of no use."""

    why: str
    rows: sql.Composable
    full: bool = False
    key_scan: bool = True
    audit: bool = False
    afresh: bool = False
    touched: sql.Composable | None = None
    present: sql.Composable | None = None
    bound: datetime | None = None


@dataclass(frozen=True)
class Asked:
    """`audit`: everything is to be read, whatever the cursor says. `key_scan`: all keys
    are, since deletions that were withheld are looked for again."""

    audit: bool = False
    key_scan: bool = False


def decide(
    connection: Connection,
    extract: Extract,
    strategy: Strategy,
    position: Position,
    cursor: Cursor | None,
    asked: Asked,
) -> Reading:
    useless = _why_useless(extract, strategy, position, cursor)
    bound = None
    if strategy.updated_at is not None:
        bound = _next_bound(position, None if useless else cursor)
    if strategy.name == "scan":
        return _everything(extract, "strategy is scan", bound)
    if useless or cursor is None:
        return _everything(extract, useless or "first sync", bound, afresh=True)
    if asked.audit:
        return _everything(extract, "an audit was asked for", bound)
    if strategy.name == "outbox" and cursor.idle_days > OUTBOX_DAYS:
        return _everything(extract, "the outbox may have been pruned since", bound)
    if strategy.audit_days is not None and cursor.unaudited_days >= strategy.audit_days:
        return _audit(extract, position, cursor, bound)
    key_scan = strategy.scans_keys or asked.key_scan
    if strategy.outbox is not None:
        return _by_outbox(connection, extract, strategy, cursor, key_scan)
    if strategy.updated_at is not None:
        if cursor.bound is None:
            return _everything(extract, "up to when is not known", bound)
        rows = extract.rows(strategy.updated_at.since(cursor.bound))
        why = f"rows written since {cursor.bound.isoformat()}"
        return Reading(why, rows, key_scan=key_scan, bound=bound)
    rows = extract.changed_since(cursor.horizon)
    return Reading("changes since the last sync", rows, key_scan=key_scan)


def definition(extract: Extract, strategy: Strategy) -> Mapping[str, Any]:
    """What a cursor belongs to: where it changes, every row has to be read again."""
    return {**extract.definition, **strategy.definition}


def _why_useless(
    extract: Extract, strategy: Strategy, position: Position, cursor: Cursor | None
) -> str | None:
    if cursor is None:
        return "first sync"
    if cursor.definition != definition(extract, strategy):
        return "the relation or the use case has changed"
    if cursor.server != position.server:
        return "the source is another server, or was restarted"
    if position.horizon < cursor.horizon:
        return "the horizon went backwards"
    if strategy.name == "snapshot" and not _in_circle(position, cursor.horizon):
        return "the horizon went too far"
    return None


def _in_circle(position: Position, horizon: int) -> bool:
    """A row's xmin has 32 bits: half of the circle can be told from the other."""
    return 0 <= position.horizon - horizon < 2**31


def _next_bound(position: Position, cursor: Cursor | None) -> datetime | None:
    if position.bound is None:
        return None
    if position.bound.prepared:
        log.warning("a prepared transaction is open: rows are read again until it ends")
        return cursor.bound if cursor else None
    return position.bound.moment


def _everything(
    extract: Extract, why: str, bound: datetime | None, *, afresh: bool = False
) -> Reading:
    return Reading(
        why=f"all: {why}",
        rows=extract.everything(),
        full=True,
        audit=True,
        afresh=afresh,
        bound=bound,
    )


def _audit(
    extract: Extract, position: Position, cursor: Cursor, bound: datetime | None
) -> Reading:
    """Row versions since the last one are enough where there are any: they include
    whatever has been written since, and no value of a row need be read to pick them."""
    since = cursor.audit_horizon
    by_versions = extract.relation.has_row_versions
    if not by_versions or since is None or not _in_circle(position, since):
        return _everything(extract, "an audit is due", bound)
    rows = extract.changed_since(since)
    return Reading("audit: changes since the last one", rows, audit=True, bound=bound)


def _by_outbox(
    connection: Connection,
    extract: Extract,
    strategy: Strategy,
    cursor: Cursor,
    key_scan: bool,
) -> Reading:
    outbox = strategy.outbox
    assert outbox is not None
    why = "keys in the outbox"
    if outbox.has(connection, "missed", cursor.horizon):
        return _everything(extract, "rows were written that the outbox missed", None)
    if outbox.blind or outbox.has(connection, "truncate", cursor.horizon):
        key_scan = True
        why += ", and all keys: a table was truncated, or may have been"
    is_touched = outbox.is_touched(extract, cursor.horizon)
    return Reading(
        why=why,
        rows=extract.rows(is_touched),
        key_scan=key_scan,
        touched=outbox.touched_keys(cursor.horizon),
        present=is_touched,
    )
