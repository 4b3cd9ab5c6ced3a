"""Databases: one server per session, fresh databases per test."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from embedding_tasks.connections import Connection, connect
from embedding_tasks.local import postgres
from embedding_tasks.store import migrate

_numbers = count()
RAM = "/dev/shm"
ENOUGH = 2 * 2**30


def in_ram() -> bool:
    """A disk spends more on the files of two databases than most tests on all else."""
    return os.access(RAM, os.W_OK) and shutil.disk_usage(RAM).free > ENOUGH


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """A connection string with the right to create databases."""
    if dsn := request.config.getoption("--test-dsn"):
        yield dsn
        return
    with tempfile.TemporaryDirectory(
        prefix="embedline-tests-", dir=RAM if in_ram() else None
    ) as folder:
        home = Path(folder)
        with (
            start_server(home) as conninfo,
            psycopg.connect(conninfo, autocommit=True) as connection,
        ):
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("ALTER SYSTEM SET max_wal_size = '512MB'")
            connection.execute("ALTER SYSTEM SET max_prepared_transactions = 10")
        with start_server(home) as conninfo:
            yield conninfo


@contextmanager
def start_server(home: Path) -> Iterator[str]:
    try:
        yield postgres.conninfo("postgres", home)
    finally:
        postgres.release(home)


@pytest.fixture(scope="session")
def template(server: str) -> str:
    """A database with an empty store in it, to be copied."""
    name = f"template_{id(server)}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    with connect(make_conninfo(server, dbname=name), role="store") as store:
        migrate.apply(store)
    return name


@pytest.fixture(scope="session")
def copying(server: str) -> sql.SQL:
    """The cheaper one: in memory files, on a disk the log."""
    return sql.SQL("FILE_COPY" if f"host={RAM}" in server else "WAL_LOG")


@pytest.fixture
def make_database(server: str, copying: sql.SQL) -> Iterator[Callable[..., str]]:
    made: list[str] = []

    def make(template: str | None = None) -> str:
        name = f"test_{next(_numbers)}"
        with psycopg.connect(server, autocommit=True) as admin:
            admin.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY {}").format(
                    sql.Identifier(name),
                    sql.Identifier(template or "template0"),
                    copying,
                )
            )
        made.append(name)
        return make_conninfo(server, dbname=name)

    yield make
    with psycopg.connect(server, autocommit=True) as admin:
        for name in made:
            admin.execute(
                sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            )


@pytest.fixture
def store_dsn(make_database: Callable[..., str], template: str) -> str:
    return make_database(template)


@pytest.fixture
def store(store_dsn: str) -> Iterator[Connection]:
    with connect(store_dsn, role="store") as connection:
        yield connection


@pytest.fixture
def source_dsn(make_database: Callable[..., str]) -> str:
    return make_database()


@pytest.fixture
def db(source_dsn: str) -> Iterator[Connection]:
    """The source, as its own application writes to it."""
    with psycopg.connect(source_dsn, autocommit=True) as connection:
        yield connection
