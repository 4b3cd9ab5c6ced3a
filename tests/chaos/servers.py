"""Two PostgreSQL servers, for source and store, that can be killed and come back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from embedding_tasks.connections import connect
from embedding_tasks.local import postgres
from embedding_tasks.store import migrate

TEMPLATE = "empty_store"


@dataclass(frozen=True)
class Server:
    home: Path
    conninfo: str

    def database(self, name: str, template: str = "template0") -> str:
        """A fresh one."""
        with psycopg.connect(self.conninfo, autocommit=True) as admin:
            for statement in (
                "DROP DATABASE IF EXISTS {0} WITH (FORCE)",
                "CREATE DATABASE {0} TEMPLATE {1}",
            ):
                admin.execute(
                    sql.SQL(statement).format(
                        sql.Identifier(name), sql.Identifier(template)
                    )
                )
        return make_conninfo(self.conninfo, dbname=name)

    def restart(self) -> None:
        """As after a crash: no goodbye to anybody, then recovery from the log."""
        pid = int((self.home / "postgres" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGQUIT)  # pg_ctl's --mode=immediate
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).wait(60)
        postgres.release(self.home)
        postgres.conninfo("postgres", self.home)


@dataclass(frozen=True)
class Servers:
    source: Server
    store: Server

    @property
    def both(self) -> tuple[Server, Server]:
        return self.source, self.store


@contextmanager
def started(folder: Path) -> Iterator[Servers]:
    homes = [folder / role for role in ("source", "store")]
    try:
        source, store = (Server(home, _configured(home)) for home in homes)
        with connect(store.database(TEMPLATE), role="store") as template:
            migrate.apply(template)
        yield Servers(source, store)
    finally:
        for home in homes:
            postgres.release(home)


def _configured(home: Path) -> str:
    home.mkdir(parents=True, exist_ok=True)
    conninfo = postgres.conninfo("postgres", home)
    with psycopg.connect(conninfo, autocommit=True) as admin:
        # a killed process loses nothing the system has, so no wait for the disk
        for setting in (
            *("fsync = off", "max_prepared_transactions = 20"),
            *("shared_buffers = '32MB'", "deadlock_timeout = '200ms'"),
        ):
            admin.execute(sql.SQL("ALTER SYSTEM SET {}").format(sql.SQL(setting)))
    postgres.release(home)
    return postgres.conninfo("postgres", home)
