"""The database away during each task; what each gets, and that all is well after."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from embedding_tasks import cursor, lane_io, pipeline, run, runs, staging
from embedding_tasks.connections import Connection, connect
from embedding_tasks.errors import ConfigError, DatabaseAway, ModelError
from embedding_tasks.local import postgres
from embedding_tasks.run import Request
from embedding_tasks.store import connection, migrate
from tests.fix_postgres import start_server
from tests.fix_project import Project, end_state

Write = Callable[..., None]
Stage = Callable[[Request], Any]

STAGES: dict[str, Stage] = {
    "sync": run.sync_stage,
    "plan": run.plan_stage,
    "embed": lambda request: run.embed_stage(request, 0),
    "publish": run.publish_stage,
}


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[str]:
    """A server of its own, with an empty store in it."""
    with start_server(tmp_path / "fragile") as conninfo:
        with psycopg.connect(conninfo, autocommit=True) as admin:
            admin.execute("CREATE DATABASE fragile")
        dsn = make_conninfo(conninfo, dbname="fragile")
        with connect(dsn, role="store") as store:
            migrate.apply(store)
        yield dsn


def kill_connections(dsn: str) -> None:
    with psycopg.connect(dsn, dbname="postgres", autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE 'embedline-%' AND datname = 'fragile'"
        )


def until(stage: str, request: Request) -> None:
    for name, action in STAGES.items():
        if name == stage:
            return
        action(request)


@pytest.mark.parametrize("stage", STAGES)
def test_a_store_that_is_away_is_transient_and_the_retry_goes_on(
    project: Project,
    write_messages: Write,
    monkeypatch: pytest.MonkeyPatch,
    store_dsn: str,
    stage: str,
) -> None:
    write_messages(range(20))
    request = project.request()
    until(stage, request)
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", f"host={project.folder} dbname=x")
    with pytest.raises(DatabaseAway, match="cannot connect to the store database"):
        STAGES[stage](request)
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", store_dsn)
    for name in list(STAGES)[list(STAGES).index(stage) :]:
        result = STAGES[name](request)
    assert result["stored"] == 20


@pytest.mark.parametrize("stage", ["sync", "embed"])
def test_a_source_that_is_away_is_transient_and_charges_no_record(
    project: Project, write_messages: Write, store: Connection, stage: str
) -> None:
    write_messages(range(20))
    request = project.request()
    until(stage, request)
    good = project.raw["source"]["dsn"]
    project.use_case(source={"dsn": f"host={project.folder} dbname=x"})
    away = project.request(external_id=request.external_id)
    with pytest.raises(DatabaseAway, match="cannot connect to the source database"):
        STAGES[stage](away)
    row = store.execute(
        "SELECT count(*) FROM embedline.ledger"
        " WHERE attempts > 0 OR lease_token IS NOT NULL"
    ).fetchone()
    assert row == (0,)
    project.use_case(source={"dsn": good})
    assert project.run()["stored"] == 20


MOMENTS = [
    ("sync", connection, "connect"),
    ("sync", staging, "_copy"),
    ("sync", cursor, "save"),
    ("embed", runs, "begin"),
    ("embed", pipeline, "isolate"),
]


@pytest.mark.parametrize(("stage", "module", "name"), MOMENTS)
def test_a_store_lost_in_the_middle_is_transient_and_the_retry_goes_on(
    project: Project,
    write_messages: Write,
    fragile: str,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    module: Any,
    name: str,
) -> None:
    write_messages(range(20))
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", fragile)
    request = project.request()
    until(stage, request)
    original = getattr(module, name)

    def cut(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        kill_connections(fragile)
        return result

    monkeypatch.setattr(module, name, cut)
    with pytest.raises(DatabaseAway, match="lost the store database"):
        STAGES[stage](request)
    monkeypatch.setattr(module, name, original)
    assert project.run(external_id=request.external_id)["stored"] == 20


@pytest.mark.slow
def test_a_store_restarted_at_once_loses_nothing(
    project: Project,
    write_messages: Write,
    fragile: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project.use_case(batch={"claim": 8, "lease_seconds": 5})
    write_messages(range(64))
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", fragile)
    project.run()
    with connect(fragile, role="store") as store:
        wanted = end_state(store)
    request = project.request(reembed=True)
    run.sync_stage(request)
    pg_ctl = [str(postgres.binary("pg_ctl")), "-D", str(tmp_path / "fragile/postgres")]
    written = threading.Event()
    write = lane_io.write

    def crash_after_the_third(*args: Any, **kwargs: Any) -> Any:
        result = write(*args, **kwargs)
        calls.append(1)
        if len(calls) == 3:
            written.set()
            crash(pg_ctl)
        return result

    calls: list[int] = []
    monkeypatch.setattr(lane_io, "write", crash_after_the_third)
    with pytest.raises(DatabaseAway):
        run.embed_stage(request, 0)
    assert written.is_set()
    postgres.release(tmp_path / "fragile")
    postgres.hold(tmp_path / "fragile")
    monkeypatch.setattr(lane_io, "write", write)
    project.run(external_id=request.external_id)
    with connect(fragile, role="store") as store:
        end_state(store).assert_same(wanted)


def crash(pg_ctl: list[str]) -> None:
    """As if the machine had lost its power."""
    owner = os.stat(pg_ctl[-1]).st_uid
    as_owner = {"user": owner} if os.geteuid() == 0 else {}
    subprocess.run([*pg_ctl, "stop", "-m", "immediate"], check=True, **as_owner)


def test_a_model_that_is_gone_is_named_and_charges_no_record(
    project: Project, write_messages: Write, store: Connection
) -> None:
    write_messages(range(20))
    project.use_case(encoder={"model": "./nowhere"})
    with pytest.raises(ModelError, match=r"nowhere' is no folder with a model"):
        project.run()
    row = store.execute("SELECT state, error FROM embedline.run").fetchone()
    assert row is not None
    assert row[0] == "failed"
    assert "nowhere" in row[1]


def test_a_wrong_database_is_terminal(project: Project) -> None:
    dsn = make_conninfo(project.raw["source"]["dsn"], dbname="no_such_database")
    project.use_case(source={"dsn": dsn})
    with pytest.raises(ConfigError, match="no_such_database"):
        project.run()


def test_a_source_without_the_right_to_read_is_named(
    project: Project, db: Connection, write_messages: Write
) -> None:
    write_messages(range(3))
    role = f"nobody_{db.info.dbname}"
    db.execute(f"CREATE ROLE {role} LOGIN")
    try:
        dsn = make_conninfo(project.raw["source"]["dsn"], user=role)
        project.use_case(source={"dsn": dsn})
        with pytest.raises(Exception, match="messages: permission denied"):
            project.run()
    finally:
        db.execute(f"DROP ROLE {role}")
