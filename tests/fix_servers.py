"""What stands between a client and its server: a pooler, and TLS."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_POOLER = """
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {size}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def pooled() -> Iterator[Callable[..., str]]:
    """Give a database of an embedded server another connection string, through a
    pgbouncer that gives each transaction any of `size` sessions."""
    program = os.environ.get("PGBOUNCER") or shutil.which("pgbouncer")
    if program is None:
        pytest.skip("needs pgbouncer on the PATH, or in $PGBOUNCER")
    with ExitStack() as stack:

        def pool(dsn: str, size: int = 20) -> str:
            return stack.enter_context(_pooler(program, dsn, size))

        yield pool


@contextmanager
def _pooler(program: str, dsn: str, size: int) -> Iterator[str]:
    parts = conninfo_to_dict(dsn)
    host = str(parts["host"])
    listen = free_port()
    folder = Path(tempfile.mkdtemp(prefix="pooler-"))
    config = folder / "pgbouncer.ini"
    config.write_text(
        _POOLER.format(
            host=host,
            port=parts.get("port", 5432),
            user=parts.get("user", "postgres"),
            listen=listen,
            size=size,
        )
    )
    command = [program, str(config)]
    if os.geteuid() == 0:  # which it refuses to run as
        user = pwd.getpwuid(Path(host).stat().st_uid).pw_name
        command[1:1] = ["-u", user]
        shutil.chown(folder, user)
    pooler = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    through = make_conninfo(dsn, host="127.0.0.1", port=listen)
    try:
        _until_it_answers(pooler, through)
        yield through
    finally:
        pooler.terminate()
        pooler.communicate()
        shutil.rmtree(folder)


def _until_it_answers(pooler: subprocess.Popen[str], dsn: str) -> None:
    for _ in range(100):
        with suppress(psycopg.OperationalError), psycopg.connect(dsn):
            return
        if pooler.poll() is not None:
            break
        time.sleep(0.1)
    pooler.kill()
    raise AssertionError(f"pgbouncer does not answer: {pooler.communicate()[1]}")


_SSL_REQUEST = struct.pack("!ii", 8, 80877103)


@contextmanager
def encrypted(dsn: str, certificate: Path, key: Path) -> Iterator[str]:
    """The same database by TLS alone, for a server that was built without."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    parts = conninfo_to_dict(dsn)
    behind = f"{parts['host']}/.s.PGSQL.{parts.get('port', 5432)}"
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=speak, args=[client], daemon=True).start()

    def speak(client: socket.socket) -> None:
        with suppress(OSError), client:
            if client.recv(8) != _SSL_REQUEST:
                return
            client.sendall(b"S")
            with (
                context.wrap_socket(client, server_side=True) as inside,
                socket.socket(socket.AF_UNIX) as server,
            ):
                server.connect(behind)
                threading.Thread(
                    target=_pass_on, args=[server, inside], daemon=True
                ).start()
                _pass_on(inside, server)

    threading.Thread(target=serve, daemon=True).start()
    try:
        port = listener.getsockname()[1]
        yield make_conninfo(dsn, host="localhost", hostaddr="127.0.0.1", port=port)
    finally:
        listener.close()


def _pass_on(from_: socket.socket, to: socket.socket) -> None:
    with suppress(OSError):
        while block := from_.recv(65536):
            to.sendall(block)
    with suppress(OSError):
        to.shutdown(socket.SHUT_RDWR)
