"""`python -m MODULE ARGUMENT…`, forked from a process that has imported already what
models need: a fresh one spends seconds on that."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext

IMPORTED = [
    "embedding_tasks.cli",
    "embedding_tasks.encoders.configuration",
    "embedding_tasks.encoders.text",
    "embedding_tasks.encoders.tokens",
    "tests.chaos.tasks",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
]


def context() -> ForkServerContext:
    os.environ["OMP_NUM_THREADS"] = "1"
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(IMPORTED)
    return made


class Forked:
    """As much of `subprocess.Popen` as the tests need."""

    def __init__(self, module: str, *arguments: str) -> None:
        forks = context()
        pipes = [forks.Pipe(duplex=False) for _ in range(3)]
        (input_, self._in), (self._out, output), (self._err, errors) = pipes
        self._process = forks.Process(
            target=_become,
            args=(module, arguments, dict(os.environ), (input_, output, errors)),
            daemon=True,
        )
        self._process.start()
        for end in (input_, output, errors):
            end.close()
        self.stdin = os.fdopen(self._in.fileno(), "w", closefd=False)
        self.stdout = os.fdopen(self._out.fileno(), closefd=False)
        self.stderr = os.fdopen(self._err.fileno(), closefd=False)
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        assert self.returncode is not None, f"it goes on after {timeout} s"
        return self.returncode

    def communicate(self, told: str = "", timeout: float = 120) -> tuple[str, str]:
        self.stdin.write(told)
        self.stdin.flush()
        self._in.close()
        killer = threading.Timer(timeout, self.kill)
        killer.start()
        errors = self.stderr.read()
        output = self.stdout.read()
        killer.cancel()
        self._process.join()
        return output, errors


def _become(
    module: str,
    arguments: Sequence[str],
    environment: dict[str, str],
    pipes: Sequence[Connection],
) -> None:
    os.setsid()
    for number, pipe in enumerate(pipes):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    sys.stdin = os.fdopen(0, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    warnings.simplefilter("ignore")
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
