"""However a store came to its end, by one run or many, killed or not, it is one."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from embedding_tasks import lane_io, ledger, run, status
from embedding_tasks.connections import Connection, connect
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.encoders.text import TextEncoder
from embedding_tasks.errors import ThresholdError, TransientError
from embedding_tasks.ledger import Lease
from embedding_tasks.pipeline import Drained, Lane
from embedding_tasks.store import versions
from embedding_tasks.use_case import Window
from tests.fix_models import ENCODE, poison
from tests.fix_project import EndState, Project, end_state
from tests.forked import Forked

Write = Callable[..., None]
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def once(project: Project, store: Connection) -> EndState:
    """The end state of one full run into an empty store, which is emptied again."""
    project.run()
    state = end_state(store)
    empty(store)
    return state


def empty(store: Connection) -> None:
    store.execute(
        "DROP VIEW embeddings.messages; DROP TABLE embedline.vector_messages_v1;"
        "TRUNCATE embedline.use_case CASCADE"
    )


def test_many_small_runs_end_as_one_full_run(
    full_use_case: Project, db: Connection, store: Connection
) -> None:
    wanted = once(full_use_case, store)
    db.execute("CREATE TABLE later AS SELECT * FROM messages ORDER BY id % 7, id")
    db.execute("TRUNCATE messages")
    embedded = 0
    for part in range(6):
        db.execute(
            "INSERT INTO messages (id, body, author, sent_at)"
            " SELECT id, CASE WHEN %s < 5 AND id %% 10 = 0 THEN 'draft' ELSE body END,"
            "  author, sent_at FROM later WHERE id %% 6 = %s",
            [part, part],
        )
        embedded += full_use_case.run()["embedded"]
    db.execute(
        "UPDATE messages m SET body = l.body FROM later l"
        " WHERE m.id = l.id AND m.body = 'draft'"
    )
    counts = full_use_case.run()
    assert embedded == 120
    assert counts["embedded"] == counts["changed"] == 12
    end_state(store).assert_same(wanted)


def test_a_backfill_after_the_fact_ends_as_one_full_run(
    full_use_case: Project, store: Connection
) -> None:
    wanted = once(full_use_case, store)
    full_use_case.use_case(source={"start": BEGIN + timedelta(minutes=70)})
    assert full_use_case.run()["embedded"] == 50
    for since, until in ((40, 70), (0, 40)):
        window = Window(
            since=BEGIN + timedelta(minutes=since),
            until=BEGIN + timedelta(minutes=until),
        )
        assert full_use_case.run(window=window)["embedded"] == until - since
    end_state(store).assert_same(wanted)


DEATHS = [
    # sync: before anything is applied, half applied, all but committed
    ("embedding_tasks.source.snapshot.position", 1, "after"),
    ("embedding_tasks.cursor.save", 1, "after"),
    ("embedding_tasks.sync._enqueue", 1, "after"),
    ("embedding_tasks.runs.count", 1, "after"),
    # plan
    ("embedding_tasks.run.plan_stage", 1, "before"),
    ("embedding_tasks.run.plan_stage", 1, "after"),
    # embed: holding a lease, having computed, inside the write, between batches
    ("embedding_tasks.ledger.claim", 1, "after"),
    ("embedding_tasks.pipeline.isolate", 3, "after"),
    ("embedding_tasks.store.write._fence", 2, "after"),
    ("embedding_tasks.store.write._settle", 4, "after"),
    ("embedding_tasks.lane_io.write", 5, "after"),
    # publish
    ("embedding_tasks.runs.close", 1, "before"),
    ("embedding_tasks.runs.close", 1, "after"),
]


def run_and_die(point: str, number: int, when: str, *options: str) -> None:
    killed = Forked("tests.killed_run", point, str(number), when, *options)
    _, errors = killed.communicate()
    assert killed.returncode == -9, errors


@pytest.mark.parametrize(("point", "number", "when"), DEATHS)
def test_a_run_killed_at_any_point_and_run_again_ends_as_one_full_run(
    full_use_case: Project, store: Connection, point: str, number: int, when: str
) -> None:
    wanted = once(full_use_case, store)
    run_and_die(point, number, when)
    counts = full_use_case.run(external_id="killed")
    end_state(store).assert_same(wanted)
    assert counts["embedded"] == 120  # of the whole run, its earlier life included


def test_another_run_takes_over_from_a_killed_one_when_its_lease_is_up(
    full_use_case: Project, store: Connection
) -> None:
    wanted = once(full_use_case, store)
    run_and_die("embedding_tasks.pipeline.isolate", 2, "after")
    numbers = status.of(store)[0]
    assert numbers["leased"] in (16, 32)  # one lease in each lane
    assert full_use_case.run()["embedded"] == 120 - numbers["stored"]
    end_state(store).assert_same(wanted)


def test_a_run_embeds_exactly_what_changed_and_a_third_nothing(
    full_use_case: Project, db: Connection, store: Connection
) -> None:
    full_use_case.run()
    db.execute("UPDATE messages SET body = body || '!' WHERE id IN (17, 43)")
    db.execute("UPDATE messages SET author = 'x' WHERE id IN (1, 2, 3)")
    assert full_use_case.run()["embedded"] == 2
    counts = full_use_case.run()
    assert (counts["read"], counts["embedded"]) == (0, 0)


def test_workers_share_one_queue_without_overlap(
    full_use_case: Project, store: Connection
) -> None:
    wanted = once(full_use_case, store)
    request = full_use_case.request()
    run.sync_stage(request)
    with ThreadPoolExecutor(3) as pool:
        drained = list(pool.map(lambda n: run.embed_stage(request, n), range(3)))
    assert sum(d["embedded"] for d in drained) == 120
    assert sum(d["discarded"] for d in drained) == 0
    run.publish_stage(request)
    end_state(store).assert_same(wanted)


def test_one_bad_record_costs_one_record(
    full_use_case: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, "number 17")
    counts = full_use_case.run()
    assert counts["embedded"] == 119
    numbers = status.of(store)[0]
    assert (numbers["stored"], numbers["dead"]) == (119, 1)
    row = store.execute(
        "SELECT key, error FROM embedline.ledger WHERE dead_at IS NOT NULL"
    ).fetchone()
    assert row == ("17", "ValueError: cannot be encoded")


def test_a_record_whose_vector_is_not_finite_is_set_aside(
    full_use_case: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:

    def broken(self: TextEncoder, inputs: Any) -> Encoded:
        made = ENCODE(self, inputs)
        for place, text in enumerate(inputs):
            if text == "message number 17":
                made.vectors[place, 3] = float("nan")
            if text == "message number 18":
                made.vectors[place] = 0
        return made

    monkeypatch.setattr(TextEncoder, "encode", broken)
    full_use_case.use_case(thresholds={"undone_rows": 2})
    assert full_use_case.run()["embedded"] == 118
    rows = store.execute(
        "SELECT key FROM embedline.ledger WHERE dead_at IS NOT NULL ORDER BY key"
    ).fetchall()
    assert rows == [("17",), ("18",)]


@pytest.mark.parametrize("changed", [3, 120])
def test_trouble_that_spares_no_record_is_charged_to_none(
    full_use_case: Project,
    db: Connection,
    store: Connection,
    monkeypatch: pytest.MonkeyPatch,
    changed: int,
) -> None:
    full_use_case.run()
    db.execute("UPDATE messages SET body = body || '!' WHERE id < %s", [changed])
    poison(monkeypatch, "")
    with pytest.raises(TransientError, match="two whole batches failed in a row"):
        full_use_case.run()
    row = store.execute(
        "SELECT count(*) FILTER (WHERE attempts > 0 OR lease_token IS NOT NULL)"
        " FROM embedline.ledger"
    ).fetchone()
    assert row == (0,)
    assert status.of(store)[0]["stored"] == 120 - changed
    monkeypatch.setattr(TextEncoder, "encode", ENCODE)
    assert full_use_case.run()["embedded"] == changed


def test_many_bad_records_do_not_hold_up_the_good_ones(
    full_use_case: Project,
    store: Connection,
    monkeypatch: pytest.MonkeyPatch,
    write_messages: Write,
) -> None:
    """Twenty bad ones at the head of the queue fill more than a batch."""
    full_use_case.use_case(thresholds={"undone_share": 1})
    poison(monkeypatch, *(f"number {i}" for i in range(100, 120)))
    for _ in range(3):
        full_use_case.run()
    assert status.of(store)[0]["dead"] == 20
    write_messages(range(200, 220))
    assert full_use_case.run()["embedded"] == 20


def test_a_failed_record_keeps_its_pause_however_often_its_source_is_read(
    full_use_case: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_use_case.use_case(
        source={"strategy": "scan"},
        retry={"backoff_seconds": 3600},
        thresholds={"undone_rows": 1},
    )
    poison(monkeypatch, "number 17")
    for _ in range(4):
        full_use_case.run()
    row = store.execute(
        "SELECT attempts, dead_at FROM embedline.ledger WHERE key = '17'"
    ).fetchone()
    assert row == (1, None)


def test_reembed_gives_dead_records_another_chance(
    full_use_case: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_use_case.use_case(retry={"max_attempts": 1})
    poison(monkeypatch, "number 17")
    full_use_case.run()
    assert status.of(store)[0]["dead"] == 1
    monkeypatch.setattr(TextEncoder, "encode", ENCODE)
    full_use_case.run(reembed=True)
    assert status.of(store)[0]["dead"] == 0


def test_a_failure_is_remembered_until_its_own_stage_is_tried_again(
    full_use_case: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def state() -> Any:
        return status.of(store)[0]["last_run_state"]

    request = full_use_case.request()
    run.sync_stage(request)
    poison(monkeypatch, "")
    for worker in (0, 1):
        with pytest.raises(TransientError):
            run.embed_stage(request, worker)
    monkeypatch.setattr(TextEncoder, "encode", ENCODE)
    run.embed_stage(request, 1)
    assert state() == "failed"
    run.embed_stage(request, 0)
    assert state() == "running"
    monkeypatch.setattr(ledger, "outstanding", None)
    with pytest.raises(TypeError):
        run.plan_stage(request)
    assert state() == "failed"
    run.publish_stage(request)
    assert state() == "success"


def test_a_run_is_not_judged_by_what_came_after_its_sync(
    full_use_case: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    request = full_use_case.request()
    run.sync_stage(request)
    db.execute("DELETE FROM messages WHERE id < 3")  # 2.5 % of the records
    assert run.embed_stage(request, 0)["deferred"] == 3
    store.execute(
        "UPDATE embedline.ledger SET next_attempt_at = now() - '1 h'::interval"
    )
    assert run.publish_stage(request)["stored"] == 117  # however late
    write_messages(range(200, 240))
    run.sync_stage(full_use_case.request())
    assert run.publish_stage(request)["stored"] == 117


def test_a_key_that_comes_back_in_other_words_waits_for_the_next_sync(
    project: Project, db: Connection
) -> None:
    db.execute("CREATE TABLE prices (id numeric PRIMARY KEY, body text)")
    db.execute("INSERT INTO prices VALUES (1, 'a'), (2, 'b')")
    project.use_case(source={"table": "prices", "event_time": None})
    request = project.request()
    run.sync_stage(request)
    db.execute("UPDATE prices SET id = 1.0 WHERE id = 1")
    assert run.embed_stage(request, 0)["deferred"] == 1
    counts = project.run()
    assert (counts["new"], counts["deleted"], counts["stored"]) == (1, 1, 2)


def test_a_worker_that_finds_the_queue_locked_waits_without_haste(
    full_use_case: Project, store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = full_use_case.request()
    run.sync_stage(request)
    claims: list[int] = []
    claim = ledger.claim

    def counted(*args: Any) -> Any:
        claims.append(1)
        return claim(*args)

    monkeypatch.setattr(ledger, "claim", counted)
    with ThreadPoolExecutor(1) as pool:
        with connect(store_dsn, role="test") as syncing, syncing.transaction():
            syncing.execute("SELECT FROM embedline.ledger FOR UPDATE")
            working = pool.submit(run.embed_stage, request, 0)
            time.sleep(2)
            assert 0 < len(claims) < 40
        assert working.result()["embedded"] == 120


def test_a_run_that_leaves_too_much_undone_fails(
    full_use_case: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, *(f"number {i}" for i in (17, 27, 37, 47)))
    full_use_case.use_case(thresholds={"undone_rows": 3, "undone_share": 0.01})
    with pytest.raises(ThresholdError, match=r"4 of 120 records .* 4 dead"):
        full_use_case.run()
    assert status.of(store)[0]["last_run_state"] == "failed"
    full_use_case.use_case(thresholds={"undone_share": 0.05})
    assert full_use_case.run()["stored"] == 116


def test_a_record_that_moved_on_between_sync_and_embed_waits_for_the_next_sync(
    full_use_case: Project, db: Connection, store: Connection
) -> None:
    request = full_use_case.request()
    run.sync_stage(request)
    db.execute("UPDATE messages SET body = 'other' WHERE id = 3")
    db.execute("DELETE FROM messages WHERE id = 4")
    assert run.embed_stage(request, 0)["deferred"] == 2
    rows = store.execute("SELECT key, attempts FROM embedline.ledger WHERE pending")
    assert sorted(rows.fetchall()) == [("3", 0), ("4", 0)]
    counts = full_use_case.run()
    assert (counts["embedded"], counts["deleted"]) == (1, 1)
    assert status.of(store)[0]["pending"] == 0


def test_ctrl_c_loses_nothing_and_gives_its_lease_back(
    full_use_case: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def interrupted(self: TextEncoder, inputs: Any) -> Encoded:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return ENCODE(self, inputs)

    monkeypatch.setattr(TextEncoder, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        full_use_case.run()
    numbers = status.of(store)[0]
    assert (numbers["stored"], numbers["leased"]) == (32, 0)
    assert full_use_case.run()["embedded"] == 88


def test_an_interrupt_in_the_middle_of_a_command_is_still_an_interrupt(
    full_use_case: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(worker_store: Connection, *args: Any) -> None:
        with worker_store.transaction():
            worker_store.execute("LOCK embedline.ledger IN SHARE ROW EXCLUSIVE MODE")
            worker_store.pgconn.send_query(b"SELECT pg_sleep(0.1)")
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lane_io, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            full_use_case.run()
    numbers = status.of(store)[0]
    assert (numbers["leased"], numbers["last_run_state"]) == (0, "failed")
    assert numbers["last_run_error"] == "KeyboardInterrupt"
    assert full_use_case.run()["embedded"] == 120


def test_no_transaction_of_a_batch_is_open_while_the_model_runs_on_it(
    full_use_case: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other lanes read and write meanwhile."""
    carry, here = Lane._carry, threading.local()
    open_ones: list[int] = []

    def carried(lane: Lane, lease: Lease) -> None:
        here.lane = lane
        carry(lane, lease)

    def watched(self: TextEncoder, inputs: Any) -> Encoded:
        mine = (here.lane.store, here.lane.io._source)
        row = store.execute(
            "SELECT count(*), count(xact_start) FROM pg_stat_activity"
            " WHERE pid = ANY (%s)",
            [[connection.info.backend_pid for connection in mine]],
        ).fetchone()
        assert row is not None
        assert row[0] == 2
        open_ones.append(row[1])
        return ENCODE(self, inputs)

    monkeypatch.setattr(Lane, "_carry", carried)
    monkeypatch.setattr(TextEncoder, "encode", watched)
    full_use_case.run()
    assert open_ones == [0] * 8


def test_a_run_with_nothing_to_embed_never_imports_torch(
    full_use_case: Project,
) -> None:
    """A worker that is started all the same included, whatever device it may take."""
    full_use_case.use_case(encoder={"device": "auto"})
    full_use_case.run()
    code = (
        "import sys; from embedding_tasks import run, use_case;"
        "case = use_case.find('messages');"
        "request = run.Request(use_case=case, external_id='x', kind='cli');"
        "run.run(request); run.embed_stage(request, 0);"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_progress_is_told_batch_by_batch_in_the_main_thread(
    full_use_case: Project,
) -> None:
    told: list[Drained] = []

    def tell(drained: Drained) -> None:
        assert threading.current_thread() is threading.main_thread()
        told.append(drained)

    run.run(full_use_case.request(), tell)
    assert {drained.pending for drained in told} == {120}
    done = [drained.embedded for drained in told]
    assert (done[0], done[-1]) == (0, 120)
    assert len(done) == 1 + 8
    assert done == sorted(done)
    seconds = [drained.seconds for drained in told]
    assert seconds == sorted(seconds)


@pytest.mark.slow
def test_a_slow_batch_keeps_its_lease(
    full_use_case: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:

    def slow(self: TextEncoder, inputs: Any) -> Encoded:
        time.sleep(7)
        return ENCODE(self, inputs)

    monkeypatch.setattr(TextEncoder, "encode", slow)
    full_use_case.use_case(batch={"claim": 120, "lease_seconds": 5})
    request = full_use_case.request()
    run.sync_stage(request)
    version = versions.active(store, "messages")
    claimable = []
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(run.embed_stage, request, 0)
        time.sleep(2)
        while not working.done():
            claimable.append(ledger.outstanding(store, version, 60).claimable)
            time.sleep(0.1)
        assert working.result()["embedded"] == 120
    assert len(claimable) > 20
    assert set(claimable) == {0}
