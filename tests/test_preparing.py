"""Inputs are prepared ahead, in order, and nothing is left when anybody dies."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from embedding_tasks.encoders import devices, preparing
from embedding_tasks.encoders.preparing import Preparation
from embedding_tasks.errors import InputError, Stopped, TransientError
from embedding_tasks.local import process_child
from tests import preparing_tasks as tasks

WAYS = [{}, {"threads": 3}, {"processes": 2}]
Make = Callable[..., Preparation[Any]]


@pytest.fixture
def made() -> Iterator[Make]:
    all_made: list[Preparation[Any]] = []

    def make(*args: Any, **options: Any) -> Preparation[Any]:
        all_made.append(Preparation(*args, **options))
        return all_made[-1]

    yield make
    for preparation in all_made:
        preparation.close()
    assert not children()


def children() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if any("process_child" in word for word in child.cmdline())
    ]


@pytest.mark.parametrize("way", WAYS)
def test_chunks_come_in_order_with_their_places(
    made: Make, way: dict[str, int]
) -> None:
    work = made(tasks.slowly, 0.01, **way)
    got = [*work.run(range(100, 130), 4)]
    assert [places for places, _ in got] == [
        range(start, min(start + 4, 30)) for start in range(0, 30, 4)
    ]
    for places, (_, chunk) in got:
        assert chunk == [100 + place for place in places]
    assert [*work.run([], 4)] == []


@pytest.mark.parametrize("way", WAYS)
def test_arguments_reach_the_callable(made: Make, way: dict[str, int]) -> None:
    got = made(tasks.squares, 3, **way).run([1, 2, 3], 2)
    assert [values for _, values in got] == [[1, 8], [27]]


def test_processes_start_at_first_use_and_stay(made: Make) -> None:
    work = made(tasks.slowly, 0.01, processes=2)
    assert not children()
    first = {pid for _, (pid, _) in work.run(range(8), 1)}
    assert first == {child.pid for child in children()}
    assert len(first) == 2
    assert {pid for _, (pid, _) in work.run(range(8), 1)} == first


def test_a_process_holds_what_its_callable_needs_and_no_more(made: Make) -> None:
    [(_, facts)] = made(tasks.facts, processes=1).run([0], 1)
    assert facts["main"] == process_child.__file__
    assert not {"torch", "transformers", "airflow", "pytest"} & {*facts["modules"]}
    assert facts["environment"] == {
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    assert facts["interrupted"]


@pytest.mark.parametrize("way", WAYS)
def test_work_ahead_is_bounded(made: Make, way: dict[str, int], tmp_path: Path) -> None:
    work = made(tasks.touching, str(tmp_path), **way)
    taking = work.run(range(1000), 2)
    next(taking)
    time.sleep(0.3)
    begun = len([*tmp_path.iterdir()])
    assert begun <= 2 * sum(way.values()) + 1
    next(taking)
    time.sleep(0.3)
    assert len([*tmp_path.iterdir()]) <= begun + 1
    taking.close()
    time.sleep(0.3)
    assert len([*tmp_path.iterdir()]) <= begun + 1
    if way:  # as many as a batch of the model takes
        before = len([*tmp_path.iterdir()])
        taking = work.run(range(1000), 2, 40)
        next(taking)
        time.sleep(0.5)
        assert len([*tmp_path.iterdir()]) - before == 21
        taking.close()
    assert len([*work.run(range(6), 2)]) == 3  # and it can run again


@pytest.mark.parametrize("way", WAYS)
def test_an_error_comes_with_its_inputs_at_its_place(
    made: Make, way: dict[str, int]
) -> None:
    got = []
    work = made(tasks.strict, **way)
    inputs = [0, 1, 2, 3, 0, 1, 7, 2, 3, 3]
    taking = (got.append(places.start) for places, _ in work.run(inputs, 2))
    with pytest.raises(InputError, match="seven") as caught:
        list(taking)
    assert got == [0, 2, 4]
    assert "preparing inputs 6 to 7" in caught.value.__notes__
    assert [values for _, values in work.run([1, 2], 1)] == [[1], [2]]


def test_an_error_that_cannot_be_pickled_still_says_what_it_is(made: Make) -> None:
    with pytest.raises(RuntimeError, match="Unportable: eight"):
        [*made(tasks.strict, processes=1).run([8], 1)]


def test_errors_of_connections_and_of_pickling_end_no_process(made: Make) -> None:
    work = made(tasks.strict, processes=1)
    [*work.run([1], 1)]
    [before] = children()
    with pytest.raises(ConnectionResetError, match="six"):
        [*work.run([6], 1)]
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        [*work.run([5], 1)]
    assert [values for _, values in work.run([1, 2], 1)] == [[1], [2]]
    assert children() == [before]


def test_a_fork_that_ends_takes_no_process_with_it(made: Make) -> None:
    work = made(tasks.squares, processes=1)
    [*work.run([1], 1)]
    [before] = children()
    if not (forked := os.fork()):
        work.close()
        os._exit(0)
    os.waitpid(forked, 0)
    assert [values for _, values in work.run([3], 1)] == [[9]]
    assert children() == [before]


def test_a_callable_that_cannot_be_built_says_so(made: Make) -> None:
    work = made(tasks.unbuildable, processes=1)
    for _ in range(2):
        with pytest.raises(InputError, match="nothing to build with"):
            [*work.run([1], 1)]


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_large_arrays_are_what_they_were_and_can_be_written(
    made: Make, way: dict[str, int], shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shares:  # as where an operating system has no memory without a name
        monkeypatch.setattr(process_child, "_CAN_SHARE", False)
    wanted = tasks.large_arrays()
    kept = [*made(tasks.large_arrays, **way).run(range(1, 9), 2)]
    for places, arrays in kept:
        again = wanted(range(places.start + 1, places.stop + 1))
        for name, array in arrays.items():
            assert (array == again[name]).all()
            assert array.dtype == again[name].dtype
        arrays["pixels"][:] = 0  # it belongs to whoever took it
        assert not arrays["pixels"].any()


def test_memory_of_large_arrays_goes_back(made: Make) -> None:
    work = made(tasks.large_arrays, processes=2)
    process = psutil.Process()

    def held() -> int:
        [*work.run(range(64), 32)]
        for _ in work.run(range(1600), 32):  # 240 MB
            pass
        return process.memory_info().rss

    descriptors = [process.num_fds(), held() and process.num_fds()]
    before, after = held(), held()
    assert after - before < 40 << 20
    assert process.num_fds() == descriptors[1]


def test_several_threads_run_at_once(made: Make) -> None:
    work = made(tasks.squares, processes=2)

    def own(start: int) -> list[int]:
        numbers = range(start, start + 200)
        return [value for _, values in work.run(numbers, 7) for value in values]

    with ThreadPoolExecutor(4) as lanes:
        for start, got in zip(range(4), lanes.map(own, range(4)), strict=True):
            assert got == [n**2 for n in range(start, start + 200)]


def test_a_process_that_dies_is_transient_and_its_place_is_taken(made: Make) -> None:
    work = made(tasks.dying, processes=2)
    with pytest.raises(TransientError, match=r"ended by signal 9, .* memory runs out"):
        [*work.run(range(8), 1)]
    got = [values for _, values in work.run([4, 5, 6, 7], 1)]
    assert got == [[4], [5], [6], [7]]


def test_a_process_killed_while_it_works_is_no_hang(made: Make) -> None:
    work = made(tasks.slowly, 5.0, processes=1)
    threading.Timer(1.0, lambda: children()[0].kill()).start()
    began = time.monotonic()
    with pytest.raises(TransientError, match="signal 9"):
        [*work.run([0], 1)]
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("way", [{"threads": 2}, {"processes": 2}])
def test_stopped_ends_all_who_wait(made: Make, way: dict[str, int]) -> None:
    stopped = threading.Event()
    work = made(tasks.slowly, 1.0, stopped=stopped, **way)

    def lane(start: int) -> Exception:
        with pytest.raises(Stopped) as caught:
            [*work.run(range(start, 1000), 1)]
        return caught.value

    threading.Timer(0.5, stopped.set).start()
    began = time.monotonic()
    with ThreadPoolExecutor(2) as lanes:
        assert len([*lanes.map(lane, [0, 1])]) == 2
    assert time.monotonic() - began < 2.5
    assert not children()


def test_whoever_lets_go_of_it_ends_its_processes() -> None:
    work = Preparation(tasks.squares, processes=1)
    [*work.run([1], 1)]
    assert len(children()) == 1
    del work
    assert not children()


@pytest.fixture
def program() -> Iterator[subprocess.Popen[str]]:
    """One that prepares without end, in a group of its own, as in a terminal."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.preparing_tasks", "2", "0.2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        yield running
        running.kill()


def ended(pids: set[int]) -> bool:
    def running(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return not any(running(pid) for pid in pids)


def workers_of(program: subprocess.Popen[str]) -> set[int]:
    assert program.stdout is not None
    return {int(program.stdout.readline()) for _ in range(6)}


def shared_memory() -> set[str]:
    """Servers of other tests, which come and go meanwhile, left out."""
    names = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []
    return {name for name in names if not name.startswith("PostgreSQL.")}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_parent_that_is_killed_leaves_no_process_and_no_memory(
    program: subprocess.Popen[str], number: int
) -> None:
    before = shared_memory()
    pids = workers_of(program)
    assert len(pids) == 2
    program.send_signal(number)
    program.wait()
    until = time.monotonic() + 3
    while not ended(pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert ended(pids)
    assert shared_memory() <= before


def test_ctrl_c_in_a_terminal_ends_all_and_only_the_parent_speaks(
    program: subprocess.Popen[str],
) -> None:
    pids = workers_of(program)
    began = time.monotonic()
    os.killpg(program.pid, signal.SIGINT)
    _, said = program.communicate(timeout=10)
    assert time.monotonic() - began < 3
    assert said.count("KeyboardInterrupt\n") == 1
    assert said.count("Traceback") == 1
    assert ended(pids)


@pytest.mark.parametrize(
    ("cores", "cards", "processes"),
    [(16, 1, 14), (32, 2, 14), (128, 8, 14), (128, 1, 126), (2, 1, 1), (2, 8, 1)],
)
def test_the_workers_of_all_devices_fit_a_machines_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, cards: int, processes: int
) -> None:
    """Each has two more, which feed its device, read and write."""
    monkeypatch.setattr(preparing, "cores", lambda: cores)
    assert preparing.processes(cards) == processes
    assert processes == 1 or cards * (processes + 2) <= cores


def test_a_device_that_is_hidden_from_a_worker_has_its_share_of_cores_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """CUDA_VISIBLE_DEVICES shows each of four workers one of four cards."""
    for name in ("0000:01:00.0", "0000:02:00.0", "0000:03:00.0", "0000:04:00.0"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(devices, "_CARDS", tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(preparing, "cores", lambda: 64)
    assert devices.processes_beside(torch.device("cuda:0")) == 14
    assert devices.processes_beside(torch.device("cpu")) == 0


def test_this_machines_cores_are_counted() -> None:
    assert 1 <= preparing.cores() <= (os.cpu_count() or 1)
