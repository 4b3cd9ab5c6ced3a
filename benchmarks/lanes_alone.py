"""Lanes that read, or write, and do nothing else: what a worker's would come to without
the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

from embedding_tasks import ledger
from embedding_tasks.connections import Connection
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.lane_io import Work
from embedding_tasks.local.process import Process
from embedding_tasks.source import extract, snapshot
from embedding_tasks.store import connection
from embedding_tasks.store.write import Finished, write

LEASE = 8192


class Lanes:
    """Processes that read and write, and nothing else, as the worker's do."""

    def __init__(self, work: Work, store_conninfo: str, count: int) -> None:
        self._made = [
            Process("reads or writes", _alone, work, store_conninfo)
            for _ in range(count)
        ]

    def __enter__(self) -> Lanes:
        self.read([])  # they are started, and connected
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._made:
            process.close()

    def read(self, keys: Sequence[str]) -> None:
        parts = chunks(keys)
        lanes = len(self._made)
        self._all([("read", parts[i::lanes]) for i in range(lanes)])

    def write(self, vectors: Any) -> None:
        """All that waits in the queue, with vectors as these."""
        self._all([("write", vectors)] * len(self._made))

    def _all(self, asked: Sequence[Any]) -> None:
        with ThreadPoolExecutor(len(asked)) as pool:
            lanes = zip(self._made, asked, strict=True)
            for done in [pool.submit(lane, work) for lane, work in lanes]:
                done.result()


def _alone(work: Work, store_conninfo: str) -> Callable[[tuple[str, Any]], None]:
    source = snapshot.connected(work.source_conninfo)
    store = connection.reach(store_conninfo)

    def do(asked: tuple[str, Any]) -> None:
        match asked:
            case "read", parts:
                read(source, work, parts)
            case "write", vectors:
                write_all(store, work, vectors)

    return do


def read(source: Connection, work: Work, parts: Sequence[Sequence[str]]) -> None:
    for keys in parts:
        with snapshot.look(source):
            inputs = extract.inputs(source, work.use_case, work.version.spec["input"])
            found, _ = snapshot.read_inputs(source, inputs, keys)
        form = work.version.form
        for record in found.values():
            form.input(record.parts)


def write_all(store: Connection, work: Work, vectors: Any) -> None:
    while True:
        lease = ledger.claim(store, work.version, "bench", LEASE, 600, uuid4())
        if not lease.hashes:
            return
        keys = list(lease.hashes)
        made = Encoded.of_records(vectors[: len(keys)])
        write(store, lease, Finished(keys, [None] * len(keys), made), work.run_id)
        ledger.release(store, lease.token)


def chunks(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[i : i + LEASE] for i in range(0, len(items), LEASE)]
