"""The outbox of strategy `outbox`: the SQL that puts it into the source and takes it
away. What is printed is what is run, and psql can run it, too.

The update trigger compares by `record_image_ne`, bit by bit: what differs only in case
in a citext, or in blanks in a json, may be another input. It is written as a function
and not as its operator `*<>`, which pg_dump prints in a form that cannot be read back.
As it names the watched columns, PostgreSQL refuses to drop or retype them while the
trigger is there.

All are ENABLE ALWAYS: they must fire where rows arrive by logical replication, too.

Whoever renames a key column or drops the outbox must not break the application's
writes. To catch an exception would take a transaction id for each row, and to look each
time half as long again as the insert does. So it is looked once in a statement.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.errors import SourceError, TransientError
from embedding_tasks.source import expressions, extract, outbox, watched
from embedding_tasks.source.outbox import Member
from embedding_tasks.use_case import UseCase

# While it waits for a lock, writers wait behind it.
LOCK_TIMEOUT = "5s"


@dataclass(frozen=True)
class Reader:
    """The role that a sync reads as, and where it looks for names."""

    role: str
    schemas: tuple[str, ...]

    @classmethod
    def of(cls, connection: Connection) -> Reader:
        row = connection.execute(
            "SELECT current_user::text, current_schemas(false)::text[]"
        ).fetchone()
        assert row is not None
        return cls(row[0], tuple(row[1]))


@dataclass(frozen=True)
class _KeyColumn:
    name: str
    type: str
    collation: tuple[str, str] | None


def install(
    connection: Connection,
    use_case: UseCase,
    reader: Reader,
    inputs: Sequence[str] = (),
) -> str:
    """The script that makes the outbox, or makes it anew. `inputs` are columns that
    live model versions are made of, beside those the use case names. Looks at the
    source and leaves it as it is. Raises `SourceError` where it cannot have one."""
    with connection.transaction(force_rollback=True):
        _look_as(connection, reader.schemas)
        taken = extract.records(connection, use_case)
        outbox.refuse_other_kinds(taken)
        found = watched.in_filter(connection, taken)
        known = taken.relation.columns.keys() & {*inputs}
        columns = sorted({*watched.of_use_case(use_case), *found, *known})
        members = outbox.members(connection, taken.relation.name)
        _look_as(connection, ["pg_catalog"])  # types are printed with their schema
        key = _key(connection, members[0], taken.key_columns)
        body = [
            *_removal(use_case.name),
            *([] if outbox.is_there(connection) else [_SCHEMA]),
            *_table(use_case, key, columns),
            _function(use_case.name, key),
            *_triggers(use_case.name, members, columns),
            *_grants(use_case.name, reader.role),
        ]
        return _script(connection, body)


def lacking(
    connection: Connection,
    use_case: UseCase,
    reader: Reader,
    inputs: Sequence[str] = (),
) -> str | None:
    """Why the outbox that is there is not what a sync needs; None: it is, or there is
    none."""
    with connection.transaction(force_rollback=True):
        if not outbox.is_there(connection, use_case.name):
            return None
        _look_as(connection, reader.schemas)
        taken = extract.records(connection, use_case)
        needed = {*watched.of_use_case(use_case), *inputs}
        known = sorted(needed & taken.relation.columns.keys())
        try:
            outbox.find(connection, taken, use_case.name, known)
        except SourceError as error:
            return str(error)
    return None


def remove(connection: Connection, name: str) -> str | None:
    """The script that removes all of it, and the schema when nothing else is in it;
    None where there is nothing to remove."""
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid"
        "   AND c.relkind IN ('r', 'v', 'm', 'p', 'f') AND c.relname <> %(name)s)"
        "  OR EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = n.oid"
        "   AND p.proname <> %(name)s), pg_has_role(n.nspowner, 'USAGE')"
        " FROM pg_namespace n WHERE n.nspname = %(schema)s",
        {"name": name, "schema": outbox.SCHEMA},
    ).fetchone()
    if row is None:
        return None
    others, owned = row
    body = _removal(name)
    if owned and not others:
        body.append(sql.SQL("DROP SCHEMA {};").format(sql.Identifier(outbox.SCHEMA)))
    return _script(connection, body)


def run(connection: Connection, script: str) -> None:
    """Raises `TransientError` where a table is too busy, `SourceError` where the source
    refuses; then nothing has changed."""
    try:
        connection.execute(expressions.trusted(script))
    except psycopg.errors.LockNotAvailable:
        raise TransientError(
            f"a transaction holds the table for longer than {LOCK_TIMEOUT}, and "
            "waiting on would hold up all writers; nothing has changed, try again "
            "when it has ended (pg_stat_activity shows it)"
        ) from None
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        raise SourceError(
            f"the source refuses, and nothing has changed: {str(error).strip()}"
        ) from error
    finally:
        if not connection.closed:
            connection.rollback()


_SCHEMA = sql.SQL("CREATE SCHEMA {};").format(sql.Identifier(outbox.SCHEMA))


def _script(connection: Connection, body: Sequence[sql.Composable]) -> str:
    statements = [
        sql.SQL("BEGIN;"),
        sql.SQL("SET LOCAL search_path = pg_catalog;"),
        sql.SQL("SET LOCAL lock_timeout = {};").format(sql.Literal(LOCK_TIMEOUT)),
        *body,
        sql.SQL("COMMIT;"),
    ]
    return "\n".join(s.as_string(connection) for s in statements) + "\n"


def _look_as(connection: Connection, schemas: Sequence[str]) -> None:
    connection.execute(
        sql.SQL("SET LOCAL search_path = {}").format(
            sql.SQL(", ").join(map(sql.Identifier, schemas))
            if schemas
            else sql.SQL("''")
        )
    )


def _removal(name: str) -> list[sql.Composable]:
    return [
        sql.SQL("DROP FUNCTION IF EXISTS {}() CASCADE; -- and its triggers").format(
            _outbox(name)
        ),
        sql.SQL("DROP TABLE IF EXISTS {};").format(_outbox(name)),
    ]


def _table(
    use_case: UseCase, key: Sequence[_KeyColumn], columns: Sequence[str]
) -> Iterator[sql.Composable]:
    table = _outbox(use_case.name)
    yield sql.SQL(
        "CREATE TABLE {} (\n"
        "    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,\n"
        "    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),\n"
        "    op text NOT NULL,\n"
        "    {}\n);"
    ).format(
        table,
        sql.SQL(",\n    ").join(
            _column(sql.Identifier(name), column)
            for name, column in zip(outbox.key_names(len(key)), key, strict=True)
        ),
    )
    yield sql.SQL("CREATE INDEX ON {} (xid);").format(table)
    described = {
        "format": outbox.FORMAT,
        "key": [column.name for column in key],
        "watched": list(columns),
        "where": use_case.source.where,
    }
    yield sql.SQL("COMMENT ON TABLE {} IS {};").format(
        table, sql.Literal(json.dumps(described, ensure_ascii=False))
    )


def _column(name: sql.Identifier, column: _KeyColumn) -> sql.Composable:
    type_ = expressions.trusted(column.type)
    if column.collation is None:
        return sql.SQL("{} {}").format(name, type_)
    return sql.SQL("{} {} COLLATE {}").format(
        name, type_, sql.Identifier(*column.collation)
    )


def _function(name: str, key: Sequence[_KeyColumn]) -> sql.Composable:
    """Of its owner's rights, since writers have none on the outbox; so its path is
    pinned."""
    columns = [sql.Identifier(column.name) for column in key]
    old, new = _of("OLD", columns), _of("NEW", columns)
    return sql.SQL(
        "CREATE FUNCTION {outbox}() RETURNS trigger LANGUAGE plpgsql\n"
        "SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $embedline$\n"
        "DECLARE\n"
        "    statement text := concat(TG_RELID, ' ', statement_timestamp());\n"
        "BEGIN\n"
        "    IF current_setting({name}, true) IS DISTINCT FROM statement THEN\n"
        "        IF to_regclass({name}) IS NULL THEN\n"
        "            RAISE LOG 'there is no table %', {name};\n"
        "            RETURN NULL;\n"
        "        ELSIF (SELECT count(*) FROM pg_attribute WHERE attrelid = TG_RELID\n"
        "                  AND attname = ANY ({columns})) < {count} THEN\n"
        "            RAISE LOG 'a key column of % is not there any more: %',\n"
        "                TG_RELID::regclass, {columns};\n"
        "            INSERT INTO {outbox} (op) VALUES ('missed');\n"
        "            RETURN NULL;\n"
        "        END IF;\n"
        "        PERFORM set_config({name}, statement, true);\n"
        "    END IF;\n"
        "    IF TG_OP = 'TRUNCATE' THEN\n"
        "        INSERT INTO {outbox} (op) VALUES ('truncate');\n"
        "    ELSIF TG_OP = 'DELETE' THEN\n"
        "        {of_old}\n"
        "    ELSE\n"
        "        {of_new}\n"
        "        IF TG_OP = 'UPDATE' THEN\n"
        "            IF record_image_ne(ROW({old}), ROW({new})) THEN\n"
        "                {of_old}\n"
        "            END IF;\n"
        "        END IF;\n"
        "    END IF;\n"
        "    RETURN NULL;\n"
        "END\n"
        "$embedline$;"
    ).format(
        outbox=_outbox(name),
        name=sql.Literal(f"{outbox.SCHEMA}.{name}"),
        columns=sql.Literal([column.name for column in key]),
        count=sql.Literal(len(key)),
        of_new=_insert(name, new, len(key)),
        of_old=_insert(name, old, len(key)),
        old=old,
        new=new,
    )


def _insert(name: str, values: sql.Composable, count: int) -> sql.Composable:
    return sql.SQL("INSERT INTO {} (op, {}) VALUES (lower(TG_OP), {});").format(
        _outbox(name),
        sql.SQL(", ").join(map(sql.Identifier, outbox.key_names(count))),
        values,
    )


def _of(row: str, columns: Sequence[sql.Identifier]) -> sql.Composable:
    return sql.SQL(", ").join(sql.SQL(row + ".{}").format(c) for c in columns)


def _triggers(
    name: str, members: Sequence[Member], columns: Sequence[str]
) -> Iterator[sql.Composable]:
    watched_ = [sql.Identifier(column) for column in columns]
    changed = sql.SQL("\n    WHEN (record_image_ne(ROW({}), ROW({})))").format(
        _of("OLD", watched_), _of("NEW", watched_)
    )
    for member in members:
        for kind in outbox.KINDS:
            if not (member.cloned and kind != "truncate"):
                yield sql.SQL(
                    "CREATE TRIGGER {} AFTER {} ON {}\n    FOR EACH {}{}"
                    " EXECUTE FUNCTION {}();"
                ).format(
                    sql.Identifier(outbox.trigger_name(name, kind)),
                    sql.SQL(kind.upper()),
                    member.table,
                    sql.SQL("STATEMENT" if kind == "truncate" else "ROW"),
                    changed if kind == "update" else sql.SQL(""),
                    _outbox(name),
                )
    # after all are made: the copies on partitions, too
    for member in members:
        for kind in outbox.KINDS:
            yield sql.SQL("ALTER TABLE ONLY {} ENABLE ALWAYS TRIGGER {};").format(
                member.table, sql.Identifier(outbox.trigger_name(name, kind))
            )


def _grants(name: str, role: str) -> Iterator[sql.Composable]:
    yield sql.SQL("GRANT USAGE ON SCHEMA {} TO {};").format(
        sql.Identifier(outbox.SCHEMA), sql.Identifier(role)
    )
    yield sql.SQL("GRANT SELECT, DELETE ON {} TO {};").format(
        _outbox(name), sql.Identifier(role)
    )


def _outbox(name: str) -> sql.Identifier:
    return sql.Identifier(outbox.SCHEMA, name)


def _key(
    connection: Connection, table: Member, names: Sequence[str]
) -> list[_KeyColumn]:
    """Of a domain its base type: a TRUNCATE has no key, which the domain may refuse."""
    rows = connection.execute(
        "WITH RECURSIVE base (attname, type, mod, collated) AS ("
        "  SELECT attname, atttypid, atttypmod, attcollation FROM pg_attribute"
        "   WHERE attrelid = %(table)s AND attname = ANY (%(names)s)"
        "  UNION ALL SELECT b.attname, t.typbasetype, t.typtypmod, b.collated"
        "   FROM base b JOIN pg_type t ON t.oid = b.type WHERE t.typtype = 'd'"
        ") SELECT b.attname::text, format_type(b.type, b.mod),"
        "  CASE WHEN b.collated <> t.typcollation THEN n.nspname::text END,"
        "  c.collname::text"
        " FROM base b JOIN pg_type t ON t.oid = b.type AND t.typtype <> 'd'"
        " LEFT JOIN pg_collation c ON c.oid = b.collated"
        " LEFT JOIN pg_namespace n ON n.oid = c.collnamespace",
        {"table": table.oid, "names": list(names)},
    )
    found = {
        name: _KeyColumn(name, type_, (schema, collation) if schema else None)
        for name, type_, schema, collation in rows
    }
    return [found[name] for name in names]
