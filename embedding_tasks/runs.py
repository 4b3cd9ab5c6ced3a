"""A run's row in the store: what asked for it, what it found and did, how it ended."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from embedding_tasks import backfills, ledger
from embedding_tasks.connections import Connection, blame, usable
from embedding_tasks.errors import EmbedlineError, ModelError
from embedding_tasks.request import Request
from embedding_tasks.store import versions
from embedding_tasks.sync import Synced
from embedding_tasks.use_case import Window, kind_of

log = logging.getLogger(__name__)

# A run is closed for it after a day.
_BEAT_SECONDS = 300.0


@contextmanager
def recorded(store: Connection, request: Request, stage: str) -> Iterator[int]:
    """The run's row in the store, which also remembers how a stage failed. A dry run
    leaves none. Whatever happens to the store meanwhile is `DatabaseAway`."""
    if request.dry_run:
        with blame(store=store):
            yield 0
        return
    with blame(store=store):
        run_id = begin(store, request, stage)
    try:
        with _alive(request, run_id), blame(store=store):
            yield run_id
    except BaseException as error:
        _record_failure(store, request, run_id, stage, error)
        raise


@contextmanager
def _alive(request: Request, run_id: int) -> Iterator[None]:
    """Says so from a thread of its own, whatever the stage waits for: a source, a GPU,
    other workers. What cannot be said costs nothing yet."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(_BEAT_SECONDS):
            try:
                with request.open_store() as store:
                    _touch(store, run_id)
            except Exception as error:
                log.warning("no sign of life given run=%d error=%s", run_id, error)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _touch(store: Connection, run_id: int) -> None:
    store.execute("UPDATE embedline.run SET seen_at = now() WHERE id = %s", [run_id])


def _record_failure(
    store: Connection, request: Request, run_id: int, stage: str, error: BaseException
) -> None:
    message = str(error).strip().split("\n")[0][: ledger.ERROR_LENGTH]
    with (
        suppress(Exception),  # the error itself matters more
        usable(store, request.open_store) as connection,
    ):
        connection.execute(
            "UPDATE embedline.run SET state = 'failed', error = %s,"
            " failed_stages = array_append(array_remove(failed_stages, %s), %s),"
            " finished_at = now() WHERE id = %s",
            [
                f"{type(error).__name__}: {message}".removesuffix(": "),
                *(stage, stage, run_id),
            ],
        )


def begin(store: Connection, request: Request, stage: str) -> int:
    """A failure is forgotten when its own stage is tried again, not when another
    stage of the same run begins."""
    window = request.backfill if isinstance(request.backfill, Window) else None
    row = store.execute(
        "INSERT INTO embedline.run AS r"
        " (use_case, external_id, kind, scope, since, until, reembed)"
        " VALUES (%(use_case)s, %(external_id)s, %(kind)s, %(scope)s, %(since)s,"
        "  %(until)s, %(reembed)s)"
        " ON CONFLICT (use_case, external_id) DO UPDATE SET seen_at = now(),"
        "  failed_stages = CASE %(stage)s WHEN 'sync' THEN '{}'"
        "    ELSE array_remove(r.failed_stages, %(stage)s) END"
        " RETURNING id",
        {
            "use_case": versions.register(store, request.use_case.name),
            "external_id": request.external_id,
            "kind": request.kind,
            "scope": kind_of(request.backfill),
            "since": window.since if window else None,
            "until": window.until if window else None,
            "reembed": request.reembed,
            "stage": stage,
        },
    ).fetchone()
    assert row is not None
    store.execute(
        "UPDATE embedline.run SET state = 'running', error = NULL, finished_at = NULL"
        " WHERE id = %s AND state <> 'running' AND failed_stages = '{}'",
        [row[0]],
    )
    return int(row[0])


def count(store: Connection, run_id: int, synced: Synced) -> None:
    store.execute(
        "UPDATE embedline.run SET synced_at = now(), read = read + %(read)s,"
        " new = new + %(new)s, changed = changed + %(changed)s,"
        " deleted = deleted + %(deleted)s, labels = labels + %(labels)s,"
        " unusable_keys = %(unusable_keys)s, not_found = %(not_found)s,"
        " unreadable = %(unreadable)s"
        " WHERE id = %(id)s",
        {**asdict(synced), "id": run_id},
    )


def close_abandoned(store: Connection, use_case_id: int, run_id: int) -> None:
    """Other runs whose process was killed, or that were under way when the dump was
    made that this store was restored from. One that only waits in a scheduler's queue
    is running again from its next stage on."""
    closed = store.execute(
        "UPDATE embedline.run SET state = 'failed', finished_at = now(),"
        "  error = 'no sign of life for a day: its process is gone'"
        " WHERE use_case = %s AND id <> %s AND state = 'running'"
        "  AND seen_at < now() - interval '1 day'",
        [use_case_id, run_id],
    )
    if closed.rowcount:
        log.warning("closed abandoned runs=%d", closed.rowcount)


def worked(
    store: Connection,
    run_id: int,
    seconds: float,
    stages: Mapping[str, float],
    encoder: Mapping[str, Mapping[str, str]],
) -> None:
    """What one worker adds: `seconds` it was busy and not yet counted with a batch."""
    store.execute(
        "UPDATE embedline.run SET embed_seconds = embed_seconds + %(seconds)s,"
        " encoder = encoder || %(encoder)s,"
        " stages = (SELECT coalesce(jsonb_object_agg(stage, took), '{}') FROM ("
        "  SELECT stage, sum(took::float8) AS took FROM ("
        "   SELECT * FROM jsonb_each_text(stages)"
        "   UNION ALL SELECT * FROM jsonb_each_text(%(stages)s)) AS s (stage, took)"
        "  GROUP BY stage) AS summed)"
        " WHERE id = %(id)s",
        {
            "seconds": seconds,
            "stages": Jsonb(stages),
            "encoder": Jsonb(encoder),
            "id": run_id,
        },
    )


def remember_missing(
    store: Connection, run_id: int, missing: Mapping[str, EmbedlineError]
) -> None:
    told = {feature: str(error) for feature, error in missing.items()}
    for feature, error in told.items():
        log.error("no model feature=%s: %s", feature, error)
    store.execute(
        "UPDATE embedline.run SET models_missing = %s WHERE id = %s",
        [Jsonb(told), run_id],
    )


def judge_missing(store: Connection, request: Request, run_id: int) -> None:
    row = store.execute(
        "SELECT models_missing FROM embedline.run WHERE id = %s", [run_id]
    ).fetchone()
    assert row is not None
    if row[0]:
        told = "; ".join(f"feature {name!r}: {error}" for name, error in row[0].items())
        raise ModelError(
            f"{request.use_case.name}: {told}; what serves was followed, and nothing "
            "new is built before the model is there"
        )


def close(store: Connection, run_id: int) -> dict[str, Any]:
    with store.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(
            "UPDATE embedline.run SET state = 'success', error = NULL,"
            " failed_stages = '{}',"
            " finished_at = now() WHERE id = %s RETURNING read, new, changed, deleted,"
            " labels, unusable_keys, not_found, unreadable, embedded, vectors,"
            " truncated, deferred, discarded, failed",
            [run_id],
        ).fetchone()
    assert row is not None
    paused = (
        backfills.waiting(store, run_id) if backfills.is_paused(store, run_id) else 0
    )
    if paused:
        log.warning("paused run=%d rows=%d: they wait to be resumed", run_id, paused)
    return {**row, "paused": paused}
