"""One storm: writers, schedulers and the adversary for so many seconds; then quiet,
one clean run, and the verdict."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg

from embedding_tasks import use_case
from embedding_tasks.connections import Connection
from embedding_tasks.source import installation
from tests.chaos import scene as scenes
from tests.chaos import tasks, writers
from tests.chaos.faults import FAULTS, Adversary
from tests.chaos.people import People
from tests.chaos.scene import NAME, Scene
from tests.chaos.servers import TEMPLATE, Servers
from tests.chaos.tasks import Alive, Orders, Scheduler, Tasks
from tests.chaos.verdict import Verdict, judge
from tests.forked import context

WRITERS = 6
CLEAN_RUN_SECONDS = 120


@dataclass
class Report:
    scene: Scene
    counts: Counter[str]
    verdict: Verdict
    errors: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def faults(self) -> int:
        return sum(self.counts[name] for name in (*FAULTS, "poison rows"))

    @property
    def is_clean(self) -> bool:
        return not self.verdict.wrong and not self.errors

    def __str__(self) -> str:
        wrong = {what: names[:5] for what, names in self.verdict.wrong.items()}
        errors = [e["trace"] for e in self.errors[:2]]
        return "\n".join(
            [
                f"seed {self.scene.seed}: {self.scene}",
                f"{dict(self.counts)}",
                f"wrong: {wrong}",
                *errors,
            ]
        )


@dataclass
class Storm:
    """Databases of one seed's own on servers that several share. Of a broken build,
    nothing may heal the harm it has done before it is looked for: nobody asks for
    vectors to be made anew, no server comes back to be read from the beginning, few
    tasks are killed, and all may come to their end."""

    scene: Scene
    servers: Servers
    folder: Path
    models: Path
    mutant: str | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.source = self.servers.source.database("source")
        self.store = self.servers.store.database("store", TEMPLATE)
        scenes.write_use_case(self.scene, self.folder, self.source, self.models)
        with psycopg.connect(self.source) as source:
            scenes.create(self.scene, source)
            if self.scene.strategy == "outbox":
                self._install_outbox(source)
        writers.first_rows(self.scene, self.source)
        tasks.warm_up()
        self._orders = Orders(self.folder, self.store, self.mutant)
        if self.mutant is not None:
            self._orders = replace(self._orders, delays=(1.0, 2.0), lost_devices=0)

    def _install_outbox(self, source: Connection) -> None:
        described = use_case.load(self.folder / "use_cases" / f"{NAME}.yaml")
        reader = installation.Reader.of(source)
        installation.run(source, installation.install(source, described, reader))

    def rage(self, seconds: float) -> None:
        with self._raging():
            time.sleep(seconds)
        writers.finish(self.source)

    @contextmanager
    def _raging(self) -> Iterator[None]:
        stopped, alive = threading.Event(), Alive()
        broken = self.mutant is not None
        work = Tasks(self._orders, alive, self.counts, stopped, may_end=broken)
        parts = [
            *(
                writers.Writer(self.scene, self.source, n, self.counts, stopped)
                for n in range(1, WRITERS + 1)
            ),
            *(Scheduler(work, number) for number in (0, 1)),
            Adversary(
                *(self.scene.seed, self.servers, self.store, alive, self.counts),
                stopped,
                heals=not broken,
            ),
        ]
        if not broken:
            parts.append(People(self.scene, work, self.source, self.models))
        threads = [threading.Thread(target=part.run, daemon=True) for part in parts]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stopped.set()
            for thread in threads:
                thread.join()

    def settle(self) -> Verdict:
        """One clean run, then the same of an empty store, and a look at both."""
        calm = replace(self._orders, lost_devices=0, delays=(0,))
        fresh = self.servers.store.database("fresh", TEMPLATE)
        self._clean_run(calm, audit=self.scene.needs_audit)
        self._clean_run(replace(calm, store=fresh, mutant=None))
        return judge(self.scene, self.store, fresh, self.source)

    def _clean_run(self, orders: Orders, *, audit: bool = False) -> None:
        process = context().Process(
            target=tasks.run_once, args=(orders, audit), daemon=True
        )
        process.start()
        process.join(CLEAN_RUN_SECONDS)
        if process.exitcode != 0:
            process.kill()
            raise RuntimeError(f"the clean run ended with {process.exitcode}")

    @property
    def errors(self) -> list[dict[str, Any]]:
        log = self.folder / "errors.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return [json.loads(line) for line in lines]


def storm(
    scene: Scene,
    servers: Servers,
    folder: Path,
    models: Path,
    seconds: float,
    *,
    mutant: str | None = None,
    rounds: int = 1,
) -> Report:
    """Rounds of `seconds` each, until something is wrong."""
    began = time.monotonic()
    made = Storm(scene, servers, folder, models, mutant)
    for _ in range(rounds):
        made.rage(seconds)
        verdict = made.settle()
        if verdict.wrong:
            break
    return Report(scene, made.counts, verdict, made.errors, time.monotonic() - began)
