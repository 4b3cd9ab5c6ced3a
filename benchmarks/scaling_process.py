"""One of the processes that `benchmarks.scaling` starts, each with a card of its own.

It does what it is told through a pipe. What is timed is first made ready, said to be
so, and begun when the parent says go: all processes begin together.
"""

from __future__ import annotations

import logging
import pickle
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection as Link
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from benchmarks import engine_gpu, lanes_alone, rows, sized_models
from embedding_tasks import encoders, ledger, run, use_case
from embedding_tasks.connections import for_source
from embedding_tasks.encoders import Encoder, Runtime
from embedding_tasks.encoders.tokenizing import Tokens
from embedding_tasks.lane_io import Work
from embedding_tasks.store import versions
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.timeline import Span
from embedding_tasks.use_case import UseCase
from embedding_tasks.worker import LANES, LANES_APART, Worker

WARM_UP = 3 * lanes_alone.LEASE
Interval = tuple[float, float]
"""When it began and ended, by `time.monotonic`, which all processes share."""


def serve(link: Link, project: Path, device: str) -> None:
    """`device`: what texts in memory run on; `work` takes what the locks give."""
    logging.getLogger("embedding_tasks").setLevel(logging.ERROR)
    process = Process(link, project, device)
    while True:
        name, arguments = link.recv()
        try:
            answer = True, getattr(process, name)(*arguments)
        except Exception:
            answer = False, traceback.format_exc()
        link.send(answer)


class Process:
    def __init__(self, link: Link, project: Path, device: str) -> None:
        self._link = link
        self._device = device
        self._case_file = project / "use_cases" / f"{rows.NAME}.yaml"
        self._texts: list[str] = pickle.loads((project / "texts").read_bytes())
        self._encoders: dict[str, Encoder] = {}
        self._place = device
        self._went = 0.0

    def load(self) -> dict[str, Any]:
        version = sized_models.version(self._case)
        encoder: Any = self._loaded(version, Runtime(self._device), encoders.load)
        preparation = self._inner._preparation
        return {**encoder.surroundings(), "tokenizing_processes": preparation._count}

    def together(self, number: int, of: int) -> Interval:
        share = self._share(number, of)
        return self._timed(lambda: engine_gpu.encode(self._encoder, share))

    def tokenize(self, number: int, of: int, part: int) -> Interval:
        share = self._share(number, of, part)
        return self._timed(lambda: deque(self._inner.tokenized(share), maxlen=0))

    def model(self, number: int, of: int, part: int) -> Interval:
        share = self._share(number, of, part)
        inner = self._inner
        tokens = Tokens.joined(list(inner.tokenized(share)))
        lengths = tokens.lengths.tolist()
        batches = [
            tokens.only(batch)
            for batch in inner.forward.batches(lengths, inner.budget.tokens)
        ]

        def forwards() -> None:
            for batch in batches:
                inner.forward(batch)
            if inner.device.type == "cuda":
                torch.cuda.synchronize(inner.device)

        return self._timed(forwards)

    def read(self, number: int, of: int, count: int) -> Interval:
        keys = [str(i) for i in range(count)]
        share = [key for part in lanes_alone.chunks(keys)[number::of] for key in part]
        with self._alone() as alone:
            return self._timed(lambda: alone.read(share))

    def claim(self, number: int, of: int) -> Interval:
        """All that waits, together with the others."""
        version = self._version()

        def lane(_: int) -> None:
            with self._request("claim").open_store() as store:
                while ledger.claim(
                    store, version, "bench", lanes_alone.LEASE, 600, uuid4()
                ).hashes:
                    pass

        with ThreadPoolExecutor(self._lanes) as lanes:
            return self._timed(lambda: [*lanes.map(lane, range(self._lanes))])

    def write(self, number: int, of: int) -> Interval:
        """The same, with vectors that are there already."""
        made = np.random.default_rng(number).standard_normal(
            (lanes_alone.LEASE, self._version().dims), dtype=np.float32
        )
        with self._alone() as alone:
            return self._timed(lambda: alone.write(made))

    def _alone(self) -> lanes_alone.Lanes:
        case = self._case
        work = Work(case, self._version(), rows.RUN, for_source(case.source))
        stored_in = self._request("alone").store_conninfo()
        return lanes_alone.Lanes(work, stored_in, self._lanes)

    def work(self, name: str) -> dict[str, Any]:
        """What `embedline work` does; `name` is its run's. The worker takes a device
        by the locks of the store, and a first lease for each lane; when its model is
        loaded it waits for the others."""
        spans: list[Span] = []
        load = partial(self._loaded_with_all, original=encoders.load)
        with (
            rows.replaced(run, "Worker", partial(Worker, spans=spans)),
            rows.replaced(encoders, "load", load),
        ):
            counts = run.work(self._request(name))
        began, left = self._went, time.monotonic()
        after = [s._replace(began=max(s.began, began)) for s in spans]
        return {
            "embedded": counts["embedded"],
            "place": self._place,
            "began": began,
            "left": left,
            "ended": max(s.ended for s in spans if s.stage == "write"),
            "spans": [tuple(s) for s in after if s.ended > began],
        }

    def _share(self, number: int, of: int, part: int = 1) -> list[str]:
        return self._texts[: len(self._texts) // part][number::of]

    @property
    def _case(self) -> UseCase:
        return use_case.load(self._case_file)

    @property
    def _encoder(self) -> Any:
        return self._encoders[self._device]

    @property
    def _inner(self) -> Any:
        return getattr(self._encoder, "encoder", self._encoder)

    @property
    def _lanes(self) -> int:
        return LANES_APART if self._encoder.shared else LANES

    def _request(self, name: str) -> run.Request:
        return run.Request(self._case, external_id=name, kind="work")

    def _version(self) -> ModelVersion:
        with self._request("version").open_store() as store:
            return versions.live(store, versions.use_case_id(store, rows.NAME))[0]

    def _loaded(
        self,
        version: ModelVersion,
        runtime: Runtime,
        load: Callable[[ModelVersion, Runtime], Encoder],
    ) -> Encoder:
        if runtime.device not in self._encoders:
            encoder = load(version, Runtime(runtime.device))
            some = self._texts[: min(WARM_UP, max(1, len(self._texts) // 16))]
            engine_gpu.encode(encoder, some)
            self._encoders[runtime.device] = encoder
        return self._encoders[runtime.device]

    def _loaded_with_all(
        self,
        version: ModelVersion,
        runtime: Runtime,
        original: Callable[[ModelVersion, Runtime], Encoder],
    ) -> Encoder:
        self._place = runtime.device
        encoder = self._loaded(version, runtime, original)
        self._went = self._start()
        return encoder

    def _timed(self, work: Callable[[], object]) -> Interval:
        began = self._start()
        work()
        return began, time.monotonic()

    def _start(self) -> float:
        self._link.send("ready")
        assert self._link.recv() == "go"
        return time.monotonic()


def spans_of(results: Sequence[dict[str, Any]]) -> list[Span]:
    return [Span(*span) for result in results for span in result["spans"]]
