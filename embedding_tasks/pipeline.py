"""A worker: lease, read, embed, write, until nothing is left to lease.

No transaction is open while the model runs. Whatever stops a worker (an error, Ctrl-C,
SIGKILL), what it had written stays, and what it held goes back: at once where it can
still say so, else when its lease runs out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

from psycopg import sql

from embedding_tasks import encoders, facts, ledger
from embedding_tasks.connections import Connection, Resolve, blame, usable
from embedding_tasks.encoders import Encoder, Runtime
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.errors import InputError, ModelError, TransientError
from embedding_tasks.isolation import isolate
from embedding_tasks.ledger import Lease
from embedding_tasks.source import extract, snapshot
from embedding_tasks.source.snapshot import Input
from embedding_tasks.store import copy
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.store.write import Finished, write
from embedding_tasks.use_case import UseCase

log = logging.getLogger(__name__)

# Records the source has moved on from wait for the next sync, or for this long.
DEFER_SECONDS = 60.0


@dataclass
class Drained:
    """What a worker has done so far, in records. `pending` is what was waiting when
    it began."""

    pending: int = 0
    embedded: int = 0
    deferred: int = 0
    discarded: int = 0
    failed: int = 0
    dead: int = 0
    seconds: float = 0.0


Progress = Callable[[Drained], None]


@dataclass
class Worker:
    """Drains one model version's queue. `open_store` makes a further connection, for
    renewing leases while the first one is busy."""

    store: Connection
    open_store: Callable[[], Connection]
    source_conninfo: str
    use_case: UseCase
    version: ModelVersion
    run_id: int
    holder: str
    resolve: Resolve | None = None
    progress: Progress = lambda drained: None
    drained: Drained = field(default_factory=Drained)
    _token: UUID = field(default_factory=uuid4)
    _encoder: Encoder | None = None
    _whole_failures: int = 0
    _began: float = 0.0

    def drain(self) -> Drained:
        """Raises `DatabaseAway`, `DeviceError`, `ModelError` or `SourceError`; no
        record is charged for those."""
        try:
            with blame(store=self.store):
                self._drain()
        except BaseException:
            self._give_back()
            raise
        return self.drained

    def _drain(self) -> None:
        ledger.take_over(self.store, self.version, self.holder)
        left = self._outstanding()
        self.drained.pending = left.claimable + left.leased
        self.progress(self.drained)
        began = time.monotonic()
        while (lease := self._next_lease()) is not None:
            self._work_off(lease)
            self.drained.seconds = time.monotonic() - began
            self.progress(self.drained)

    def _give_back(self) -> None:
        """Whatever stops a worker, what it holds is free at once for others. Where
        that cannot be said any more, it is free when the lease runs out."""
        with (
            suppress(Exception),
            usable(self.store, self.open_store) as store,
        ):
            ledger.release(store, self._token)

    def _next_lease(self) -> Lease | None:
        """None when nothing is left. What others hold is waited for: they finish it,
        or lose it when their lease runs out."""
        batch = self.use_case.batch
        told = False
        while True:
            self._token = uuid4()
            lease = ledger.claim(
                self.store,
                self.version,
                self.holder,
                batch.claim,
                batch.lease_seconds,
                self._token,
            )
            if lease.hashes:
                return lease
            left = self._outstanding()
            if not left.claimable and not left.leased:
                return None
            # leased by other workers, or locked by a sync that is about to commit
            if left.leased and not told:
                log.warning(
                    "waiting use_case=%s rows=%d seconds=%.0f: another run holds them; "
                    "if it has died, so long",
                    *(self.use_case.name, left.leased, left.seconds),
                )
                told = True
            time.sleep(min(max(left.seconds, 0.1), 2.0))

    def _outstanding(self) -> ledger.Outstanding:
        seconds = self.use_case.batch.lease_seconds
        return ledger.outstanding(self.store, self.version, seconds)

    def _work_off(self, lease: Lease) -> None:
        self._began = time.monotonic()
        with self._renewing(lease):
            inputs = self._read(lease)
            if inputs:
                self._embed(lease, inputs)
        ledger.release(self.store, lease.token)

    def _read(self, lease: Lease) -> list[Input]:
        with snapshot.take(self.source_conninfo) as connection:
            inputs = extract.inputs(
                connection, self.use_case, self.version.spec["input"]
            )
            keys = sorted(lease.hashes)
            found, unreadable = snapshot.read_inputs(connection, inputs, keys)
        if held := {k: e for k, e in unreadable.items() if k in lease.hashes}:
            self._charge(lease, held)
        # a key may come back in other words: 1.0 is found by 1
        current = [
            i for key, i in found.items() if i.hash == lease.hashes.get(key, b"")
        ]
        if moved := lease.hashes.keys() - {i.key for i in current} - held.keys():
            put_off = ledger.defer(self.store, lease, sorted(moved), DEFER_SECONDS)
            self.drained.deferred += put_off
            self._count("deferred", put_off)
        return current

    def _embed(self, lease: Lease, records: list[Input]) -> None:
        inputs, errors = self._formed(records)
        encoded, unencoded = isolate(self._loaded(), inputs)
        errors |= unencoded | _unfit(encoded, self.version)
        if len(errors) == len(records) and (trouble := self._trouble()):
            self._whole_batch_failed(trouble)
            return
        self._whole_failures = 0
        good = [p for p in range(len(records)) if p not in errors]
        if good:
            form, kept = self.version.form, self.use_case.kept
            finished = Finished(
                keys=[records[p].key for p in good],
                data=[kept(form.kept(records[p].parts)) for p in good],
                encoded=encoded.only(good),
            )
            written = write(self.store, lease, finished, self.run_id, self._began)
            self.drained.embedded += written.records
            self.drained.discarded += written.discarded
        if errors:
            self._charge(lease, {records[p].key: e for p, e in errors.items()})

    def _formed(self, records: list[Input]) -> tuple[list[Any], dict[int, str]]:
        """What the encoder reads of each record, and by position why it cannot."""
        form = self.version.form
        inputs: list[Any] = []
        errors: dict[int, str] = {}
        for position, record in enumerate(records):
            try:
                inputs.append(form.input(record.parts))
            except InputError as error:
                inputs.append(None)
                errors[position] = f"InputError: {error}"
        if self.version.keeps_labelled(self.use_case.first_feature.unit):
            labelled = facts.labelled(
                self.store, self.version.use_case, [r.key for r in records]
            )
            inputs = [
                sentence and replace(sentence, **labelled.get(record.key, {}))
                for sentence, record in zip(inputs, records, strict=True)
            ]
        return inputs, errors

    def _charge(self, lease: Lease, errors: dict[str, str]) -> None:
        self.drained.dead += ledger.fail(self.store, lease, errors, self.use_case.retry)
        self.drained.failed += len(errors)
        self._count("failed", len(errors))
        key, message = next(iter(errors.items()))
        log.warning(
            "records failed use_case=%s rows=%d first_key=%s error=%s",
            *(self.use_case.name, len(errors), key, message),
        )

    def _trouble(self) -> str | None:
        """Where nothing could be encoded: does the encoder still work at all? Then
        these records are to blame, however many they are."""
        try:
            probe = self._loaded().probe()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return next(iter(_unfit(probe, self.version).values()), None)

    def _whole_batch_failed(self, message: str) -> None:
        """Trouble that spares nothing is no record's fault."""
        self._whole_failures += 1
        log.error(
            "whole batch failed use_case=%s error=%s", self.use_case.name, message
        )
        if self._whole_failures == 2:
            raise TransientError(
                "two whole batches failed in a row, so no record was charged: "
                f"{message}"
            )

    def _loaded(self) -> Encoder:
        if self._encoder is None:
            began = time.monotonic()
            self._encoder = encoders.load(
                self.version,
                Runtime(
                    device=self.use_case.all_features[self.version.feature].device,
                    tokens=self.use_case.batch.tokens,
                    resolve=self.resolve,
                    open_store=self.open_store,
                ),
            )
            self._began += time.monotonic() - began  # not the records' own
            log.info(
                "loaded model use_case=%s version=%d seconds=%.1f",
                *(self.use_case.name, self.version.version, time.monotonic() - began),
            )
        return self._encoder

    def _count(self, column: str, rows: int) -> None:
        self.store.execute(
            sql.SQL("UPDATE embedline.run SET {0} = {0} + %s WHERE id = %s").format(
                sql.Identifier(column)
            ),
            [rows, self.run_id],
        )

    @contextmanager
    def _renewing(self, lease: Lease) -> Iterator[None]:
        """Renews the lease from a thread of its own, so that a slow batch keeps it. A
        renewal that fails loses time at worst: the fence guards the write."""
        done = threading.Event()

        def renew() -> None:
            while not done.wait(lease.seconds / 3):
                try:
                    with self.open_store() as connection:
                        ledger.renew(connection, lease)
                except Exception as error:
                    log.warning("lease not renewed error=%s", error)

        thread = threading.Thread(target=renew, name="renew-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


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
