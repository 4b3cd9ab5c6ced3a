"""Every way a terminal can end a program, as one KeyboardInterrupt."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

# Ctrl-C, kill, and the end of the terminal. SIGINT, too: a shell that starts a job in
# the background has it ignored.
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interruptible() -> Iterator[Event]:
    """Raises KeyboardInterrupt in the main thread, and sets the event: an exception
    that falls into a finalizer is swallowed by Python, and a loop that looks at the
    event still stops."""
    stopped = Event()

    def stop(number: int, frame: object) -> None:
        stopped.set()
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, stop) for number in STOPS}
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def noted() -> Iterator[list[int]]:
    """The signals that have come, in place of an exception, which can fall between any
    two steps: a process that was just started would be known to nobody."""
    come: list[int] = []

    def note(number: int, frame: object) -> None:
        come.append(number)

    previous = {number: signal.signal(number, note) for number in STOPS}
    try:
        yield come
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
