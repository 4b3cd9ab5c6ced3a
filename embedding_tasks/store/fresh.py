"""A fresh table for a large re-embed: a version of the recipe that serves, filled
beside it and without an index, that takes over when it is complete.

What need not be computed again is copied. Records that change while it is filled are
embedded in both, and so is what waited when it began, as long as that is little. More
is left to the fresh version (`embedline.awaiting_switch`), and served as it was until
the switch: row by row through an index it would take longer than all the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.errors import StoreError
from embedding_tasks.index_policy import DRAINED_SHARE
from embedding_tasks.store import versions
from embedding_tasks.store.versions import ModelVersion

log = logging.getLogger(__name__)

_PRIORITY = 10

# Of a ledger row `l`: only another backfill asked for it, and nobody has stored it.
_IS_ANOTHERS = sql.SQL(
    "(l.backfill IS NOT NULL AND l.have_hash IS NULL"
    " AND NOT EXISTS (SELECT FROM {vectors} v WHERE v.key = l.key))"
)


def has_begun(store: Connection, run: int) -> bool:
    row = store.execute(
        "SELECT EXISTS (SELECT FROM embedline.model_version WHERE filled_by = %s)",
        [run],
    ).fetchone()
    assert row is not None
    return bool(row[0])


def check(store: Connection, name: str, live: Sequence[ModelVersion]) -> None:
    """Raises `StoreError` where no fresh table can be begun, or has any use."""
    for version in live:
        if not version.serves:
            raise StoreError(_rival(name, version))
        if not _was_complete(store, version):
            raise StoreError(
                f"{name}: version {version.version} is still being filled for the "
                f"first time, as fast as can be; `embedline run {name}` completes it"
            )


def _rival(name: str, version: ModelVersion) -> str:
    if version.filled_by is None:
        return (
            f"{name}: version {version.version} is being built of another recipe than "
            "serves, in a table of its own as it is; run without `fresh`"
        )
    number = version.filled_by
    return (
        f"{name}: backfill {number} is filling version {version.version} already; "
        f"`embedline work {name}` helps, `embedline backfill cancel {name} {number}` "
        "gives it up"
    )


def _was_complete(store: Connection, version: ModelVersion) -> bool:
    """It was promoted, a run of it all has ended well, or next to nothing of it has
    never been embedded."""
    row = store.execute(
        sql.SQL(
            "SELECT m.ready_at IS NOT NULL OR EXISTS (SELECT FROM embedline.run r"
            "  WHERE r.use_case = m.use_case AND r.state = 'success'"
            "   AND r.kind <> 'work' AND coalesce(r.scope, 'everything') = 'everything'"
            "   AND r.finished_at >= m.created_at)"
            " OR (SELECT count(*) FILTER (WHERE l.pending AND l.dead_at IS NULL"
            "   AND l.have_hash IS NULL"
            "   AND NOT EXISTS (SELECT FROM {} v WHERE v.key = l.key))"
            "   < %(share)s * count(l.want_hash)"
            "  FROM embedline.ledger l WHERE l.model_version = m.id)"
            " FROM embedline.model_version m WHERE id = %(id)s"
        ).format(version.table),
        {"id": version.id, "share": DRAINED_SHARE},
    ).fetchone()
    return row is not None and row[0]


def begin(
    store: Connection,
    name: str,
    serving: Sequence[ModelVersion],
    run: int,
    *,
    anew: bool,
    copy: bool = True,
) -> int:
    """Where anything is to be embedded, with `anew` everything. Returns the records
    that need not be; they are copied, if `copy`. Call in a transaction, with the use
    case open and in step."""
    copied = 0
    for version in serving:
        waiting, wanted = _size(store, version)
        if not (waiting or anew):
            continue
        spares = waiting > DRAINED_SHARE * wanted
        fresh = _create(store, name, version, run, spares)
        if spares:
            _leave(store, version, run)
        kept = _fill_ledger(store, version, fresh, anew=anew)
        if copy and kept:
            _copy(store, version, fresh)
        copied += kept
        log.info(
            "fresh table use_case=%s version=%d beside=%d copied=%d waiting=%d",
            *(name, fresh.version, version.version, kept, waiting),
        )
    return copied


def _size(store: Connection, version: ModelVersion) -> tuple[int, int]:
    row = store.execute(
        "SELECT count(*) FILTER (WHERE pending AND dead_at IS NULL), count(want_hash)"
        " FROM embedline.ledger WHERE model_version = %s",
        [version.id],
    ).fetchone()
    assert row is not None
    return row


def _create(
    store: Connection, name: str, serving: ModelVersion, run: int, spares: bool
) -> ModelVersion:
    number = versions.next_number(store, serving.use_case)
    fresh = versions.fetch(
        store,
        sql.SQL(
            "INSERT INTO embedline.model_version (use_case, feature, unit, version,"
            "  fingerprint, spec, dims, storage, distance, classes, table_name, state,"
            "  filled_by, spares_serving)"
            " SELECT use_case, feature, unit, %s, fingerprint, spec, dims, storage,"
            "  distance, classes, %s, 'building', %s, %s"
            " FROM embedline.model_version WHERE id = %s RETURNING {}"
        ).format(versions.COLUMNS),
        [number, f"vector_{name}_v{number}", run, spares, serving.id],
    )[0]
    store.execute(
        "SELECT embedline.create_vector_table(m) FROM embedline.model_version m"
        " WHERE id = %s",
        [fresh.id],
    )
    return fresh


def _leave(store: Connection, serving: ModelVersion, run: int) -> None:
    """What is locked is in somebody's hands, who finishes it; to wait for it, with
    other rows locked already, could be waiting for one who waits for us."""
    store.execute(
        sql.SQL(
            "WITH left_over AS MATERIALIZED (SELECT key FROM embedline.ledger l"
            "  WHERE model_version = %(serving)s AND pending AND dead_at IS NULL"
            "   AND NOT {others} ORDER BY key FOR UPDATE SKIP LOCKED)"
            " UPDATE embedline.ledger l SET backfill = %(run)s, priority = %(priority)s"
            " FROM left_over o WHERE l.model_version = %(serving)s AND l.key = o.key"
        ).format(others=_IS_ANOTHERS.format(vectors=serving.table)),
        {"serving": serving.id, "run": run, "priority": _PRIORITY},
    )


def _fill_ledger(
    store: Connection, serving: ModelVersion, fresh: ModelVersion, *, anew: bool
) -> int:
    """Returns how many records are there already, as soon as they are copied."""
    store.execute(
        sql.SQL(
            "INSERT INTO embedline.ledger"
            " (model_version, key, want_hash, have_hash, priority, backfill)"
            " SELECT %(fresh)s, l.key, l.want_hash, h.have_hash, %(priority)s,"
            "  CASE WHEN l.want_hash IS NOT DISTINCT FROM h.have_hash THEN NULL"
            "   WHEN {others} THEN l.backfill ELSE %(run)s END"
            " FROM embedline.ledger l CROSS JOIN LATERAL (SELECT CASE"
            "  WHEN NOT (l.pending OR %(anew)s) THEN l.have_hash END) h (have_hash)"
            " WHERE l.model_version = %(serving)s ORDER BY l.key"
        ).format(others=_IS_ANOTHERS.format(vectors=serving.table)),
        {
            "fresh": fresh.id,
            "serving": serving.id,
            "priority": _PRIORITY,
            "run": fresh.filled_by,
            "anew": anew,
        },
    )
    row = store.execute(
        "SELECT count(have_hash) FROM embedline.ledger WHERE model_version = %s",
        [fresh.id],
    ).fetchone()
    assert row is not None
    return int(row[0])


def _copy(store: Connection, serving: ModelVersion, fresh: ModelVersion) -> None:
    """What the fresh ledger says is there: a worker may have stored more meanwhile."""
    ids = {"fresh": fresh.id, "serving": serving.id, "use_case": serving.use_case}
    columns = sql.SQL(
        "key, unit, span, box, embedding, input_hash, run_id, embedded_at"
    )
    store.execute(
        sql.SQL(
            "INSERT INTO {} ({columns}) SELECT {columns} FROM {} v"
            " WHERE EXISTS (SELECT FROM embedline.ledger f"
            "  WHERE f.model_version = %(fresh)s AND f.key = v.key"
            "   AND f.have_hash = v.input_hash)"
        ).format(fresh.table, serving.table, columns=columns),
        ids,
    )
    store.execute(
        "INSERT INTO embedline.prediction (use_case, key, unit, model_version,"
        "  prediction, score, probabilities, predicted_at)"
        " SELECT p.use_case, p.key, p.unit, %(fresh)s, p.prediction, p.score,"
        "  p.probabilities, p.predicted_at"
        " FROM embedline.prediction p JOIN embedline.ledger f ON f.key = p.key"
        " WHERE p.use_case = %(use_case)s AND p.model_version = %(serving)s"
        "  AND f.model_version = %(fresh)s AND f.have_hash IS NOT NULL",
        ids,
    )
    store.execute(
        "INSERT INTO embedline.input"
        " (model_version, key, data, unknown_words, truncated)"
        " SELECT %(fresh)s, i.key, i.data, i.unknown_words, i.truncated"
        " FROM embedline.input i JOIN embedline.ledger f ON f.key = i.key"
        " WHERE i.model_version = %(serving)s"
        "  AND f.model_version = %(fresh)s AND f.have_hash IS NOT NULL",
        ids,
    )
