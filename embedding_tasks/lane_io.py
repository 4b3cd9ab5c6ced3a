"""What a lane reads and writes: a lease's records, formed for the encoder; and what has
become of them.

In the lane's own thread; or, beside an accelerator, in a process of its own: what a row
costs in Python would come to more than what it costs the model, and threads share one
core.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import psycopg

from embedding_tasks import facts
from embedding_tasks.connections import Connection, blame
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.errors import InputError
from embedding_tasks.ledger import Lease
from embedding_tasks.local.process import Process
from embedding_tasks.source import extract, snapshot
from embedding_tasks.source.snapshot import Input
from embedding_tasks.store.connection import reach
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.store.write import Finished, Written, write
from embedding_tasks.use_case import UseCase


@dataclass(frozen=True)
class Work:
    """Whose records, and where they come from; `run_id` is the run they count for."""

    use_case: UseCase
    version: ModelVersion
    run_id: int
    source_conninfo: str


@dataclass(frozen=True)
class Records:
    """Of a lease, those that are as they were when they were leased. `inputs` are what
    the encoder reads of each of `keys`; None where that cannot be formed, and `errors`
    say by position why. `unreadable` says by key what the source cannot give;
    `moved` are those that it has moved on from. `size` in bytes, about."""

    keys: list[str]
    inputs: list[Any]
    errors: Mapping[int, str]
    unreadable: Mapping[str, str]
    moved: list[str]
    size: int


class LaneIO(Protocol):
    """Raises `DatabaseAway` and `SourceError`, and what the databases raise."""

    def start(self) -> None:
        """What takes time before a first lease, which would be held meanwhile."""

    def read(self, lease: Lease) -> Records: ...

    def write(
        self, encoded: Encoded, errors: Mapping[int, str], seconds: float
    ) -> Written:
        """Of the lease that was read last, all but those at the positions of `errors`.
        `seconds` of the worker's time are counted with them."""

    def cancel(self) -> None:
        """The statement it may be in, from another thread."""

    def close(self) -> None: ...


@dataclass
class Here:
    """Keeps `LaneIO`, with the lane's connection to the store and one to the source."""

    store: Connection
    work: Work
    _source: Connection | None = None
    _records: list[Input] = field(default_factory=list)
    _lease: Lease | None = None

    def start(self) -> None:
        pass

    def read(self, lease: Lease) -> Records:
        self._lease, self._records = lease, []
        with blame(store=self.store):
            return self._read(lease)

    def write(
        self, encoded: Encoded, errors: Mapping[int, str], seconds: float
    ) -> Written:
        assert self._lease is not None
        good = [p for p in range(len(self._records)) if p not in errors]
        form, kept = self.work.version.form, self.work.use_case.kept
        finished = Finished(
            keys=[self._records[p].key for p in good],
            data=[kept(form.kept(self._records[p].parts)) for p in good],
            encoded=encoded.only(good) if errors else encoded,
        )
        self._records = []
        with blame(store=self.store):
            return write(self.store, self._lease, finished, self.work.run_id, seconds)

    def cancel(self) -> None:
        for open_one in filter(None, (self.store, self._source)):
            with suppress(Exception):
                open_one.cancel_safe(timeout=1)

    def close(self) -> None:
        for open_one in filter(None, (self.store, self._source)):
            open_one.close()

    def _read(self, lease: Lease) -> Records:
        source = self._looked_after_source()
        with blame(source=source), snapshot.look(source):
            inputs = extract.inputs(
                source, self.work.use_case, self.work.version.spec["input"]
            )
            keys = sorted(lease.hashes)
            found, unreadable = snapshot.read_inputs(source, inputs, keys)
        held = {k: e for k, e in unreadable.items() if k in lease.hashes}
        # a key may come back in other words: 1.0 is found by 1
        self._records = [
            i for key, i in found.items() if i.hash == lease.hashes.get(key, b"")
        ]
        present = {i.key for i in self._records}
        formed, errors = self._formed()
        return Records(
            keys=[i.key for i in self._records],
            inputs=formed,
            errors=errors,
            unreadable=held,
            moved=sorted(lease.hashes.keys() - present - held.keys()),
            size=sum(len(part or "") for i in self._records for part in i.parts),
        )

    def _looked_after_source(self) -> Connection:
        """Kept open from lease to lease; opened again where it was cut meanwhile."""
        if self._source is not None:
            with suppress(psycopg.Error):
                self._source.execute("SELECT")
            if not self._source.closed:
                return self._source
        self._source = snapshot.connected(self.work.source_conninfo)
        return self._source

    def _formed(self) -> tuple[list[Any], dict[int, str]]:
        version, form = self.work.version, self.work.version.form
        inputs: list[Any] = []
        errors: dict[int, str] = {}
        for position, record in enumerate(self._records):
            try:
                inputs.append(form.input(record.parts))
            except InputError as error:
                inputs.append(None)
                errors[position] = f"InputError: {error}"
        if version.keeps_labelled(self.work.use_case.first_feature.unit):
            keys = [record.key for record in self._records]
            labelled = facts.labelled(self.store, version.use_case, keys)
            inputs = [
                sentence and replace(sentence, **labelled.get(key, {}))
                for sentence, key in zip(inputs, keys, strict=True)
            ]
        return inputs, errors


class Apart:
    """Keeps `LaneIO`, in a process that has connections of its own and keeps what it
    has read until that is written."""

    def __init__(self, work: Work, store_conninfo: str) -> None:
        self._process = Process(
            *("reads and writes", _serve, work, store_conninfo), interruptible=True
        )

    def start(self) -> None:
        self._process(("start",))

    def read(self, lease: Lease) -> Records:
        records: Records = self._process(("read", lease))
        return records

    def write(
        self, encoded: Encoded, errors: Mapping[int, str], seconds: float
    ) -> Written:
        written: Written = self._process(("write", encoded, errors, seconds))
        return written

    def cancel(self) -> None:
        self._process.interrupt()  # psycopg cancels its statement

    def close(self) -> None:
        self._process.close()


def _serve(work: Work, store_conninfo: str) -> Callable[[tuple[Any, ...]], Any]:
    here = Here(reach(store_conninfo), work)

    def answer(call: tuple[Any, ...]) -> Any:
        name, *given = call
        return getattr(here, name)(*given)

    return answer
