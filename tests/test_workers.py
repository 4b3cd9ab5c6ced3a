"""Workers in processes of their own drain one ledger; one may join, one may die."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from embedding_tasks import run, status
from embedding_tasks.connections import Connection
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.encoders.text import TextEncoder
from embedding_tasks.use_case import Everything
from tests.fix_cli import Command
from tests.fix_models import ENCODE
from tests.fix_project import Project, end_state
from tests.forked import Forked

Write = Callable[..., None]


def worker(*arguments: str) -> Forked:
    return Forked("tests.worker_process", *arguments)


def ended(process: Forked) -> int:
    _, told = process.communicate()
    assert process.returncode in (0, -9), told
    return process.returncode


def shares(store: Connection) -> list[int]:
    """What each worker has embedded; nothing was computed in vain or written twice."""
    rows = store.execute(
        "SELECT embedded, discarded FROM embedline.run"
        " WHERE kind = 'work' OR embedded > 0"
    ).fetchall()
    assert {vain for _, vain in rows} <= {0}
    return sorted(count for count, _ in rows)


@pytest.fixture
def waiting(full_use_case: Project) -> Project:
    """120 records wait, to be written in batches of 4."""
    full_use_case.use_case(batch={"claim": 4, "lease_seconds": 5})
    run.sync_stage(full_use_case.request())
    return full_use_case


def test_workers_drain_one_ledger_without_overlap(
    waiting: Project, store: Connection
) -> None:
    processes = [worker() for _ in range(3)]
    assert [ended(process) for process in processes] == [0, 0, 0]
    assert sum(shares(store)) == 120
    assert status.of(store)[0]["stored"] == 120


def test_a_worker_that_joins_midway_takes_a_share(
    waiting: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one holds its second batch until the other has come and done some."""
    joined: list[Forked] = []
    calls: list[int] = []

    def slow(self: TextEncoder, inputs: Any) -> Encoded:
        calls.append(1)
        if len(calls) == 2:
            joined.append(worker())
            while sum(shares(store)) < 4 + 8:
                assert joined[0].poll() is None, joined[0].communicate()
                time.sleep(0.05)
        return ENCODE(self, inputs)

    monkeypatch.setattr(TextEncoder, "encode", slow)
    request = waiting.request()
    run.embed_stage(request, 0)
    assert ended(joined[0]) == 0
    first, second = shares(store)
    assert first + second == 120
    assert min(first, second) >= 8
    run.publish_stage(request)
    assert status.of(store)[0]["stored"] == 120


def test_a_worker_that_is_killed_loses_its_leases_and_nothing_else(
    waiting: Project, store: Connection
) -> None:
    victim = worker("3")
    assert ended(victim) == -9
    numbers = status.of(store)[0]
    stored = numbers["stored"]
    assert stored in (4, 8)
    assert 12 <= stored + numbers["leased"] <= 16  # one lease in each lane
    assert ended(worker()) == 0  # waits for the leases of the dead one
    assert shares(store) == [stored, 120 - stored]
    assert status.of(store)[0]["stored"] == 120


def test_however_many_workers_the_store_ends_the_same(
    full_use_case: Project, store: Connection
) -> None:
    full_use_case.run()
    wanted = end_state(store)
    full_use_case.use_case(batch={"claim": 4, "lease_seconds": 5})
    request = full_use_case.request(backfill=Everything(), reembed=True)
    run.sync_stage(request)
    for process in (worker("2"), worker(), worker()):
        ended(process)
    run.publish_stage(request)
    end_state(store).assert_same(wanted)


def test_work_says_what_it_did_and_leaves_the_runs_state_alone(
    embedline: Command, waiting: Project, store: Connection
) -> None:
    told = embedline("work", "messages")
    assert "done: 120 embedded" in told
    assert "nothing to do" in embedline("work", "messages")
    numbers = status.of(store)[0]
    assert (numbers["last_run_kind"], numbers["last_success"]) == ("cli", None)
    rows = store.execute(
        "SELECT state, embedded FROM embedline.run WHERE kind = 'work' ORDER BY id"
    ).fetchall()
    assert rows == [("success", 120), ("success", 0)]


def test_work_of_what_has_not_run_says_so(embedline: Command, project: Project) -> None:
    assert "nothing has run" in embedline("work", "messages", code=1)
