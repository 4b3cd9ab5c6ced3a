"""Every way a terminal can end a program, as one KeyboardInterrupt."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType

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

    with _handled(stop):
        yield stopped


@contextmanager
def noted() -> Iterator[list[int]]:
    """The signals that have come, in place of an exception, which can fall between any
    two steps: a process that was just started would be known to nobody."""
    come: list[int] = []

    def note(number: int, frame: object) -> None:
        come.append(number)

    with _handled(note):
        yield come


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number in STOPS}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
