"""Several workers on this machine, each a process of its own, as one command.

What they say is passed on line by line, with their number. An error of one stops none
of the others: they finish what it leaves. Should this process be killed, they end at
the next thing they say, and give their leases back.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO

from embedding_tasks import device_lock
from embedding_tasks.local.signals import noted
from embedding_tasks.use_case import UseCase

Tell = Callable[[str], None]
Process = subprocess.Popen[str]

_LOOK_SECONDS = 0.1


def size(use_case: UseCase) -> int:
    """A worker for each GPU that an encoder of the use case may run on; one on a
    machine without."""
    asked = {
        str(feature.encoder.device)
        for feature in use_case.all_features.values()
        if hasattr(feature.encoder, "device")
    }
    devices = {i for device in asked for i in device_lock.candidates(device)}
    return max(1, len(devices))


def work(arguments: Sequence[str], count: int, out: Tell, err: Tell) -> int:
    """So many times the `embedline` command with these arguments, until all have
    ended. Returns the exit code of the first that failed, else 0. An interrupt goes to
    all, is waited for, and raised."""
    processes: list[Process] = []
    codes: list[int] = []  # in the order in which they end
    told = 0
    with noted() as interrupts:
        try:
            while len(processes) < count and not interrupts:
                number = len(processes) + 1
                processes.append(_started(arguments, number, out, err, codes))
        except BaseException:
            _interrupt(processes)
            raise
        while len(codes) < len(processes):
            if len(interrupts) > told:
                told = len(interrupts)
                _interrupt(processes)
            time.sleep(_LOOK_SECONDS)
    if interrupts:
        raise KeyboardInterrupt
    return next((code for code in codes if code), 0)


def _started(
    arguments: Sequence[str], number: int, out: Tell, err: Tell, codes: list[int]
) -> Process:
    process = subprocess.Popen(
        [sys.executable, "-m", "embedding_tasks", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "COLUMNS": "200"},
        process_group=0,  # a terminal's Ctrl-C reaches them through this process alone
    )
    assert process.stdout is not None
    assert process.stderr is not None
    readers = [
        _reader(process.stdout, f"worker {number}: ", out),
        _reader(process.stderr, f"worker {number}: ", err),
    ]

    def wait() -> None:
        for reader in readers:
            reader.join()
        code = process.wait()
        codes.append(128 - code if code < 0 else code)  # as a shell says it

    threading.Thread(target=wait, daemon=True).start()
    return process


def _reader(stream: IO[str], prefix: str, tell: Tell) -> threading.Thread:
    def read() -> None:
        with stream:
            for line in stream:
                tell(prefix + line.rstrip())

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def _interrupt(processes: Sequence[Process]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
