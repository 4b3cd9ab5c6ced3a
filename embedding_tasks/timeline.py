"""Where a worker's time goes: what each of its lanes did when, and the sums of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

# Waiting: for another lane that has the model.
Stage = Literal["claim", "read", "wait", "encode", "write"]
WORK = ("read", "encode", "write")


class Span(NamedTuple):
    """By `time.monotonic`."""

    lane: int
    stage: Stage
    began: float
    ended: float


@dataclass
class Clock:
    began: float
    ended: float = 0.0

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Timeline:
    """Seconds by stage, of all lanes together, and `busy`: the worker's own seconds in
    which at least one of them worked. Spans go into `spans` where that is given."""

    def __init__(self, spans: list[Span] | None = None) -> None:
        self._spans = spans
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._sums: dict[str, float] = {}
        self._at_work = 0
        self._since = 0.0
        self._busy = 0.0
        self._billed = 0.0

    @contextmanager
    def span(self, lane: int, stage: Stage) -> Iterator[Clock]:
        clock = Clock(time.monotonic())
        self._turn_to(stage, clock.began)
        try:
            yield clock
        finally:
            clock.ended = time.monotonic()
            self._add(Span(lane, stage, clock.began, clock.ended))

    @property
    def busy(self) -> float:
        with self._lock:
            return self._busy_now()

    def bill(self) -> float:
        """Busy seconds since the last bill: however the lanes overlap, all bills
        together are what the worker was busy."""
        with self._lock:
            due = self._busy_now() - self._billed
            self._billed += due
            return due

    def sums(self) -> dict[str, float]:
        """With `wall`, the seconds since the worker began."""
        with self._lock:
            wall = time.monotonic() - self._began
            return {**self._sums, "wall": wall} if self._sums else {}

    def _turn_to(self, stage: Stage, now: float) -> None:
        if stage in WORK:
            with self._lock:
                self._since = self._since if self._at_work else now
                self._at_work += 1

    def _add(self, span: Span) -> None:
        with self._lock:
            took = span.ended - span.began
            self._sums[span.stage] = self._sums.get(span.stage, 0.0) + took
            if self._spans is not None:
                self._spans.append(span)
            if span.stage in WORK:
                self._at_work -= 1
                if not self._at_work:
                    self._busy += span.ended - self._since

    def _busy_now(self) -> float:
        running = time.monotonic() - self._since if self._at_work else 0.0
        return self._busy + running
