"""Which model version serves: the next one, once it is complete, or again the last."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from embedding_tasks import judgement, maintenance
from embedding_tasks.connections import Connection, blame, for_source
from embedding_tasks.errors import (
    SearchError,
    SourceError,
    StoreError,
    ThresholdError,
)
from embedding_tasks.maintenance import Tell
from embedding_tasks.source import extract, snapshot
from embedding_tasks.store import retired, versions
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.sync import sync
from embedding_tasks.target import Target

if TYPE_CHECKING:
    from embedding_tasks.request import Request

log = logging.getLogger(__name__)


def finish(
    store: Connection, request: Request, use_case_id: int, tell: Tell | None = None
) -> None:
    """A version that is complete is ready, with the index that it is to have, and
    serves if the use case says so. Raises `ThresholdError` where one would be complete
    but for too many dead records."""
    _index(store, request, use_case_id, tell)
    with store.transaction():
        versions.lock(store, use_case_id)  # no sync adds to it meanwhile
        finished: list[ModelVersion] = []
        refused: ThresholdError | None = None
        for candidate in versions.live(store, use_case_id):
            # whoever queued it: a later sync may have begun this version
            left = judgement.left_of(store, candidate)
            if candidate.serves or left.pending:
                continue
            if not judgement.is_within(request.use_case, left.deferred, left):
                continue
            try:
                judgement.judge(request.use_case, candidate, left)
            except ThresholdError as error:
                refused = error
            else:
                versions.mark_ready(store, candidate)
                finished.append(candidate)
        if finished and request.use_case.auto_promote:
            versions.promote(
                store,
                use_case_id,
                finished,
                prediction_from_source=request.prediction_from_source,
            )
    if refused:
        raise refused


def promote(request: Request) -> list[ModelVersion]:
    """Let the ready versions serve, on demand. Raises `StoreError` where there is none
    or it has fallen behind, `ThresholdError` where too much of it is dead."""
    with request.open_store() as store, blame(store=store):
        use_case_id = versions.use_case_id(store, request.use_case.name)
        _index(store, request, use_case_id)
        return _promote(store, request, use_case_id)


def _index(
    store: Connection, request: Request, use_case_id: int, tell: Tell | None = None
) -> None:
    """Before the switch, and with no transaction open, since a build waits for those.
    One that is not complete yet is loaded without an index."""
    live = versions.live(store, use_case_id)
    serving = {v.feature: v for v in live if v.serves}
    for candidate in live:
        if candidate.serves or judgement.left_of(store, candidate).pending:
            continue
        maintenance.prepare(
            *(store, request.open_direct, request.use_case),
            *(candidate, serving.get(candidate.feature), tell),
        )


def _promote(
    store: Connection, request: Request, use_case_id: int
) -> list[ModelVersion]:
    with store.transaction():
        versions.lock(store, use_case_id)
        finished = [v for v in versions.live(store, use_case_id) if v.state == "ready"]
        for ready in finished:
            left = judgement.left_of(store, ready)
            put_off = not judgement.is_within(request.use_case, left.deferred, left)
            if left.pending or put_off:
                raise StoreError(
                    f"version {ready.version} has {left.pending + left.deferred} "
                    "records waiting by now; run the use case first"
                )
            judgement.judge(request.use_case, ready, left)
        return versions.promote(
            store,
            use_case_id,
            finished,
            prediction_from_source=request.prediction_from_source,
        )


@dataclass(frozen=True)
class Rollback:
    """`back` takes the place of `serving`: with `vectors` that are of the present
    input, while `to_embed` records wait for the next run."""

    serving: ModelVersion
    back: ModelVersion
    vectors: int
    to_embed: int

    def is_between(self, serving: ModelVersion, back: ModelVersion) -> bool:
        return (self.serving.id, self.back.id) == (serving.id, back.id)


def rollback(
    request: Request,
    feature: str | None = None,
    *,
    agreed: Rollback | None = None,
) -> Rollback:
    """The version that served before serves again, at once, and what is outdated of it
    leaves the store. The one it replaces is not built again before `undo_rollback`, or
    another recipe in the file. A dry run tells what would be done; `agreed` is what it
    told: `StoreError` where the versions are others by now, or there is none to go back
    to. The source is read only where the two are made of different columns.
    """
    with request.open_store() as store, blame(store=store), store.transaction():
        use_case_id = versions.use_case_id(store, request.use_case.name)
        versions.lock(store, use_case_id)
        serving = _serving(store, request, use_case_id, feature)
        back = _previous(store, request, serving)
        if agreed and not agreed.is_between(serving, back):
            raise StoreError(
                f"version {serving.version} serves by now, and {back.version} served "
                "before it; ask again"
            )
        _make_way(store, serving)
        _bring_up_to_date(store, request, serving, back)
        found = Rollback(serving, back, *_counts(store, back))
        if request.dry_run:
            raise psycopg.Rollback
        retired.serve_again(
            *(store, serving, back),
            prediction_from_source=request.prediction_from_source,
        )
        log.info(
            "rolled back use_case=%s feature=%s version=%d from=%d",
            *(request.use_case.name, back.feature, back.version, serving.version),
        )
    return found


def undo_rollback(request: Request, feature: str | None = None) -> list[ModelVersion]:
    """The next run builds again what was rolled back, where the file describes it.
    Raises `StoreError` where nothing was."""
    with request.open_store() as store, blame(store=store), store.transaction():
        use_case_id = versions.use_case_id(store, request.use_case.name)
        versions.lock(store, use_case_id)
        marked = retired.rolled_back(store, use_case_id, feature)
        if not marked:
            raise StoreError(f"no version of {request.use_case.name!r} is rolled back")
        retired.forgive(store, use_case_id, feature)
    return marked


def _serving(
    store: Connection, request: Request, use_case_id: int, feature: str | None
) -> ModelVersion:
    name = request.use_case.name
    if feature is None:
        serving = [v for v in versions.live(store, use_case_id) if v.serves]
        if len(serving) > 1:
            raise SearchError(
                f"use case {name!r} has several features: say which one is to go back "
                f"(--feature); valid: {', '.join(v.feature for v in serving)}"
            )
    return versions.active(store, name, feature)


def _previous(
    store: Connection, request: Request, serving: ModelVersion
) -> ModelVersion:
    back = retired.previous(store, serving)
    if back is None:
        raise StoreError(
            f"no version of {request.use_case.name!r} that served before version "
            f"{serving.version} is still there; `embedline versions "
            f"{request.use_case.name}` lists what is kept"
        )
    return back


def _make_way(store: Connection, serving: ModelVersion) -> None:
    """What is being built would serve as soon as it is complete: it is taken back with
    the version it was to replace."""
    for rival in versions.live(store, serving.use_case):
        if rival.feature == serving.feature and not rival.serves:
            versions.retire(store, rival)
            retired.mark(store, rival)


def _bring_up_to_date(
    store: Connection, request: Request, serving: ModelVersion, back: ModelVersion
) -> None:
    retired.take_up(store, back, serving, request.use_case, "building")
    if not serving.has_inputs_of(back):
        conninfo = for_source(request.use_case.source, request.resolve)
        _require_columns(request, conninfo, back)
        live = versions.live(store, back.use_case)
        unit = request.use_case.first_feature.unit
        sync(Target(store, back.use_case, live, unit), conninfo, request.use_case)
    retired.drop_outdated(store, back)


def _require_columns(request: Request, conninfo: str, back: ModelVersion) -> None:
    with snapshot.take(conninfo) as source:
        taken = extract.records(source, request.use_case, forms=[back.form])
    if not all(taken.followed):
        raise SourceError(
            f"version {back.version} cannot serve again: it is made of "
            f"{', '.join(back.form.columns)}, and {taken.relation.name} has lost one "
            "of these columns"
        )


def _counts(store: Connection, back: ModelVersion) -> tuple[int, int]:
    left = judgement.left_of(store, back)
    return versions.count(store, back), left.pending
