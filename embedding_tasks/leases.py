"""The leases of one worker: taken one lane at a time, renewed, given back.

How many records a lease holds follows from how long they take: enough that what a
lease costs by itself does not show, few enough that progress does, and that little is
lost with a worker that is killed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from embedding_tasks import ledger
from embedding_tasks.connections import Connection
from embedding_tasks.errors import Stopped
from embedding_tasks.ledger import Lease
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.timeline import Timeline
from embedding_tasks.use_case import UseCase

log = logging.getLogger(__name__)

# What a lease should take. Claiming, reading and writing cost some 10 ms however few
# records there are, and a lease in each lane is what a kill loses.
SECONDS_PER_LEASE = 2.0
FIRST_RECORDS = 256
# Of inputs and vectors; a lease is in memory as a whole, in each lane.
BYTES_PER_LEASE = 128_000_000
# Each claims records of its own; more would find those of others locked and look on.
CLAIMS_AT_ONCE = 2
# A first lease may be slow for reasons of its own (kernels are compiled, caches
# filled), a short one fast by chance.
_MOST_GROWTH = 4.0


@dataclass
class Pace:
    """How many records the next lease should hold, and `most` at all."""

    most: int
    records: int = 0

    def __post_init__(self) -> None:
        self.records = min(self.most, FIRST_RECORDS)

    def learn(self, records: int, seconds: float, size: int = 0) -> None:
        """`seconds` of work on `records` of `size` bytes; of half a lease and less
        nothing follows."""
        if 2 * records <= self.records:
            return
        by_time = records * SECONDS_PER_LEASE / max(seconds, 1e-6)
        by_size = records * BYTES_PER_LEASE / max(size, 1)
        grown = min(by_time, by_size, _MOST_GROWTH * self.records, self.most)
        self.records = max(1, int(grown))


@dataclass
class Leases:
    """`stopped` ends every wait with `Stopped`, once `wake` was called."""

    use_case: UseCase
    version: ModelVersion
    holder: str
    open_store: Callable[[], Connection]
    stopped: threading.Event
    timeline: Timeline
    pace: Pace = field(init=False)
    _held: dict[UUID, Lease | None] = field(default_factory=dict)
    _settled: int = 0
    _told: bool = False
    _turn: threading.Semaphore = field(
        default_factory=lambda: threading.Semaphore(CLAIMS_AT_ONCE)
    )
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.pace = Pace(self.use_case.batch.claim)

    def next(self, store: Connection, lane: int) -> Lease | None:
        """None when nothing is left. What others hold is waited for: they finish it,
        or lose it when their lease runs out. A few lanes ask, the
        others wait for them."""
        with self._turn:
            while not self.stopped.is_set():
                seen = self._settled
                with self.timeline.span(lane, "claim"):
                    lease = self._claim(store)
                if lease is not None:
                    return lease
                left = ledger.outstanding(store, self.version, self._seconds)
                if not left.claimable and not left.leased:
                    return None
                self._wait(left, seen)
        raise Stopped("the worker was stopped")

    def is_held(self, lease: Lease) -> bool:
        with self._changed:
            return lease.token in self._held

    def settle(
        self, store: Connection, lease: Lease, seconds: float, size: int
    ) -> None:
        """Records that were not written are free again. The lease took `seconds`, and
        `size` bytes."""
        ledger.release(store, lease.token)
        with self._changed:
            self._held.pop(lease.token, None)
            self._settled += 1
            self.pace.learn(len(lease.hashes), seconds, size)
            self._changed.notify_all()

    def give_back(self, store: Connection, lease: Lease | None = None) -> None:
        """At once and without charge; all there are, or one."""
        with self._changed:
            tokens = [*self._held] if lease is None else [lease.token]
        for token in tokens:
            # first: who finds it gone does not begin to write
            with self._changed:
                held = self._held.pop(token, None)
            try:
                ledger.release(store, token)
            except BaseException:
                with self._changed:
                    self._held[token] = held
                raise

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Renews them from a thread of its own, so that a slow batch keeps its lease. A
        renewal that fails loses time at worst: the fence guards the write."""
        done = threading.Event()
        thread = threading.Thread(
            target=self._renew_until, args=[done], name="renew-leases", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    @property
    def _seconds(self) -> int:
        return self.use_case.batch.lease_seconds

    def _claim(self, store: Connection) -> Lease | None:
        token = uuid4()
        with self._changed:
            self._held[token] = None  # known before it is given: it may be cut short
        lease = ledger.claim(
            *(store, self.version, self.holder),
            *(self.pace.records, self._seconds, token),
        )
        with self._changed:
            if not lease.hashes:
                self._held.pop(token, None)
                return None
            self._held[token] = lease
        return lease

    def _wait(self, left: ledger.Outstanding, seen: int) -> None:
        """For a lane of our own, for other workers, or for a sync that has records
        locked and is about to commit."""
        with self._changed:
            own = sum(len(lease.hashes) for lease in self._held.values() if lease)
            if left.leased > own and not self._told:
                log.warning(
                    "waiting use_case=%s rows=%d seconds=%.0f: another run holds them; "
                    "if it has died, so long",
                    *(self.use_case.name, left.leased - own, left.seconds),
                )
                self._told = True
            self._changed.wait_for(
                lambda: self.stopped.is_set() or self._settled != seen,
                timeout=min(max(left.seconds, 0.1), 2.0),
            )

    def _renew_until(self, done: threading.Event) -> None:
        while not done.wait(self._seconds / 3):
            with self._changed:
                leases = [lease for lease in self._held.values() if lease]
            if not leases:
                continue
            try:
                with self.open_store() as connection:
                    ledger.renew(connection, *leases)
            except Exception as error:
                log.warning("lease not renewed error=%s", error)
