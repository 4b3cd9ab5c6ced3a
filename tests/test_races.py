"""A record is deleted in the source while its vector is being written: the race in
which a delete that cannot see the worker's uncommitted insert leaves an orphan. Each
order of the two, first embedding and again, with both transactions open at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from embedding_tasks import ledger, run, runs
from embedding_tasks.connections import Connection, connect
from embedding_tasks.ledger import Lease
from embedding_tasks.store import versions
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.store.write import Written, write
from tests.fix_project import Project
from tests.test_ledger import claim, count, finished

Write = Callable[..., None]
TABLES = ("vector_messages_v1", "prediction", "input", "record", "ledger")


@pytest.fixture(params=["first", "again"])
def lease(
    request: pytest.FixtureRequest,
    project: Project,
    db: Connection,
    store: Connection,
    write_messages: Write,
) -> Lease:
    """Five records that a worker holds: new ones, or changed ones with a vector."""
    write_messages(range(5))
    run.sync_stage(project.request())
    version = versions.active(store, "messages")
    if request.param == "first":
        return claim(store, version)
    embed(store, version)
    db.execute("UPDATE messages SET body = body || '!'")
    run.sync_stage(project.request())
    return claim(store, version)


def embed(store: Connection, version: ModelVersion) -> None:
    held = claim(store, version)
    assert write(store, held, finished(held), 1).records == 5


def wait_until_blocked(store: Connection, work: Future[Any]) -> None:
    """Until somebody waits for a lock that another transaction holds."""
    deadline = time.monotonic() + 20
    while not count_waiting(store):
        assert not work.done(), "nobody waited"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def count_waiting(store: Connection) -> int:
    row = store.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event_type = 'Lock' AND wait_event IN ('tuple', 'transactionid')"
    ).fetchone()
    assert row is not None
    return int(row[0])


def assert_gone(store: Connection, key: str) -> None:
    for table in TABLES:
        assert count(store, f"{table} WHERE key = '{key}'") == 0, table
    assert count(store, "vector_messages_v1") == 4


def test_a_delete_that_meets_an_uncommitted_write_leaves_no_orphan(
    project: Project, db: Connection, store: Connection, store_dsn: str, lease: Lease
) -> None:
    with (
        ThreadPoolExecutor(1) as pool,
        connect(store_dsn, role="store") as worker,
    ):
        with worker.transaction():
            assert write(worker, lease, finished(lease), 1) == Written(5, 5, 0)
            db.execute("DELETE FROM messages WHERE id = 3")
            deleting = pool.submit(run.sync_stage, project.request())
            wait_until_blocked(store, deleting)
        assert deleting.result()["deleted"] == 1
    assert_gone(store, "3")


def test_a_write_that_meets_an_uncommitted_delete_is_turned_away(
    project: Project,
    db: Connection,
    store: Connection,
    store_dsn: str,
    lease: Lease,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deleted, go_on = threading.Event(), threading.Event()
    counted = runs.count

    def wait(*args: Any) -> None:
        counted(*args)
        deleted.set()
        assert go_on.wait(20)

    monkeypatch.setattr(runs, "count", wait)
    db.execute("DELETE FROM messages WHERE id = 3")
    with (
        ThreadPoolExecutor(2) as pool,
        connect(store_dsn, role="store") as worker,
    ):
        deleting = pool.submit(run.sync_stage, project.request())
        assert deleted.wait(20)
        writing = pool.submit(write, worker, lease, finished(lease), 1)
        wait_until_blocked(store, writing)
        go_on.set()
        assert writing.result() == Written(4, 4, 1)
        assert deleting.result()["deleted"] == 1
    assert_gone(store, "3")
    assert ledger.outstanding(store, lease.version, 60).leased == 0


def test_dead_records_are_taken_up_in_the_order_that_workers_lock_them(
    project: Project, store: Connection, store_dsn: str, write_messages: Write
) -> None:
    write_messages(range(5))
    run.sync_stage(project.request())
    version = versions.active(store, "messages")
    for key in "43210":  # in the table they now lie in this order
        store.execute(
            "UPDATE embedline.ledger SET dead_at = now() WHERE key = %s", [key]
        )
    lock = "SELECT FROM embedline.ledger WHERE key = %s FOR UPDATE"
    with connect(store_dsn, role="store") as other, ThreadPoolExecutor() as pool:
        other.execute("SET enable_indexscan = off; SET enable_bitmapscan = off")
        with store.transaction():
            store.execute(lock, ["0"])
            retried = pool.submit(ledger.retry_dead, other, version)
            with connect(store_dsn, role="store") as watch:
                wait_until_blocked(watch, retried)
            store.execute(lock, ["4"])
        assert retried.result() == 5
