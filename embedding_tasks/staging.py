"""Streaming a relation of the source into temporary tables of the store.

    incoming         fields of the rows that may have changed
    seen             every key there is, to find those that are gone; where they are
                     not all read, those of `touched` that are there
    touched          keys that have been looked for one by one
    incoming_label   the same two for a table of labels
    seen_label

All are dropped when the store's transaction ends. Rows pass through as COPY text,
block by block: no value is parsed on the way.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, LiteralString

from psycopg import sql

from embedding_tasks import cursor
from embedding_tasks.connections import Connection
from embedding_tasks.errors import SourceError
from embedding_tasks.source import snapshot
from embedding_tasks.source import strategy as strategies
from embedding_tasks.source.extract import Extract
from embedding_tasks.source.reading import Asked, Reading, decide, definition
from embedding_tasks.source.snapshot import Position
from embedding_tasks.source.strategy import Strategy
from embedding_tasks.target import Target
from embedding_tasks.use_case import Window

log = logging.getLogger(__name__)

# Keys fetched at a time when the source shows keys the ledger has never seen.
KEYS_PER_READ = 10_000
# A btree takes 2,704 bytes a row, of which other columns need some.
KEY_BYTES = 2_000

_DEFERRED: LiteralString = (
    "SELECT key FROM embedline.ledger WHERE model_version = ANY (%(versions)s)"
    " AND pending AND dead_at IS NULL AND deferred"
)

_TABLES: dict[str, LiteralString] = {
    "incoming": """
        key text COLLATE "C", hashes bytea[], event_time timestamptz,
        environment text, link text, tags jsonb, label text, prediction text,
        score float8, data text[]""",
    "seen": 'key text COLLATE "C", early boolean NOT NULL',
    "touched": 'key text COLLATE "C"',
    "incoming_label": 'key text COLLATE "C", label text, labeled_at timestamptz',
    "seen_label": 'key text COLLATE "C", early boolean NOT NULL',
}


@dataclass(frozen=True)
class Look:
    """One look at the source: what it found where, and what it was asked for."""

    connection: Connection
    position: Position
    asked: Asked


@dataclass(frozen=True)
class Staged:
    """`full`: every row is in `incoming`, not only those that may have changed;
    `keys`: which of them `seen` tells of."""

    full: bool
    keys: Literal["all", "touched", "none"]
    unusable_keys: int


def stage_window(
    target: Target, look: Look, records: Extract, window: Window
) -> Staged:
    _create(target, "incoming")
    rows = records.of_window(**dict(window))
    _copy(target, look.connection, records, "incoming", rows)
    unusable_keys = _check_keys(target, records, "incoming")
    return Staged(full=False, keys="none", unusable_keys=unusable_keys)


def stage_records(
    target: Target, look: Look, records: Extract, strategy: Strategy
) -> Staged:
    _create(target, "incoming", "seen", "touched")
    reading = _stage(target, look, records, strategy, "records")
    if not reading.full:
        _look_up(target, look.connection, records, reading)
    _forget_early(target, records)
    tables = ("incoming", "seen") if reading.key_scan else ("seen", "incoming")
    return Staged(
        full=reading.full,
        keys="all" if reading.key_scan else "touched",
        unusable_keys=_check_keys(target, records, *tables),
    )


def stage_labels(target: Target, look: Look, labels: Extract) -> None:
    _create(target, "incoming_label", "seen_label")
    reading = _stage(target, look, labels, strategies.of_labels(labels), "labels")
    if not reading.full:
        for keys in _parts(_unknown_labels(target)):
            rows = labels.of_keys(keys)
            _copy(target, look.connection, labels, "incoming_label", rows)
    _check_keys(target, labels, "incoming_label", "seen_label")


def _stage(
    target: Target,
    look: Look,
    extract: Extract,
    strategy: Strategy,
    relation: Literal["records", "labels"],
) -> Reading:
    incoming, seen = _names(relation)
    connection, position = look.connection, look.position
    last = cursor.load(target, relation)
    reading = decide(connection, extract, strategy, position, last, look.asked)
    _copy(target, connection, extract, incoming, reading.rows)
    if reading.key_scan:
        _copy(target, connection, extract, seen, extract.keys())
    target.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(seen)))
    cursor.save(target, relation, definition(extract, strategy), position, reading)
    log.info(
        "read relation=%s name=%s strategy=%s how=%s",
        *(relation, extract.relation.name, strategy.name, reading.why),
    )
    return reading


def _look_up(
    target: Target, connection: Connection, records: Extract, reading: Reading
) -> None:
    """Reads by their keys what must be known whatever the strategy has found: a filter
    that looks at the clock or at another table lets old rows through, a store can lose
    rows, and a worker may have found a record changed that no timestamp tells of."""
    if reading.key_scan:
        for keys in _parts(_unknown_records(target)):
            _copy(target, connection, records, "incoming", records.of_keys(keys))
        return
    if reading.touched is not None and reading.present is not None:
        _copy(target, connection, records, "touched", reading.touched)
        present = records.keys(reading.present)
        _copy(target, connection, records, "seen", present)
    for keys in _parts(_deferred_records(target)):
        target.execute("INSERT INTO touched SELECT unnest(%(keys)s::text[])", keys=keys)
        _copy(target, connection, records, "incoming", records.of_keys(keys))
        present = records.keys(records.has_key(keys))
        _copy(target, connection, records, "seen", present)


def _parts(keys: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(keys), KEYS_PER_READ):
        yield keys[start : start + KEYS_PER_READ]


def _names(relation: str) -> tuple[str, str]:
    return (
        ("incoming", "seen")
        if relation == "records"
        else ("incoming_label", "seen_label")
    )


def _create(target: Target, *names: str) -> None:
    for name in names:
        target.execute(
            sql.SQL("CREATE TEMP TABLE {} ({}) ON COMMIT DROP").format(
                sql.Identifier(name), sql.SQL(_TABLES[name])
            )
        )


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


def _unknown_records(target: Target) -> list[str]:
    """Those the ledger does not know, and those a worker has put off."""
    rows = target.rows(
        "SELECT key FROM seen s WHERE octet_length(key) <= %(most)s"
        " AND (NOT early AND NOT EXISTS (SELECT FROM embedline.ledger l"
        "   WHERE l.model_version = ANY (%(versions)s) AND l.key = s.key)"
        f"  OR key IN ({_DEFERRED}))"
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


def kept_data(target: Target) -> Any:
    """What the last sync was told to keep of the inputs; None before the first."""
    last = cursor.load(target, "records")
    return last.definition["data"] if last else None
