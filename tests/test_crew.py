"""`embedline work --workers`: several workers of one machine as one command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from embedding_tasks import device_lock, run, status
from embedding_tasks.connections import Connection
from embedding_tasks.local import crew
from embedding_tasks.local.signals import interruptible
from tests.fix_cli import Command
from tests.fix_project import Project

Process = subprocess.Popen[str]
RECORDS = 600


@pytest.fixture
def waiting(project: Project, write_messages: Callable[..., None]) -> Project:
    """In leases of 4: seconds of work, so that there is a midway."""
    project.use_case(batch={"claim": 4, "lease_seconds": 5})
    write_messages(range(RECORDS))
    run.sync_stage(project.request())
    return project


@pytest.fixture
def command(waiting: Project) -> Iterator[Process]:
    """`embedline work messages --workers 2`, when both hold leases."""
    with subprocess.Popen(
        [
            *(sys.executable, "-W", "ignore", "-m", "embedding_tasks"),
            *("work", "messages", "--workers", "2"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        yield process
        process.kill()


def number(store: Connection, query: str) -> int:
    row = store.execute(query).fetchone()  # type: ignore[call-overload]
    return int(row[0])


def leased(store: Connection) -> int:
    return number(
        store, "SELECT count(*) FROM embedline.ledger WHERE lease_token IS NOT NULL"
    )


def both_at_work(command: Process, store: Connection) -> list[psutil.Process]:
    """The workers, when each holds a lease and one has written."""
    while (
        number(
            store,
            "SELECT count(DISTINCT lease_holder)"
            " * (SELECT least(1, sum(embedded)) FROM embedline.run)"
            " FROM embedline.ledger",
        )
        < 2
    ):
        assert command.poll() is None, command.communicate()
        time.sleep(0.02)
    return psutil.Process(command.pid).children()


def test_workers_of_one_command_share_the_queue(
    command: Process, store: Connection
) -> None:
    out, err = command.communicate(timeout=120)
    assert command.returncode == 0, err
    shares = store.execute(
        "SELECT embedded, discarded FROM embedline.run WHERE kind = 'work'"
    ).fetchall()
    assert {vain for _, vain in shares} == {0}
    assert sum(embedded for embedded, _ in shares) == RECORDS
    assert len(shares) == 2
    for worker in ("worker 1: ", "worker 2: "):
        assert f"{worker}done: " in out
        assert f"{worker}embedding messages: " in err


def test_one_that_dies_is_told_by_the_exit_code_and_its_work_done_by_the_others(
    command: Process, store: Connection
) -> None:
    victim, _ = both_at_work(command, store)
    victim.kill()
    out, err = command.communicate(timeout=120)
    assert command.returncode == 128 + signal.SIGKILL, err
    assert out.count("done: ") == 1
    assert status.of(store)[0]["stored"] == RECORDS


def test_ctrl_c_stops_all_workers_and_leaves_no_lease(
    command: Process, store: Connection
) -> None:
    workers = both_at_work(command, store)
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=30)
    assert command.returncode == 130
    assert "Traceback" not in err
    assert "\nstopped; what was finished is stored, the rest waits" in err
    assert not any(worker.is_running() for worker in workers)
    assert leased(store) == 0
    assert 0 < status.of(store)[0]["pending"] < RECORDS


def test_ctrl_c_while_workers_are_started_leaves_none_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Just when one has been started and nobody knows of it yet."""
    start = subprocess.Popen
    started: list[Process] = []

    def begin(command: list[str], **options: Any) -> Process:
        started.append(start(["sleep", "60"], **options))
        if len(started) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", begin)
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            crew.work([], 3, print, print)
        assert [process.poll() for process in started] == [-signal.SIGINT] * 2
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_workers_of_a_command_that_is_killed_end_and_give_their_leases_back(
    command: Process, store: Connection
) -> None:
    workers = both_at_work(command, store)
    command.kill()
    command.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    assert leased(store) == 0
    assert 0 < status.of(store)[0]["pending"] < RECORDS


def test_auto_is_one_worker_for_each_gpu_and_one_where_there_is_none(
    project: Project, monkeypatch: pytest.MonkeyPatch, embedline: Command
) -> None:
    cards = {0: "GPU-a", 1: "GPU-b", 2: "GPU-c"}
    case = project.use_case(encoder={"device": "auto"})
    monkeypatch.setattr(
        device_lock,
        "candidates",
        lambda asked: {"auto": cards, "cuda:1": {1: "GPU-b"}, "cpu": {}}[asked],
    )
    assert crew.size(case) == 3
    assert crew.size(project.use_case(encoder={"device": "cuda:1"})) == 1
    assert crew.size(project.use_case(encoder={"device": "cpu"})) == 1
    run.sync_stage(project.request())
    assert "nothing to do" in embedline("work", "messages", "--workers", "auto")


def test_auto_starts_as_many_processes(
    waiting: Project,
    monkeypatch: pytest.MonkeyPatch,
    embedline: Command,
    store: Connection,
) -> None:
    monkeypatch.setattr(crew, "size", lambda case: 2)
    told = embedline("work", "messages", "--workers", "auto")
    assert "worker 2: done: " in told
    assert number(store, "SELECT sum(embedded) FROM embedline.run") == RECORDS


@pytest.mark.parametrize("workers", ["0", "-1", "all", "1.5"])
def test_a_number_of_workers_that_is_none_is_refused(
    project: Project, embedline: Command, workers: str
) -> None:
    told = embedline("work", "messages", "--workers", workers, code=2)
    assert "valid: a number from 1, or auto" in told
