"""Logins of a server: roles are a server's, so each test's have names of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

_numbers = count()
PASSWORD = "not-a-secret"


@pytest.fixture
def prefix(server: str) -> Iterator[str]:
    """Of the roles of one test, which go with it."""
    name = f"t{next(_numbers)}"
    yield name
    with psycopg.connect(server, autocommit=True) as admin:
        databases = [
            database
            for (database,) in admin.execute(
                "SELECT datname FROM pg_database WHERE datallowconn"
            )
        ]
        roles = [
            role
            for (role,) in admin.execute(
                "SELECT rolname FROM pg_roles WHERE rolname LIKE %s", [f"{name}\\_%"]
            )
        ]
    for database in databases:
        conninfo = make_conninfo(server, dbname=database)
        with psycopg.connect(conninfo, autocommit=True) as admin:
            for role in roles:
                admin.execute(
                    sql.SQL("REASSIGN OWNED BY {} TO CURRENT_USER").format(
                        sql.Identifier(role)
                    )
                )
                admin.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
    with psycopg.connect(server, autocommit=True) as admin:
        for role in roles:
            admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@pytest.fixture
def login(server: str, prefix: str) -> Callable[..., str]:
    """Make a role that may log in, with these options, a member of those roles; for the
    database of `dsn`, its connection string."""

    def make(dsn: str, name: str, *members: str, options: str = "") -> str:
        role = sql.Identifier(f"{prefix}_{name}")
        with psycopg.connect(server, autocommit=True) as admin:
            admin.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} {}").format(
                    role, sql.Literal(PASSWORD), sql.SQL(options)
                )
            )
            for member in members:
                admin.execute(
                    sql.SQL("GRANT {} TO {}").format(sql.Identifier(member), role)
                )
        return make_conninfo(dsn, user=f"{prefix}_{name}", password=PASSWORD)

    return make
