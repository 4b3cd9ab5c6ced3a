"""A process of this machine that has one callable, and does what it is given by its
parent: Python code of several threads runs on one core."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from embedding_tasks.errors import TransientError
from embedding_tasks.local import process_child

_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


class Process:
    """Calls, in a process of its own, the callable that `build(*args)` makes there. It
    is started at its first call and, if it dies, again at the next one. `build` is a
    function of a module, and goes by pickle with `args`, what is called with and what
    comes back. `task` is what it does, in messages; what is `interruptible` can be
    ended by `interrupt`, wherever it is."""

    def __init__(
        self,
        task: str,
        build: Callable[..., Any],
        *args: Any,
        interruptible: bool = False,
    ) -> None:
        self._does = task
        self._task = pickle.dumps((build, args))
        self._interruptible = interruptible
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._closed = False

    def __call__(self, given: Any) -> Any:
        """Raises what the callable raises, and `TransientError` when it dies."""
        link = self._link or self._start()
        try:
            process_child.send(link, given)
            done, answer = process_child.receive(link)
        except (EOFError, OSError) as error:
            raise self._lost() from error
        if not done:
            raise answer
        return answer

    def _start(self) -> socket.socket:
        if self._closed:
            raise self._lost()
        link, theirs = socket.socketpair()
        command = [sys.executable, "-P", process_child.__file__]
        with theirs:
            self._link = link
            try:
                self._process = subprocess.Popen(
                    [*command, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.PIPE,  # what it ends with
                    stdout=subprocess.DEVNULL,
                    env={**os.environ, **_ENVIRONMENT},
                    process_group=0,
                )
            except OSError as error:
                self.end()
                raise TransientError(
                    f"a process that {self._does} cannot be started: {error}"
                ) from error
        try:
            process_child.send(link, (sys.path, self._task, self._interruptible))
        except OSError as error:
            raise self._lost() from error
        return link

    def _lost(self) -> TransientError:
        code = self.end()
        if self._closed:
            return TransientError(f"the process that {self._does} was ended")
        how = f"by signal {-code}" if code < 0 else f"with status {code}"
        if code == -signal.SIGKILL:
            how += ", as Linux ends one when memory runs out"
        return TransientError(f"a process that {self._does} ended {how}")

    def interrupt(self) -> None:
        """As Ctrl-C does: it cancels its statement, say, and is gone."""
        if (process := self._process) is not None:
            process.send_signal(signal.SIGINT)

    def close(self) -> None:
        self._closed = True
        self.end()

    def end(self) -> int:
        """What it ended with, at once: it has nothing to save."""
        process, link = self._process, self._link
        self._process = self._link = None
        if link is not None:
            with suppress(OSError):  # wakes a thread that waits for an answer
                link.shutdown(socket.SHUT_RDWR)
            link.close()
        if process is None or process.stdin is None:
            return 0
        with process.stdin:
            process.kill()
        return process.wait()
