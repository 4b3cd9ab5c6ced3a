"""Lanes that read and write in processes of their own, as beside an accelerator: the
same rows, the same errors, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psutil
import psycopg
import pytest
from psycopg import sql

from embedding_tasks import device_lock, encoders, run, status, worker
from embedding_tasks.connections import Connection
from embedding_tasks.encoders import Encoder, Runtime
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.encoders.text import TextEncoder
from embedding_tasks.errors import DatabaseAway, SourceError, TransientError
from embedding_tasks.store.versions import ModelVersion
from tests.fix_models import ENCODE
from tests.fix_project import Project, end_state


@pytest.fixture
def apart(full_use_case: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """On a machine that is said to have an accelerator."""
    load = encoders.load

    def on_processor(version: ModelVersion, runtime: Runtime) -> Encoder:
        return load(version, replace(runtime, device="cpu"))

    monkeypatch.setattr(device_lock, "candidates", lambda asked: {0: "a card"})
    monkeypatch.setattr(encoders, "load", on_processor)
    monkeypatch.setattr(worker, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(worker, "LANES_APART", 2)
    yield full_use_case
    assert not children()


def children() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if any("process_child" in word for word in child.cmdline())
    ]


def at_encoding(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    def encode(self: TextEncoder, inputs: Any) -> Encoded:
        act()
        return ENCODE(self, inputs)

    monkeypatch.setattr(TextEncoder, "encode", encode)


def left(store: Connection) -> tuple[int, int, int]:
    """Leases that are held, failures that are charged, and connections of processes,
    once the server has noticed that they are gone."""
    until = time.monotonic() + 10
    while (found := _left(store))[2] and time.monotonic() < until:
        time.sleep(0.05)
    return found


def _left(store: Connection) -> tuple[int, int, int]:
    row = store.execute(
        "SELECT count(DISTINCT lease_token), count(*) FILTER (WHERE attempts > 0),"
        " (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        "  AND pid <> pg_backend_pid() AND application_name = 'embedline-store')"
        " FROM embedline.ledger"
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1]), int(row[2])


def test_lanes_apart_store_what_lanes_of_one_process_store(
    apart: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    at_encoding(monkeypatch, lambda: seen.update(child.pid for child in children()))
    apart.run()
    assert len(seen) == 2  # a lane each
    found = end_state(store)
    monkeypatch.setattr(worker, "WORTH_A_PROCESS", 1000)
    seen.clear()
    apart.run(reembed=True)
    assert not seen
    end_state(store).assert_same(found)


def test_a_record_that_cannot_be_encoded_is_charged_alone(
    apart: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(self: TextEncoder, inputs: Any) -> Encoded:
        if any("number 17" in text for text in inputs):
            raise ValueError("of 17")
        return ENCODE(self, inputs)

    monkeypatch.setattr(TextEncoder, "encode", encode)
    assert apart.run()["embedded"] == 119
    errors = store.execute(
        "SELECT key, error FROM embedline.ledger WHERE error IS NOT NULL"
    ).fetchall()
    assert errors == [("17", "ValueError: of 17")]


def test_what_the_source_has_moved_on_from_is_put_off(
    apart: Project, db: Connection, store: Connection
) -> None:
    request = apart.request()
    run.sync_stage(request)
    db.execute("UPDATE messages SET body = 'moved' WHERE id = 5")
    db.execute("DELETE FROM messages WHERE id = 6")
    counts = run.embed_stage(request, 0)
    assert (counts["embedded"], counts["deferred"]) == (118, 2)


def test_a_few_records_are_not_worth_a_process(
    apart: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[psutil.Process] = []
    monkeypatch.setattr(worker, "WORTH_A_PROCESS", 121)
    at_encoding(monkeypatch, lambda: seen.extend(children()))
    assert apart.run()["embedded"] == 120
    assert not seen


def test_the_processes_never_import_torch() -> None:
    look = "import sys, embedding_tasks.lane_io; print('torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, check=True
    )
    assert found.stdout == "False\n"


@contextmanager
def held_up(dsn: str, *table: str) -> Iterator[None]:
    """Whoever reads or writes this table waits."""
    with psycopg.connect(dsn) as holding:
        holding.execute(sql.SQL("LOCK TABLE {}").format(sql.Identifier(*table)))
        yield


@pytest.mark.parametrize("stage", ["read", "write"])
def test_ctrl_c_ends_the_statements_of_the_processes(
    apart: Project,
    store: Connection,
    store_dsn: str,
    source_dsn: str,
    stage: str,
) -> None:
    request = apart.request()
    run.sync_stage(request)
    where = {
        "read": (source_dsn, "messages"),
        "write": (store_dsn, "embedline", "vector_messages_v1"),
    }
    with held_up(*where[stage]):
        timer = threading.Timer(3, os.kill, [os.getpid(), signal.SIGINT])
        timer.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            run.embed_stage(request, 0)
        assert 2.5 < time.monotonic() - began < 8
        timer.join()
        assert left(store) == (0, 0, 0)
    assert apart.run()["embedded"] == 120


def kill() -> None:
    for child in children():
        child.kill()


def test_a_process_that_is_killed_costs_no_record_anything(
    apart: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_encoding(monkeypatch, kill)
    with pytest.raises(TransientError, match="reads and writes ended by signal 9"):
        apart.run()
    assert left(store) == (0, 0, 0)
    monkeypatch.setattr(TextEncoder, "encode", ENCODE)
    assert apart.run()["embedded"] == 120


def cut(connection: Connection, role: str) -> None:
    """What the lanes hold of this role, while they have nothing to say."""
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle'"
        " AND pid <> pg_backend_pid() AND application_name = %s"
        " AND datname = current_database()",
        [f"embedline-{role}"],
    )


def test_a_store_that_is_lost_is_said_to_be(
    apart: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_encoding(monkeypatch, lambda: cut(store, "store"))
    with pytest.raises(DatabaseAway, match="the store database"):
        apart.run()
    monkeypatch.setattr(TextEncoder, "encode", ENCODE)
    stored = status.of(store)[0]["stored"]
    assert apart.run()["embedded"] == 120 - stored


def test_a_source_that_was_cut_meanwhile_is_opened_again(
    apart: Project, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart.use_case(batch={"claim": 60})
    at_encoding(monkeypatch, lambda: cut(db, "source"))
    assert apart.run()["embedded"] == 120


def test_a_column_that_is_gone_is_the_sources_fault(
    apart: Project, db: Connection, store: Connection
) -> None:
    request = apart.request()
    run.sync_stage(request)
    db.execute("ALTER TABLE messages RENAME body TO text")
    with pytest.raises(SourceError, match="body"):
        run.embed_stage(request, 0)
    assert left(store) == (0, 0, 0)
