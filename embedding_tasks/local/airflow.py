"""Airflow on this machine: its components as child processes, its metadata in the
embedded Postgres, its files under `<home>/airflow`. Nothing is left running.

`airflow standalone` is not used: SIGTERM ends only its parent and leaves 38 of 40
processes behind. Here every component has a process group of its own, and whatever is
left of its tree in the end is killed.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil
from psycopg.conninfo import conninfo_to_dict

from embedding_tasks import settings
from embedding_tasks.errors import EmbedlineError
from embedding_tasks.local import postgres
from embedding_tasks.local.signals import interruptible
from embedding_tasks.store.connection import conninfo, open_store

COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")
USER = "admin"
POOL = {"name": "gpu", "slots": 1, "description": "embedding tasks, one per device"}


class AirflowError(EmbedlineError):
    """A component did not start, or the API refused a call."""


@dataclass(frozen=True)
class Airflow:
    """A running Airflow: where it is, and its REST API."""

    url: str
    password: str
    home: Path
    _client: httpx.Client

    def get(self, path: str) -> Any:
        return self._call("GET", path)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._call("POST", path, body)

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._call("PATCH", path, body)

    def exists(self, path: str) -> bool:
        return self._client.get(f"/api/v2{path}").status_code == 200

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> Any:
        answer = self._client.request(method, f"/api/v2{path}", json=body)
        if answer.is_error:
            raise AirflowError(
                f"Airflow refused {method} {path}: {answer.status_code} {answer.text}"
            )
        return answer.json()


@contextmanager
def running(
    port: int | None = None, *, triggerer: bool = True, timeout: float = 180
) -> Iterator[Airflow]:
    """Start everything, wait until it is healthy, define pool and connections; stop
    everything on the way out. Raises `AirflowError` with the end of a component's log
    when it does not come up."""
    home = settings.home() / "airflow"
    home.mkdir(parents=True, exist_ok=True)
    with open_store():  # an embedded store is initialised here
        pass
    port = _free_port() if port is None else _claim(port)
    environment = _environment(home, port)
    _migrate(home, environment)
    password = _password(home)
    names = [c for c in COMPONENTS if triggerer or c != "triggerer"]
    with _components(names, home, environment) as processes:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=30) as client:
            _wait_until_healthy(client, processes, names, home, timeout)
            token = client.post(
                "/auth/token", json={"username": USER, "password": password}
            ).json()["access_token"]
            client.headers["Authorization"] = f"Bearer {token}"
            airflow = Airflow(url, password, home, client)
            _define(airflow)
            yield airflow


def _environment(home: Path, port: int) -> dict[str, str]:
    database = conninfo_to_dict(postgres.conninfo("airflow"))
    socket_folder = quote(str(database["host"]), safe="")
    project = settings.project()
    ours = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(project / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(project / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__FERNET_KEY": _secret(home, "fernet"),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": (
            f"http://127.0.0.1:{port}/execution/"
        ),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": _secret(home, "session"),
        "AIRFLOW__API_AUTH__JWT_SECRET": _secret(home, "jwt"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": (
            f"postgresql+psycopg2://{database['user']}@/airflow?host={socket_folder}"
        ),
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(_free_port()),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(_free_port()),
        "AIRFLOW__SIMPLE_AUTH_MANAGER__USERS": f"{USER}:admin",
        "EMBEDLINE_PROJECT": str(project),
        "EMBEDLINE_HOME": str(settings.home()),
    }
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW__")}
    return {**inherited, **ours}


def _migrate(home: Path, environment: Mapping[str, str]) -> None:
    """`airflow db migrate` costs four seconds even when nothing is to be done."""
    from importlib.metadata import version

    done = home / f"migrated-{version('apache-airflow')}"
    if done.exists():
        return
    log = home / "migrate.log"
    with log.open("w") as output:
        finished = subprocess.run(
            [*_airflow(), "db", "migrate"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    if finished.returncode:
        raise AirflowError(f"airflow db migrate failed:\n{_tail(log)}")
    done.touch()


@contextmanager
def _components(
    names: list[str], home: Path, environment: Mapping[str, str]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    with interruptible():
        try:
            for name in names:
                with (home / f"{name}.log").open("wb") as log:
                    processes.append(
                        subprocess.Popen(
                            [*_airflow(), name],
                            env=environment,
                            stdin=subprocess.DEVNULL,
                            stdout=log,
                            stderr=subprocess.STDOUT,
                            start_new_session=True,
                        )
                    )
            yield processes
        finally:
            _stop(processes)


def _stop(processes: list[subprocess.Popen[bytes]], patience: float = 20) -> None:
    """Ask each component once, then end what is left of its whole tree."""
    family = [p for process in processes for p in _tree(process.pid)]
    for process in processes:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=patience)
    family += [p for process in alive for p in _tree(process.pid)]
    for member in {*family}:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=5)
    for process in processes:
        process.poll()


def _tree(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _wait_until_healthy(
    client: httpx.Client,
    processes: list[subprocess.Popen[bytes]],
    names: list[str],
    home: Path,
    timeout: float,
) -> None:
    wanted = ["metadatabase", *(n.replace("-", "_") for n in names[1:])]
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for name, process in zip(names, processes, strict=True):
            if process.poll() is not None:
                raise AirflowError(
                    f"airflow {name} ended with {process.returncode}:\n"
                    f"{_tail(home / f'{name}.log')}"
                )
        with suppress(httpx.HTTPError, ValueError):
            health = client.get("/api/v2/monitor/health").json()
            if all(health.get(w, {}).get("status") == "healthy" for w in wanted):
                return
        time.sleep(0.5)
    raise AirflowError(
        f"Airflow was not healthy after {timeout:.0f} s; logs are in {home}"
    )


def _define(airflow: Airflow) -> None:
    """The pool and the connections, where they are not there yet."""
    if not airflow.exists(f"/pools/{POOL['name']}"):
        airflow.post("/pools", POOL)
    saved = settings.home() / "connections.json"
    connections = json.loads(saved.read_text()) if saved.exists() else {}
    connections.setdefault(settings.STORE_CONNECTION, _store_connection())
    for connection_id, fields in connections.items():
        if not airflow.exists(f"/connections/{connection_id}"):
            airflow.post("/connections", {"connection_id": connection_id, **fields})


def _store_connection() -> dict[str, Any]:
    parts = conninfo_to_dict(conninfo())
    return {
        "conn_type": "postgres",
        "description": "Embedline's store",
        "host": parts.get("host"),
        "login": parts.get("user"),
        "password": parts.get("password"),
        "schema": parts.get("dbname"),
        "port": int(str(parts["port"])) if parts.get("port") else None,
    }


def _password(home: Path) -> str:
    """Written where the simple auth manager looks for it, so that it is known here
    before the server has made one up."""
    file = home / "simple_auth_manager_passwords.json.generated"
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(json.dumps({USER: secrets.token_urlsafe(9)}))
    password: str = json.loads(file.read_text())[USER]
    return password


def _secret(home: Path, name: str) -> str:
    file = home / f"{name}.key"
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(urlsafe_b64encode(secrets.token_bytes(32)).decode())
    return file.read_text()


def _airflow() -> list[str]:
    return [sys.executable, "-m", "airflow"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _claim(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise AirflowError(
                f"port {port} is taken; choose another: make airflow PORT={port + 1}"
            ) from None
    return port


def _tail(log: Path, lines: int = 30) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
