"""From the source to the ledger: what is new, changed, gone.

One sync is one transaction of the store. It holds the use case's lock from before it
looks at the source until all is applied, so two syncs can never apply their snapshots
in the wrong order. The ledger rows concerned are locked in key order, as workers lock
them, so neither deadlocks the other. Vectors of vanished records go last, in statements
of their own, which see what a worker has written meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress
from operator import not_

from psycopg import sql

from embedding_tasks import facts, staging
from embedding_tasks.connections import blame
from embedding_tasks.source import extract, snapshot, timestamp
from embedding_tasks.source import strategy as strategies
from embedding_tasks.source.extract import Extract
from embedding_tasks.source.reading import Asked
from embedding_tasks.staging import Look, Staged
from embedding_tasks.store import versions
from embedding_tasks.store.write import write_data
from embedding_tasks.target import Target
from embedding_tasks.use_case import (
    Column,
    LabelTable,
    UseCase,
    Window,
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


def sync(
    target: Target,
    conninfo: str,
    use_case: UseCase,
    *,
    window: Window | None = None,
    reembed: bool = False,
    audit: bool = False,
    allow_deletes: bool = False,
) -> Synced:
    """Bring the ledger in step with the source; call in a transaction of the store,
    with the use case open.

    With a `window` its records alone are enqueued, at low priority: no deletes are
    looked for and the cursor stays. `reembed` makes the vectors of the window, or of
    everything, anew; `audit` reads every row again, whatever the cursor says. Raises
    `SourceError` or `DatabaseAway`; roll back, and nothing has changed.
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
        staged = _stage(target, look, records, use_case, window)
        facts.compare_labels(target, use_case)
        again = reembed and window is not None
        new, changed = _compare(target, records.followed, reembed=again)
        withheld = _find_vanished(target, use_case, staged, allow_deletes)
        withdrawn, labels_withheld = facts.find_withdrawn(
            target,
            use_case,
            full=staged.full,
            withheld=bool(withheld),
            window=window is not None,
            allow_deletes=allow_deletes,
        )
        _lock(target)
        _enqueue(target, BACKFILL if window else SCHEDULED, reembed)
        if reembed and window is None:
            _enqueue_all_again(target)
        _drop_emptied(target)
        _write_records(target)
        if refresh:
            _refresh_data(target)
        labels = facts.write(target, use_case, full=staged.full) + withdrawn
        deleted = _delete_vanished(target, use_case)
        facts.keep_labelled(target)
        if window is None:
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
    window: Window | None,
) -> Staged:
    if window is not None:
        return staging.stage_window(target, look, records, window)
    forms = [version.form for version in target.versions]
    strategy = strategies.of_records(look.connection, records, use_case, forms)
    staged = staging.stage_records(target, look, records, strategy)
    if isinstance(use_case.label, LabelTable):
        labels = extract.labels(look.connection, use_case, use_case.label)
        staging.stage_labels(target, look, labels)
    return staged


def _compare(
    target: Target, followed: Sequence[bool], *, reembed: bool
) -> tuple[int, int]:
    """What the ledger does not yet say, in `delta`, per live version whose columns
    the source still has; how many records are new and how many changed."""
    for version in compress(target.versions, map(not_, followed)):
        log.warning(
            "version %d is no longer followed: the source has lost a column it is made "
            "of (%s)",
            *(version.version, ", ".join(version.spec["input"])),
        )
    # Set down first: an anti-join inside the INSERT would scan the growing table
    # again and again (measured: 697 rows/s at 20,000 rows).
    target.execute(
        "CREATE TEMP TABLE delta ON COMMIT DROP AS"
        " SELECT v.id AS model_version, i.key, i.hashes[v.place] AS hash,"
        "   l.key IS NULL AS is_new,"
        "   %(reembed)s OR l.want_hash IS DISTINCT FROM i.hashes[v.place] AS is_changed"
        " FROM unnest(%(versions)s::int[], %(followed)s::boolean[])"
        "   WITH ORDINALITY AS v (id, followed, place) CROSS JOIN incoming i"
        " LEFT JOIN embedline.ledger l ON l.model_version = v.id AND l.key = i.key"
        " WHERE v.followed AND (l.key IS NULL OR %(reembed)s"
        "  OR l.want_hash IS DISTINCT FROM i.hashes[v.place]"
        "  OR (l.pending AND l.attempts = 0 AND l.next_attempt_at > now()))",
        reembed=reembed,
        followed=list(followed),
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
    found = target.execute(
        "INSERT INTO vanished SELECT key FROM ("
        "  SELECT key FROM embedline.ledger WHERE model_version = ANY (%(versions)s)"
        "  UNION SELECT key FROM embedline.record WHERE use_case = %(use_case)s) AS k"
        " WHERE NOT EXISTS (SELECT FROM seen s WHERE s.key = k.key)"
        " AND (%(all)s OR key IN (SELECT t.key FROM touched t))",
        all=staged.keys == "all",
    )
    known = target.value(
        "SELECT count(*) FROM embedline.record WHERE use_case = %(use_case)s"
    )
    withheld = 0
    if not allow_deletes and use_case.source.delete_guard.forbids(found, known):
        log.warning("deletes withheld use_case=%s rows=%d", use_case.name, found)
        target.execute("TRUNCATE vanished")
        withheld = found
    target.execute("ANALYZE vanished")
    return withheld


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
        "   UNION SELECT v.id, key FROM vanished"
        "     CROSS JOIN unnest(%(versions)s::int[]) AS v (id)"
        "   UNION SELECT v.id, key FROM (SELECT key FROM label_delta"
        "     UNION SELECT key FROM withdrawn_label) AS relabelled"
        "     CROSS JOIN unnest(%(keep_labelled)s::int[]) AS v (id)"
        "  ) AS touched USING (model_version, key)"
        "  ORDER BY model_version, key FOR UPDATE OF l) AS locked"
    )


def _enqueue(target: Target, priority: int, reembed: bool) -> None:
    target.execute(
        "INSERT INTO embedline.ledger AS l (model_version, key, want_hash, priority)"
        " SELECT model_version, key, hash, %(priority)s FROM delta"
        " WHERE is_new OR is_changed ORDER BY model_version, key"
        " ON CONFLICT (model_version, key) DO UPDATE SET"
        "  want_hash = EXCLUDED.want_hash,"
        "  have_hash = CASE WHEN EXCLUDED.want_hash IS NULL OR %(reembed)s"
        "    THEN NULL ELSE l.have_hash END,"
        "  priority = CASE WHEN l.pending THEN least(l.priority, EXCLUDED.priority)"
        "    ELSE EXCLUDED.priority END,"
        "  queued_at = CASE WHEN l.pending THEN l.queued_at ELSE now() END,"
        "  attempts = 0, next_attempt_at = now(), deferred = false, dead_at = NULL,"
        "  error = NULL, lease_token = NULL, lease_holder = NULL, lease_until = NULL",
        priority=priority,
        reembed=reembed,
    )
    # Put off because the source had moved on: it has been looked at again. Those that
    # failed keep their pause.
    target.execute(
        "UPDATE embedline.ledger l SET next_attempt_at = now(), deferred = false"
        " FROM delta d WHERE l.model_version = d.model_version AND l.key = d.key"
        " AND NOT d.is_new AND NOT d.is_changed AND l.attempts = 0"
    )


def _enqueue_all_again(target: Target) -> None:
    target.execute(
        "UPDATE embedline.ledger SET have_hash = NULL, priority = %(priority)s,"
        "  queued_at = now(), attempts = 0, next_attempt_at = now(), dead_at = NULL,"
        "  error = NULL"
        " WHERE model_version = ANY (%(versions)s) AND want_hash IS NOT NULL"
        " AND (NOT pending OR dead_at IS NOT NULL)",
        priority=BACKFILL,
    )


def _drop_emptied(target: Target) -> None:
    """Inputs that have become null have nothing to show for."""
    for version in target.versions:
        target.execute(
            sql.SQL(
                "DELETE FROM {} v USING delta d WHERE v.key = d.key"
                " AND d.model_version = %(version)s AND d.hash IS NULL"
            ).format(version.table),
            version=version.id,
        )
    target.execute(
        "DELETE FROM embedline.prediction p USING delta d"
        " WHERE p.use_case = %(use_case)s AND p.key = d.key"
        " AND p.model_version = d.model_version AND d.hash IS NULL"
    )
    target.execute(
        "DELETE FROM embedline.input i USING delta d"
        " WHERE i.model_version = d.model_version AND i.key = d.key AND d.hash IS NULL"
    )


def _write_records(target: Target) -> None:
    target.execute(
        "CREATE TEMP TABLE record_delta ON COMMIT DROP AS"
        " SELECT i.* FROM incoming i LEFT JOIN embedline.record r"
        "   ON r.use_case = %(use_case)s AND r.key = i.key"
        " WHERE r.key IS NULL OR (r.event_time, r.environment, r.link, r.tags)"
        "   IS DISTINCT FROM (i.event_time, i.environment, i.link, i.tags)"
    )
    target.execute(
        "INSERT INTO embedline.record"
        " (use_case, key, event_time, environment, link, tags)"
        " SELECT %(use_case)s, key, event_time, environment, link, tags"
        " FROM record_delta ORDER BY key"
        " ON CONFLICT (use_case, key) DO UPDATE SET event_time = EXCLUDED.event_time,"
        "  environment = EXCLUDED.environment, link = EXCLUDED.link,"
        "  tags = EXCLUDED.tags"
    )


def _refresh_data(target: Target) -> None:
    """The use case now keeps another part of the input than it did."""
    # Only where the vector is of the input that is read now.
    target.execute(
        "CREATE TEMP TABLE kept ON COMMIT DROP AS"
        " SELECT v.id AS model_version, i.key, i.data[v.place] AS data, o.unknown_words"
        " FROM unnest(%(versions)s::int[]) WITH ORDINALITY AS v (id, place)"
        " CROSS JOIN incoming i JOIN embedline.ledger l"
        "   ON l.model_version = v.id AND l.key = i.key"
        "  AND l.have_hash = i.hashes[v.place]"
        " LEFT JOIN embedline.input o ON o.model_version = v.id AND o.key = i.key",
    )
    for version in target.versions:
        target.execute(
            "CREATE TEMP TABLE kept_of_version ON COMMIT DROP AS"
            " SELECT key, data, unknown_words FROM kept WHERE model_version = %(id)s",
            id=version.id,
        )
        write_data(
            target.store,
            version.id,
            "SELECT key, data, unknown_words FROM kept_of_version",
        )
        target.execute("DROP TABLE kept_of_version")


def _delete_vanished(target: Target, use_case: UseCase) -> int:
    """The ledger first: it stops workers that hold these records. Then, in statements
    that begin later and so see what those workers had just written, everything else,
    in the tables of retired versions too."""
    target.execute(
        "DELETE FROM embedline.ledger l USING vanished d"
        " WHERE l.model_version = ANY (%(versions)s) AND l.key = d.key"
    )
    for table in versions.all_tables(target.store, target.use_case):
        target.execute(
            sql.SQL("DELETE FROM {} v USING vanished d WHERE v.key = d.key").format(
                table
            )
        )
    target.execute(
        "DELETE FROM embedline.input i USING vanished d, embedline.model_version m"
        " WHERE m.use_case = %(use_case)s AND i.model_version = m.id"
        " AND i.key = d.key"
    )
    target.execute(
        "DELETE FROM embedline.prediction p USING vanished d"
        " WHERE p.use_case = %(use_case)s AND p.key = d.key"
    )
    if isinstance(use_case.label, Column):
        target.execute(
            "DELETE FROM embedline.label l USING vanished d"
            " WHERE l.use_case = %(use_case)s AND l.key = d.key"
        )
    return target.execute(
        "DELETE FROM embedline.record r USING vanished d"
        " WHERE r.use_case = %(use_case)s AND r.key = d.key"
    )
