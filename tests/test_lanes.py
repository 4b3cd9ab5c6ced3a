"""A worker's lanes: they overlap, hold little, stop at once, leave nothing behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from embedding_tasks import encoders, lane_io, ledger, pipeline, run, status
from embedding_tasks.connections import Connection
from embedding_tasks.encoders import Encoder, Runtime
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.encoders.text import TextEncoder
from embedding_tasks.errors import DatabaseAway, ModelError, Stopped, TransientError
from embedding_tasks.leases import FIRST_RECORDS, SECONDS_PER_LEASE, Pace
from embedding_tasks.source import snapshot
from embedding_tasks.store import versions
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.timeline import Span, Timeline
from embedding_tasks.worker import LANES_OF_SHARED, Worker
from tests.fix_models import ENCODE
from tests.fix_project import Project

Make = Callable[..., Worker]
SLOW = 0.1


@pytest.fixture
def make_worker(full_use_case: Project, store: Connection) -> Make:
    """Of 120 records that wait, in leases of 16."""
    request = full_use_case.request()
    run.sync_stage(request)

    def make(**changes: Any) -> Worker:
        case = full_use_case.use_case(**changes)
        row = store.execute("SELECT max(id) FROM embedline.run").fetchone()
        assert row is not None
        assert case.source.dsn is not None
        return Worker(
            store=store,
            open_store=request.open_store,
            store_conninfo=request.store_conninfo(),
            source_conninfo=case.source.dsn,
            use_case=case,
            version=versions.active(store, "messages"),
            run_id=row[0],
            holder="me",
            spans=[],
        )

    return make


@pytest.fixture(autouse=True)
def _no_lane_is_left_running() -> Iterator[None]:
    yield
    assert not [t for t in threading.enumerate() if t.name.startswith("lane-")]


def slow_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (snapshot, "read_inputs"),
        (lane_io, "write"),
        (TextEncoder, "encode"),
    ):
        delayed(monkeypatch, module, name)


def delayed(monkeypatch: pytest.MonkeyPatch, where: Any, name: str) -> None:
    original = getattr(where, name)

    def slow(*args: Any) -> Any:
        time.sleep(SLOW)
        return original(*args)

    monkeypatch.setattr(where, name, slow)


def overlap(one: list[Span], others: list[Span]) -> float:
    """Seconds of spans that lie within others of another lane."""
    return sum(
        max(0.0, min(a.ended, b.ended) - max(a.began, b.began))
        for a in one
        for b in others
        if a.lane != b.lane
    )


def of(worker: Worker, *stages: str) -> list[Span]:
    assert worker.spans is not None
    return [span for span in worker.spans if span.stage in stages]


def total(spans: list[Span]) -> float:
    return sum(span.ended - span.began for span in spans)


def leases(store: Connection) -> int:
    row = store.execute(
        "SELECT count(DISTINCT lease_token) FROM embedline.ledger"
    ).fetchone()
    assert row is not None
    return int(row[0])


def charged(store: Connection) -> int:
    row = store.execute(
        "SELECT count(*) FROM embedline.ledger WHERE attempts > 0"
    ).fetchone()
    assert row is not None
    return int(row[0])


# Overlap


def test_reading_and_writing_hide_behind_the_model(
    make_worker: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_stages(monkeypatch)
    worker = make_worker()
    assert worker.drain().embedded == 120
    encode, rest = of(worker, "encode"), of(worker, "read", "write")
    assert len(encode) == 8
    assert overlap(encode, rest) > 0.5 * total(encode)
    assert overlap(encode, encode) == 0  # one at a time has the model


def test_lanes_share_an_encoder_that_takes_several_at_once(
    make_worker: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextEncoder, "shared", True)
    slow_stages(monkeypatch)
    worker = make_worker()
    assert worker.drain().embedded == 120
    lanes = {span.lane for span in of(worker, "encode")}
    assert lanes == {*range(LANES_OF_SHARED)}
    assert overlap(of(worker, "encode"), of(worker, "encode")) > 0
    assert of(worker, "wait") == []


def test_no_more_is_leased_than_one_batch_for_each_lane(
    make_worker: Make, monkeypatch: pytest.MonkeyPatch, store_dsn: str
) -> None:
    """However slow the model is, and however fast it is read."""
    held: list[int] = []
    with psycopg.connect(store_dsn, autocommit=True) as looking:

        def slow(self: TextEncoder, inputs: Any) -> Encoded:
            time.sleep(SLOW)
            held.append(leases(looking))
            return ENCODE(self, inputs)

        monkeypatch.setattr(TextEncoder, "encode", slow)
        make_worker().drain()
    assert max(held) == 2


def test_what_fits_one_lease_gets_one_lane(make_worker: Make) -> None:
    worker = make_worker(batch={"claim": 120})
    worker.drain()
    assert {span.lane for span in of(worker, "claim", "read")} == {0}


def test_a_lane_without_work_waits_for_what_others_of_its_worker_hold(
    make_worker: Make, monkeypatch: pytest.MonkeyPatch, store: Connection
) -> None:
    """The last batch fails as a whole, once, when the other lane has nothing left to
    take; the worker is not done before it was tried again."""
    failed: list[int] = []

    def fails_once(self: TextEncoder, inputs: Any) -> Encoded:
        if "message number 119" in inputs and sum(failed) < 2 * 17:
            failed.append(len(inputs))
            raise RuntimeError("no")
        return ENCODE(self, inputs)

    monkeypatch.setattr(TextEncoder, "encode", fails_once)
    worker = make_worker(batch={"claim": 100}, retry={"backoff_seconds": 0})
    assert worker.drain().embedded == 120
    assert status.of(store)[0]["pending"] == 0


# The model


def test_the_model_is_loaded_once_and_in_the_main_thread(
    make_worker: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[threading.Thread] = []
    load = encoders.load

    def counted(version: ModelVersion, runtime: Runtime) -> Encoder:
        loads.append(threading.current_thread())
        time.sleep(SLOW)  # in which every lane asks for it
        return load(version, runtime)

    monkeypatch.setattr(encoders, "load", counted)
    make_worker().drain()
    assert loads == [threading.main_thread()]
    make_worker().drain()  # nothing waits
    assert len(loads) == 1


def test_a_model_that_does_not_load_gives_everything_back(
    make_worker: Make, monkeypatch: pytest.MonkeyPatch, store: Connection
) -> None:
    def broken(version: ModelVersion, runtime: Runtime) -> Encoder:
        raise ModelError("no such model")

    monkeypatch.setattr(encoders, "load", broken)
    with pytest.raises(ModelError, match="no such model"):
        make_worker().drain()
    assert (leases(store), charged(store)) == (0, 0)


# The end of it, if it is one


def test_the_first_error_wins_with_its_type_and_its_traceback(
    make_worker: Make, monkeypatch: pytest.MonkeyPatch, store: Connection
) -> None:
    """The other lane fails because of it, and later."""
    write, failed = lane_io.write, threading.Event()

    def second_failure(*args: Any) -> Any:
        if failed.wait(5):
            raise ValueError("noise")
        return write(*args)

    calls: list[int] = []

    def first_failure(self: TextEncoder, inputs: Any) -> Encoded:
        calls.append(1)
        if len(calls) == 2:
            failed.set()
            raise ModelError("the first")
        return ENCODE(self, inputs)

    monkeypatch.setattr(lane_io, "write", second_failure)
    monkeypatch.setattr(TextEncoder, "encode", first_failure)
    with pytest.raises(ModelError, match="the first") as caught:
        make_worker().drain()
    assert "first_failure" in [entry.name for entry in caught.traceback]
    assert (leases(store), charged(store)) == (0, 0)


@contextmanager
def interrupted_within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        yield
    assert time.monotonic() - began < seconds


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("stage", ["claim", "read", "load", "encode", "write"])
def test_ctrl_c_in_any_stage_gives_all_leases_back_at_once(
    make_worker: Make,
    monkeypatch: pytest.MonkeyPatch,
    store: Connection,
    stage: str,
) -> None:
    """A stage that would go on for half a minute; an encoder looks at `stopped`."""
    worker = make_worker()

    def forever(connection: Connection, *args: Any) -> Any:
        interrupt()
        connection.execute("SELECT pg_sleep(30)")

    def loading(version: ModelVersion, runtime: Runtime) -> Encoder:
        interrupt()
        time.sleep(30)
        raise AssertionError

    def encoding(self: TextEncoder, inputs: Any) -> Encoded:
        interrupt()
        assert worker._stopped.wait(30)
        raise Stopped("between two batches")

    match stage:
        case "claim":
            monkeypatch.setattr(ledger, "claim", forever)
        case "read":
            monkeypatch.setattr(snapshot, "read_inputs", forever)
        case "write":
            monkeypatch.setattr(lane_io, "write", forever)
        case "load":
            monkeypatch.setattr(encoders, "load", loading)
        case "encode":
            monkeypatch.setattr(TextEncoder, "encode", encoding)
    with interrupted_within(10):
        worker.drain()
    assert (leases(store), charged(store)) == (0, 0)


def test_a_model_that_does_not_look_up_holds_no_lease_meanwhile(
    make_worker: Make, monkeypatch: pytest.MonkeyPatch, store_dsn: str
) -> None:
    """It is waited for; what it then has is for nobody."""
    seen: list[int] = []
    with psycopg.connect(store_dsn, autocommit=True) as looking:

        def deaf(self: TextEncoder, inputs: Any) -> Encoded:
            interrupt()
            time.sleep(2)
            seen.append(leases(looking))
            return ENCODE(self, inputs)

        monkeypatch.setattr(TextEncoder, "encode", deaf)
        worker = make_worker()
        with pytest.raises(KeyboardInterrupt):
            worker.drain()
        assert seen == [0]
        assert worker.drained.embedded == 0


def test_what_is_being_written_when_a_worker_is_stopped_is_stored(
    make_worker: Make, monkeypatch: pytest.MonkeyPatch, store: Connection
) -> None:
    write = lane_io.write

    def slow(*args: Any) -> Any:
        interrupt()
        time.sleep(0.3)
        return write(*args)

    monkeypatch.setattr(lane_io, "write", slow)
    worker = make_worker()
    with pytest.raises(KeyboardInterrupt):
        worker.drain()
    stored = status.of(store)[0]["stored"]
    assert stored == worker.drained.embedded > 0
    assert leases(store) == 0


def test_an_interrupt_in_the_progress_stops_the_lanes(
    make_worker: Make, store: Connection
) -> None:
    worker = make_worker()

    def show(drained: pipeline.Drained) -> None:
        if drained.embedded:
            raise KeyboardInterrupt

    worker.progress = show
    with pytest.raises(KeyboardInterrupt):
        worker.drain()
    assert leases(store) == 0
    assert worker._stopped.is_set()


def test_a_lane_whose_connection_is_cut_stops_all_and_charges_none(
    make_worker: Make, monkeypatch: pytest.MonkeyPatch, store: Connection
) -> None:
    worker = make_worker()

    def cut(self: TextEncoder, inputs: Any) -> Encoded:
        (lane,) = (x for x in worker._lanes if x.number == 1)
        store.execute("SELECT pg_terminate_backend(%s)", [lane.store.info.backend_pid])
        return ENCODE(self, inputs)

    monkeypatch.setattr(TextEncoder, "encode", cut)
    with pytest.raises(DatabaseAway, match="lost the store database"):
        worker.drain()
    assert (leases(store), charged(store)) == (0, 0)
    monkeypatch.setattr(TextEncoder, "encode", ENCODE)
    stored = status.of(store)[0]["stored"]
    assert make_worker().drain().embedded == 120 - stored


def test_a_source_connection_that_was_cut_while_idle_is_opened_again(
    make_worker: Make, monkeypatch: pytest.MonkeyPatch, db: Connection
) -> None:
    def cut(self: TextEncoder, inputs: Any) -> Encoded:
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state"
            " = 'idle' AND application_name = 'embedline-source'"
            " AND datname = current_database()"
        )
        return ENCODE(self, inputs)

    monkeypatch.setattr(TextEncoder, "encode", cut)
    worker = make_worker(batch={"claim": 60})
    assert worker.drain().embedded == 120


def test_trouble_in_two_lanes_is_trouble_twice_in_a_row(
    make_worker: Make, monkeypatch: pytest.MonkeyPatch, store: Connection
) -> None:
    def broken(self: TextEncoder, inputs: Any) -> Encoded:
        raise RuntimeError("broken")

    monkeypatch.setattr(TextEncoder, "encode", broken)
    with pytest.raises(TransientError, match="two whole batches failed in a row"):
        make_worker().drain()
    assert (leases(store), charged(store)) == (0, 0)


@pytest.mark.slow
def test_one_thread_keeps_the_leases_of_all_lanes(
    make_worker: Make, monkeypatch: pytest.MonkeyPatch, store_dsn: str
) -> None:
    def slow(self: TextEncoder, inputs: Any) -> Encoded:
        time.sleep(7)
        return ENCODE(self, inputs)

    monkeypatch.setattr(TextEncoder, "encode", slow)
    worker = make_worker(batch={"claim": 60, "lease_seconds": 5})
    claimable = set()
    with (
        psycopg.connect(store_dsn, autocommit=True) as looking,
        ThreadPoolExecutor(1) as pool,
    ):
        working = pool.submit(worker.drain)
        time.sleep(2)
        while not working.done():
            left = ledger.outstanding(looking, worker.version, 60)
            claimable.add(left.claimable)
            time.sleep(0.1)
        assert working.result().embedded == 120
    assert claimable == {0}


# How long it takes


def test_what_overlaps_is_counted_once(
    make_worker: Make, monkeypatch: pytest.MonkeyPatch, store: Connection
) -> None:
    slow_stages(monkeypatch)
    worker = make_worker()
    began = time.monotonic()
    worker.drain()
    wall = time.monotonic() - began
    row = store.execute(
        "SELECT embed_seconds, stages, encoder FROM embedline.run WHERE id = %s",
        [worker.run_id],
    ).fetchone()
    assert row is not None
    seconds, stages, made_with = row
    assert total(of(worker, "encode")) < seconds < wall
    assert seconds == pytest.approx(worker.drained.seconds, abs=0.01)
    summed = sum(stages[stage] for stage in ("read", "encode", "write"))
    assert summed > seconds
    assert stages["encode"] == pytest.approx(total(of(worker, "encode")))
    assert seconds < stages["wall"] < wall
    assert made_with == {"1": {"device": "cpu", "dtype": "float32"}}


def test_a_run_says_what_its_vectors_were_made_with_in_the_end(
    make_worker: Make, monkeypatch: pytest.MonkeyPatch, store: Connection
) -> None:
    """A model that leaves the range of float16 goes on in bfloat16."""
    dtypes: list[str] = ["float16"]

    def widened(self: TextEncoder, inputs: Any) -> Encoded:
        dtypes[:] = ["bfloat16"]
        return ENCODE(self, inputs)

    monkeypatch.setattr(TextEncoder, "encode", widened)
    monkeypatch.setattr(TextEncoder, "surroundings", lambda _: {"dtype": dtypes[0]})
    worker = make_worker()
    worker.drain()
    row = store.execute(
        "SELECT encoder FROM embedline.run WHERE id = %s", [worker.run_id]
    ).fetchone()
    assert row == ({"1": {"dtype": "bfloat16"}},)


def test_bills_add_up_to_the_time_in_which_anything_ran() -> None:
    timeline = Timeline()
    began = time.monotonic()

    def lane(number: int) -> float:
        time.sleep(0.02 * number)
        bills = 0.0
        for stage in ("read", "encode", "write"):
            with timeline.span(number, stage):  # type: ignore[arg-type]
                time.sleep(0.05)
            bills += timeline.bill()
        return bills

    with ThreadPoolExecutor(3) as pool:
        billed = sum(pool.map(lane, range(3)))
    took = time.monotonic() - began
    assert billed + timeline.bill() == pytest.approx(timeline.busy)
    assert 0.15 < timeline.busy <= took
    with timeline.span(0, "wait"):
        time.sleep(0.05)
    assert timeline.bill() == 0


@pytest.mark.parametrize(
    ("per_second", "settles_at"),
    [(1_000_000, 8192), (2_000, 4000), (10, 20), (0.1, 1)],
)
def test_a_lease_comes_to_hold_about_two_seconds_of_work(
    per_second: float, settles_at: int
) -> None:
    pace = Pace(8192)
    assert pace.records == FIRST_RECORDS
    for _ in range(6):
        pace.learn(pace.records, pace.records / per_second)
    assert pace.records == settles_at
    assert settles_at in (8192, 1, int(SECONDS_PER_LEASE * per_second))


def test_a_lease_of_large_inputs_holds_fewer() -> None:
    pace = Pace(8192)
    for _ in range(6):
        pace.learn(pace.records, 0.001, pace.records * 1_000_000)
    assert pace.records == 128


def test_the_rest_of_a_queue_says_little_of_the_pace() -> None:
    pace = Pace(100)
    assert pace.records == 100
    pace.learn(10, 5.0)
    assert pace.records == 100
