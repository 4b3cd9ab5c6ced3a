"""The host of `benchmarks.scaling`: a database and a process for each card."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Link
from pathlib import Path
from typing import Any

import yaml

from benchmarks import rows, sized_models
from benchmarks.scaling_process import Interval, serve
from embedding_tasks import run, settings, use_case
from embedding_tasks.connections import Connection
from embedding_tasks.store import connection, versions
from embedding_tasks.store.versions import ModelVersion

PATIENCE_SECONDS = 600


@dataclass
class Card:
    """A process and the pipe to it."""

    process: Any
    link: Link

    def told(self) -> Any:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.link.poll(1):
            if not self.process.is_alive():
                raise RuntimeError(f"a process ended with {self.process.exitcode}")
            if time.monotonic() > deadline:
                raise RuntimeError("a process does not answer")
        return self.link.recv()

    def result(self) -> Any:
        done, answer = self.told()
        if not done:
            raise RuntimeError(answer)
        return answer

    def ready(self) -> None:
        if (told := self.told()) != "ready":
            raise RuntimeError(told[1])


@dataclass
class Host:
    """`stored` of the texts are rows, too."""

    cards: list[Card]
    stored: int
    store: Connection
    version: ModelVersion

    def all_do(self, count: int, name: str, *more: Any) -> list[Interval]:
        """When each of so many processes began and ended its share."""
        cards = self.cards[:count]
        for number, card in enumerate(cards):
            card.link.send((name, (number, count, *more)))
        for card in cards:
            card.ready()
        go(cards)
        return [card.result() for card in cards]

    def start_workers(self, names: Sequence[str]) -> list[Card]:
        """One after the other, so that each gets the card that has its model. They
        wait until they are told to go."""
        cards = self.cards[: len(names)]
        for card, name in zip(cards, names, strict=True):
            card.link.send(("work", (name,)))
            card.ready()
        return cards

    def queue(self) -> None:
        rows.queue(self.store, self.version)

    def stored_now(self) -> int:
        return self.number(
            "SELECT count(*) FROM embedline.ledger"
            " WHERE NOT pending AND model_version = %s",
            self.version.id,
        )

    def held_by(self, name: str) -> int:
        return self.number(
            "SELECT count(*) FROM embedline.ledger WHERE lease_holder LIKE %s",
            f"{name}/%",
        )

    def number(self, query: str, *parameters: Any) -> int:
        row = self.store.execute(query, parameters).fetchone()
        assert row is not None
        return int(row[0])

    def judged(self, names: Sequence[str]) -> dict[str, int]:
        """By plain SQL, of the workers with these names: rows that have no vector of
        the wanted input, rows that were embedded more often than once, and work that
        was thrown away."""
        table = self.version.table.as_string()
        present = (
            f"SELECT count(DISTINCT v.key) FROM {table} v JOIN embedline.ledger l"
            " ON l.key = v.key AND l.want_hash = v.input_hash AND NOT l.pending"
            " WHERE l.model_version = %s"
        )
        runs = "FROM embedline.run WHERE external_id = ANY (%s)"
        vectors = self.number(f"SELECT count(*) FROM {table}")
        embedded = self.number(f"SELECT coalesce(sum(embedded), 0) {runs}", names)
        overwritten = (
            f"SELECT coalesce(sum(r.embedded - coalesce(w.written, 0)), 0) FROM"
            " (SELECT id, embedded FROM embedline.run WHERE external_id = ANY (%s)) r"
            f" LEFT JOIN (SELECT run_id, count(*) AS written FROM {table}"
            " GROUP BY run_id) w ON w.run_id = r.id"
        )
        return {
            "missed": self.stored - self.number(present, self.version.id),
            "twice": max(embedded - self.stored, vectors - self.stored),
            "overwritten": self.number(overwritten, names),
            "discarded": self.number(
                f"SELECT coalesce(sum(discarded), 0) {runs}", names
            ),
        }


def go(cards: Sequence[Card]) -> None:
    for card in cards:
        card.link.send("go")


@contextmanager
def started(
    size: str, texts: int, stored: int, processes: int, device: str
) -> Iterator[Host]:
    """All processes, with the model loaded and warm, and all rows in the ledger."""
    with rows.project(size, "vector"), store_of_project() as store:
        folder = settings.project()
        made = sized_models.texts(max(texts, stored), rows.SEED)
        (folder / "texts").write_bytes(pickle.dumps(made[:texts]))
        describe(device=device, claim=min(8192, max(1, stored // (8 * processes))))
        cards = [card(folder, number, device) for number in range(processes)]
        try:
            rows.fill(made[:stored])
            run.sync_stage(rows.request(use_case.find(rows.NAME)))
            use_case_id = versions.use_case_id(store, rows.NAME)
            version = versions.live(store, use_case_id)[0]
            yield Host(cards, stored, store, version)
        finally:
            for each in cards:
                each.process.kill()
                each.process.join()


@contextmanager
def store_of_project() -> Iterator[Connection]:
    """As a store elsewhere, which is not initialised with every connection."""
    connection.open_store().close()
    os.environ[settings.STORE_DSN] = connection.conninfo()
    try:
        with connection.open_store() as store:
            yield store
    finally:
        del os.environ[settings.STORE_DSN]


def describe(device: str = "", **batch: int) -> None:
    """In the use case's file, which each worker reads anew."""
    path = settings.use_cases() / f"{rows.NAME}.yaml"
    described = yaml.safe_load(path.read_text())
    if device:
        described["encoder"]["device"] = device
    described["batch"] = {**described.get("batch", {}), **batch}
    path.write_text(yaml.safe_dump(described))


def card(folder: Path, number: int, device: str) -> Card:
    """Loads its model while the parent goes on."""
    place = "cpu" if device == "cpu" else f"cuda:{number}"
    spawn = multiprocessing.get_context("spawn")
    link, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=[theirs, folder, place], daemon=True)
    process.start()
    theirs.close()
    link.send(("load", ()))
    return Card(process, link)
