"""What a model reads of its inputs, made ahead of it: texts cut into tokens, images
decoded. In threads where the model's own work is on the same cores, in processes where
it is not: Python code of several threads runs on one core.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from embedding_tasks.errors import Stopped
from embedding_tasks.local.process import Process

T = TypeVar("T")
Prepare = Callable[[Sequence[Any]], T]

# Beside a model that is on the same cores, and for images that are waited for.
THREADS = min(8, max(2, os.cpu_count() or 2))
# Chunks under way for each worker: one that it is at, one that waits.
_AHEAD = 2
_LOOK_SECONDS = 0.2
# Of each device's share: one core feeds it, one reads and writes.
_SPARED = 2


def cores() -> int:
    """Those this process may use: its affinity, and its container's quota."""
    allowed = getattr(os, "sched_getaffinity", None)
    count = len(allowed(0)) if allowed else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, int(quota) // int(period)))
    return count


def processes(devices: int = 1) -> int:
    """For one of so many devices that share this machine."""
    return max(1, cores() // max(1, devices) - _SPARED)


class Preparation(Generic[T]):
    """Runs the callable that `build(*args)` makes on chunks of inputs, in `processes`
    of their own, else in `threads`, else where it is asked for.

    Each worker builds its own callable at its first chunk, keeps it, and never runs
    it twice at a time. A process gets `build`, `args` and inputs by pickle: `build` is
    a function of a module. `stopped` ends a wait with `Stopped`, and the workers.
    """

    def __init__(
        self,
        build: Callable[..., Prepare[T]],
        *args: Any,
        processes: int = 0,
        threads: int = 0,
        stopped: threading.Event | None = None,
    ) -> None:
        self._count = processes or threads
        self._stopped = stopped or threading.Event()
        self._own = threading.local()
        self._inline: list[Prepare[T]] = []
        self._one_at_a_time = threading.Lock()
        started: list[Process] = []
        self._pool = ThreadPoolExecutor(max(1, self._count), "preparing")
        self._end = weakref.finalize(self, _end, self._pool, started, os.getpid())

        def make() -> Prepare[T]:
            if not processes:
                return build(*args)
            started.append(Process("prepares inputs", build, *args))
            return started[-1]

        self._make = make

    def run(
        self, inputs: Sequence[Any], chunk: int, ahead: int = 0
    ) -> Iterator[tuple[range, T]]:
        """What was made of each `chunk` of inputs, in order, with their positions. Two
        chunks for each worker, or those of `ahead` inputs where these are more, are
        worked on before they are asked for; who stops taking them cancels what has not
        begun. Several threads may run it at once. Raises what the callable raises, and
        `TransientError` when a process dies."""
        coming: deque[tuple[range, Future[T]]] = deque()
        most = self._count and max(self._count * _AHEAD, ahead // chunk)
        try:
            for start in range(0, len(inputs), chunk):
                places = range(start, min(start + chunk, len(inputs)))
                coming.append((places, self._submitted(inputs[start : places.stop])))
                if len(coming) > most:
                    yield self._taken(*coming.popleft())
            while coming:
                yield self._taken(*coming.popleft())
        except Exception:
            self._refuse_when_stopped()  # by another thread, which ended the workers
            raise
        finally:
            for _, future in coming:
                future.cancel()

    def close(self) -> None:
        """Ends the workers at once; this cannot run again."""
        self._end()

    def _submitted(self, chunk: Sequence[Any]) -> Future[T]:
        self._refuse_when_stopped()
        if self._count:
            return self._pool.submit(self._worked, chunk)
        future: Future[T] = Future()
        try:
            future.set_result(self._worked_here(chunk))
        except Exception as error:
            future.set_exception(error)
        return future

    def _worked_here(self, chunk: Sequence[Any]) -> T:
        with self._one_at_a_time:
            self._inline = self._inline or [self._make()]
            return self._inline[0](chunk)

    def _worked(self, chunk: Sequence[Any]) -> T:
        if not hasattr(self._own, "prepare"):
            self._own.prepare = self._make()
        made: T = self._own.prepare(chunk)
        return made

    def _taken(self, places: range, future: Future[T]) -> tuple[range, T]:
        while not wait([future], _LOOK_SECONDS).done:
            self._refuse_when_stopped()
        try:
            return places, future.result()
        except Exception as error:
            error.add_note(f"preparing inputs {places.start} to {places.stop - 1}")
            raise

    def _refuse_when_stopped(self) -> None:
        if self._stopped.is_set():
            self.close()
            raise Stopped("stopped while inputs were prepared")


def _end(pool: ThreadPoolExecutor, started: list[Process], owner: int) -> None:
    if os.getpid() != owner:  # a fork has them, too, and they are not its own
        return
    pool.shutdown(wait=False, cancel_futures=True)
    for process in started:
        process.close()
