"""Bring a store to this version: numbered migrations run once, functions and views
whenever their text has changed, all in one transaction under a lock.

pgvector may live in any schema, which everybody may create functions in. So nothing
looks for names there: the files say whose they mean, `pgvector.vector` or
`OPERATOR(pgvector.<=>)`, and, where they make statements, `'pgvector'` as a value. Its
schema's own name is put in when they are run; where it moves, the next init runs them
again.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

import psycopg
from psycopg import sql

from embedding_tasks.connections import Connection, take_time
from embedding_tasks.errors import StoreError
from embedding_tasks.store import roles

# Any number will do, as long as nobody else picks it: 'embedline' in letters.
LOCK = 0x656D6265646C696E

_HERE = Path(__file__).resolve().parent.parent
FOLDER = next(
    (p for p in (_HERE / "sql", _HERE.parent / "sql") if p.is_dir()), _HERE / "sql"
)

_PGVECTOR = re.compile(r"'pgvector'|\bpgvector(?=\.\S)")
# Migrations that have landed have the type's bare name: of a parameter, under a domain.
_BARE_TYPE = re.compile(r"(?:(?<=\(text, )|(?<= AS )|(?<=::))vector\b")


def apply(connection: Connection) -> list[str]:
    """Returns the names of the files that were run: none when nothing is new."""
    if _is_current(connection):
        return []
    with connection.transaction():
        connection.execute("SET LOCAL search_path = pg_catalog, pg_temp")
        take_time(connection)
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        _prepare(connection)
        applied = _applied(connection)
        _refuse_newer(applied)
        schema = schema_of_vector(connection)
        run = [
            name
            for name, text in _files(FOLDER)
            if _run(connection, name, text, schema, applied.get(name))
        ]
        roles.renew(connection)
    return run


def require_current(connection: Connection) -> None:
    """Raises `StoreError` unless the store is exactly as this version makes it."""
    if not _is_current(connection):
        raise StoreError(
            "the store is not initialised for this version; run `embedline init`"
        )


def _is_current(connection: Connection) -> bool:
    try:
        found = connection.execute(
            "SELECT to_regclass('embedline.migration')"
        ).fetchone()
        if found is None or found[0] is None:
            return False
        applied = _applied(connection)
        schema = _found_pgvector(connection)
    except psycopg.errors.InsufficientPrivilege as error:
        raise StoreError(
            f"the role {connection.info.user!r} may not read the store: "
            f'{error.diag.message_primary}; docs/deploy.md, "Rights", has the grants'
        ) from error
    _refuse_newer(applied)
    return schema is not None and all(
        applied.get(name) == _digest(name, text, schema)
        for name, text in _files(FOLDER)
    )


@cache  # the store is opened many times in a run
def _files(folder: Path) -> tuple[tuple[str, str], ...]:
    """Name and text of each, in the order in which they are run."""
    return tuple(
        (f"{room}/{path.name}", path.read_text("utf-8"))
        for room in ("migrations", "functions", "views")
        for path in sorted((folder / room).glob("*.sql"))
    )


@cache
def _digest(name: str, text: str, schema: str) -> str:
    if not name.startswith("migrations/"):
        text = f"{schema}.{text}"
    return hashlib.sha256(text.encode()).hexdigest()


def _filled_in(text: str, schema: str) -> str:
    if "$$" in schema:  # which ends the text of a function
        raise StoreError(f"pgvector's schema may not be called {schema!r}: it has '$$'")
    identifier = sql.Identifier(schema).as_string()
    literal = sql.Literal(schema).as_string()
    text = _BARE_TYPE.sub("pgvector.vector", text)
    return _PGVECTOR.sub(
        lambda found: literal if found[0].startswith("'") else identifier, text
    )


def _applied(connection: Connection) -> dict[str, str]:
    rows = connection.execute("SELECT name, digest FROM embedline.migration")
    return dict(rows.fetchall())


def _prepare(connection: Connection) -> None:
    if _found_pgvector(connection) is None:
        try:
            connection.execute("CREATE EXTENSION vector SCHEMA public")
        except psycopg.Error as error:
            raise StoreError(
                "the store has no pgvector and it cannot be created here "
                f"({error.diag.message_primary}); "
                "ask its administrator for: CREATE EXTENSION vector"
            ) from error
    _act_as_owner(connection)
    connection.execute(
        "CREATE TABLE IF NOT EXISTS embedline.migration ("
        " name text PRIMARY KEY, digest text NOT NULL,"
        " applied_at timestamptz NOT NULL DEFAULT now())"
    )
    # Loads it: only then may somebody who is no superuser say SET hnsw.… of a function.
    connection.execute(
        sql.SQL("SELECT '[1]'::{}").format(
            sql.Identifier(schema_of_vector(connection), "vector")
        )
    )


def _act_as_owner(connection: Connection) -> None:
    """What an upgrade makes belongs to whom the rest belongs to."""
    found = connection.execute(
        "SELECT r.rolname, pg_has_role(r.oid, 'USAGE') FROM pg_namespace n"
        " JOIN pg_roles r ON r.oid = n.nspowner WHERE n.nspname = 'embedline'"
    ).fetchone()
    if found is None:
        try:
            connection.execute("CREATE SCHEMA embedline")
        except psycopg.errors.InsufficientPrivilege as error:
            raise StoreError(
                f"the role {connection.info.user!r} may make no schema here "
                f"({error.diag.message_primary}); ask its administrator for: GRANT "
                f'CREATE ON DATABASE "{connection.info.dbname}" TO '
                f'"{connection.info.user}"'
            ) from error
        return
    owner, may_act = found
    if not may_act:
        raise StoreError(
            f"the store belongs to the role {owner!r}, which {connection.info.user!r} "
            f'may not act as; init it as another, or: GRANT "{owner}" TO '
            f'"{connection.info.user}"'
        )
    connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(owner)))


def schema_of_vector(connection: Connection) -> str:
    """pgvector may live in any schema, and need not be on the search path."""
    found = _found_pgvector(connection)
    assert found is not None
    return found


def _found_pgvector(connection: Connection) -> str | None:
    row = connection.execute(
        "SELECT nspname::text FROM pg_extension e JOIN pg_namespace n"
        " ON n.oid = e.extnamespace WHERE extname = 'vector'"
    ).fetchone()
    return row[0] if row else None


def _refuse_newer(applied: dict[str, str]) -> None:
    known = {name for name, _ in _files(FOLDER)}
    newer = [n for n in applied if n.startswith("migrations/") and n not in known]
    if newer:
        raise StoreError(
            f"the store was made by a newer version (it has {', '.join(newer)}); "
            "update this installation"
        )


def _run(
    connection: Connection, name: str, text: str, schema: str, applied: str | None
) -> bool:
    digest = _digest(name, text, schema)
    if applied == digest:
        return False
    if applied is not None and name.startswith("migrations/"):
        raise StoreError(
            f"sql/{name} was changed after it was applied to this store; "
            "restore it and put the change into a new migration"
        )
    try:
        connection.execute(_filled_in(text, schema).encode())  # our own files
    except psycopg.errors.DependentObjectsStillExist as error:
        raise StoreError(
            f"sql/{name} makes functions or views anew, but "
            f"{error.diag.message_detail}; drop what depends on them and make it again "
            "afterwards"
        ) from error
    connection.execute(
        "INSERT INTO embedline.migration (name, digest) VALUES (%s, %s)"
        " ON CONFLICT (name) DO UPDATE"
        " SET digest = EXCLUDED.digest, applied_at = now()",
        [name, digest],
    )
    return True
