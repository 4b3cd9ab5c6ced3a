"""The stages of a run: sync, plan, embed, publish, and before them, where an encoder
learns from the use case's own rows, train.

The DAG calls them as tasks, the command line one after another: scheduled,
manual, backfilled and retried runs are the same code. Between stages pass counts only.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import psycopg

from embedding_tasks import (
    backfills,
    foresight,
    judgement,
    promotion,
    pruning,
    runs,
    status,
    training,
)
from embedding_tasks.connections import Connection, blame, for_source
from embedding_tasks.encoders import recipe
from embedding_tasks.errors import DatabaseAway, EmbedlineError, TransientError
from embedding_tasks.maintenance import Tell
from embedding_tasks.pipeline import Drained, Progress
from embedding_tasks.promotion import promote as promote
from embedding_tasks.request import Request as Request
from embedding_tasks.store import declared, fresh, retired, trained, versions
from embedding_tasks.store.versions import ModelVersion, Recipe
from embedding_tasks.sync import sync
from embedding_tasks.target import Target
from embedding_tasks.worker import Worker

log = logging.getLogger(__name__)


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
        with runs.recorded(store, request, "train") as run_id:
            return training.train(
                store, request, retrain=retrain, progress=progress, run_id=run_id
            )


def sync_stage(request: Request) -> dict[str, int | float]:
    """What the source has that the store has not is enqueued; what it no longer has
    leaves the store. Returns the counts of `Synced`, and of a dry run what it foresees.
    """
    use_case = request.use_case
    with request.open_store() as store, runs.recorded(store, request, "sync") as run_id:
        known = trained.digests(store, use_case)
        if request.dry_run and (waiting := recipe.untrained(use_case, known)):
            return {"to_train": len(waiting)}
        found = recipe.found(use_case, request.resolve, trained=known)
        counts = _sync(store, request, run_id, *found)
        if not (request.dry_run or request.fresh):
            foresight.advise(store, use_case, _live(store, request))
    for error in found[1].values():
        if isinstance(error, TransientError):
            raise error  # what could be followed was; a retry may find the rest
    log.info("synced use_case=%s %s", use_case.name, _facts(counts))
    return counts


def _sync(
    store: Connection,
    request: Request,
    run_id: int,
    recipes: Mapping[str, Recipe],
    missing: Mapping[str, EmbedlineError],
) -> dict[str, int | float]:
    """In one transaction, which a dry run takes back. What has no model is followed
    as far as its versions go."""
    use_case, counts = request.use_case, dict[str, int | float]()
    conninfo = for_source(use_case.source, request.resolve)
    with store.transaction():
        use_case_id = versions.open_use_case(store, use_case.name)
        live = versions.live(store, use_case_id)
        before = {v.id for v in live if v.feature in use_case.all_features}
        needs_all = request.dry_run or request.fresh
        if missing and (needs_all or not (recipes or before)):
            raise next(iter(missing.values()))
        whole = request.backfill is None
        live = declared.ensure(store, use_case_id, use_case, recipes, whole=whole)
        if backfills.is_cancelled(store, run_id):
            log.warning("cancelled use_case=%s run=%d", use_case.name, run_id)
            return {}
        begins = request.fresh and not fresh.has_begun(store, run_id)
        if begins:
            fresh.check(store, use_case.name, live)
        target = Target(store, use_case_id, live, use_case.first_feature.unit)
        synced = sync(
            target,
            conninfo,
            use_case,
            backfill=request.of_run(run_id),
            reembed=request.reembed and not request.fresh,
            audit=request.audit,
            allow_deletes=request.allow_deletes,
        )
        for version in (v for v in live if v.id not in before):
            retired.drop_outdated(store, version)
        counts |= asdict(synced)
        if begins:
            anew, copy = request.reembed, not request.dry_run
            counts["copied"] = fresh.begin(
                store, use_case.name, live, run_id, anew=anew, copy=copy
            )
            live = versions.live(store, use_case_id)
        # last: whoever asks a view waits from here on
        versions.refresh_views(store, use_case_id, request.prediction_from_source)
        if request.dry_run:
            counts |= foresight.foreseen(store, use_case_id, use_case, live)
            raise psycopg.Rollback
        runs.close_abandoned(store, use_case_id, run_id)
        runs.count(store, run_id, synced)
        runs.remember_missing(store, run_id, missing)
    if not (request.dry_run or request.backfill):
        pruning.prune(store, use_case_id, use_case, conninfo)
    return counts


def plan_stage(request: Request) -> int:
    """How many workers the queue is worth: none when it is empty."""
    if request.dry_run:
        return 0
    with request.open_store() as store, runs.recorded(store, request, "plan"):
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
    with request.open_store() as store, runs.recorded(store, request, stage) as run_id:
        conninfo = for_source(request.use_case.source, request.resolve)
        live = _live(store, request)
        troubles: list[Exception] = []
        for place, version in enumerate(live):
            worker_ = Worker(
                store=store,
                open_store=request.open_store,
                store_conninfo=request.store_conninfo(),
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


def publish_stage(request: Request, tell: Tell | None = None) -> dict[str, Any]:
    """Says how the run ended: promotes a finished model version, drops those retired
    long ago, and raises `ModelError` where a model was missing, `ThresholdError` when
    more is left undone than the use case allows."""
    with (
        request.open_store() as store,
        runs.recorded(store, request, "publish") as run_id,
    ):
        use_case_id = versions.use_case_id(store, request.use_case.name)
        promotion.finish(store, request, use_case_id, tell)
        keep = request.use_case.keep_retired_days
        retired.drop_expired(store, use_case_id, keep)
        runs.judge_missing(store, request, run_id)
        for serving in (v for v in versions.live(store, use_case_id) if v.serves):
            judgement.judge(
                request.use_case, serving, judgement.left_of(store, serving, run_id)
            )
        numbers = status.of(store, request.use_case.name)[0]
        if request.backfill is None:
            judgement.judge_withheld(request.use_case, numbers)
        counts = runs.close(store, run_id)
    log.info("published use_case=%s %s", request.use_case.name, _facts(counts))
    return {**counts, "wanted": numbers["wanted"], "stored": numbers["stored"]}


def work(request: Request, progress: Progress = lambda drained: None) -> dict[str, Any]:
    """One worker that helps to drain what waits, and judges nothing: that is for the
    run whose work it is."""
    with request.open_store() as store, blame(store=store):
        versions.use_case_id(store, request.use_case.name)
    embedded = embed_stage(request, 0, progress)
    with request.open_store() as store, runs.recorded(store, request, "work") as run_id:
        return {**embedded, **runs.close(store, run_id)}


def begin(request: Request) -> int:
    """The run's number in the store, before its first stage."""
    with request.open_store() as store, blame(store=store):
        return runs.begin(store, request, "sync")


def run(
    request: Request,
    progress: Progress = lambda drained: None,
    train_progress: training.Progress = lambda epoch: None,
    index_progress: Tell | None = None,
) -> dict[str, Any]:
    """All stages in this process, with one worker."""
    made = train_stage(request, progress=train_progress)
    synced = {**made, **sync_stage(request)}
    if request.dry_run:
        return synced
    embedded = embed_stage(request, 0, progress) if plan_stage(request) else {}
    return {**synced, **embedded, **publish_stage(request, index_progress)}


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
    live = versions.live(worker.store, version.use_case)
    if version.id in {v.id for v in live}:
        return False
    log.warning("version %d was retired while it was embedded", version.version)
    return True


def _live(store: Connection, request: Request) -> list[ModelVersion]:
    use_case_id = versions.use_case_id(store, request.use_case.name)
    return versions.live(store, use_case_id)


def _sum(left: Drained, right: Drained) -> Drained:
    return Drained(**{k: v + getattr(right, k) for k, v in asdict(left).items()})


def _facts(counts: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in counts.items() if value)
