"""The stages of a run: sync, plan, embed, publish, and before them, where an encoder
learns from the use case's own rows, train.

The DAG calls them as tasks, the command line one after another: scheduled,
manual, backfilled and retried runs are the same code. Between stages pass counts only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

import psycopg
from psycopg.types.json import Jsonb

from embedding_tasks import (
    backfills,
    foresight,
    judgement,
    ledger,
    promotion,
    pruning,
    status,
    training,
)
from embedding_tasks.connections import (
    Connection,
    Resolve,
    blame,
    for_source,
    usable,
)
from embedding_tasks.encoders import recipe
from embedding_tasks.errors import (
    ConfigError,
    DatabaseAway,
    EmbedlineError,
    ModelError,
    TransientError,
)
from embedding_tasks.pipeline import Drained, Progress, Worker
from embedding_tasks.promotion import promote as promote
from embedding_tasks.store import declared, retired, trained, versions
from embedding_tasks.store.connection import open_store
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.sync import Backfill, Synced, sync
from embedding_tasks.target import Target
from embedding_tasks.use_case import PredictionColumn, Scope, UseCase, Window, kind_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """One run of a use case. `external_id` names it across stages and retries;
    `backfill` is what it asks for, in place of all that is new, changed or gone."""

    use_case: UseCase
    external_id: str
    kind: Literal["scheduled", "manual", "backfill", "cli", "work"]
    backfill: Scope | None = None
    reembed: bool = False
    audit: bool = False
    allow_deletes: bool = False
    dry_run: bool = False
    resolve: Resolve | None = None

    def __post_init__(self) -> None:
        no_time = self.use_case.source.event_time is None
        if isinstance(self.backfill, Window) and no_time:
            raise ConfigError(
                f"use case {self.use_case.name!r} names no source.event_time, so there "
                "is nothing a window could select by; valid: keys, or everything"
            )
        if self.backfill is not None and self.audit:
            raise ConfigError(
                "an audit reads every row of the source; leave out since, until, keys "
                "and everything, and do not ask for it in a backfill"
            )

    @property
    def prediction_from_source(self) -> bool:
        return isinstance(self.use_case.prediction, PredictionColumn)

    def of_run(self, run_id: int) -> Backfill | None:
        if self.backfill is None:
            return None
        return Backfill(run_id or None, self.backfill)

    def open_store(self) -> Connection:
        return open_store(self.resolve)


def train_stage(
    request: Request,
    retrain: bool = False,
    progress: training.Progress = lambda epoch: None,
) -> dict[str, int]:
    """Trains the encoders that learn from the use case's own rows and have not yet, or
    all of them. Another model makes another model version. Returns counts."""
    use_case = request.use_case
    if not trained.features(use_case):
        return {}
    with request.open_store() as store:
        with blame(store=store):
            wanted = training.wanted(store, use_case, retrain)
        if request.dry_run:
            return {"to_train": len(wanted)}
        if not wanted:
            return {"trained": 0}
        with _recorded(store, request, "train") as run_id:
            return training.train(
                store, request, retrain=retrain, progress=progress, run_id=run_id
            )


def sync_stage(request: Request) -> dict[str, int | float]:
    """What the source has that the store has not is enqueued; what it no longer has
    leaves the store. Returns the counts of `Synced`, and of a dry run what it foresees.
    """
    use_case = request.use_case
    with request.open_store() as store, _recorded(store, request, "sync") as run_id:
        conninfo = for_source(use_case.source, request.resolve)
        with blame(store=store):
            known = trained.digests(store, use_case)
        if request.dry_run and (waiting := recipe.untrained(use_case, known)):
            return {"to_train": len(waiting)}
        recipes, missing = recipe.found(use_case, request.resolve, trained=known)
        counts: dict[str, int | float] = {}
        with blame(store=store), store.transaction():
            use_case_id = versions.open_use_case(store, use_case.name)
            live = versions.live(store, use_case_id)
            before = {v.id for v in live if v.feature in use_case.all_features}
            if missing and (request.dry_run or not (recipes or before)):
                raise next(iter(missing.values()))
            whole = request.backfill is None
            live = declared.ensure(store, use_case_id, use_case, recipes, whole=whole)
            if backfills.is_cancelled(store, run_id):
                log.warning("cancelled use_case=%s run=%d", use_case.name, run_id)
                return {}
            synced = sync(
                Target(store, use_case_id, live, use_case.first_feature.unit),
                conninfo,
                use_case,
                backfill=request.of_run(run_id),
                reembed=request.reembed,
                audit=request.audit,
                allow_deletes=request.allow_deletes,
            )
            for version in (v for v in live if v.id not in before):
                retired.drop_outdated(store, version)
            # last: whoever asks a view waits from here on
            versions.refresh_views(store, use_case_id, request.prediction_from_source)
            counts = asdict(synced)
            if request.dry_run:
                counts |= foresight.foreseen(store, use_case_id, use_case, live)
                raise psycopg.Rollback
            _count(store, run_id, synced)
            _remember_missing(store, run_id, missing)
        if not (request.dry_run or request.backfill):
            with blame(store=store):
                pruning.prune(store, use_case_id, use_case, conninfo)
    for error in missing.values():
        if isinstance(error, TransientError):
            raise error  # what could be followed was; a retry may find the rest
    log.info("synced use_case=%s %s", use_case.name, _facts(counts))
    return counts


def plan_stage(request: Request) -> int:
    """How many workers the queue is worth: none when it is empty."""
    if request.dry_run:
        return 0
    with request.open_store() as store, _recorded(store, request, "plan"):
        waiting = foresight.waiting(store, request.use_case, _live(store, request))
    workers = foresight.workers(request.use_case, waiting)
    log.info(
        "planned use_case=%s pending=%d workers=%d",
        *(request.use_case.name, waiting, workers),
    )
    return workers


def embed_stage(
    request: Request, worker: int, progress: Progress = lambda drained: None
) -> dict[str, Any]:
    """Drains the queue of every live model version, the serving ones first. Returns
    the counts of `Drained`."""
    total = Drained()
    stage = f"embed/{worker}"
    with request.open_store() as store, _recorded(store, request, stage) as run_id:
        conninfo = for_source(request.use_case.source, request.resolve)
        live = _live(store, request)
        troubles: list[Exception] = []
        for place, version in enumerate(live):
            worker_ = Worker(
                store=store,
                open_store=request.open_store,
                source_conninfo=conninfo,
                use_case=request.use_case,
                version=version,
                run_id=run_id,
                holder=f"{request.external_id}/{worker}",
                resolve=request.resolve,
                progress=progress,
            )
            followers = [v for v in live[place + 1 :] if v.feature == version.feature]
            if (error := _drain(worker_)) and not followers:
                troubles.append(error)
            total = _sum(total, worker_.drained)
        if troubles:
            raise troubles[0]
    counts = asdict(total)
    log.info("embedded use_case=%s %s", request.use_case.name, _facts(counts))
    return counts


def publish_stage(request: Request) -> dict[str, Any]:
    """Says how the run ended: promotes a finished model version, drops those retired
    long ago, and raises `ModelError` where a model was missing, `ThresholdError` when
    more is left undone than the use case allows."""
    with request.open_store() as store, _recorded(store, request, "publish") as run_id:
        use_case_id = versions.use_case_id(store, request.use_case.name)
        promotion.finish(store, request, use_case_id)
        keep = request.use_case.keep_retired_days
        retired.drop_expired(store, use_case_id, keep)
        _judge_missing(store, request, run_id)
        for serving in (v for v in versions.live(store, use_case_id) if v.serves):
            judgement.judge(
                request.use_case, serving, judgement.left_of(store, serving, run_id)
            )
        numbers = status.of(store, request.use_case.name)[0]
        if request.backfill is None:
            judgement.judge_withheld(request.use_case, numbers)
        counts = _close(store, run_id)
    log.info("published use_case=%s %s", request.use_case.name, _facts(counts))
    return {**counts, "wanted": numbers["wanted"], "stored": numbers["stored"]}


def work(request: Request, progress: Progress = lambda drained: None) -> dict[str, Any]:
    """One worker that helps to drain what waits, and judges nothing: that is for the
    run whose work it is."""
    with request.open_store() as store, blame(store=store):
        versions.use_case_id(store, request.use_case.name)
    embedded = embed_stage(request, 0, progress)
    with request.open_store() as store, _recorded(store, request, "work") as run_id:
        return {**embedded, **_close(store, run_id)}


def begin(request: Request) -> int:
    """The run's number in the store, before its first stage."""
    with request.open_store() as store, blame(store=store):
        return _open(store, request, "sync")


def run(
    request: Request,
    progress: Progress = lambda drained: None,
    train_progress: training.Progress = lambda epoch: None,
) -> dict[str, Any]:
    """All stages in this process, with one worker."""
    made = train_stage(request, progress=train_progress)
    synced = {**made, **sync_stage(request)}
    if request.dry_run:
        return synced
    embedded = embed_stage(request, 0, progress) if plan_stage(request) else {}
    return {**synced, **embedded, **publish_stage(request)}


def _drain(worker: Worker) -> Exception | None:
    """A version that cannot be kept in step (its model's files or a column are gone,
    its model has turned out unfit) must keep neither the version that is built to
    follow it nor another feature's from being embedded. What it then lacks is judged
    in the end."""
    try:
        worker.drain()
    except DatabaseAway:
        raise
    except Exception as error:
        if _is_retired(worker):
            return None
        log.error(
            "version %d falls behind: %s: %s",
            *(worker.version.version, type(error).__name__, error),
        )
        return error
    return None


def _is_retired(worker: Worker) -> bool:
    """By another run meanwhile, which may have dropped its table, too."""
    version = worker.version
    with blame(store=worker.store):
        live = versions.live(worker.store, version.use_case)
    if version.id in {v.id for v in live}:
        return False
    log.warning("version %d was retired while it was embedded", version.version)
    return True


def _live(store: Connection, request: Request) -> list[ModelVersion]:
    use_case_id = versions.use_case_id(store, request.use_case.name)
    return versions.live(store, use_case_id)


@contextmanager
def _recorded(store: Connection, request: Request, stage: str) -> Iterator[int]:
    """The run's row in the store, which also remembers how a stage failed. A dry run
    leaves none. Whatever happens to the store meanwhile is `DatabaseAway`."""
    if request.dry_run:
        with blame(store=store):
            yield 0
        return
    with blame(store=store):
        run_id = _open(store, request, stage)
    try:
        with blame(store=store):
            yield run_id
    except BaseException as error:
        _record_failure(store, request, run_id, stage, error)
        raise


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


def _open(store: Connection, request: Request, stage: str) -> int:
    """A failure is forgotten when its own stage is tried again, not when another
    stage of the same run begins."""
    window = request.backfill if isinstance(request.backfill, Window) else None
    row = store.execute(
        "INSERT INTO embedline.run AS r"
        " (use_case, external_id, kind, scope, since, until, reembed)"
        " VALUES (%(use_case)s, %(external_id)s, %(kind)s, %(scope)s, %(since)s,"
        "  %(until)s, %(reembed)s)"
        " ON CONFLICT (use_case, external_id) DO UPDATE SET"
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


def _count(store: Connection, run_id: int, synced: Synced) -> None:
    store.execute(
        "UPDATE embedline.run SET synced_at = now(), read = read + %(read)s,"
        " new = new + %(new)s, changed = changed + %(changed)s,"
        " deleted = deleted + %(deleted)s, labels = labels + %(labels)s,"
        " unusable_keys = %(unusable_keys)s, not_found = %(not_found)s,"
        " unreadable = %(unreadable)s"
        " WHERE id = %(id)s",
        {**asdict(synced), "id": run_id},
    )


def _remember_missing(
    store: Connection, run_id: int, missing: Mapping[str, EmbedlineError]
) -> None:
    told = {feature: str(error) for feature, error in missing.items()}
    for feature, error in told.items():
        log.error("no model feature=%s: %s", feature, error)
    store.execute(
        "UPDATE embedline.run SET models_missing = %s WHERE id = %s",
        [Jsonb(told), run_id],
    )


def _judge_missing(store: Connection, request: Request, run_id: int) -> None:
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


def _close(store: Connection, run_id: int) -> dict[str, Any]:
    with store.cursor(row_factory=psycopg.rows.dict_row) as cursor:
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


def _sum(left: Drained, right: Drained) -> Drained:
    return Drained(**{k: v + getattr(right, k) for k, v in asdict(left).items()})


def _facts(counts: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in counts.items() if value)
