"""What the role that reads a source needs: SELECT on the columns that use cases name.

Which those are is what PostgreSQL itself notes of a view made of what is read, so that
the columns of a query or a filter, and the tables these look into, are among them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import psycopg
from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.errors import SourceError
from embedding_tasks.source import extract, watched
from embedding_tasks.source.extract import Extract
from embedding_tasks.use_case import LabelTable, UseCase

Columns = dict[tuple[str, str], set[str]]
"""By schema and relation; empty: of the relation as a whole."""


def statements(
    connection: Connection, role: str, use_cases: Iterable[UseCase]
) -> list[str]:
    """Safe to repeat. Raises `SourceError` where a use case names what is not there,
    or where there may be no temporary view."""
    use_cases = list(use_cases)
    reader = sql.Identifier(role)
    made: list[sql.Composable] = []
    if not _exists(connection, role):
        made.append(sql.SQL("CREATE ROLE {} NOLOGIN").format(reader))
    needed: Columns = defaultdict(set)
    for use_case in use_cases:
        for relation, columns in _read_by(connection, use_case):
            needed[relation] |= columns
    for schema in sorted({schema for schema, _ in needed}):
        made.append(
            sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(
                sql.Identifier(schema), reader
            )
        )
    for (schema, name), columns in sorted(needed.items()):
        only = sql.SQL(", ").join(map(sql.Identifier, sorted(columns)))
        made.append(
            sql.SQL("GRANT SELECT{} ON {} TO {}").format(
                sql.SQL(" ({})").format(only) if columns else sql.SQL(""),
                sql.Identifier(schema, name),
                reader,
            )
        )
    if any(u.source.strategy == "timestamp" for u in use_cases):
        made.append(sql.SQL("GRANT pg_read_all_stats TO {}").format(reader))
    # a setting of a role is one of its own logins only
    made += [
        sql.SQL("ALTER ROLE {} SET default_transaction_read_only = on").format(
            sql.Identifier(login)
        )
        for login in _logins(connection, role)
    ]
    return [statement.as_string(connection) for statement in made]


def _read_by(
    connection: Connection, use_case: UseCase
) -> Iterator[tuple[tuple[str, str], set[str]]]:
    records = extract.records(connection, use_case)
    columns = {*watched.of_use_case(use_case), use_case.source.updated_at}
    yield from _of_view(connection, records, columns)
    if isinstance(use_case.label, LabelTable):
        label = use_case.label
        names = {*label.key, label.label, label.time}
        labels = extract.labels(connection, use_case, label)
        yield from _of_view(connection, labels, names)


def _of_view(
    connection: Connection, read: Extract, columns: set[str | None]
) -> Iterator[tuple[tuple[str, str], set[str]]]:
    names = [sql.Identifier(name) for name in sorted(filter(None, columns))]
    # a system column is read of tables alone, and noted of none
    system = {"xmin"} if read.relation.has_row_versions else set()
    with connection.transaction(force_rollback=True):
        view = sql.SQL("CREATE TEMP VIEW embedline_read AS SELECT {} FROM {} WHERE {}")
        try:
            connection.execute(
                view.format(sql.SQL(", ").join(names), read.relation.from_, read.where),
                binary=True,  # then it can be no more than one statement
            )
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            raise SourceError(
                f"{read.relation.name}: what is read of it is found by a temporary "
                f"view, and there can be none ({error.diag.message_primary})"
            ) from error
        rows = connection.execute(
            "SELECT n.nspname, c.relname, c.relkind::text,"
            "  array_agg(a.attname::text) FILTER (WHERE a.attname IS NOT NULL)"
            " FROM pg_rewrite r JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass"
            "   AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass"
            "   AND d.refobjid <> r.ev_class"
            " JOIN pg_class c ON c.oid = d.refobjid"
            " JOIN pg_namespace n ON n.oid = c.relnamespace"
            " LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0"
            "   AND a.attnum = d.refobjsubid"
            " WHERE r.ev_class = 'pg_temp.embedline_read'::regclass"
            " GROUP BY 1, 2, 3"
        ).fetchall()
    for schema, name, kind, used in rows:
        of_table = kind in "rp"
        yield (schema, name), {*used, *(system if of_table else ())} if used else set()


def _exists(connection: Connection, role: str) -> bool:
    return bool(
        connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).rowcount
    )


def _logins(connection: Connection, role: str) -> list[str]:
    rows = connection.execute(
        "SELECT m.rolname FROM pg_auth_members a"
        " JOIN pg_roles r ON r.oid = a.roleid JOIN pg_roles m ON m.oid = a.member"
        " WHERE r.rolname = %s AND m.rolcanlogin AND NOT m.rolsuper"
        "  AND NOT m.rolcreaterole ORDER BY 1",
        [role],
    )
    return [name for (name,) in rows]
