"""The roles of a store: its owner, who writes to it, who reads it.

The statements are made by `embedline.rights`, so that psql can run them, too; an
administrator may have to, where the role that prepares the store may make no roles.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import psycopg
from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.errors import ConfigError

DEFAULT_PREFIX = "embedline"
# Leaves room in Postgres' 63 characters for what follows it.
_PREFIX = r"[a-z][a-z0-9_]{0,39}"


@dataclass(frozen=True)
class Names:
    """All may not log in: they are granted to roles that may."""

    owner: str
    writer: str
    reader: str
    source_reader: str

    @classmethod
    def of(cls, prefix: str) -> Names:
        if not re.fullmatch(_PREFIX, prefix) or prefix.startswith("pg_"):
            raise ConfigError(
                f"--prefix: {prefix!r} must begin with a lower-case letter and go on "
                "with those, digits and '_', 40 characters in all, and not with 'pg_'"
            )
        kinds = ("owner", "writer", "reader", "source_reader")
        return cls(*(f"{prefix}_{kind}" for kind in kinds))


def remembered(store: Connection) -> Names | None:
    """Those the store has, or had where it was restored from."""
    row = store.execute("SELECT to_regclass('embedline.role') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return None
    row = store.execute(
        "SELECT name FROM embedline.role WHERE kind = 'owner'"
    ).fetchone()
    return Names.of(row[0].removesuffix("_owner")) if row else None


def statements(store: Connection, names: Names) -> list[str]:
    """Those that give each role its rights, and take theirs from roles of another
    prefix. Safe to repeat."""
    rows = store.execute(
        "SELECT embedline.rights(%s, %s, %s)",
        [names.owner, names.writer, names.reader],
    ).fetchall()
    kinds = ("owner", "writer", "reader")
    remembered = [
        sql.SQL(
            "INSERT INTO embedline.role (kind, name) VALUES ({}, {})"
            " ON CONFLICT (kind) DO UPDATE SET name = EXCLUDED.name"
        )
        .format(sql.Literal(kind), sql.Literal(getattr(names, kind)))
        .as_string(store)
        for kind in kinds
    ]
    return [*(statement for (statement,) in rows), *remembered]


def run(connection: Connection, script: Iterable[str]) -> bool:
    """All of them, or none: False where this role may not."""
    try:
        with connection.transaction():
            for statement in script:
                connection.execute(statement.encode())
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


def renew(store: Connection) -> None:
    """Give the store's roles their rights on what an upgrade has made. Nothing where
    there are none, or where one has been dropped since."""
    found: dict[str, str] = dict(
        store.execute(
            "SELECT r.kind, r.name FROM embedline.role r"
            " JOIN pg_roles p ON p.rolname = r.name"
        ).fetchall()
    )
    if len(found) < 3:
        return
    for (statement,) in store.execute(
        "SELECT embedline.rights(%(owner)s, %(writer)s, %(reader)s)", found
    ).fetchall():
        store.execute(statement.encode())


def danger(store: Connection) -> str | None:
    """What to do where this session looks for names in a schema in which everybody may
    create functions, as behind a pooler that takes no settings: one that fits better
    than PostgreSQL's own would be called by our statements, with our rights."""
    row = store.execute(
        "SELECT nspname::text, current_user::text FROM pg_namespace n"
        " WHERE nspname = ANY (current_schemas(false))"
        " AND has_schema_privilege('public', n.oid, 'CREATE')"
    ).fetchone()
    if row is None:
        return None
    schema, role = row
    return (
        f"everybody may create functions in the schema {schema!r}, where the sessions "
        f"of this pooler look for names, and so have one run by {role!r}; say: REVOKE "
        f'CREATE ON SCHEMA "{schema}" FROM PUBLIC, or: ALTER ROLE "{role}" SET '
        "search_path = pg_catalog, pg_temp"
    )
