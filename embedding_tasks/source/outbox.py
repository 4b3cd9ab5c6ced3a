"""Strategy `outbox`: triggers on the source write down which keys were touched.

Each row of the outbox has the id of the top-level transaction that wrote it. A row
visible now and not at the previous look was written by a transaction unfinished then,
whose id is at or after that look's horizon: the argument of `snapshot`, and as there it
may over-read and never miss. There is no upper bound: a long transaction holds up
nobody. The present rows of the keys are read in the same snapshot; a key without one is
gone.

How the outbox comes to be is in `installation`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.errors import SourceError
from embedding_tasks.source import expressions
from embedding_tasks.source.extract import Extract
from embedding_tasks.source.relation import Relation

SCHEMA = "embedline_outbox"
FORMAT = 2
KINDS = ("insert", "update", "delete", "truncate")


@dataclass(frozen=True)
class Member:
    """The table itself, a partition or a child. `cloned`: its row triggers are copies
    of the root's."""

    oid: int
    schema: str
    name: str
    kind: str
    cloned: bool

    @property
    def table(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)


@dataclass(frozen=True)
class Outbox:
    """`blind` are members whose TRUNCATE it does not see."""

    name: str
    oid: int
    types: tuple[str, ...]
    blind: tuple[str, ...] = ()

    @property
    def table(self) -> sql.Identifier:
        return sql.Identifier(SCHEMA, self.name)

    def touched_keys(self, horizon: int) -> sql.Composable:
        """As text, as those of the source's rows."""
        names = key_names(len(self.types))
        keys = Relation(
            name=f"{SCHEMA}.{self.name}",
            from_=self.table,
            columns=dict(zip(names, self.types, strict=True)),
            has_row_versions=True,
            unique_keys=frozenset(),
            identity=self.oid,
        )
        return sql.SQL("SELECT DISTINCT {} FROM ({}) AS touched").format(
            expressions.key(keys, tuple(names), "source.key"), self._touched(horizon)
        )

    def _touched(self, horizon: int) -> sql.Composable:
        return sql.SQL("SELECT {} FROM {} WHERE xid >= {}::xid8").format(
            sql.SQL(", ").join(map(sql.Identifier, key_names(len(self.types)))),
            self.table,
            sql.Literal(str(horizon)),
        )

    def is_touched(self, extract: Extract, horizon: int) -> sql.Composable:
        """Of a row of the source. Types and collations are the same on both sides, so
        that an index on the key can serve."""
        return sql.SQL("({}) IN ({})").format(
            sql.SQL(", ").join(map(sql.Identifier, extract.key_columns)),
            self._touched(horizon),
        )

    def has(self, connection: Connection, op: str, horizon: int) -> bool:
        """'truncate', or 'missed': rows were written whose keys it does not have."""
        row = connection.execute(
            sql.SQL(
                "SELECT EXISTS (SELECT FROM {} WHERE op = {} AND xid >= {}::xid8)"
            ).format(self.table, sql.Literal(op), sql.Literal(str(horizon)))
        ).fetchone()
        return row is not None and bool(row[0])


def key_names(count: int) -> list[str]:
    """Not the source's own names, which may be `seq`, `xid` or `op`."""
    return [f"key_{number}" for number in range(1, count + 1)]


def trigger_name(use_case: str, kind: str) -> str:
    return f"embedline_{use_case}_{kind}"


def members(connection: Connection, table: str) -> list[Member]:
    """The table first, which need not be there; then its partitions and children."""
    rows = connection.execute(
        "WITH RECURSIVE member (oid, depth) AS ("
        "  SELECT to_regclass(%s)::oid, 0"
        "  UNION SELECT i.inhrelid, depth + 1 FROM pg_inherits i JOIN member m"
        "    ON i.inhparent = m.oid"
        ") SELECT DISTINCT ON (min(depth), c.oid) c.oid::bigint, n.nspname::text,"
        "  c.relname::text, c.relkind::text, c.relispartition AND min(depth) > 0"
        " FROM member m JOIN pg_class c USING (oid)"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " GROUP BY c.oid, n.nspname, c.relname, c.relkind, c.relispartition"
        " ORDER BY min(depth), c.oid",
        [sql.Identifier(*table.split(".", 1)).as_string(connection)],
    )
    return [Member(*row) for row in rows]


def find(
    connection: Connection, extract: Extract, name: str, needed: Sequence[str]
) -> Outbox:
    """The outbox of the use case called `name`, whole: raises `SourceError` saying what
    it lacks, and what to do. `needed` are the columns a sync takes."""
    try:
        oid, types, comment = _described(connection, name)
        _refuse_other(comment, extract, needed)
        blind = _refuse_lacking(connection, extract, name)
    except _NotWholeError as error:
        raise SourceError(
            f"source.strategy: the outbox of {name!r} is not whole: {error}; "
            f"run `embedline outbox install {name}`, which replaces it (the next sync "
            "then reads everything)"
        ) from None
    return Outbox(name, oid, types, blind)


def prune(connection: Connection, name: str, horizon: int) -> int:
    """Removes what was visible in a snapshot with that horizon. Rows that cannot be of
    this server (a dump put back, whose readers have read everything since) go with it.
    Returns how many went."""
    with connection.transaction():
        connection.execute("SET LOCAL lock_timeout = '5s'")
        return connection.execute(
            sql.SQL(
                "DELETE FROM {} WHERE xid < %(horizon)s::text::xid8"
                " OR xid >= pg_snapshot_xmax(pg_current_snapshot())"
            ).format(sql.Identifier(SCHEMA, name)),
            {"horizon": horizon},
        ).rowcount


class _NotWholeError(Exception):
    pass


def _described(
    connection: Connection, name: str
) -> tuple[int, tuple[str, ...], dict[str, Any]]:
    row = connection.execute(
        "SELECT c.oid::bigint, obj_description(c.oid, 'pg_class'),"
        "  has_schema_privilege(n.oid, 'USAGE')"
        "   AND has_table_privilege(c.oid, 'SELECT'), current_user::text,"
        "  (SELECT array_agg(format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum)"
        "   FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname ~ '^key_\\d+$')"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s",
        [SCHEMA, name],
    ).fetchone()
    if row is None:
        raise _NotWholeError(f"there is no table {SCHEMA}.{name}")
    oid, comment, may_read, role, types = row
    if not may_read:
        raise _NotWholeError(f"the role {role!r} may not read {SCHEMA}.{name}")
    try:
        described = json.loads(comment or "")
    except ValueError:
        described = {}
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise _NotWholeError(f"{SCHEMA}.{name} was made by another version of this")
    return int(oid), tuple(types or ()), described


def _refuse_other(
    described: dict[str, Any], extract: Extract, needed: Sequence[str]
) -> None:
    if described["key"] != list(extract.key_columns):
        raise _NotWholeError(f"its key is ({', '.join(described['key'])})")
    unwatched = sorted({*needed} - {*described["watched"]})
    if unwatched:
        raise _NotWholeError(f"it does not watch: {', '.join(unwatched)}")
    if extract.filter is not None and extract.filter != described["where"]:
        raise _NotWholeError("source.where is another than the one it watches for")


def _refuse_lacking(
    connection: Connection, extract: Extract, name: str
) -> tuple[str, ...]:
    """Returns the members whose TRUNCATE is not seen: where a partition was added
    since, PostgreSQL itself has given it the row triggers."""
    function = connection.execute(
        "SELECT p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
        " WHERE n.nspname = %s AND p.proname = %s AND p.pronargs = 0",
        [SCHEMA, name],
    ).fetchone()
    if function is None:
        raise _NotWholeError(f"there is no function {SCHEMA}.{name}()")
    there = members(connection, extract.relation.name)
    states = {
        (table, trigger): state
        for table, trigger, state in connection.execute(
            "SELECT tgrelid::bigint, tgname::text, tgenabled::text FROM pg_trigger"
            " WHERE tgfoid = %s",
            [function[0]],
        )
    }
    blind = []
    for member in there:
        lacking = [
            trigger
            for kind in KINDS
            if states.get((member.oid, trigger := trigger_name(name, kind))) != "A"
        ]
        truncate = trigger_name(name, "truncate")
        if member.cloned and lacking == [truncate]:
            blind.append(member.name)
        elif lacking:
            raise _NotWholeError(
                f"{member.schema}.{member.name} lacks the trigger {lacking[0]}, or it "
                "is not enabled always"
            )
    return tuple(blind)


def refuse_other_kinds(extract: Extract) -> None:
    """Raises `SourceError` on anything but a base or partitioned table."""
    if not extract.relation.has_row_versions:
        raise SourceError(
            f"source.strategy: 'outbox' puts triggers on the table, and "
            f"{extract.relation.name} is no base or partitioned table, or has a "
            "foreign one among its partitions; valid: 'timestamp', 'scan'"
        )


def is_there(connection: Connection, name: str | None = None) -> bool:
    """The outbox of that name, or the schema of all."""
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM pg_namespace n"
        "  LEFT JOIN pg_class c ON c.relnamespace = n.oid WHERE n.nspname = %(schema)s"
        "  AND (%(name)s::text IS NULL OR c.relname = %(name)s))",
        {"schema": SCHEMA, "name": name},
    ).fetchone()
    return row == (True,)
