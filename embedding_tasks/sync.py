"""From the source to the ledger: what is new, changed, gone.

One sync is one transaction of the store. It holds the use case's lock from before it
looks at the source until all is applied, so two syncs can never apply their snapshots
in the wrong order. The ledger rows concerned are locked in key order, as workers lock
them, so neither deadlocks the other. Vectors of vanished records go last, in statements
of their own, which see what a worker has written meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress
from operator import not_

from psycopg import sql

from embedding_tasks import facts, ledger, staging
from embedding_tasks import records as stored
from embedding_tasks.connections import blame
from embedding_tasks.source import apart, extract, snapshot, timestamp
from embedding_tasks.source import strategy as strategies
from embedding_tasks.source.extract import Extract
from embedding_tasks.source.reading import Asked
from embedding_tasks.staging import Look, Staged
from embedding_tasks.target import Target
from embedding_tasks.use_case import (
    LabelTable,
    Scope,
    UseCase,
)

log = logging.getLogger(__name__)

SCHEDULED, BACKFILL = 0, 10


@dataclass(frozen=True)
class Synced:
    """What one sync found and did, in records."""

    read: int = 0
    new: int = 0
    changed: int = 0
    deleted: int = 0
    deletes_withheld: int = 0
    labels: int = 0
    labels_withheld: int = 0
    unusable_keys: int = 0
    not_found: int = 0
    unreadable: int = 0


@dataclass(frozen=True)
class Backfill:
    """The run that asks for these records alone; a dry run has no number."""

    run: int | None
    scope: Scope


def sync(
    target: Target,
    conninfo: str,
    use_case: UseCase,
    *,
    backfill: Backfill | None = None,
    reembed: bool = False,
    audit: bool = False,
    allow_deletes: bool = False,
) -> Synced:
    """Bring the ledger in step with the source; call in a transaction of the store,
    with the use case open.

    With a `backfill` its records alone are enqueued, at low priority and as its own: no
    deletes are looked for and the cursor stays. `reembed` makes the vectors of its
    records, or of everything, anew; `audit` reads every row again, whatever the cursor
    says. Raises `SourceError` or `DatabaseAway`; roll back, and nothing has changed.
    """
    asked = Asked(audit, key_scan=_were_withheld(target))
    with (
        _look(conninfo, use_case, asked) as look,
        blame(source=look.connection, store=target.store),
    ):
        connection = look.connection
        kept = staging.kept_data(target)
        refresh = kept not in (None, extract.kept_data(use_case))
        forms = [version.form for version in target.versions]
        records = extract.records(connection, use_case, forms=forms, with_data=refresh)
        staged = _stage(target, look, records, use_case, backfill)
        facts.compare_labels(target, use_case)
        again = reembed and backfill is not None
        new, changed = _compare(target, records, backfill, reembed=again)
        withheld = _find_vanished(target, use_case, staged, allow_deletes)
        withdrawn, labels_withheld = facts.find_withdrawn(
            target,
            use_case,
            full=staged.full,
            withheld=bool(withheld),
            partial=backfill is not None,
            allow_deletes=allow_deletes,
        )
        _lock(target)
        _enqueue(target, backfill, reembed)
        unreadable = _set_aside(target)
        _take_over(target, backfill)
        if reembed and backfill is None:
            _enqueue_all_again(target)
        stored.drop_emptied(target)
        stored.write(target)
        if refresh:
            stored.refresh_data(target)
        labels = facts.write(target, use_case, full=staged.full) + withdrawn
        deleted = stored.delete_vanished(target, use_case)
        facts.keep_labelled(target)
        if backfill is None:
            _remember_withheld(target, withheld, labels_withheld)
    return Synced(
        read=target.value("SELECT count(*) FROM incoming"),
        new=new,
        changed=changed,
        deleted=deleted,
        deletes_withheld=withheld,
        labels=labels,
        labels_withheld=labels_withheld,
        unusable_keys=staged.unusable_keys,
        not_found=staged.not_found,
        unreadable=unreadable,
    )


@contextmanager
def _look(conninfo: str, use_case: UseCase, asked: Asked) -> Iterator[Look]:
    source = use_case.source
    with snapshot.opened(conninfo) as connection:
        # before the snapshot: `timestamp` says why
        by_time = source.strategy == "timestamp"
        bound = timestamp.bound(connection, source.slack_seconds) if by_time else None
        with snapshot.look(connection):
            yield Look(connection, snapshot.position(connection, bound), asked)


def _stage(
    target: Target,
    look: Look,
    records: Extract,
    use_case: UseCase,
    backfill: Backfill | None,
) -> Staged:
    if backfill is not None:
        return staging.stage_scope(target, look, records, backfill.scope)
    forms = [version.form for version in target.versions]
    strategy = strategies.of_records(look.connection, records, use_case, forms)
    staged = staging.stage_records(target, look, records, strategy)
    if isinstance(use_case.label, LabelTable):
        labels = extract.labels(look.connection, use_case, use_case.label)
        staging.stage_labels(target, look, labels)
    return staged


def _compare(
    target: Target, records: Extract, backfill: Backfill | None, *, reembed: bool
) -> tuple[int, int]:
    """What the ledger does not yet say, in `delta`, per live version whose columns
    the source still has; how many records are new and how many changed. `is_claimed`
    are those waiting for a backfill that this sync may take over: none that it fills a
    fresh table with; for another backfill, those of one that is paused. What a
    worker could not read and is read now has changed, if only back to what it was."""
    followed = records.followed
    claims: sql.Composable = sql.SQL(
        "(v.id, l.backfill) NOT IN ("
        " SELECT model_version, backfill FROM embedline.awaiting_switch"
        " UNION ALL SELECT id, filled_by FROM embedline.model_version"
        "  WHERE filled_by IS NOT NULL AND state IN ('building', 'ready'))"
    )
    if backfill is not None:
        claims = sql.SQL(f"l.backfill IN ({ledger.PAUSED})")
    mended = sql.SQL(
        "coalesce(l.dead_at IS NOT NULL AND starts_with(l.error, %(charge)s), false)"
    )
    for version in compress(target.versions, map(not_, followed)):
        log.warning(
            "version %d is no longer followed: the source has lost a column it is made "
            "of (%s)",
            *(version.version, ", ".join(version.spec["input"])),
        )
    # Set down first: an anti-join inside the INSERT would scan the growing table
    # again and again (measured: 697 rows/s at 20,000 rows).
    target.execute(
        sql.SQL(
            "CREATE TEMP TABLE delta ON COMMIT DROP AS"
            " SELECT v.id AS model_version, i.key, i.hashes[v.place] AS hash,"
            "   l.key IS NULL AS is_new, %(reembed)s"
            "   OR l.want_hash IS DISTINCT FROM i.hashes[v.place] OR {mended}"
            "   AS is_changed,"
            "   l.pending AND l.backfill IS NOT NULL AND {claims} AS is_claimed,"
            "   coalesce(i.event_time < %(start)s::timestamptz, false) AS is_early"
            " FROM unnest(%(versions)s::int[], %(followed)s::boolean[])"
            "   WITH ORDINALITY AS v (id, followed, place) CROSS JOIN incoming i"
            " LEFT JOIN embedline.ledger l ON l.model_version = v.id AND l.key = i.key"
            " WHERE v.followed AND (l.key IS NULL OR %(reembed)s"
            "  OR l.want_hash IS DISTINCT FROM i.hashes[v.place] OR {mended}"
            "  OR (l.pending AND l.backfill IS NOT NULL AND {claims})"
            "  OR (l.pending AND l.attempts = 0 AND l.next_attempt_at > now()))"
        ).format(claims=claims, mended=mended),
        charge=apart.CHARGE,
        reembed=reembed,
        followed=list(followed),
        start=records.start,
    )
    target.execute("ANALYZE delta")
    ((new, changed),) = target.rows(
        "SELECT count(*) FILTER (WHERE is_new),"
        " count(*) FILTER (WHERE is_changed AND NOT is_new)"
        " FROM delta WHERE model_version = %(first)s"
    )
    return new, changed


def _find_vanished(
    target: Target, use_case: UseCase, staged: Staged, allow_deletes: bool
) -> int:
    """Records the source no longer has, in `vanished`. Returns how many deletions the
    guard withholds; then `vanished` is empty."""
    target.execute('CREATE TEMP TABLE vanished (key text COLLATE "C") ON COMMIT DROP')
    if staged.keys == "none":
        return 0
    suspect: sql.Composable = sql.SQL("k.key IN (SELECT t.key FROM touched t)")
    if staged.keys == "all":
        suspect = sql.SQL("true")
        if staged.doubt is not None:
            suspect = staged.doubt.falls_on(sql.Identifier("k", "key"))
    found = target.execute(
        sql.SQL(
            "INSERT INTO vanished SELECT key FROM ("
            " SELECT key FROM embedline.ledger k"
            "  WHERE model_version = ANY (%(versions)s) AND {suspect} AND {unseen}"
            " UNION SELECT key FROM embedline.record k"
            "  WHERE use_case = %(use_case)s AND {suspect} AND {unseen}) AS gone"
        ).format(
            suspect=suspect,
            unseen=sql.SQL("NOT EXISTS (SELECT FROM seen s WHERE s.key = k.key)"),
        )
    )
    known = _known(target) if found else 0
    withheld = 0
    if not allow_deletes and use_case.source.delete_guard.forbids(found, known):
        log.warning("deletes withheld use_case=%s rows=%d", use_case.name, found)
        target.execute("TRUNCATE vanished")
        withheld = found
    target.execute("ANALYZE vanished")
    return withheld


def _known(target: Target) -> int:
    return int(
        target.value(
            "SELECT count(*) FROM embedline.record WHERE use_case = %(use_case)s"
        )
    )


def _were_withheld(target: Target) -> bool:
    """Then all keys are needed: the strategy may have told of these once, and will not
    again."""
    return bool(
        target.value(
            "SELECT deletes_withheld > 0 FROM embedline.use_case"
            " WHERE id = %(use_case)s"
        )
    )


def _remember_withheld(target: Target, records: int, labels: int) -> None:
    target.execute(
        "UPDATE embedline.use_case"
        " SET deletes_withheld = %(records)s, labels_withheld = %(labels)s"
        " WHERE id = %(use_case)s"
        " AND (deletes_withheld, labels_withheld) <> (%(records)s, %(labels)s)",
        records=records,
        labels=labels,
    )


def _lock(target: Target) -> None:
    target.execute(
        "SELECT count(*) FROM (SELECT FROM embedline.ledger l JOIN ("
        "   SELECT model_version, key FROM delta WHERE NOT is_new"
        "   UNION SELECT v.id, key"
        "     FROM (SELECT key FROM vanished UNION SELECT key FROM unreadable) AS bad"
        "     CROSS JOIN unnest(%(versions)s::int[]) AS v (id)"
        "   UNION SELECT v.id, key FROM (SELECT key FROM label_delta"
        "     UNION SELECT key FROM withdrawn_label) AS relabelled"
        "     CROSS JOIN unnest(%(keep_labelled)s::int[]) AS v (id)"
        "  ) AS touched USING (model_version, key)"
        "  ORDER BY model_version, key FOR UPDATE OF l) AS locked"
    )


def _enqueue(target: Target, backfill: Backfill | None, reembed: bool) -> None:
    """What waits for the schedule already stays the schedule's; what waits for a
    backfill is taken from it by another one here, by the schedule in `_take_over`."""
    target.execute(
        "INSERT INTO embedline.ledger AS l"
        " (model_version, key, want_hash, priority, backfill)"
        " SELECT model_version, key, hash, %(priority)s,"
        "  CASE WHEN hash IS NOT NULL THEN %(backfill)s::bigint END FROM delta"
        " WHERE is_new OR is_changed ORDER BY model_version, key"
        " ON CONFLICT (model_version, key) DO UPDATE SET"
        "  want_hash = EXCLUDED.want_hash,"
        "  have_hash = CASE WHEN EXCLUDED.want_hash IS NULL OR %(reembed)s"
        "    THEN NULL ELSE l.have_hash END,"
        "  priority = CASE WHEN NOT l.pending THEN EXCLUDED.priority"
        "    WHEN l.backfill IS NOT NULL THEN l.priority"
        "    ELSE least(l.priority, EXCLUDED.priority) END,"
        "  backfill = CASE WHEN NOT l.pending THEN EXCLUDED.backfill"
        "    WHEN l.backfill IS NOT NULL AND EXCLUDED.want_hash IS NOT NULL"
        "    THEN coalesce(EXCLUDED.backfill, l.backfill) END,"
        "  queued_at = CASE WHEN l.pending THEN l.queued_at ELSE now() END,"
        "  attempts = 0, next_attempt_at = now(), deferred = false, dead_at = NULL,"
        "  error = NULL, lease_token = NULL, lease_holder = NULL, lease_until = NULL",
        priority=SCHEDULED if backfill is None else BACKFILL,
        backfill=None if backfill is None else backfill.run,
        reembed=reembed,
    )
    # Put off because the source had moved on: it has been looked at again. Those that
    # failed keep their pause.
    target.execute(
        "UPDATE embedline.ledger l SET next_attempt_at = now(), deferred = false"
        " FROM delta d WHERE l.model_version = d.model_version AND l.key = d.key"
        " AND NOT d.is_new AND NOT d.is_changed AND l.attempts = 0"
    )


def _take_over(target: Target, backfill: Backfill | None) -> None:
    """The schedule takes what it would have found by itself, and leaves to a backfill
    what has a vector of its current input, and what lies before the use case's `start`
    and was never stored."""
    for version in target.versions:
        wanted: sql.Composable = sql.SQL("true")
        if backfill is None:
            stored = sql.SQL("EXISTS (SELECT FROM {} v WHERE v.key = l.key{})")
            wanted = sql.SQL(
                "NOT {current} AND (NOT d.is_early OR l.have_hash IS NOT NULL OR {any})"
            ).format(
                current=stored.format(
                    version.table, sql.SQL(" AND v.input_hash = l.want_hash")
                ),
                any=stored.format(version.table, sql.SQL("")),
            )
        target.execute(
            sql.SQL(
                "UPDATE embedline.ledger l SET backfill = %(backfill)s::bigint,"
                "  priority = least(l.priority, %(priority)s)"
                " FROM delta d WHERE d.is_claimed AND d.model_version = %(version)s"
                " AND l.model_version = d.model_version AND l.key = d.key"
                " AND l.pending AND l.backfill IS NOT NULL AND {}"
            ).format(wanted),
            version=version.id,
            priority=SCHEDULED if backfill is None else BACKFILL,
            backfill=None if backfill is None else backfill.run,
        )


def _set_aside(target: Target) -> int:
    """Rows that cannot be read are dead until they change: as with any other dead
    record, a vector of what they were before leaves the store. Returns how many."""
    target.execute(
        "INSERT INTO embedline.ledger AS l"
        " (model_version, key, want_hash, dead_at, error)"
        " SELECT v.id, key, ''::bytea, now(), error FROM unreadable"
        " CROSS JOIN unnest(%(versions)s::int[]) AS v (id) ORDER BY v.id, key"
        " ON CONFLICT (model_version, key) DO UPDATE SET"
        "  want_hash = EXCLUDED.want_hash, dead_at = EXCLUDED.dead_at,"
        "  error = EXCLUDED.error, attempts = 0,"
        "  deferred = false, backfill = NULL, lease_token = NULL, lease_holder = NULL,"
        "  lease_until = NULL"
        " WHERE l.want_hash IS DISTINCT FROM EXCLUDED.want_hash OR l.dead_at IS NULL"
    )
    keys = [key for (key,) in target.rows("SELECT key FROM unreadable")]
    for version in target.versions if keys else ():
        ledger.drop_outdated(target.store, version, keys)
    return len(keys)


def _enqueue_all_again(target: Target) -> None:
    for version in target.versions:
        # Vectors that a backfill was to make anew. What is locked is just being made.
        target.execute(
            sql.SQL(
                "WITH held AS MATERIALIZED (SELECT key FROM embedline.ledger l"
                "  WHERE model_version = %(version)s AND pending"
                "   AND backfill IS NOT NULL"
                "   AND EXISTS (SELECT FROM {} v WHERE v.key = l.key)"
                "  ORDER BY key FOR UPDATE SKIP LOCKED)"
                " UPDATE embedline.ledger l SET backfill = NULL FROM held"
                " WHERE l.model_version = %(version)s AND l.key = held.key"
            ).format(version.table),
            version=version.id,
        )
    target.execute(
        "UPDATE embedline.ledger SET have_hash = NULL, priority = %(priority)s,"
        "  backfill = NULL, queued_at = now(), attempts = 0, next_attempt_at = now(),"
        "  dead_at = NULL, error = NULL"
        " WHERE model_version = ANY (%(versions)s) AND want_hash IS NOT NULL"
        " AND (NOT pending OR dead_at IS NOT NULL)",
        priority=BACKFILL,
    )
