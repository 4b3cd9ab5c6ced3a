"""A worker: lanes that carry leases until nothing is left to lease.

The main thread loads the model, tells the progress and is where an interrupt arrives;
the lanes do the rest. Whatever stops a worker (an error, Ctrl-C, SIGKILL), what it had
written stays, and what it held goes back: at once where it can still say so, else when
its lease runs out.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from queue import Empty, SimpleQueue

from embedding_tasks import device_lock, encoders, ledger, runs
from embedding_tasks.connections import Connection, Resolve, blame, usable
from embedding_tasks.device_lock import Held
from embedding_tasks.encoders import Encoder, Runtime
from embedding_tasks.errors import Stopped
from embedding_tasks.lane_io import Apart, Here, LaneIO, Work
from embedding_tasks.leases import Leases
from embedding_tasks.pipeline import Drained, Job, Lane, Progress
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.timeline import Span, Timeline
from embedding_tasks.use_case import Feature, UseCase

log = logging.getLogger(__name__)

# One lane has the model, the other writes what it has left and reads what comes next.
LANES = 2
# An accelerator that several lanes feed at once must not wait for those that read and
# write. In threads more than five only keep each other waiting.
LANES_OF_SHARED = 5
# With as many records as this before it, each reads and writes in a process of its own,
# which takes a second to start.
LANES_APART, WORTH_A_PROCESS = 8, 10_000
# A batch that is being written when a worker is stopped may be finished within this.
_GRACE_SECONDS = 1.0
_CANCEL_SECONDS = 0.5
# An interrupt is sure to be noticed within this: one that comes just before a wait
# begins does not end the wait.
_NOTICE_SECONDS = 0.2
# How often the connections that have nothing to say are looked at, and so kept open
# where something in between closes those that are idle.
_LOOK_SECONDS = 30.0
# Interrupts that come while a worker stops; with one more it is left as it is.
_PATIENCE = 3


@dataclass
class Worker:
    """Drains one model version's queue. `open_store` makes further connections, for
    the lanes and for renewing leases; `store_conninfo` is for those of lanes that read
    and write in processes of their own. `spans`, where given, takes what each lane did
    when."""

    store: Connection
    open_store: Callable[[], Connection]
    store_conninfo: str
    source_conninfo: str
    use_case: UseCase
    version: ModelVersion
    run_id: int
    holder: str
    resolve: Resolve | None = None
    progress: Progress = lambda drained: None
    spans: list[Span] | None = None
    drained: Drained = field(default_factory=Drained)
    _stopped: threading.Event = field(default_factory=threading.Event)
    # what the lanes want done in the main thread
    _calls: SimpleQueue[Callable[[], None]] = field(default_factory=SimpleQueue)
    _encoder: Future[Encoder] = field(default_factory=Future)
    _asked_for: threading.Lock = field(default_factory=threading.Lock)
    _numbers: Iterator[int] = field(default_factory=count)
    _lanes: dict[Lane, threading.Thread] = field(default_factory=dict)
    _device: Held | None = None
    _look_at: float = 0.0
    _is_accounted: bool = False

    def __post_init__(self) -> None:
        self._timeline = Timeline(self.spans)
        self._leases = Leases(
            *(self.use_case, self.version, self.holder),
            *(self.open_store, self._stopped, self._timeline),
        )
        self._job = Job(
            self.use_case,
            self.version,
            self.run_id,
            self.open_store,
            self._leases,
            self._timeline,
            self._stopped,
            encoder=self._loaded,
            tell=lambda drained: self._calls.put(partial(self.progress, drained)),
            drained=self.drained,
        )

    def drain(self) -> Drained:
        """The first error of any lane is raised: `DatabaseAway`, `DeviceError`,
        `ModelError` or `SourceError`; no record is charged for those."""
        with blame(store=self.store):
            self._drain()
        return self.drained

    def _drain(self) -> None:
        ledger.take_over(self.store, self.version, self.holder)
        waiting = self._waiting()
        self.drained.pending = waiting
        self.progress(replace(self.drained))
        if not waiting:
            return
        # before anything is leased: nobody can drain what one who waits has leased
        if not (devices := self._devices()):
            self._carry(waiting)
            return
        with device_lock.hold(
            self.open_store, devices, is_wanted=lambda: self._waiting() > 0
        ) as self._device:
            if self._device is not None:
                self._carry(waiting)

    def _carry(self, waiting: int) -> None:
        with self._leases.renewed():
            try:
                # those of an accelerator start while the model is loaded
                lanes = LANES_APART if self._is_apart else LANES
                self._staff(min(lanes, self._worth(waiting)))
                while self._lanes:
                    self._next_call()
                self._keep_account(self.store)
            except BaseException:
                self._halt_for_sure()
                raise
            finally:
                self._stopped.set()
                self._encoder = Future()  # what is loaded next may need its memory

    def _next_call(self) -> None:
        if time.monotonic() > self._look_at:
            self.store.execute("SELECT")
            if self._device is not None:
                self._device.look()
            self._look_at = time.monotonic() + _LOOK_SECONDS
        try:
            call = self._calls.get(timeout=_NOTICE_SECONDS)
        except Empty:
            return
        call()

    def _waiting(self) -> int:
        seconds = self.use_case.batch.lease_seconds
        left = ledger.outstanding(self.store, self.version, seconds)
        return left.claimable + left.leased

    def _worth(self, waiting: int) -> int:
        """How many leases there are in it, as large as the first."""
        return math.ceil(waiting / self._leases.pace.records)

    def _staff(self, lanes: int) -> None:
        while len(self._lanes) < lanes:
            number = next(self._numbers)
            # here: what resolves connections may not be made for several threads
            store = self.open_store()
            lane = Lane(self._job, number, store, self._io(store))
            thread = threading.Thread(
                target=self._work, args=[lane], name=f"lane-{number}", daemon=True
            )
            self._lanes[lane] = thread
            thread.start()

    def _io(self, store: Connection) -> LaneIO:
        work = Work(self.use_case, self.version, self.run_id, self.source_conninfo)
        return Apart(work, self.store_conninfo) if self._is_apart else Here(store, work)

    @property
    def _is_apart(self) -> bool:
        return self._device is not None and self.drained.pending >= WORTH_A_PROCESS

    def _work(self, lane: Lane) -> None:
        try:
            lane.work()
        except BaseException as error:
            self._calls.put(partial(_raise, error))
        finally:
            try:
                lane.leave()
            finally:
                self._calls.put(partial(self._dismiss, lane))

    def _dismiss(self, lane: Lane) -> None:
        self._lanes.pop(lane).join()

    def _loaded(self) -> Encoder:
        """Asked for by lanes, loaded in the main thread, where an interrupt can reach
        a load that takes long."""
        if self._asked_for.acquire(blocking=False):
            self._calls.put(self._load)
        return self._encoder.result()

    def _load(self) -> None:
        began = time.monotonic()
        encoder = encoders.load(
            self.version,
            Runtime(
                device=self._place,
                tokens=self.use_case.batch.tokens,
                resolve=self.resolve,
                open_store=self.open_store,
                stopped=self._stopped,
            ),
        )
        log.info(
            "loaded model use_case=%s version=%d seconds=%.1f",
            *(self.use_case.name, self.version.version, time.monotonic() - began),
        )
        self._encoder.set_result(encoder)
        if encoder.shared:
            self._staff(min(LANES_OF_SHARED, self._worth(self.drained.pending)))

    @property
    def _feature(self) -> Feature:
        return self.use_case.all_features[self.version.feature]

    @property
    def _place(self) -> str:
        return f"cuda:{self._device.index}" if self._device else self._feature.device

    def _devices(self) -> dict[int, str]:
        """Those of which one is to be had, where the encoder runs on any."""
        runs_on_one = hasattr(self._feature.encoder, "device")
        return device_lock.candidates(self._feature.device) if runs_on_one else {}

    def _halt_for_sure(self) -> None:
        for _ in range(_PATIENCE):
            with suppress(BaseException):
                return self._halt()
        return self._halt()

    def _halt(self) -> None:
        """Stops the lanes, and gives back what they hold, at once. One that has
        nothing more to do than to write may do so."""
        self._stopped.set()
        self._leases.wake()
        if not self._encoder.done():
            self._encoder.set_exception(Stopped("the worker was stopped"))
        until = time.monotonic() + _GRACE_SECONDS
        while time.monotonic() < until and any(
            thread.is_alive() and not lane.is_idle
            for lane, thread in self._lanes.items()
        ):
            time.sleep(0.01)
        for lane in self._lanes:
            lane.cancel()
        self._give_back()
        for lane, thread in self._lanes.items():
            while thread.is_alive():
                thread.join(_CANCEL_SECONDS)
                lane.cancel()
        self._give_back()
        with suppress(Exception):  # what has stopped the worker matters more
            self._keep_account(self.store)

    def _give_back(self) -> None:
        with (
            suppress(Exception),
            usable(self.store, self.open_store) as store,
        ):
            self._leases.give_back(store)

    def _keep_account(self, store: Connection) -> None:
        if self._is_accounted:
            return
        self._is_accounted = True
        stages = self._timeline.sums()
        self.drained.seconds = self._timeline.busy
        seconds = self._timeline.bill()
        runs.worked(store, self.run_id, seconds, stages, self._made_with())
        log.info(
            "stages use_case=%s version=%d %s",
            *(self.use_case.name, self.version.version),
            " ".join(f"{stage}={took:.2f}" for stage, took in stages.items()),
        )

    def _made_with(self) -> dict[str, dict[str, str]]:
        """As it is at the end: a model may have gone on in another precision."""
        if not self._encoder.done() or self._encoder.exception():
            return {}
        return {str(self.version.version): self._encoder.result().surroundings()}


def _raise(error: BaseException) -> None:
    raise error
