"""Keeping the store's vector tables fit: a plan that says what and why, and doing it,
for one live model version after another."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from embedding_tasks.connections import Connection, blame
from embedding_tasks.index_policy import Step, Subject, Table, decide, serving_index
from embedding_tasks.ledger import WANTED_NOW
from embedding_tasks.store import index, recall, retired, versions
from embedding_tasks.store.index import OpenStore, Progress
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.use_case import UseCase

log = logging.getLogger(__name__)

Tell = Callable[[Step, Progress], None]

# A build that is watched by nobody says how far it is so often, and at each new phase.
_LOG_SECONDS = 15.0


def plan(store: Connection, cases: Sequence[UseCase]) -> list[Step]:
    """For each live model version of these use cases, and what is retired and due."""
    steps: list[Step] = []
    for case in cases:
        for subject in _subjects(store, case):
            steps += _steps(store, subject)
        steps += _expired(store, case)
    return steps


def maintain(
    open_store: OpenStore,
    cases: Sequence[UseCase],
    tell: Tell | None = None,
) -> list[Step]:
    """Carries the plan out, and returns what was done. What another builder did while
    this one waited is not done again. Without a `tell` the progress is logged."""
    done: list[Step] = []
    with open_store() as store, blame(store=store):
        for case in cases:
            for subject in _subjects(store, case):
                done += _keep(store, open_store, subject, tell or logged())
            done += _drop_expired(store, case)
    return done


def prepare(
    store: Connection,
    open_store: OpenStore,
    case: UseCase,
    version: ModelVersion,
    serving: ModelVersion | None,
    tell: Tell | None = None,
) -> None:
    """Before a version takes over it gets the index that is due, or that the serving
    one has: a search must not become slow by a promotion."""
    subject = Subject(case, version)
    policy = case.storage.index
    if policy.type == "none" or index.obstacle(version.dims, version.storage):
        return
    has_one = serving is not None and any(
        i.serves(serving) for i in index.existing(store, serving)
    )
    if not (has_one or _holds(store, version, policy.min_rows)):
        return

    def steps(seen: Table) -> list[Step]:
        if serving_index(subject, seen):
            return []
        why = "it is to serve, and " + (
            "what serves now has an index"
            if has_one
            else f"has at least {policy.min_rows:,} vectors"
        )
        return [subject.step("build", why, index.name_of(version, policy))]

    if steps(look(store, version)):
        _under_lock(store, open_store, subject, steps, tell or logged())


def _subjects(store: Connection, case: UseCase) -> Iterator[Subject]:
    for version in versions.live_by_name(store, case.name):
        yield Subject(case, version)


def _steps(store: Connection, subject: Subject) -> list[Step]:
    return decide(subject, look(store, subject.version))


def look(store: Connection, version: ModelVersion) -> Table:
    row = store.execute(
        sql.SQL(
            "SELECT (SELECT count(*) FROM {}), coalesce(s.n_dead_tup, 0), l.pending,"
            "  l.hours"
            " FROM (SELECT count(*) AS pending, coalesce(extract(epoch FROM now()"
            "    - min(queued_at)) / 3600, 0)::float8 AS hours"
            "   FROM embedline.ledger WHERE model_version = %(id)s AND pending"
            f"   AND dead_at IS NULL AND NOT deferred AND {WANTED_NOW}) l"
            " LEFT JOIN pg_stat_all_tables s"
            "  ON s.relid = to_regclass(format('embedline.%%I', %(table)s::text))"
        ).format(version.table),
        {"id": version.id, "table": version.table_name},
    ).fetchone()
    assert row is not None
    known = store.execute(
        "SELECT DISTINCT ON (name) name, recall IS NOT NULL OR k IS NOT NULL,"
        "  bytes::float8 / nullif(rows, 0) FROM embedline.vector_index"
        " WHERE model_version = %s ORDER BY name, id DESC",
        [version.id],
    ).fetchall()
    indexes = index.existing(store, version)
    widths = {name: width for name, _, width in known}
    serving = [widths.get(i.name) for i in indexes if i.serves(version)]
    rows, dead, pending, waited_hours = row
    return Table(
        rows,
        dead,
        pending,
        waited_hours,
        indexes,
        frozenset(name for name, is_measured, _ in known if is_measured),
        next((w for w in serving if w), None),
    )


def _keep(
    store: Connection, open_store: OpenStore, subject: Subject, tell: Tell
) -> list[Step]:
    def steps(seen: Table) -> list[Step]:
        # it may have been retired while another builder was waited for
        is_live = subject.version in _live(store, subject)
        return decide(subject, seen) if is_live else []

    try:
        if all(step.work == "none" for step in _steps(store, subject)):
            return []
        return _under_lock(store, open_store, subject, steps, tell)
    except psycopg.errors.UndefinedTable:
        if subject.version.id in {v.id for v in _live(store, subject)}:
            raise
        log.warning("version %d was retired meanwhile", subject.version.version)
        return []


def _live(store: Connection, subject: Subject) -> list[ModelVersion]:
    return versions.live(store, subject.version.use_case)


def _under_lock(
    store: Connection,
    open_store: OpenStore,
    subject: Subject,
    steps: Callable[[Table], list[Step]],
    tell: Tell,
) -> list[Step]:
    """Looks again once it is the only builder."""
    waiting = subject.step("none", "waits")
    done: list[Step] = []
    with (
        index.builder(open_store, lambda p: tell(waiting, p)) as session,
        blame(store=session),
    ):
        made: list[Callable[[], None]] = []
        seen = look(store, subject.version)
        for step in steps(seen):
            if step.work != "none":
                made += _do(store, session, subject, seen, step, tell)
                done.append(step)
        # when those are gone that searches may still take in place of what was built
        for record in made:
            record()
    return done


def _do(
    store: Connection,
    session: Connection,
    subject: Subject,
    seen: Table,
    step: Step,
    tell: Tell,
) -> list[Callable[[], None]]:
    """Returns what is to be measured and recorded of it. `seen` is the table as the
    steps were decided by."""
    version = subject.version
    log.info("%s", told(step))
    memory = index.memory(store, seen.rows, version)
    found = {i.name: i for i in seen.indexes}

    def say(progress: Progress) -> None:
        tell(step, progress)

    began = _now(store)
    match step.work:
        case "drop":
            assert step.index is not None
            index.drop(session, found[step.index])
            index.set_vacuum_share(session, version)
        case "vacuum":
            index.vacuum(store, session, version, say)
        case "build":
            policy = subject.case.storage.index
            index.build(store, session, version, policy, memory, say)
        case "reindex":
            assert step.index is not None
            index.rebuild(store, session, version, found[step.index], memory, say)
    if step.work not in ("build", "reindex", "measure"):
        return []
    seconds = None if step.work == "measure" else _now(store) - began

    def record() -> None:
        say(Progress("measuring recall", 0, 0))
        _record(store, subject, step, seconds, memory.given)

    return [record]


def _record(
    store: Connection, subject: Subject, step: Step, seconds: float | None, memory: int
) -> None:
    version = subject.version
    found = {i.name: i for i in index.existing(store, version)}
    if step.index not in found:
        log.warning("index=%s was dropped by somebody else", step.index)
        return
    made = found[step.index]
    rows = versions.count(store, version)
    measured = recall.measure(store, version, rows)
    store.execute(
        "INSERT INTO embedline.vector_index (model_version, name, work, method,"
        "  parameters, rows, bytes, memory, seconds, recall, k, ef_search, queries)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [
            *(version.id, made.name, step.work, made.method, Jsonb(made.options)),
            *(rows, made.bytes, None if seconds is None else memory, seconds),
            *(measured.share, measured.k, measured.ef_search, measured.queries),
        ],
    )
    log.info(
        "index=%s rows=%d bytes=%d seconds=%s recall=%s ef_search=%d",
        *(made.name, rows, made.bytes, seconds, measured.share, measured.ef_search),
    )


def _now(store: Connection) -> float:
    row = store.execute("SELECT extract(epoch FROM clock_timestamp())").fetchone()
    assert row is not None
    return float(row[0])


def _expired(store: Connection, case: UseCase) -> list[Step]:
    days = case.keep_retired_days
    live = versions.live_by_name(store, case.name)
    due = retired.expired(store, live[0].use_case, days) if live else []
    why = f"the whole version: retired, and kept for {days:g} days" if due else ""
    return [Subject(case, version).step("drop", why) for version in due]


def _drop_expired(store: Connection, case: UseCase) -> list[Step]:
    due = _expired(store, case)
    if due:
        use_case_id = versions.use_case_id(store, case.name)
        retired.drop_expired(store, use_case_id, case.keep_retired_days)
    kept = {step.version for step in _expired(store, case)} if due else set()
    return [step for step in due if step.version not in kept]


def _holds(store: Connection, version: ModelVersion, rows: int) -> bool:
    row = store.execute(
        sql.SQL("SELECT count(*) FROM (SELECT FROM {} LIMIT %s) AS counted").format(
            version.table
        ),
        [rows],
    ).fetchone()
    assert row is not None
    return bool(row[0] >= rows)


def told(step: Step) -> str:
    return " ".join(f"{name}={value}" for name, value in asdict(step).items() if value)


def logged() -> Tell:
    last: tuple[Step, str] | None = None
    at = 0.0

    def say(step: Step, progress: Progress) -> None:
        nonlocal last, at
        if last == (step, progress.phase) and time.monotonic() < at + _LOG_SECONDS:
            return
        last, at = (step, progress.phase), time.monotonic()
        log.info(
            "%s index=%s phase=%r done=%d total=%d waits_for=%s",
            *(step.work, step.index, progress.phase, progress.done, progress.total),
            progress.waits_for,
        )

    return say
