"""What a table, view or query of the source looks like at this moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.errors import SourceError, valid_choices

TIMES = ("timestamp with time zone", "timestamp without time zone", "date")
NUMBERS = ("smallint", "integer", "bigint", "real", "double precision", "numeric")


@dataclass(frozen=True)
class Relation:
    """`identity` is everything whose change can change what rows say without a new
    version of the row: then the cursor is of no use and all rows are read."""

    name: str
    from_: sql.Composable
    columns: Mapping[str, str]
    has_row_versions: bool
    unique_keys: frozenset[frozenset[str]]
    identity: object

    def column(self, name: str, field_name: str) -> sql.Composable:
        if name not in self.columns:
            raise SourceError(
                f"{field_name}: no column {valid_choices(name, list(self.columns))} "
                f"(in {self.name})"
            )
        return sql.Identifier(name)

    def typed(
        self, name: str, field_name: str, valid: tuple[str, ...]
    ) -> sql.Composable:
        column = self.column(name, field_name)
        base = self.columns[name].split("(")[0]
        if not any(base.startswith(v.split(" ")[0]) for v in valid):
            raise SourceError(
                f"{field_name}: column {name!r} is of type {self.columns[name]!r}; "
                f"valid: {', '.join(valid)}"
            )
        return column


def of_table(connection: Connection, table: str, field_name: str) -> Relation:
    """Raises `SourceError` when there is none."""
    identifier = sql.Identifier(*table.split(".", 1))
    row = connection.execute(
        "SELECT c.oid, c.relkind FROM pg_class c WHERE c.oid = to_regclass(%s)",
        [identifier.as_string(connection)],
    ).fetchone()
    if row is None:
        raise SourceError(
            f"{field_name}: no table {table!r} in the source database "
            f"{connection.info.dbname!r}; write it as schema.table, in exact case"
        )
    oid, kind = row
    members = _members(connection, oid)
    # PostgreSQL's own tables have row versions; a foreign partition has none to show
    has_row_versions = {kind for _, kind in members} <= {"r", "p"}
    # a key of a parent says nothing of the rows its children inherit to it
    inherits = kind == "r" and len(members) > 1
    columns = _columns(connection, oid)
    return Relation(
        name=table,
        from_=identifier,
        columns={name: type_ for name, type_, *_ in columns},
        has_row_versions=has_row_versions,
        unique_keys=frozenset() if inherits else _unique_keys(connection, oid),
        identity={
            "database": _database(connection),
            "oids": [member for member, _ in members],
            "columns": columns,
        },
    )


def of_query(connection: Connection, query: str) -> Relation:
    """Raises `SourceError` with what the source says of a query it cannot run."""
    from_ = sql.SQL("({}\n) AS source").format(sql.SQL(query.rstrip("; \n\t")))
    try:
        with connection.transaction():
            cursor = connection.execute(
                sql.SQL("SELECT * FROM {} LIMIT 0").format(from_)
            )
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        message = str(error).strip().split("\n")[0]
        raise SourceError(f"source.query: {message}") from error
    described = cursor.description or []
    names = connection.execute(
        "SELECT array_agg(format_type(t.oid, NULL) ORDER BY n)"
        " FROM unnest(%s::oid[]) WITH ORDINALITY AS t (oid, n)",
        [[column.type_code for column in described]],
    ).fetchone()
    assert names is not None
    columns = dict(zip((c.name for c in described), names[0] or [], strict=True))
    return Relation(
        name="source.query",
        from_=from_,
        columns=columns,
        has_row_versions=False,
        unique_keys=frozenset(),
        identity={"query": query, "columns": [list(c) for c in columns.items()]},
    )


def _columns(connection: Connection, oid: int) -> list[list[Any]]:
    """Name, type, number, and what else decides how a stored value reads: the labels
    of an enum, the expression of a generated column."""
    rows = connection.execute(
        "SELECT a.attname, CASE y.typtype WHEN 'd'"
        "   THEN format_type(y.typbasetype, y.typtypmod)"
        "   ELSE format_type(a.atttypid, a.atttypmod) END, a.attnum,"
        "  (SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder)"
        "   FROM pg_enum e, pg_type t WHERE t.oid = a.atttypid"
        "     AND e.enumtypid IN (t.oid, t.typelem, t.typbasetype)),"
        "  (SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d"
        "   WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum"
        "     AND a.attgenerated <> '')"
        " FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid"
        " WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped"
        " ORDER BY a.attnum",
        [oid],
    )
    return [list(row) for row in rows]


def _members(connection: Connection, oid: int) -> list[tuple[int, str]]:
    """A table and all its partitions or children, with their kinds."""
    return connection.execute(
        "WITH RECURSIVE member (oid) AS ("
        "  SELECT %s::oid"
        "  UNION SELECT i.inhrelid FROM pg_inherits i JOIN member m"
        "    ON i.inhparent = m.oid"
        ") SELECT c.oid::bigint, c.relkind::text FROM member"
        " JOIN pg_class c USING (oid) ORDER BY 1",
        [oid],
    ).fetchall()


def _database(connection: Connection) -> int:
    row = connection.execute(
        "SELECT oid::bigint FROM pg_database WHERE datname = current_database()"
    ).fetchone()
    assert row is not None
    return int(row[0])


def _unique_keys(connection: Connection, oid: int) -> frozenset[frozenset[str]]:
    rows = connection.execute(
        "SELECT array_agg(a.attname::text) FROM pg_index i JOIN pg_attribute a"
        "    ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)"
        " WHERE i.indrelid = %s AND i.indisunique AND i.indpred IS NULL"
        "   AND i.indexprs IS NULL AND i.indisvalid GROUP BY i.indexrelid",
        [oid],
    )
    return frozenset(frozenset(row[0]) for row in rows)
