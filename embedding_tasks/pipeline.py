"""What becomes of one lease: read, embed, write; and of all leases, a lane each.

A worker has several lanes, so that one reads and another writes while the model runs.
No transaction of a lane is open while it waits for the model or runs it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace

from psycopg import sql

from embedding_tasks import ledger
from embedding_tasks.connections import Connection, blame, usable
from embedding_tasks.encoders import Encoder
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.errors import ModelError, Stopped, TransientError
from embedding_tasks.isolation import isolate
from embedding_tasks.lane_io import LaneIO, Records
from embedding_tasks.leases import Leases
from embedding_tasks.ledger import Lease
from embedding_tasks.store import copy
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.timeline import WORK, Stage, Timeline
from embedding_tasks.use_case import UseCase

log = logging.getLogger(__name__)

# Records the source has moved on from wait for the next sync, or for this long.
DEFER_SECONDS = 60.0


@dataclass
class Drained:
    """What a worker has done so far, in records. `pending` is what was waiting when
    it began, `seconds` what it took, waiting and loading the model apart."""

    pending: int = 0
    embedded: int = 0
    deferred: int = 0
    discarded: int = 0
    failed: int = 0
    dead: int = 0
    seconds: float = 0.0


Progress = Callable[[Drained], None]


@dataclass
class Job:
    """What the lanes of one worker share. `encoder` is loaded when it is first asked
    for; `tell` is given a copy of what was done after each lease."""

    use_case: UseCase
    version: ModelVersion
    run_id: int
    open_store: Callable[[], Connection]
    leases: Leases
    timeline: Timeline
    stopped: threading.Event
    encoder: Callable[[], Encoder]
    tell: Progress
    drained: Drained
    model_turn: threading.Lock = field(default_factory=threading.Lock)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _whole_failures: int = 0

    def count(self, store: Connection, column: str = "", **more: int) -> None:
        """Into what the worker has done; a column of the run's row, too."""
        with self._lock:
            for name, records in more.items():
                total = getattr(self.drained, name) + records
                setattr(self.drained, name, total)
        if column:
            store.execute(
                sql.SQL("UPDATE embedline.run SET {0} = {0} + %s WHERE id = %s").format(
                    sql.Identifier(column)
                ),
                [more[column], self.run_id],
            )

    def report(self) -> None:
        with self._lock:
            self.drained.seconds = self.timeline.busy
            self.tell(replace(self.drained))

    def batch_succeeded(self) -> None:
        with self._lock:
            self._whole_failures = 0

    def batch_failed(self, message: str) -> None:
        """Trouble that spares nothing is no record's fault. Raises `TransientError`
        the second time in a row, in whichever lanes."""
        log.error(
            "whole batch failed use_case=%s error=%s", self.use_case.name, message
        )
        with self._lock:
            self._whole_failures += 1
            if self._whole_failures == 2:
                raise TransientError(
                    "two whole batches failed in a row, so no record was charged: "
                    f"{message}"
                )


@dataclass(eq=False)
class Lane:
    """Carries leases, one at a time, in a thread of its own with connections of its
    own. `is_idle`: it waits for a lease, or has to do with the model alone."""

    job: Job
    number: int
    store: Connection
    io: LaneIO
    is_idle: bool = True
    _lease: Lease | None = None
    _is_leaving: bool = False
    _worked: float = 0.0
    _size: int = 0

    def work(self) -> None:
        """Until nothing is left. Raises what `Worker.drain` does, and `Stopped`."""
        self.io.start()
        with blame(store=self.store):
            while (lease := self._next_lease()) is not None:
                self.is_idle = False
                self._carry(lease)
                self.is_idle = True

    def leave(self) -> None:
        """What is still held is free at once for others. Where that cannot be said any
        more, it is free when the lease runs out."""
        self._is_leaving = True
        if self._lease is not None:
            with (
                suppress(Exception),
                usable(self.store, self.job.open_store) as store,
            ):
                self.job.leases.give_back(store, self._lease)
        self.io.close()
        self.store.close()

    def cancel(self) -> None:
        """The statement it may be in, from another thread."""
        if not self._is_leaving:
            with suppress(Exception):
                self.store.cancel_safe(timeout=1)
            self.io.cancel()

    def _next_lease(self) -> Lease | None:
        self._lease = self.job.leases.next(self.store, self.number)
        return self._lease

    def _carry(self, lease: Lease) -> None:
        self._worked = 0.0
        with self._stage("read"):
            records = self._read(lease)
        self._size = records.size
        if records.keys:
            self._embed(lease, records)
        self.job.leases.settle(self.store, lease, self._worked, self._size)
        self._lease = None
        self.job.report()

    @contextmanager
    def _stage(self, stage: Stage) -> Iterator[None]:
        if self.job.stopped.is_set() and stage != "write":
            raise Stopped("the worker was stopped")
        with self.job.timeline.span(self.number, stage) as clock:
            yield
        if stage in WORK:
            self._worked += clock.seconds

    def _read(self, lease: Lease) -> Records:
        records = self.io.read(lease)
        if records.unreadable:
            self._charge(lease, records.unreadable)
        if records.moved:
            put_off = ledger.defer(self.store, lease, records.moved, DEFER_SECONDS)
            self.job.count(self.store, "deferred", deferred=put_off)
        return records

    def _embed(self, lease: Lease, records: Records) -> None:
        trouble = None
        with self._model() as encoder:
            encoded, unencoded = isolate(encoder, records.inputs)
            errors = {**records.errors, **unencoded}
            errors |= _unfit(encoded, self.job.version)
            if len(errors) == len(records.keys):
                trouble = self._trouble(encoder)
        if trouble is not None:
            self.job.batch_failed(trouble)
            return
        self.job.batch_succeeded()
        if not self.job.leases.is_held(lease):
            raise Stopped("the worker was stopped, and its lease given back")
        self._size += encoded.vectors.nbytes
        with self._stage("write"):
            self._write(lease, records.keys, encoded, errors)

    @contextmanager
    def _model(self) -> Iterator[Encoder]:
        """The encoder, in turns where it is not made for several at once."""
        self.is_idle = True
        encoder = self.job.encoder()
        with ExitStack() as turn:
            if not encoder.shared:
                with self._stage("wait"):
                    turn.enter_context(self.job.model_turn)
            with self._stage("encode"):
                yield encoder
            # before the turn is another's: what has been computed will be written
            self.is_idle = False

    def _write(
        self,
        lease: Lease,
        keys: Sequence[str],
        encoded: Encoded,
        errors: Mapping[int, str],
    ) -> None:
        if len(errors) < len(keys):
            written = self.io.write(encoded, errors, self.job.timeline.bill())
            self.job.count(
                self.store, embedded=written.records, discarded=written.discarded
            )
        if errors:
            self._charge(lease, {keys[p]: e for p, e in errors.items()})

    def _charge(self, lease: Lease, errors: Mapping[str, str]) -> None:
        dead = ledger.fail(self.store, lease, errors, self.job.use_case.retry)
        self.job.count(self.store, "failed", failed=len(errors), dead=dead)
        key, message = next(iter(errors.items()))
        log.warning(
            "records failed use_case=%s rows=%d first_key=%s error=%s",
            *(self.job.use_case.name, len(errors), key, message),
        )

    def _trouble(self, encoder: Encoder) -> str | None:
        """Where nothing could be encoded: does the encoder still work at all? Then
        these records are to blame, however many they are."""
        try:
            probe = encoder.probe()
        except Stopped:
            raise
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return next(iter(_unfit(probe, self.job.version).values()), None)


def _unfit(encoded: Encoded, version: ModelVersion) -> dict[int, str]:
    if not len(encoded.vectors):
        return {}
    if encoded.vectors.shape[1] != version.dims:
        raise ModelError(
            f"the encoder gave {encoded.vectors.shape[1]} dimensions, model version "
            f"{version.version} has {version.dims}"
        )
    bad = copy.unfit(encoded.vectors, version.storage)
    return {
        int(position): f"InputError: its vector is not finite, all zero or too large "
        f"for {version.storage}"
        for position in encoded.inputs[bad]
    }
