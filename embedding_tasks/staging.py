"""Streaming a relation of the source into temporary tables of the store.

    incoming         fields of the rows that may have changed
    seen             every key there is, to find those that are gone, but for those
                     that cannot be (`digests`); where they are not all looked at,
                     those of `touched` that are there
    touched          keys that have been looked for one by one
    unreadable       keys of rows whose fields cannot be read, and why
    incoming_label   the same two for a table of labels
    seen_label

All are dropped when the store's transaction ends. Rows pass through as COPY text,
block by block: no value is parsed on the way.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, LiteralString

from psycopg import sql

from embedding_tasks import cursor, digests, forgetting
from embedding_tasks.connections import Connection
from embedding_tasks.digests import Doubt
from embedding_tasks.errors import SourceError
from embedding_tasks.ledger import ERROR_LENGTH
from embedding_tasks.source import apart, snapshot
from embedding_tasks.source import keys as source_keys
from embedding_tasks.source import strategy as strategies
from embedding_tasks.source.extract import Extract
from embedding_tasks.source.reading import Asked, Reading, decide, definition
from embedding_tasks.source.snapshot import Position
from embedding_tasks.source.strategy import Strategy
from embedding_tasks.target import Target
from embedding_tasks.use_case import Everything, Keys, Scope, Window

log = logging.getLogger(__name__)

# A btree takes 2,704 bytes a row, of which other columns need some.
KEY_BYTES = 2_000

_DEFERRED: LiteralString = (
    "SELECT key FROM embedline.ledger WHERE model_version = ANY (%(versions)s)"
    " AND pending AND dead_at IS NULL AND deferred"
)

_TABLES: dict[str, LiteralString] = {
    "incoming": """
        key text COLLATE "C", hashes bytea[], event_time timestamptz,
        environment text, link text, tags jsonb, tenant text, label text,
        prediction text, score float8, data text[]""",
    "seen": 'key text COLLATE "C", early boolean NOT NULL',
    "touched": 'key text COLLATE "C"',
    "unreadable": 'key text COLLATE "C" PRIMARY KEY, error text',
    "incoming_label": 'key text COLLATE "C", label text, labeled_at timestamptz',
    "seen_label": 'key text COLLATE "C", early boolean NOT NULL',
}


_SEEN = {"records": "seen", "labels": "seen_label"}


@dataclass(frozen=True)
class Look:
    """One look at the source: what it found where, and what it was asked for."""

    connection: Connection
    position: Position
    asked: Asked


@dataclass(frozen=True)
class Staged:
    """`full`: every row is in `incoming`, not only those that may have changed;
    `keys`: which of them `seen` tells of, of all only those in doubt where there is a
    `doubt`; `not_found`: keys that were asked for and that the source does not have."""

    full: bool
    keys: Literal["all", "touched", "none"]
    unusable_keys: int
    not_found: int = 0
    doubt: Doubt | None = None


def stage_scope(target: Target, look: Look, records: Extract, scope: Scope) -> Staged:
    _create(target, "incoming", "unreadable")
    connection, not_found = look.connection, 0
    match scope:
        case Window():
            window = records.of_window(scope.since, scope.until)
            _copy_apart(target, connection, records, window)
        case Everything():
            _copy_apart(target, connection, records, records.everything())
        case Keys():
            found = source_keys.look_up(connection, records, scope.keys)
            not_found = len(found.missing)
            for keys in source_keys.chunks(found.keys):
                _copy_apart(target, connection, records, records.of_keys(keys))
    unusable_keys = _check_keys(target, records, "incoming")
    for table in ("incoming", "unreadable"):
        forgetting.leave_out(target.store, target.use_case, table)
    return Staged(
        full=False, keys="none", unusable_keys=unusable_keys, not_found=not_found
    )


def stage_records(
    target: Target, look: Look, records: Extract, strategy: Strategy
) -> Staged:
    _create(target, "incoming", "seen", "touched", "unreadable")
    reading, doubt = _stage(target, look, records, strategy, "records")
    if not reading.full:
        _look_up(target, look.connection, records, reading)
    for table in ("incoming", "unreadable"):
        forgetting.leave_out(target.store, target.use_case, table)
    _forget_early(target, records)
    tables = ("incoming", "seen") if reading.key_scan else ("seen", "incoming")
    unusable_keys = _check_keys(target, records, *tables)
    return Staged(
        full=reading.full,
        keys="all" if reading.key_scan else "touched",
        doubt=doubt,
        unusable_keys=doubt.unusable_keys if doubt else unusable_keys,
    )


def stage_labels(target: Target, look: Look, labels: Extract) -> None:
    _create(target, "incoming_label", "seen_label")
    reading, _ = _stage(target, look, labels, strategies.of_labels(labels), "labels")
    if not reading.full:
        for keys in _chunks(target, _unknown_labels(target)):
            _copy_labels(target, look.connection, labels, labels.of_keys(keys))
    forgetting.leave_out(target.store, target.use_case, "incoming_label")
    _check_keys(target, labels, "incoming_label", "seen_label")


def _stage(
    target: Target,
    look: Look,
    extract: Extract,
    strategy: Strategy,
    relation: Literal["records", "labels"],
) -> tuple[Reading, Doubt | None]:
    seen = _SEEN[relation]
    connection, position = look.connection, look.position
    last = cursor.load(target, relation)
    reading = decide(connection, extract, strategy, position, last, look.asked)
    take = _copy_apart if relation == "records" else _copy_labels
    take(target, connection, extract, reading.rows)
    doubt = None
    if reading.key_scan:
        # labels that are withdrawn are those of keys that are nowhere
        partly = relation == "records" and not reading.full
        if partly and digests.can_tell(connection, extract):
            doubt = digests.compare(target, connection, extract, longest=KEY_BYTES)
        where = doubt.falls_on(extract.key) if doubt else sql.SQL("true")
        _copy(target, connection, extract, seen, extract.keys(where))
    target.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(seen)))
    held_back = None if strategy.name == "scan" else _held_back(target, position)
    belongs_to = definition(extract, strategy)
    cursor.save(target, relation, belongs_to, position, reading, held_back)
    log.info(
        "read relation=%s name=%s strategy=%s how=%s",
        *(relation, extract.relation.name, strategy.name, reading.why),
    )
    return reading, doubt


def _look_up(
    target: Target, connection: Connection, records: Extract, reading: Reading
) -> None:
    """Reads by their keys what must be known whatever the strategy has found: a filter
    that looks at the clock or at another table lets old rows through, a store can lose
    rows, and a worker may have found a record changed that no timestamp tells of."""
    if reading.key_scan:
        for keys in _chunks(target, _unknown_records(target)):
            _copy_apart(target, connection, records, records.of_keys(keys))
    elif reading.touched is not None and reading.present is not None:
        _copy(target, connection, records, "touched", reading.touched)
        present = records.keys(reading.present)
        _copy(target, connection, records, "seen", present)
    for keys in _chunks(target, _deferred_records(target)):
        _copy_apart(target, connection, records, records.in_these_words(keys))
        # a scan has told of them, and would seem to have found them twice
        if not reading.key_scan:
            target.execute(
                "INSERT INTO touched SELECT unnest(%(keys)s::text[])", keys=keys
            )
            _copy_seen(target, connection, records, keys)
    if not reading.key_scan and records.start is not None:
        # which of them lie before it
        bad = [key for (key,) in target.rows("SELECT key FROM unreadable")]
        for keys in source_keys.chunks(bad):
            _copy_seen(target, connection, records, keys)


def _copy_seen(
    target: Target, connection: Connection, records: Extract, keys: Sequence[str]
) -> None:
    present = records.keys(records.has_key(keys))
    _copy(target, connection, records, "seen", present)


def _chunks(target: Target, keys: list[str]) -> Iterator[Sequence[str]]:
    """Those of them that are not forgotten, so many at a time."""
    kept = forgetting.others(target.store, target.use_case, keys)
    return source_keys.chunks(kept)


def _create(target: Target, *names: str) -> None:
    for name in names:
        target.execute(
            sql.SQL("CREATE TEMP TABLE {} ({}) ON COMMIT DROP").format(
                sql.Identifier(name), sql.SQL(_TABLES[name])
            )
        )


def _copy_apart(
    target: Target, connection: Connection, records: Extract, select: sql.Composable
) -> None:
    """Into `incoming` what can be read, into `unreadable` what cannot."""

    def copy(part: sql.Composable) -> None:
        with target.store.transaction(), connection.transaction():
            _copy(target, connection, records, "incoming", part)

    unreadable = apart.read(connection, records, select, copy)
    if not unreadable:
        return
    log.warning(
        "unreadable relation=%s rows=%d first_key=%s",
        *(records.relation.name, len(unreadable), next(iter(unreadable))),
    )
    target.execute(
        "INSERT INTO unreadable"
        " SELECT * FROM unnest(%(keys)s::text[], %(errors)s::text[]) AS u (key, error)"
        " WHERE octet_length(key) <= %(most)s ON CONFLICT DO NOTHING",
        most=KEY_BYTES,
        keys=[*unreadable],
        errors=[error[:ERROR_LENGTH] for error in unreadable.values()],
    )


def _copy_labels(
    target: Target, connection: Connection, labels: Extract, select: sql.Composable
) -> None:
    _copy(target, connection, labels, "incoming_label", select)


def _copy(
    target: Target,
    connection: Connection,
    extract: Extract,
    table: str,
    select: sql.Composable,
) -> None:
    names = ["key", *(extract.fields if "incoming" in table else [])]
    if "seen" in table:
        names.append("early")
    into = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, names))
    )
    out = sql.SQL("COPY ({}) TO STDOUT").format(select)
    with (
        snapshot.refusals(connection, extract),
        target.store.cursor().copy(into) as writer,
        connection.cursor().copy(out) as reader,
    ):
        for block in reader:
            writer.write(block)


def _check_keys(target: Target, extract: Extract, *tables: str) -> int:
    """Returns how many rows have no key, or one too long to be kept; they are left
    out. Raises `SourceError` on keys that occur twice: they name no single record. The
    last table has every key."""
    unusable_keys = 0
    for name in tables:
        table = sql.Identifier(name)
        unusable_keys = target.execute(
            sql.SQL(
                "DELETE FROM {} WHERE key IS NULL OR octet_length(key) > %(most)s"
            ).format(table),
            most=KEY_BYTES,
        )
        target.execute(sql.SQL("ANALYZE {}").format(table))
    if not extract.key_is_unique:
        _refuse_duplicates(target, extract, sql.Identifier(tables[-1]))
    return unusable_keys


def _refuse_duplicates(target: Target, extract: Extract, table: sql.Identifier) -> None:
    found = target.store.execute(
        sql.SQL(
            "SELECT key, count(*) FROM {} GROUP BY key HAVING count(*) > 1"
            " ORDER BY key LIMIT 3"
        ).format(table)
    ).fetchall()
    if found:
        examples = ", ".join(f"{key!r} ({count} rows)" for key, count in found)
        raise SourceError(
            f"{extract.relation.name}: the key ({', '.join(extract.key_columns)}) "
            f"must name one row each, but {examples}; "
            "name more key columns, or read a query that keeps one row per key"
        )


def _forget_early(target: Target, records: Extract) -> None:
    """Records from before the use case's `start` come by backfill only; those that
    came are followed like any other."""
    if records.start is not None:
        target.execute(
            "DELETE FROM incoming i WHERE i.event_time < %(start)s AND NOT EXISTS ("
            " SELECT FROM embedline.ledger l"
            " WHERE l.model_version = ANY (%(versions)s) AND l.key = i.key)",
            start=records.start,
        )
        target.execute(
            "DELETE FROM unreadable u USING seen s WHERE s.key = u.key AND s.early"
            " AND NOT EXISTS (SELECT FROM embedline.ledger l"
            "  WHERE l.model_version = ANY (%(versions)s) AND l.key = u.key)"
        )


def _unknown_records(target: Target) -> list[str]:
    rows = target.rows(
        "SELECT key FROM seen s WHERE octet_length(key) <= %(most)s AND NOT early"
        " AND NOT EXISTS (SELECT FROM embedline.ledger l"
        "   WHERE l.model_version = ANY (%(versions)s) AND l.key = s.key)"
        " AND NOT EXISTS (SELECT FROM incoming i WHERE i.key = s.key)",
        most=KEY_BYTES,
    )
    return [key for (key,) in rows]


def _deferred_records(target: Target) -> list[str]:
    rows = target.rows(
        f"SELECT DISTINCT key FROM ({_DEFERRED}) AS d"
        " WHERE NOT EXISTS (SELECT FROM incoming i WHERE i.key = d.key)"
    )
    return [key for (key,) in rows]


def _unknown_labels(target: Target) -> list[str]:
    rows = target.rows(
        "SELECT key FROM seen_label s WHERE octet_length(key) <= %(most)s"
        " AND NOT EXISTS (SELECT FROM embedline.label l"
        "   WHERE l.use_case = %(use_case)s AND l.key = s.key)"
        " AND NOT EXISTS (SELECT FROM incoming_label i WHERE i.key = s.key)",
        most=KEY_BYTES,
    )
    return [key for (key,) in rows]


def _held_back(target: Target, position: Position) -> dict[str, Any] | None:
    """By anybody but this sync itself, where the store is in the same server."""
    held = position.held_back
    if held is None:
        return None
    # not what the connection says: a pooler's is a number of its own
    itself = (target.value("SELECT pg_backend_pid()"), "embedline-store")
    return None if (held.get("pid"), held.get("application")) == itself else held


def kept_data(target: Target) -> Any:
    """What the last sync was told to keep of the inputs; None before the first."""
    last = cursor.load(target, "records")
    return last.definition["data"] if last else None
