"""What the processes of `test_preparing` run, and a program that is ended with them:

python -m tests.preparing_tasks PROCESSES SECONDS
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from embedding_tasks.encoders.preparing import Preparation
from embedding_tasks.errors import InputError

Prepare = Callable[[Sequence[Any]], Any]


def squares(power: int = 2) -> Prepare:
    return lambda chunk: [x**power for x in chunk]


def slowly(seconds: float) -> Prepare:
    """The later a chunk of a worker is, the faster: they end out of order."""

    def prepare(chunk: Sequence[int]) -> tuple[int, list[int]]:
        time.sleep(seconds * (1 + chunk[0] % 3))
        return os.getpid(), [*chunk]

    return prepare


def large_arrays() -> Prepare:
    """Two large ones, a small one and a view that cannot go as it lies."""

    def prepare(chunk: Sequence[int]) -> dict[str, Any]:
        big = np.full((len(chunk), 3, 224, 224), chunk[0] % 251, np.uint8)
        return {
            "pixels": big,
            "mask": np.arange(100_003, dtype=np.float64) * chunk[0],
            "few": np.arange(5),
            "turned": np.arange(120_000).reshape(300, 400).T[::2],
        }

    return prepare


def touching(folder: str) -> Prepare:
    """Leaves a file for each chunk that it began."""

    def prepare(chunk: Sequence[int]) -> None:
        (Path(folder) / str(uuid4())).touch()

    return prepare


def strict() -> Prepare:
    def prepare(chunk: Sequence[Any]) -> Any:
        if 7 in chunk:
            raise InputError("seven")
        if 6 in chunk:
            raise ConnectionResetError("six")
        if 5 in chunk:
            return lambda: "cannot be pickled"
        if 8 in chunk:
            raise Unportable("eight", 8)
        return [*chunk]

    return prepare


class Unportable(Exception):
    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)


def dying() -> Prepare:
    def prepare(chunk: Sequence[int]) -> list[int]:
        if 3 in chunk:
            os.kill(os.getpid(), signal.SIGKILL)
        return [*chunk]

    return prepare


def unbuildable() -> Prepare:
    raise InputError("nothing to build with")


def facts() -> Prepare:
    return lambda chunk: {
        "pid": os.getpid(),
        "modules": sorted(sys.modules),
        "main": sys.modules["__main__"].__file__,
        "environment": {
            name: os.environ.get(name)
            for name in ("TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS")
        },
        "interrupted": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
    }


if __name__ == "__main__":
    # by its name: a process does not know its parent's main module
    from tests.preparing_tasks import slowly as build

    count, seconds = int(sys.argv[1]), float(sys.argv[2])
    work = Preparation(build, seconds, processes=count)
    for _, (pid, _) in work.run(range(10_000), 1):
        print(pid, flush=True)
