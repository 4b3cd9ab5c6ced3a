"""How a use case stands, and why one record is or is not in the store."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from psycopg import sql
from psycopg.rows import dict_row

from embedding_tasks import backfills, forgetting, ledger
from embedding_tasks.connections import Connection, Resolve, for_source
from embedding_tasks.source import extract, keys, snapshot
from embedding_tasks.store import versions
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.use_case import Source, UseCase


def of(store: Connection, use_case: str | None = None) -> list[dict[str, Any]]:
    """Rows of the view `embedline.status`: one per use case and live model version,
    the serving version first."""
    with store.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "SELECT * FROM embedline.status"
            " WHERE use_case = %(name)s OR %(name)s::text IS NULL"
            " ORDER BY use_case, state <> 'active', model_version",
            {"name": use_case},
        ).fetchall()


def monitored(store: Connection) -> dict[str, int]:
    """By use case that is monitored, how many alarms are on."""
    return dict(
        store.execute(
            "SELECT use_case, count(DISTINCT alarm) FROM embedline.monitor GROUP BY 1"
        ).fetchall()
    )


def dead_errors(
    store: Connection, use_case: str, version: int, limit: int = 5
) -> list[dict[str, Any]]:
    """The commonest errors among a model version's dead records: `error`, `records`
    and one `key` as an example. None where they are not for this role to read."""
    may = store.execute("SELECT has_table_privilege('embedline.ledger', 'SELECT')")
    if may.fetchone() != (True,):
        return []
    with store.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "SELECT l.error, count(*) AS records, min(l.key) AS key"
            " FROM embedline.ledger l"
            " JOIN embedline.model_version m ON m.id = l.model_version"
            " JOIN embedline.use_case u ON u.id = m.use_case"
            " WHERE u.name = %s AND m.version = %s AND l.dead_at IS NOT NULL"
            " GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT %s",
            [use_case, version, limit],
        ).fetchall()


def index_of(
    store: Connection, use_case: str, feature: str, version: int
) -> dict[str, Any] | None:
    """The row of `embedline.index_status`."""
    with store.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "SELECT search, index, is_valid, bytes, recall, k, ef_search, built_at,"
            "  dead_share, build_seconds FROM embedline.index_status"
            " WHERE use_case = %s AND feature = %s AND model_version = %s",
            [use_case, feature, version],
        ).fetchone()


def explain(
    store: Connection,
    use_case: UseCase,
    key: str,
    resolve: Resolve | None = None,
    *,
    feature: str | None = None,
) -> dict[str, Any]:
    """Everything known of one record, source first. `verdict` says it in a sentence."""
    use_case_id = versions.use_case_id(store, use_case.name)
    serving = versions.active(store, use_case.name, feature)
    with snapshot.take(for_source(use_case.source, resolve)) as connection:
        taken = extract.records(connection, use_case, forms=[serving.form])
        key = keys.canonical_key(key, taken.key_columns)
        found = snapshot.describe_record(connection, taken, key)
    known = _ledger(store, serving.id, key)
    forgotten = forgetting.forgotten_at(store, use_case_id, key)
    vectors = store.execute(
        sql.SQL(
            "SELECT count(*), max(embedded_at), max(run_id) FROM {} WHERE key = %s"
        ).format(serving.table),
        [key],
    ).fetchone()
    assert vectors is not None
    return {
        "use_case": use_case.name,
        "key": key,
        "verdict": _why_forgotten(use_case, key, forgotten)
        if forgotten
        else _verdict(store, use_case, serving, found, known),
        "source": found,
        "ledger": known,
        "model_version": serving.version,
        "vectors": vectors[0],
        "embedded_at": vectors[1],
        "run_id": vectors[2],
        "prediction": _side(store, "prediction", use_case_id, key),
        "label": _side(store, "label", use_case_id, key),
    }


def _why_forgotten(use_case: UseCase, key: str, at: datetime) -> str:
    return (
        f"forgotten on request at {at:%Y-%m-%d %H:%M:%S%z}; "
        f"`embedline forget {use_case.name} {key} --undo` lets it come back"
    )


def _verdict(
    store: Connection, use_case: UseCase, serving: ModelVersion, found: Any, known: Any
) -> str:
    if found is None and known and known["want_hash"] == b"" and known["dead_at"]:
        return f"cannot be read from the source: {known['error']}"
    if found is None:
        withheld = _withheld(store, serving.use_case)
        return _why_gone(known, use_case.source, withheld)
    if known is None:
        start = use_case.source.start
        if start and found.get("event_time") and found["event_time"] < start:
            return f"before source.start ({start:%Y-%m-%d}); a backfill brings it"
        return "in the source, and not yet seen by a sync"
    if known["dead_at"]:
        return f"dead after {known['attempts']} attempts: {known['error']}"
    if found["hashes"] != [known["want_hash"]]:
        changed = "changed since the last sync; the next one sees it"
        if use_case.source.strategy != "timestamp":
            return changed
        return f"{changed}, or, if source.updated_at was not set, the next audit"
    if known["want_hash"] is None:
        return "its input is null: nothing to embed"
    if not known["pending"]:
        return "stored, and its vector is of its current input"
    return _why_waiting(store, use_case, serving, known)


def _withheld(store: Connection, use_case: int) -> bool:
    row = store.execute(
        "SELECT deletes_withheld > 0 FROM embedline.use_case WHERE id = %s", [use_case]
    ).fetchone()
    return row is not None and row[0]


def _why_gone(known: Any, source: Source, withheld: bool) -> str:
    gone = "not in the source, or kept out by source.where"
    if known is None:
        return gone
    if withheld:
        return f"{gone}; the delete guard keeps it until a run with --allow-deletes"
    if source.key_scan == "audit" and source.strategy != "outbox":
        return f"{gone}; the next audit removes it"
    return f"{gone}; the next sync removes it"


def _why_waiting(
    store: Connection, use_case: UseCase, version: ModelVersion, known: dict[str, Any]
) -> str:
    if known["leased"]:
        return f"being embedded by {known['lease_holder']}"
    if (backfill := known["backfill"]) and backfills.is_paused(store, backfill):
        return (
            f"waits for backfill {backfill}, which is paused; "
            f"`embedline backfill resume {use_case.name} {backfill}`"
        )
    if backfills.awaits_switch(store, version.id, known["backfill"]):
        return (
            f"served as it was until the fresh table of backfill {known['backfill']}, "
            "which has it, takes over"
        )
    if known["deferred"]:
        return "the source had moved on when a worker looked; the next sync sees to it"
    if known["error"]:
        return (
            f"to be tried again at {known['next_attempt_at']:%Y-%m-%d %H:%M:%S%z} "
            f"after {known['attempts']} attempts: {known['error']}"
        )
    ahead = ledger.ahead(store, version, known, use_case.batch.lease_seconds)
    return f"waiting to be embedded, behind {ahead} others"


def _ledger(store: Connection, version: int, key: str) -> dict[str, Any] | None:
    with store.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "SELECT want_hash, have_hash, pending, priority, queued_at, attempts,"
            " next_attempt_at, deferred, lease_holder, lease_until,"
            " coalesce(lease_until > now(), false) AS leased, backfill, dead_at, error,"
            " key FROM embedline.ledger WHERE model_version = %s AND key = %s",
            [version, key],
        ).fetchone()


def _side(
    store: Connection, table: str, use_case: int, key: str
) -> list[dict[str, Any]]:
    with store.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            sql.SQL(
                "SELECT * FROM embedline.{} WHERE use_case = %s AND key = %s"
                " ORDER BY unit"
            ).format(sql.Identifier(table)),
            [use_case, key],
        ).fetchall()
