"""One process for each accelerator, by locks in the store."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from embedding_tasks import device_lock, encoders, run
from embedding_tasks.connections import Connection, connect
from embedding_tasks.device_lock import Held
from embedding_tasks.encoders import Encoder, Runtime
from embedding_tasks.run import Request
from embedding_tasks.store.versions import ModelVersion
from tests.fix_project import Project
from tests.forked import Forked

Start = Callable[..., Forked]
Open = Callable[[], Connection]
# As torch names the GPUs of a machine; no two machines share one.
NAMES = {0: "GPU-a", 1: "GPU-b"}


@pytest.fixture
def open_a_store(store_dsn: str) -> Open:
    return partial(connect, store_dsn, role="store")


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, store_dsn: str) -> Iterator[Start]:
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", store_dsn)
    with ExitStack() as started:

        def process(*names: str) -> Forked:
            made = Forked("tests.device_process", *(names or NAMES.values()))
            started.callback(made.kill)
            return made

        yield process


def said(process: Forked) -> str:
    return process.stdout.readline().strip()


def never() -> bool:
    return False


def terminate(store: Connection) -> None:
    store.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_locks"
        " WHERE locktype = 'advisory' AND granted AND database ="
        " (SELECT oid FROM pg_database WHERE datname = current_database())"
    )


def test_each_process_gets_a_device_of_its_own(start: Start) -> None:
    assert {said(start()), said(start())} == {"0", "1"}


def test_who_comes_when_all_are_taken_says_so_once_and_waits(start: Start) -> None:
    first, second = start(), start()
    devices = [said(first), said(second)]
    third = start()
    assert said(third) == "waiting devices=[0, 1]: other processes hold them"
    time.sleep(2.5)
    second.communicate("done\n")
    assert said(third) == devices[1]


def test_a_killed_process_frees_its_device_at_once(
    start: Start, open_a_store: Open
) -> None:
    holder = start("GPU-a")
    assert said(holder) == "0"
    with device_lock.hold(open_a_store, {0: "GPU-a"}, never) as held:
        assert held is None
    holder.kill()
    until = time.monotonic() + 5
    with device_lock.hold(
        open_a_store, {0: "GPU-a"}, lambda: time.monotonic() < until
    ) as held:
        assert held is not None


def test_who_waits_ends_without_a_device_when_nothing_is_left_to_do(
    open_a_store: Open,
) -> None:
    wanted = iter([True, True, False])
    with (
        device_lock.hold(open_a_store, NAMES, never),
        device_lock.hold(open_a_store, NAMES, never),
        device_lock.hold(open_a_store, NAMES, lambda: next(wanted)) as third,
    ):
        assert third is None
    assert list(wanted) == []


def test_the_same_device_in_another_store_is_free(
    open_a_store: Open, make_database: Callable[..., str], template: str
) -> None:
    """A store knows its own workers alone: advisory locks are a database's."""
    other = partial(connect, make_database(template), role="store")
    with (
        device_lock.hold(open_a_store, {0: "GPU-a"}, never) as one,
        device_lock.hold(other, {0: "GPU-a"}, never) as two,
    ):
        assert one is not None
        assert two is not None


def snapshots(store: Connection) -> list[tuple[int | None, ...]]:
    return store.execute(
        "SELECT backend_xmin, backend_xid FROM pg_stat_activity"
        " WHERE state = 'idle in transaction' AND pid <> pg_backend_pid()"
    ).fetchall()


def test_a_lock_holds_up_no_vacuum_and_no_index_build(
    store_dsn: str, store: Connection
) -> None:
    """Whatever isolation level the role or the database has."""
    dsn = make_conninfo(
        store_dsn, options="-c default_transaction_isolation=serializable"
    )
    with device_lock.hold(
        partial(connect, dsn, role="store"), {0: "GPU-a"}, never
    ) as held:
        assert held is not None
        assert snapshots(store) == [(None, None)]
        held.look()
        assert snapshots(store) == [(None, None)]


def test_a_lock_that_was_lost_is_taken_again(
    open_a_store: Open, store: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "embedding_tasks")
    with device_lock.hold(open_a_store, {0: "GPU-a"}, never) as held:
        assert held is not None
        held.look()
        assert caplog.messages == []
        terminate(store)
        held.look()
        lost, again = caplog.messages
        assert "device lock lost device=0 error=" in lost
        assert again == "device lock taken again device=0"
        with device_lock.hold(open_a_store, {0: "GPU-a"}, never) as second:
            assert second is None


def test_a_lock_that_somebody_else_has_by_then_is_told(
    open_a_store: Open, store: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    with device_lock.hold(open_a_store, {0: "GPU-a"}, never) as held:
        assert held is not None
        terminate(store)
        other = Held(0, "GPU-a", open_a_store)
        assert other.take()
        held.look()
        assert caplog.messages[-1] == "device=0 is another process's, too, by now"
        other.let_go()
        held.look()
        assert not other.take()


@pytest.mark.parametrize(
    ("asked", "drivers"), [("cpu", ["/"]), ("auto", []), ("cuda:1", ["/no/driver"])]
)
def test_torch_is_not_asked_where_there_is_nothing_to_ask(
    monkeypatch: pytest.MonkeyPatch, asked: str, drivers: list[str]
) -> None:
    monkeypatch.setattr(device_lock, "_DRIVERS", [Path(path) for path in drivers])
    monkeypatch.setitem(sys.modules, "torch", None)
    assert device_lock.candidates(asked) == {}


# A worker


@pytest.fixture
def with_devices(full_use_case: Project, monkeypatch: pytest.MonkeyPatch) -> Request:
    """120 records wait on a machine with two GPUs."""
    full_use_case.use_case(encoder={"device": "auto"})
    monkeypatch.setattr(device_lock, "candidates", lambda asked: NAMES)
    request = full_use_case.request()
    run.sync_stage(request)
    return request


def places(monkeypatch: pytest.MonkeyPatch, run_on: str = "cpu") -> list[str]:
    """Where models are asked to run. They run elsewhere: there is no GPU here."""
    asked: list[str] = []
    load = encoders.load

    def noted(version: ModelVersion, runtime: Runtime) -> Encoder:
        asked.append(runtime.device)
        return load(version, Runtime(device=run_on))

    monkeypatch.setattr(encoders, "load", noted)
    return asked


def test_a_worker_runs_on_the_device_it_holds(
    with_devices: Request, monkeypatch: pytest.MonkeyPatch, open_a_store: Open
) -> None:
    asked = places(monkeypatch)
    with device_lock.hold(open_a_store, NAMES, never) as taken:
        assert taken is not None
        assert taken.index == 0
        assert run.embed_stage(with_devices, 0)["embedded"] == 120
    assert asked == ["cuda:1"]
    with device_lock.hold(open_a_store, {1: "GPU-b"}, never) as freed:
        assert freed is not None


def test_a_worker_that_waits_for_a_device_leases_nothing(
    with_devices: Request, monkeypatch: pytest.MonkeyPatch, open_a_store: Open
) -> None:
    """Another one drains the queue meanwhile, and it ends without one."""
    asked = places(monkeypatch)
    first = threading.Thread(target=run.embed_stage, args=[with_devices, 0])
    with (
        device_lock.hold(open_a_store, {0: "GPU-a"}, never),
        device_lock.hold(open_a_store, {1: "GPU-b"}, never) as second,
    ):
        assert second is not None
        waiting = threading.Thread(target=run.embed_stage, args=[with_devices, 1])
        waiting.start()
        time.sleep(1.5)
        with open_a_store() as store:
            row = store.execute(
                "SELECT count(*) FROM embedline.ledger WHERE lease_token IS NOT NULL"
            ).fetchone()
        assert row == (0,)
        second.let_go()
        first.start()
        first.join()
        waiting.join()
    assert asked == ["cuda:1"]


def test_a_worker_outlives_the_connection_that_holds_its_device(
    with_devices: Request, monkeypatch: pytest.MonkeyPatch, store: Connection
) -> None:
    asked = places(monkeypatch)
    cut: list[int] = []

    def progress(drained: object) -> None:
        if not cut and asked:
            cut.append(1)
            terminate(store)

    assert run.embed_stage(with_devices, 0, progress)["embedded"] == 120
    assert cut


# Workers in processes of their own


@pytest.fixture
def start_worker(full_use_case: Project) -> Iterator[Start]:
    """120 records wait, in leases of 4 for 5 seconds."""
    full_use_case.use_case(
        encoder={"device": "auto"}, batch={"claim": 4, "lease_seconds": 5}
    )
    run.sync_stage(full_use_case.request())
    with ExitStack() as started:

        def process(*arguments: str) -> Forked:
            made = Forked("tests.worker_process", *arguments)
            started.callback(made.kill)
            return made

        yield process


def go(process: Forked) -> None:
    process.stdin.write("go\n")
    process.stdin.flush()


def shares(store: Connection) -> list[int]:
    """What each worker has embedded; nothing was computed in vain."""
    rows = store.execute(
        "SELECT embedded, discarded FROM embedline.run WHERE kind = 'work' ORDER BY id"
    ).fetchall()
    assert {vain for _, vain in rows} <= {0}
    return [embedded for embedded, _ in rows]


def test_two_processes_on_two_devices_share_the_leases(
    start_worker: Start, store: Connection
) -> None:
    workers = [start_worker("--devices", "GPU-a", "GPU-b") for _ in range(2)]
    assert {said(worker) for worker in workers} == {"cuda:0", "cuda:1"}
    for worker in workers:
        go(worker)
    for worker in workers:
        worker.communicate(timeout=60)
    assert [worker.returncode for worker in workers] == [0, 0]
    first, second = shares(store)
    assert first + second == 120
    assert min(first, second) >= 4


def test_of_two_processes_on_one_device_one_waits_and_takes_over_from_the_dead(
    start_worker: Start, store: Connection
) -> None:
    first = start_worker("20", "--devices", "GPU-a")
    assert said(first) == "cuda:0"
    second = start_worker("--devices", "GPU-a")
    time.sleep(1.5)
    go(first)
    assert first.wait(timeout=60) == -9
    assert said(second) == "cuda:0"  # free at once, unlike the leases of the dead
    row = store.execute(
        "SELECT count(DISTINCT lease_holder) FROM embedline.ledger"
    ).fetchone()
    assert row == (2,)
    go(second)
    assert second.wait(timeout=60) == 0
    done_by_first, done_by_second = shares(store)
    assert done_by_first + done_by_second == 120
    assert 4 * 17 <= done_by_first <= 4 * 20
