"""Backfills after they were begun: how they stand; pause, resume, cancel."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.rows import dict_row

from embedding_tasks.connections import Connection
from embedding_tasks.errors import SearchError
from embedding_tasks.ledger import AWAITS_SWITCH
from embedding_tasks.records import delete_vanished
from embedding_tasks.store import retired, versions
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.sync import SCHEDULED
from embedding_tasks.target import Target
from embedding_tasks.use_case import UseCase

log = logging.getLogger(__name__)


def of(store: Connection, name: str, limit: int = 20) -> list[dict[str, Any]]:
    """The use case's latest backfills, and all that are not done, newest first. Their
    `state`: running, paused, cancelled, failed, done (by whomever), or waiting: for the
    next run, or for a further worker. `versions` are those that were filled by it, and
    done is one that fills any when they have taken over."""
    use_case = versions.use_case_id(store, name)
    with store.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            "SELECT r.id, CASE WHEN r.cancelled_at IS NOT NULL THEN 'cancelled'"
            "   WHEN r.paused_at IS NOT NULL THEN 'paused'"
            "   WHEN r.synced_at IS NOT NULL AND l.waiting + l.dead + f.open = 0"
            "    THEN 'done'"
            "   WHEN r.state = 'running' THEN 'running'"
            "   WHEN l.waiting + f.open > 0 THEN 'waiting'"
            "   WHEN r.state = 'failed' THEN 'failed' ELSE 'done' END AS state,"
            "  r.scope, r.since, r.until, r.reembed, r.kind, r.external_id,"
            "  r.started_at, r.finished_at, r.paused_at, r.cancelled_at, r.read,"
            "  r.not_found, l.waiting, l.dead, r.error, f.versions,"
            "  CASE WHEN NOT r.reembed OR f.versions = '{}' THEN r.new + r.changed END"
            "   AS enqueued"
            " FROM embedline.run r CROSS JOIN LATERAL ("
            "  SELECT count(DISTINCT key) FILTER (WHERE dead_at IS NULL) AS waiting,"
            "   count(DISTINCT key) FILTER (WHERE dead_at IS NOT NULL) AS dead"
            "  FROM embedline.ledger WHERE backfill = r.id AND pending"
            f"   AND NOT {AWAITS_SWITCH}) l CROSS JOIN LATERAL ("
            "  SELECT coalesce(array_agg(version ORDER BY version), '{}') AS versions,"
            "   count(*) FILTER (WHERE m.state IN ('building', 'ready')) AS open"
            "  FROM embedline.model_version m WHERE m.filled_by = r.id) f"
            " WHERE r.use_case = %s AND (r.scope IS NOT NULL OR f.versions <> '{}')"
            " ORDER BY r.id DESC",
            [use_case],
        ).fetchall()
    return [
        row
        for place, row in enumerate(rows)
        if place < limit or row["state"] in ("running", "paused", "waiting")
    ]


def pause(store: Connection, name: str, run: int | None = None) -> list[int]:
    """Keep the records of a backfill, or of all, from being taken. A worker that holds
    some finishes those. Returns the backfills concerned."""
    return _change(store, name, run, "paused_at = now()", ("running", "waiting"))


def resume(store: Connection, name: str, run: int | None = None) -> list[int]:
    """Let the next run, or a worker at work, take them again."""
    return _change(store, name, run, "paused_at = NULL", ("paused",))


def selected(
    store: Connection, name: str, run: int | None, states: Sequence[str]
) -> list[int]:
    """The backfill `run`, or all that are in one of these states. Raises `SearchError`
    where it is in another, or is none."""
    known = {row["id"]: row["state"] for row in of(store, name)}
    if run is None:
        return sorted(number for number, state in known.items() if state in states)
    if run not in known:
        valid = ", ".join(map(str, sorted(known))) or "none: there was no backfill"
        raise SearchError(f"{name}: no backfill {run}; valid: {valid}")
    if known[run] not in states:
        raise SearchError(
            f"{name}: backfill {run} is {known[run]}; valid: one that is "
            f"{' or '.join(states)}"
        )
    return [run]


def _change(
    store: Connection,
    name: str,
    run: int | None,
    change: Any,
    states: Sequence[str],
) -> list[int]:
    runs = selected(store, name, run, states)
    store.execute(
        sql.SQL("UPDATE embedline.run SET {} WHERE id = ANY (%s)").format(
            sql.SQL(change)
        ),
        [runs],
    )
    return runs


def waiting(store: Connection, run: int) -> int:
    """Records of a backfill that are still to be embedded."""
    row = store.execute(
        "SELECT count(DISTINCT key) FROM embedline.ledger"
        f" WHERE backfill = %s AND pending AND dead_at IS NULL AND NOT {AWAITS_SWITCH}",
        [run],
    ).fetchone()
    assert row is not None
    return int(row[0])


def filling(store: Connection, run: int) -> list[int]:
    """Versions that a backfill fills, and that have not taken over yet."""
    rows = store.execute(
        "SELECT version FROM embedline.model_version"
        " WHERE filled_by = %s AND state IN ('building', 'ready') ORDER BY version",
        [run],
    )
    return [version for (version,) in rows]


def awaits_switch(store: Connection, version: int, run: int | None) -> bool:
    """Whether the version (its id) leaves the records of a backfill to a fresh one."""
    row = store.execute(
        "SELECT EXISTS (SELECT FROM embedline.awaiting_switch"
        " WHERE model_version = %s AND backfill = %s)",
        [version, run],
    ).fetchone()
    return row is not None and row[0]


def is_enqueued(store: Connection, run: int) -> bool:
    return _has(store, run, "synced_at IS NOT NULL")


def is_paused(store: Connection, run: int) -> bool:
    return _has(store, run, "paused_at IS NOT NULL")


def is_cancelled(store: Connection, run: int) -> bool:
    return _has(store, run, "cancelled_at IS NOT NULL")


def _has(store: Connection, run: int, condition: Any) -> bool:
    row = store.execute(
        sql.SQL("SELECT {} FROM embedline.run WHERE id = %s").format(
            sql.SQL(condition)
        ),
        [run],
    ).fetchone()
    return row is not None and row[0]


@dataclass(frozen=True)
class Fates:
    """What becomes of the records that a cancelled backfill has not embedded:
    `restored` keep the vectors they had, `removed` leave the store, which would not
    have them but for the backfill, and `left` are for the next run to embed. `versions`
    that it was filling go, with all that they have."""

    restored: int
    removed: int
    left: int
    versions: tuple[int, ...] = ()


CANCELLABLE = ("running", "waiting", "paused")


def foresee_cancel(store: Connection, use_case: UseCase, runs: list[int]) -> Fates:
    given_up = _given_up(store, use_case, runs)
    with store.transaction(force_rollback=True):
        return _judge(_target(store, use_case, given_up), use_case, runs, given_up)


def cancel(store: Connection, use_case: UseCase, runs: list[int]) -> Fates:
    """Let go what the backfills have not embedded. Workers that hold some of it lose
    their lease, and with it the right to write."""
    with store.transaction():
        versions.lock(store, versions.use_case_id(store, use_case.name))
        given_up = _given_up(store, use_case, runs)
        for version in given_up:
            versions.retire(store, version)
        target = _target(store, use_case, given_up)
        store.execute(
            "SELECT count(*) FROM (SELECT FROM embedline.ledger"
            "  WHERE backfill = ANY (%s)"
            "  ORDER BY model_version, key FOR UPDATE) AS locked",
            [runs],
        )
        fates = _judge(target, use_case, runs, given_up)
        _apply(target, use_case)
        store.execute(
            "UPDATE embedline.run SET cancelled_at = now(), paused_at = NULL"
            " WHERE id = ANY (%s)",
            [runs],
        )
    retired.drop(store, given_up)
    log.info("cancelled use_case=%s runs=%s %s", use_case.name, runs, fates)
    return fates


def _given_up(
    store: Connection, use_case: UseCase, runs: list[int]
) -> list[ModelVersion]:
    live = versions.live(store, versions.use_case_id(store, use_case.name))
    return [v for v in live if not v.serves and v.filled_by in runs]


def _target(
    store: Connection, use_case: UseCase, given_up: list[ModelVersion]
) -> Target:
    number = versions.use_case_id(store, use_case.name)
    live = [v for v in versions.live(store, number) if v not in given_up]
    return Target(store, number, live, use_case.first_feature.unit)


def _judge(
    target: Target, use_case: UseCase, runs: list[int], given_up: list[ModelVersion]
) -> Fates:
    """In `let_go`, each record's fate in each version: it is removed from all or from
    none."""
    if not target.versions:  # before its first sync
        return Fates(0, 0, 0)
    target.execute(
        'CREATE TEMP TABLE let_go (model_version int, key text COLLATE "C", fate text)'
        " ON COMMIT DROP"
    )
    for version in target.versions:
        target.execute(
            sql.SQL(
                "INSERT INTO let_go SELECT l.model_version, l.key, CASE"
                "  WHEN EXISTS (SELECT FROM {vectors} v WHERE v.key = l.key"
                "   AND v.input_hash = l.want_hash) THEN 'restored'"
                "  WHEN r.event_time < %(start)s::timestamptz AND l.have_hash IS NULL"
                "   AND NOT EXISTS (SELECT FROM {vectors} v WHERE v.key = l.key)"
                "   THEN 'removed' ELSE 'left' END"
                " FROM embedline.ledger l LEFT JOIN embedline.record r"
                "  ON r.use_case = %(use_case)s AND r.key = l.key"
                " WHERE l.model_version = %(version)s AND l.pending"
                "  AND l.backfill = ANY (%(runs)s)"
            ).format(vectors=version.table),
            version=version.id,
            runs=runs,
            start=use_case.source.start,
        )
    target.execute(
        "UPDATE let_go g SET fate = 'left' WHERE fate = 'removed' AND EXISTS ("
        " SELECT FROM embedline.ledger l WHERE l.model_version = ANY (%(versions)s)"
        "  AND l.key = g.key AND NOT EXISTS (SELECT FROM let_go o"
        "   WHERE o.model_version = l.model_version AND o.key = l.key"
        "    AND o.fate = 'removed'))"
    )
    # 'left' < 'removed' < 'restored': left to be done in one version is left to be done
    ((restored, removed, left),) = target.rows(
        "SELECT count(*) FILTER (WHERE fate = 'restored'),"
        " count(*) FILTER (WHERE fate = 'removed'),"
        " count(*) FILTER (WHERE fate = 'left')"
        " FROM (SELECT key, min(fate) AS fate FROM let_go GROUP BY key) AS f"
    )
    return Fates(restored, removed, left, tuple(v.version for v in given_up))


def _apply(target: Target, use_case: UseCase) -> None:
    if not target.versions:
        return
    target.execute(
        "UPDATE embedline.ledger l SET backfill = NULL, priority = %(priority)s,"
        "  have_hash = CASE g.fate WHEN 'restored' THEN want_hash ELSE have_hash END,"
        "  dead_at = CASE g.fate WHEN 'restored' THEN NULL ELSE dead_at END,"
        "  attempts = CASE g.fate WHEN 'restored' THEN 0 ELSE attempts END,"
        "  error = CASE g.fate WHEN 'restored' THEN NULL ELSE error END,"
        "  lease_token = NULL, lease_holder = NULL, lease_until = NULL"
        " FROM let_go g WHERE g.fate <> 'removed'"
        "  AND l.model_version = g.model_version AND l.key = g.key",
        priority=SCHEDULED,
    )
    target.execute(
        "CREATE TEMP TABLE vanished ON COMMIT DROP AS"
        " SELECT DISTINCT key FROM let_go WHERE fate = 'removed'"
    )
    delete_vanished(target, use_case)
