"""Streaming a relation of the source into temporary tables of the store.

    incoming         fields of the rows that may have changed
    seen             every key there is, to find those that are gone
    unreadable       keys of rows whose fields cannot be read, and why
    incoming_label   the same two for a table of labels
    seen_label

All are dropped when the store's transaction ends. Rows pass through as COPY text,
block by block: no value is parsed on the way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, LiteralString

from psycopg import sql
from psycopg.types.json import Jsonb

from embedding_tasks import forgetting
from embedding_tasks.connections import Connection
from embedding_tasks.errors import SourceError
from embedding_tasks.ledger import ERROR_LENGTH
from embedding_tasks.source import apart, snapshot
from embedding_tasks.source import keys as source_keys
from embedding_tasks.source.extract import Extract
from embedding_tasks.source.snapshot import Position
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.use_case import Everything, Keys, Scope, Window

log = logging.getLogger(__name__)

# A btree takes 2,704 bytes a row, of which other columns need some.
KEY_BYTES = 2_000

_TABLES: dict[str, LiteralString] = {
    "incoming": """
        key text COLLATE "C", hashes bytea[], event_time timestamptz,
        environment text, link text, tags jsonb, label text, prediction text,
        score float8, data text[]""",
    "seen": 'key text COLLATE "C", early boolean NOT NULL',
    "unreadable": 'key text COLLATE "C" PRIMARY KEY, error text',
    "incoming_label": 'key text COLLATE "C", label text, labeled_at timestamptz',
    "seen_label": 'key text COLLATE "C", early boolean NOT NULL',
}


@dataclass(frozen=True)
class Target:
    """The side of the store that one use case's sync writes to, inside one
    transaction. Statements find `%(use_case)s`, `%(versions)s` (ids), `%(first)s` (the
    id of the first feature's serving version) and `%(keep_labelled)s` (ids of the
    versions that have vectors of labelled parts) filled in."""

    store: Connection
    use_case: int
    versions: list[ModelVersion]
    labelled_unit: str = "record"

    @property
    def keep_labelled(self) -> list[ModelVersion]:
        """Those of which a record's labelled parts have a vector, whatever else."""
        return [v for v in self.versions if v.keeps_labelled(self.labelled_unit)]

    def execute(
        self, statement: LiteralString | sql.SQL | sql.Composed, **more: Any
    ) -> int:
        """Returns the rows affected."""
        return self.store.execute(statement, self._parameters(more)).rowcount

    def rows(self, statement: LiteralString, **more: Any) -> list[tuple[Any, ...]]:
        return self.store.execute(statement, self._parameters(more)).fetchall()

    def value(self, statement: LiteralString, **more: Any) -> Any:
        return self.rows(statement, **more)[0][0]

    def _parameters(self, more: dict[str, Any]) -> dict[str, Any]:
        ids = [version.id for version in self.versions]
        keep = [version.id for version in self.keep_labelled]
        return {
            "use_case": self.use_case,
            "versions": ids,
            "first": ids[0],
            "keep_labelled": keep,
            **more,
        }


@dataclass(frozen=True)
class Staged:
    """`full`: every row is in `incoming`, not only those that may have changed.
    `not_found`: keys that were asked for and that the source does not have."""

    full: bool
    unusable_keys: int
    not_found: int = 0


def stage_records(
    target: Target, connection: Connection, records: Extract, scope: Scope | None
) -> Staged:
    _create(target, "incoming", "seen", "unreadable")
    if scope is not None:
        return _stage_scope(target, connection, records, scope)
    full = _stage(target, connection, records, "records", known=_unknown_records)
    _forget_early(target, records)
    return Staged(
        full=full, unusable_keys=_check_keys(target, records, "incoming", "seen")
    )


def _stage_scope(
    target: Target, connection: Connection, records: Extract, scope: Scope
) -> Staged:
    not_found = 0
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
    return Staged(full=False, unusable_keys=unusable_keys, not_found=not_found)


def stage_labels(target: Target, connection: Connection, labels: Extract) -> None:
    _create(target, "incoming_label", "seen_label")
    _stage(target, connection, labels, "labels", known=_unknown_labels)
    _check_keys(target, labels, "incoming_label", "seen_label")


def _stage(
    target: Target,
    connection: Connection,
    extract: Extract,
    relation: Literal["records", "labels"],
    known: Callable[[Target], list[str]],
) -> bool:
    incoming, seen = _names(relation)
    position = snapshot.position(connection)
    cursor = _cursor(target, relation)
    reason = _why_full(extract, cursor, position)
    take = _copy_apart if relation == "records" else _copy_labels
    if reason or cursor is None:
        take(target, connection, extract, extract.everything())
    else:
        take(target, connection, extract, extract.changed_since(cursor.horizon))
    _copy(target, connection, extract, seen, extract.keys())
    target.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(seen)))
    if not reason:
        # A filter that looks at the clock or at another table lets old rows through,
        # and a store can lose rows: what is not known is read, whatever its age.
        unknown = forgetting.others(target.store, target.use_case, known(target))
        for keys in source_keys.chunks(unknown):
            take(target, connection, extract, extract.of_keys(keys))
    forgetting.leave_out(target.store, target.use_case, incoming)
    _save_cursor(target, relation, extract, position, full=bool(reason))
    log.info(
        "read relation=%s name=%s how=%s",
        *(relation, extract.relation.name, reason or "changes since the last sync"),
    )
    return bool(reason)


@dataclass(frozen=True)
class _Cursor:
    definition: Any
    server: str
    horizon: int


def _why_full(
    extract: Extract, cursor: _Cursor | None, position: Position
) -> str | None:
    """Why every row must be read, or None where those past the horizon are enough."""
    if extract.strategy == "scan":
        return "all: strategy is scan"
    if cursor is None:
        return "all: first sync"
    if cursor.definition != extract.definition:
        return "all: the relation or the use case has changed"
    if cursor.server != position.server:
        return "all: the source is another server, or was restarted"
    if not 0 <= position.horizon - cursor.horizon < 2**31:
        return "all: the horizon went backwards or too far"
    return None


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
        " SELECT * FROM unnest(%(keys)s::text[], %(errors)s::text[])"
        " ON CONFLICT DO NOTHING",
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
    everything = table.startswith("incoming")
    names = ["key", *extract.fields] if everything else ["key", "early"]
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
    cursor = _cursor(target, "records")
    return cursor.definition["data"] if cursor else None


def _cursor(target: Target, relation: str) -> _Cursor | None:
    rows = target.rows(
        "SELECT definition, server, horizon::text::bigint"
        " FROM embedline.source_cursor"
        " WHERE use_case = %(use_case)s AND relation = %(relation)s",
        relation=relation,
    )
    return _Cursor(*rows[0]) if rows else None


def _save_cursor(
    target: Target, relation: str, extract: Extract, position: Position, full: bool
) -> None:
    target.execute(
        "INSERT INTO embedline.source_cursor AS c"
        " (use_case, relation, definition, server, horizon, held_back)"
        " VALUES (%(use_case)s, %(relation)s, %(definition)s, %(server)s,"
        "  %(horizon)s::text::xid8, %(held_back)s)"
        " ON CONFLICT (use_case, relation) DO UPDATE SET"
        "  definition = EXCLUDED.definition, horizon = EXCLUDED.horizon,"
        "  server = EXCLUDED.server, held_back = EXCLUDED.held_back, synced_at = now(),"
        "  full_at = CASE WHEN %(full)s THEN now() ELSE c.full_at END",
        relation=relation,
        definition=Jsonb(extract.definition),
        server=position.server,
        horizon=position.horizon,
        held_back=_held_back(target, extract, position),
        full=full,
    )


def _held_back(target: Target, extract: Extract, position: Position) -> Jsonb | None:
    """By anybody but this sync itself, where the store is in the same server."""
    held = position.held_back
    if extract.strategy == "scan" or held is None:
        return None
    itself = (target.store.info.backend_pid, "embedline-store")
    return None if (held.get("pid"), held.get("application")) == itself else Jsonb(held)
