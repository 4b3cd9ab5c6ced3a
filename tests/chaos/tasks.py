"""Airflow's part: schedulers that run the same use case, every task a process that can
be killed. Tasks are forked from one that has imported already what they need."""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from embedding_tasks import encoders, run, use_case
from embedding_tasks.encoders import Encoder
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.errors import (
    DeviceError,
    StoreError,
    ThresholdError,
    TransientError,
)
from embedding_tasks.use_case import Scope
from tests.chaos import mutants
from tests.chaos.scene import NAME
from tests.chaos.writers import POISON
from tests.forked import context

SLOT_SECONDS = 1.5
WORKERS = 2
# The end of a run's name that is to fill a fresh table.
FRESH = "_fresh"


@dataclass(frozen=True)
class Orders:
    """What a task needs to know of the storm it runs in."""

    folder: Path
    store: str
    mutant: str | None = None
    lost_devices: float = 0.02
    delays: tuple[float, ...] = (0, 0.1, 0.3, 0.9)

    def obey(self) -> None:
        os.environ["EMBEDLINE_PROJECT"] = str(self.folder)
        os.environ["EMBEDLINE_HOME"] = str(self.folder)
        os.environ["EMBEDLINE_STORE_DSN"] = self.store
        torch.set_num_threads(1)
        logging.disable()
        mutants.break_build(self.mutant)
        load = encoders.load
        encoders.load = lambda *args: Troubled(load(*args), self)  # type: ignore[assignment]


@dataclass
class Troubled:
    """A real encoder that takes its time, cannot stand poison and loses its GPU."""

    inner: Encoder
    orders: Orders

    @property
    def shared(self) -> bool:
        return self.inner.shared

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        # less where a batch with poison is halved again and again
        time.sleep(random.choice(self.orders.delays) * min(1, len(inputs) / 8))
        if random.random() < self.orders.lost_devices:
            raise DeviceError("the device is gone")
        if any(POISON in str(getattr(i, "text", i)) for i in inputs):
            raise ValueError("cannot be encoded")
        return self.inner.encode(inputs)

    def probe(self) -> Encoded:
        return self.inner.probe()

    def surroundings(self) -> dict[str, str]:
        return self.inner.surroundings()


def perform(
    orders: Orders, stage: str, external_id: str, number: int, scope: Scope | None
) -> None:
    """A task's whole life. What went wrong that should not is written down."""
    orders.obey()
    request = run.Request(
        use_case.find(NAME),
        external_id,
        kind="scheduled" if scope is None else "backfill",
        backfill=scope,
        reembed=scope is not None and len(external_id) % 2 == 0,
        fresh=external_id.endswith(FRESH),
    )
    try:
        if stage == "embed":
            run.embed_stage(request, number)
        else:
            getattr(run, f"{stage}_stage")(request)
    except (TransientError, ThresholdError):
        os._exit(75)
    except Exception as error:
        if request.fresh and isinstance(error, StoreError):
            os._exit(1)  # another version is being built
        told = {"stage": stage, "error": repr(error), "trace": traceback.format_exc()}
        with (orders.folder / "errors.jsonl").open("a") as log:
            log.write(json.dumps(told) + "\n")
        os._exit(1)
    os._exit(0)


def run_once(orders: Orders, audit: bool) -> None:
    """All stages in one process, as the command line has them."""
    orders.obey()
    external_id = f"clean__{time.time()}"
    run.run(run.Request(use_case.find(NAME), external_id, "cli", audit=audit))


def warm_up() -> None:
    """The process that tasks are forked from takes a while to import what they need."""
    process = context().Process(target=os.getpid)
    process.start()
    process.join()


@dataclass
class Alive:
    """Tasks that run now, for the adversary to choose from."""

    tasks: list[ForkServerProcess] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def any(self, rng: random.Random) -> ForkServerProcess | None:
        with self.lock:
            return rng.choice(self.tasks) if self.tasks else None


@dataclass
class Tasks:
    """Starts tasks and tries them again. When the storm is over they are killed, or
    may come to their end."""

    orders: Orders
    alive: Alive
    counts: Counter[str]
    stopped: threading.Event
    may_end: bool = False

    def together(
        self, external_id: str, stages: list[str], scope: Scope | None = None
    ) -> bool:
        """Side by side, each tried three times."""
        with ThreadPoolExecutor(len(stages)) as pool:
            done = pool.map(partial(self._task, external_id, scope), stages, count())
        return all(done)

    def _task(
        self, external_id: str, scope: Scope | None, stage: str, number: int
    ) -> bool:
        for _ in range(3):
            process = self._start(stage, external_id, number, scope)
            self._wait(process)
            if process.exitcode == 0 or self.stopped.is_set():
                break
        return process.exitcode == 0

    def _start(self, *task: Any) -> ForkServerProcess:
        process = context().Process(
            target=perform, args=(self.orders, *task), daemon=True
        )
        process.start()
        with self.alive.lock:
            self.alive.tasks.append(process)
        self.counts["tasks"] += 1
        return process

    def _wait(self, process: ForkServerProcess) -> None:
        while process.is_alive():
            process.join(0.2)
            if self.stopped.is_set() and process.is_alive() and not self.may_end:
                process.kill()
        with self.alive.lock:
            self.alive.tasks.remove(process)


@dataclass
class Scheduler:
    """Runs the use case's DAG again and again, each task with retries. Two of them
    often run the same run at the same time, as no two should; the second also syncs in
    between, while the first one's workers are at it."""

    tasks: Tasks
    number: int

    def run(self) -> None:
        while not self.tasks.stopped.is_set():
            external_id = f"scheduled__{int(time.time() / SLOT_SECONDS)}"
            synced = self.tasks.together(external_id, ["sync"])
            if self.number and random.random() < 0.7:
                continue
            if synced and self.tasks.together(external_id, ["embed"] * WORKERS):
                self.tasks.together(external_id, ["publish"])
            self.tasks.counts["runs"] += 1
