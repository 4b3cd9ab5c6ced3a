"""A Postgres of somebody's own: pgvector where its administrator put it, roles without
power, limits, poolers, and a standby that takes over."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import embedding_tasks
from embedding_tasks import device_lock, run
from embedding_tasks.connections import Connection, connect, keep, take_time
from embedding_tasks.errors import DatabaseAway
from embedding_tasks.local import postgres
from embedding_tasks.source import snapshot
from embedding_tasks.store import migrate
from embedding_tasks.store.roles import Names
from tests.fix_cli import Command
from tests.fix_postgres import start_server
from tests.fix_project import Project, end_state
from tests.fix_servers import free_port
from tests.test_sources import copy_of

Login = Callable[..., str]


def ask(dsn: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def pg_ctl(folder: Path, *arguments: str) -> None:
    """As whom the server runs as. Its output goes to a file: a server that is started
    would keep a pipe open."""
    command = [str(postgres.binary("pg_ctl")), "-D", str(folder), *arguments]
    owner = folder.stat().st_uid
    with (folder / "pg_ctl.log").open("w+") as told:
        done = subprocess.run(
            command, user=owner, cwd=folder, stdout=told, stderr=subprocess.STDOUT
        )
        told.seek(0)
        assert done.returncode == 0, told.read()


def test_pgvector_may_live_in_any_schema(
    full_use_case: Project,
    make_database: Callable[..., str],
    make_model: Callable[..., Path],
    embedline: Command,
    db: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dsn = make_database()
    name = str(conninfo_to_dict(dsn)["dbname"])
    ask(dsn, 'CREATE SCHEMA "my extensions"')
    ask(dsn, 'CREATE EXTENSION vector SCHEMA "my extensions"')
    ask(dsn, f"ALTER DATABASE {name} SET search_path = nowhere")
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", dsn)
    embedline("init")
    assert full_use_case.run()["embedded"] == 120
    near = "SELECT count(*) FROM embeddings.neighbors('messages', '7', 5)"
    assert ask(dsn, near) == [(5,)]
    full_use_case.use_case(
        encoder={"model": str(make_model(hidden=48))}, storage={"type": "halfvec"}
    )
    db.execute("UPDATE messages SET body = 'other' WHERE id = 7")
    assert full_use_case.run()["embedded"] == 121  # one in both versions
    assert ask(dsn, near) == [(5,)]
    assert "other" in embedline("search", "messages", "other", "-k", "1")


def recommended_settings() -> str:
    page = Path(embedding_tasks.__file__).parent.parent / "docs" / "deploy.md"
    section = page.read_text().partition("\n## Settings of the store\n")[2]
    return section.split("```")[1].removeprefix("sql")


def test_a_managed_server_is_enough(
    full_use_case: Project,
    make_database: Callable[..., str],
    embedline: Command,
    login: Login,
    prefix: str,
    source_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody here is a superuser: not who prepares the store, nor who writes it, nor
    who reads the source; pgvector was made by the service."""
    dsn = make_database()
    name = sql.Identifier(str(conninfo_to_dict(dsn)["dbname"]))
    ask(dsn, "CREATE EXTENSION vector")
    admin = login(dsn, "admin", options="CREATEROLE CREATEDB")
    owner = sql.SQL("ALTER DATABASE {} OWNER TO {}").format(
        name, sql.Identifier(f"{prefix}_admin")
    )
    ask(dsn, owner.as_string())
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", admin)
    embedline("init", "--roles", "--prefix", prefix)
    embedline("init", "--roles", "--prefix", prefix)
    names = Names.of(prefix)

    crm = login(source_dsn, "crm")
    for statement in (
        "GRANT SELECT (id, body, author, sent_at, xmin) ON messages TO {}",
        "GRANT SELECT (id, v, xmin) ON verdicts TO {}",
    ):
        granted = sql.SQL(statement).format(sql.Identifier(f"{prefix}_crm"))  # type: ignore[arg-type]
        ask(source_dsn, granted.as_string())
    full_use_case.use_case(
        source={"dsn": make_conninfo(crm, password="${CRM_PASSWORD}")}
    )
    monkeypatch.setenv("CRM_PASSWORD", "not-a-secret")
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", login(dsn, "etl", names.writer))
    assert "fail" not in embedline("check", "messages")
    ask(admin, recommended_settings().replace(" embedline ", f" {name.as_string()} "))
    assert ask(dsn, "SHOW hnsw.iterative_scan") == [("relaxed_order",)]
    assert full_use_case.run()["embedded"] == 120
    again = full_use_case.run()
    assert (again["read"], again["embedded"]) == (0, 0)
    # the next version's migrations
    ask(dsn, "DELETE FROM embedline.migration WHERE name LIKE 'functions/%'")
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", admin)
    embedline("init")


# Limits that an administrator sets


@pytest.fixture
def slow_source(full_use_case: Project) -> Project:
    """Reading it takes more than a second, in which the store waits."""
    full_use_case.use_case(source={"where": "pg_sleep(0.01) IS NOT NULL"})
    return full_use_case


def limit(dsn: str, **limits: str) -> None:
    name = sql.Identifier(str(conninfo_to_dict(dsn)["dbname"]))
    for setting, value in limits.items():
        statement = sql.SQL("ALTER DATABASE {} SET {} = {}").format(
            name, sql.Identifier(setting), sql.Literal(value)
        )
        ask(dsn, statement.as_string())


def test_a_long_sync_outlasts_the_limits_of_the_store(
    slow_source: Project, store_dsn: str
) -> None:
    limit(
        store_dsn,
        statement_timeout="300ms",
        idle_in_transaction_session_timeout="300ms",
    )
    assert slow_source.run()["embedded"] == 120


def test_a_long_sync_outlasts_a_transaction_timeout(
    slow_source: Project, store: Connection, store_dsn: str
) -> None:
    if store.info.server_version < 170_000:
        pytest.skip("PostgreSQL 17 has this limit first")
    limit(store_dsn, transaction_timeout="300ms")
    assert slow_source.run()["embedded"] == 120


def test_a_limit_of_the_source_is_kept_and_named(
    slow_source: Project, source_dsn: str
) -> None:
    limit(source_dsn, statement_timeout="300ms")
    with pytest.raises(DatabaseAway, match=r"source database: .* statement_timeout: "):
        slow_source.run()
    limit(source_dsn, statement_timeout="30s")
    assert slow_source.run()["embedded"] == 120


def test_a_source_waits_for_the_store_longer_than_it_lets_others_idle(
    full_use_case: Project, source_dsn: str, store: Connection
) -> None:
    limit(source_dsn, idle_in_transaction_session_timeout="200ms")
    full_use_case.run()
    # a sync waits for this in the middle of its look at the source
    with store.transaction():
        store.execute("LOCK TABLE embedline.record IN EXCLUSIVE MODE")
        syncing = threading.Thread(target=full_use_case.run)
        syncing.start()
        syncing.join(0.8)
    syncing.join()
    row = store.execute("SELECT state, error FROM embedline.run ORDER BY id DESC")
    assert row.fetchone() == ("success", None)


# A pooler in transaction mode


@pytest.fixture
def through_pooler(
    full_use_case: Project,
    store_dsn: str,
    source_dsn: str,
    pooled: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> Project:
    """Store and source both."""
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", pooled(store_dsn))
    full_use_case.use_case(source={"dsn": pooled(source_dsn, size=4)})
    return full_use_case


def test_everything_goes_through_a_pooler(
    through_pooler: Project,
    db: Connection,
    store: Connection,
    embedline: Command,
    make_model: Callable[..., Path],
) -> None:
    for _ in range(3):
        through_pooler.run()
    db.execute("UPDATE messages SET body = 'other' WHERE id < 20")
    db.execute("DELETE FROM messages WHERE id >= 110")
    changed = through_pooler.run()
    assert (changed["changed"], changed["deleted"]) == (20, 10)
    through_pooler.use_case(encoder={"model": str(make_model(seed=1))})
    assert through_pooler.run()["embedded"] == 110
    assert "other" in embedline("search", "messages", "other", "-k", "3")
    assert "messages" in embedline("status")
    embedline("rollback", "messages", "--yes")
    embedline("forget", "messages", "7", "--yes")
    through_pooler.run()
    left = store.execute("SELECT count(*) FROM embeddings.messages").fetchone()
    assert left == (109,)


def test_what_is_asked_often_is_not_prepared_in_a_session_that_others_get(
    store_dsn: str, pooled: Callable[..., str]
) -> None:
    dsn = pooled(store_dsn, size=1)
    with connect(dsn, role="store") as one, connect(dsn, role="store") as other:
        for number in range(20):
            for connection in (one, other):
                found = connection.execute("SELECT %s::int", [number]).fetchone()
                assert found == (number,)


def test_workers_share_a_pooler(
    through_pooler: Project, store: Connection, tmp_path: Path
) -> None:
    run.sync_stage(through_pooler.request(external_id="shared"))
    requests = [through_pooler.request(external_id="shared") for _ in range(3)]
    threads = [
        threading.Thread(target=run.embed_stage, args=[request, number])
        for number, request in enumerate(requests)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run.publish_stage(requests[0])
    assert store.execute("SELECT count(*) FROM embeddings.messages").fetchone() == (
        120,
    )


def test_a_model_is_trained_through_a_pooler(through_pooler: Project) -> None:
    through_pooler.raw["encoder"] = {
        **{"type": "autoencoder", "size": 4, "epochs": 2, "min_rows": 50},
        "device": "cpu",
    }
    through_pooler.raw["prediction"] = "none"
    through_pooler.use_case(source={"input": ["author", "sent_at"]})
    assert through_pooler.run()["trained"] == 1


def test_a_device_is_one_processs_through_a_pooler(
    store_dsn: str, pooled: Callable[..., str]
) -> None:
    dsn = pooled(store_dsn, size=3)
    open_store = partial(connect, dsn, role="store")
    first, second = (device_lock.Held(0, "gpu", open_store) for _ in range(2))
    assert first.take()
    first.look()
    for _ in range(5):
        assert not second.take()
    first.let_go()
    assert second.take()
    second.let_go()


# What only a session has, and a transaction's does not keep
SESSION_STATE = {
    "an advisory lock of a session": r"pg_(try_)?advisory_(un)?lock(_shared)?\b",
    "LISTEN": r"[\"']LISTEN\s",
    "a cursor WITH HOLD": r"WITH HOLD|withhold=True",
    "a setting of a session": r"[\"'](SET|RESET) (?!LOCAL|TRANSACTION)\w+"
    r"|set_config\([^)]*false\)",
    "a prepared statement": r"prepare=True|prepare_threshold=\d|[\"']PREPARE\s",
    "a temporary table": r"CREATE TEMP TABLE(?!.{,800}?ON COMMIT DROP)",
}


@pytest.mark.parametrize("what", SESSION_STATE)
def test_no_statement_counts_on_its_session(what: str) -> None:
    root = Path(embedding_tasks.__file__).parent
    found = [
        f"{path.name}: {match[0]}"
        for path in root.glob("**/*.py")
        # the settings of the embedded server; a builder's session of its own
        if path.name not in ("postgres.py", "index.py")
        for match in re.finditer(SESSION_STATE[what], path.read_text(), re.DOTALL)
    ]
    assert found == []


# A network that is gone


@pytest.fixture(scope="module")
def by_tcp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("tcp")
    with start_server(home):
        folder = home / "postgres"
    port = free_port()
    pg_ctl(
        folder, "start", "-w", "-l", "tcp.log", "-o", f"-h 127.0.0.1 -p {port} -k ''"
    )
    yield f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
    pg_ctl(folder, "stop", "-m", "fast")


KEEPALIVES = {
    "tcp_keepalives_idle": "60",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "6",
    "tcp_user_timeout": "120000",
}


def keepalives(connection: Connection) -> dict[str, str]:
    rows = [connection.execute(f"SHOW {name}").fetchone() for name in KEEPALIVES]  # type: ignore[arg-type]
    return {name: row[0] for name, row in zip(KEEPALIVES, rows, strict=True) if row}


def test_a_server_gives_up_a_client_that_the_network_has_lost(by_tcp: str) -> None:
    with connect(by_tcp, role="store") as store:
        before = keepalives(store)
        assert before != KEEPALIVES
        with store.transaction():
            take_time(store)
            assert keepalives(store) == KEEPALIVES
        assert keepalives(store) == before
        assert keep(store, sql.SQL("pg_try_advisory_xact_lock(1)"))
        assert keepalives(store) == KEEPALIVES
    with snapshot.take(by_tcp) as source:
        assert keepalives(source) == KEEPALIVES
    own = make_conninfo(by_tcp, options="-c tcp_keepalives_idle=7200")
    with connect(own, role="store") as store, store.transaction():
        take_time(store)
        assert keepalives(store) == {**KEEPALIVES, "tcp_keepalives_idle": "7200"}


@pytest.mark.parametrize(
    ("own", "idle", "timeout"),
    [
        ({}, 60, 120_000),
        ({"keepalives_idle": 30, "tcp_user_timeout": 5000}, 30, 5000),
    ],
)
def test_a_client_gives_up_a_server_that_the_network_has_lost(
    by_tcp: str, own: dict[str, int], idle: int, timeout: int
) -> None:
    with (
        connect(make_conninfo(by_tcp, **own), role="store") as store,
        socket.socket(fileno=os.dup(store.fileno())) as end,
    ):
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        found = [
            end.getsockopt(socket.IPPROTO_TCP, option)
            for option in (
                *(socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT),
                socket.TCP_USER_TIMEOUT,
            )
        ]
        assert found == [idle, 10, 6, timeout]


# A standby that takes over


@dataclass
class Cluster:
    """A primary and its streaming standby; `dsn` names both."""

    folders: tuple[Path, Path]
    hosts: tuple[str, str]

    @property
    def dsn(self) -> str:
        return self.of(*self.hosts, target_session_attrs="read-write")

    def of(self, *hosts: str, **options: str) -> str:
        return make_conninfo(
            "", host=",".join(hosts), user="postgres", dbname="store", **options
        )

    def fail_over(self) -> None:
        """The primary is gone at once, as if its power was, and the other promoted."""
        pg_ctl(self.folders[0] / "postgres", "stop", "-m", "immediate")
        pg_ctl(self.folders[1] / "postgres", "promote", "-w")


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folders = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    with start_server(folders[0]) as one:
        store = postgres.conninfo("store", folders[0])
        with connect(store, role="store") as connection:
            migrate.apply(connection)
        copy_of(one, folders[1], "-R")
        with start_server(folders[1]) as two:
            hosts = [str(conninfo_to_dict(dsn)["host"]) for dsn in (one, two)]
            yield Cluster(folders, (hosts[0], hosts[1]))


def test_nothing_is_lost_when_a_standby_takes_over(
    full_use_case: Project,
    store: Connection,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full_use_case.run()
    expected = end_state(store)
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", cluster.dsn)
    first = full_use_case.request(external_id="first")
    run.sync_stage(first)
    failed_over = threading.Event()

    def fail_over(drained: object) -> None:
        if getattr(drained, "embedded", 0) >= 32 and not failed_over.is_set():
            failed_over.set()
            cluster.fail_over()

    with pytest.raises(DatabaseAway, match="store database"):
        run.embed_stage(first, 0, fail_over)
    assert failed_over.is_set()
    run.embed_stage(first, 0)  # as Airflow's retry does
    run.publish_stage(first)
    with connect(cluster.dsn, role="store") as promoted:
        end_state(promoted).assert_same(expected)
    assert full_use_case.run()["embedded"] == 0


def test_a_standby_is_no_store_and_is_said_to_be_none(
    full_use_case: Project, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", cluster.of(cluster.hosts[1]))
    with pytest.raises(DatabaseAway, match="target_session_attrs=read-write"):
        full_use_case.run()
