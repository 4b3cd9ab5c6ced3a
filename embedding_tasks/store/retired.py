"""Retired model versions: taken up again, served again, and dropped in the end.

A retired version has no ledger: what its table has stands in the input hashes of its
vectors. Taken up again it gets a ledger made of those, and of what the serving version
wants, so that only what has changed since is embedded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Literal

import psycopg
from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.store import versions
from embedding_tasks.store.versions import COLUMNS, ModelVersion
from embedding_tasks.use_case import UseCase

log = logging.getLogger(__name__)

BUILDING_PRIORITY = 10
# A table to be dropped may be in use by a long transaction; so long it is waited for.
DROP_LOCK_SECONDS = 5

_HAS_TABLE = sql.SQL("to_regclass(format('embedline.%%I', m.table_name)) IS NOT NULL")


def of_fingerprint(
    store: Connection, use_case: int, feature: str, fingerprint: str
) -> ModelVersion | None:
    """The latest retired version of a recipe whose table is still there, one that has
    served before one that was not completed."""
    statement = sql.SQL(
        "SELECT {} FROM embedline.model_version m WHERE state = 'retired'"
        " AND use_case = %s AND feature = %s AND fingerprint = %s AND {}"
        " ORDER BY activated_at IS NULL, retired_at DESC, version DESC LIMIT 1"
    ).format(COLUMNS, _HAS_TABLE)
    found = versions.fetch(store, statement, [use_case, feature, fingerprint])
    return found[0] if found else None


def previous(store: Connection, serving: ModelVersion) -> ModelVersion | None:
    """The version that served before this one, with its table still there."""
    statement = sql.SQL(
        "SELECT {} FROM embedline.model_version m WHERE state = 'retired'"
        " AND use_case = %s AND feature = %s AND activated_at IS NOT NULL"
        " AND rolled_back_at IS NULL AND {}"
        " ORDER BY activated_at DESC, version DESC LIMIT 1"
    ).format(COLUMNS, _HAS_TABLE)
    found = versions.fetch(store, statement, [serving.use_case, serving.feature])
    return found[0] if found else None


def rolled_back(
    store: Connection, use_case: int, feature: str | None = None
) -> list[ModelVersion]:
    """Those a rollback has taken out of service."""
    statement = sql.SQL(
        "SELECT {} FROM embedline.model_version WHERE use_case = %(use_case)s"
        " AND rolled_back_at IS NOT NULL"
        " AND (feature = %(feature)s OR %(feature)s::text IS NULL) ORDER BY version"
    ).format(COLUMNS)
    return versions.fetch(store, statement, {"use_case": use_case, "feature": feature})


def forgive(store: Connection, use_case: int, feature: str | None = None) -> None:
    """They may be built again."""
    store.execute(
        "UPDATE embedline.model_version SET rolled_back_at = NULL"
        " WHERE use_case = %(use_case)s AND rolled_back_at IS NOT NULL"
        " AND (feature = %(feature)s OR %(feature)s::text IS NULL)",
        {"use_case": use_case, "feature": feature},
    )


def take_up(
    store: Connection,
    version: ModelVersion,
    serving: ModelVersion | None,
    use_case: UseCase,
    state: Literal["building", "active"],
) -> ModelVersion:
    """Gives it a ledger and has it follow the source again. Where it shares no columns
    with the serving version its own hashes are believed, and the sync to come has to
    read every row. `drop_outdated` is to follow when that is done."""
    same = serving is not None and serving.has_inputs_of(version)
    store.execute(
        sql.SQL(
            "INSERT INTO embedline.ledger"
            " (model_version, key, want_hash, have_hash, priority, backfill)"
            " SELECT %(id)s, w.key,"
            "  CASE WHEN %(same)s THEN w.want_hash"
            "   ELSE coalesce(t.input_hash, w.want_hash) END,"
            "  CASE WHEN NOT %(labelled)s THEN t.input_hash END,"
            "  %(priority)s, CASE WHEN t.key IS NULL THEN w.backfill END"
            " FROM {wanted} w LEFT JOIN {made} t USING (key) ORDER BY w.key"
        ).format(wanted=_wanted(serving, version), made=_made(version)),
        {
            "id": version.id,
            "serving": serving and serving.id,
            "same": same,
            # labels were not followed, and say which parts have a vector
            "labelled": version.keeps_labelled(use_case.first_feature.unit),
            "priority": 0 if state == "active" else BUILDING_PRIORITY,
        },
    )
    _keep_no_more(store, version, use_case.storage.data)
    _keep_more(store, version)
    if not same:
        versions.read_everything(store, version.use_case)
    return versions.fetch(
        store,
        sql.SQL(
            "UPDATE embedline.model_version SET state = %(state)s, ready_at = NULL,"
            " retired_at = NULL, rolled_back_at = NULL, filled_by = NULL,"
            " spares_serving = false,"
            " activated_at = CASE %(state)s WHEN 'active' THEN now()"
            "   ELSE activated_at END"
            " WHERE id = %(id)s RETURNING {}"
        ).format(COLUMNS),
        {"id": version.id, "state": state},
    )[0]


def _keep_no_more(store: Connection, version: ModelVersion, data: str | int) -> None:
    """The use case may have been told meanwhile to keep less of the inputs."""
    if data == "none":
        store.execute(
            "UPDATE embedline.input SET data = NULL WHERE model_version = %s",
            [version.id],
        )
    elif data != "all":
        store.execute(
            "UPDATE embedline.input SET data = left(data, %(most)s)"
            " WHERE model_version = %(id)s AND length(data) > %(most)s",
            {"id": version.id, "most": data},
        )


def _keep_more(store: Connection, version: ModelVersion) -> None:
    """Or more: the next sync then reads it from the source."""
    store.execute(
        "UPDATE embedline.source_cursor c"
        " SET definition = jsonb_set(definition, '{data}', '[]')"
        " FROM embedline.model_version m WHERE m.id = %s AND c.use_case = m.use_case"
        " AND relation = 'records'"
        " AND m.kept IS DISTINCT FROM definition -> 'data' -> 0",
        [version.id],
    )


def drop_outdated(store: Connection, version: ModelVersion) -> None:
    """What is not of the input that is wanted by now leaves the store: vectors, and
    their predictions and inputs with them."""
    store.execute(
        sql.SQL(
            "DELETE FROM {} v WHERE NOT EXISTS (SELECT FROM embedline.ledger l"
            " WHERE l.model_version = %s AND l.key = v.key"
            "  AND l.want_hash = v.input_hash)"
        ).format(version.table),
        [version.id],
    )
    store.execute(
        sql.SQL(
            "DELETE FROM embedline.prediction p WHERE p.use_case = %s"
            " AND p.model_version = %s"
            " AND NOT EXISTS (SELECT FROM {} v WHERE v.key = p.key)"
        ).format(version.table),
        [version.use_case, version.id],
    )
    store.execute(
        sql.SQL(
            "DELETE FROM embedline.input i WHERE i.model_version = %s"
            " AND NOT EXISTS (SELECT FROM {} v WHERE v.key = i.key)"
        ).format(version.table),
        [version.id],
    )
    store.execute(
        "UPDATE embedline.ledger SET have_hash = NULL WHERE model_version = %s"
        " AND have_hash IS NOT NULL AND have_hash IS DISTINCT FROM want_hash",
        [version.id],
    )


def serve_again(
    store: Connection,
    serving: ModelVersion,
    back: ModelVersion,
    *,
    prediction_from_source: bool,
) -> None:
    """Call with the use case open and `back` taken up: it takes the place of the
    serving version, which is marked so that no sync builds it again."""
    versions.retire(store, serving)
    mark(store, serving)
    store.execute(
        "UPDATE embedline.model_version"
        " SET state = 'active', activated_at = now(), distance = %s WHERE id = %s",
        [serving.distance, back.id],
    )
    # what is still to be made of it is the schedule's, unless a backfill asked for it
    store.execute(
        "UPDATE embedline.ledger SET priority = 0"
        " WHERE model_version = %s AND pending AND backfill IS NULL",
        [back.id],
    )
    versions.refresh_views(store, serving.use_case, prediction_from_source)


def mark(store: Connection, version: ModelVersion) -> None:
    store.execute(
        "UPDATE embedline.model_version SET rolled_back_at = now() WHERE id = %s",
        [version.id],
    )


def expired(store: Connection, use_case: int, days: float | None) -> list[ModelVersion]:
    """What was retired so many days ago (None: nothing, ever) and still has a table."""
    statement = sql.SQL(
        "SELECT {} FROM embedline.model_version WHERE use_case = %s"
        " AND state = 'retired' AND dropped_at IS NULL"
        " AND retired_at <= now() - make_interval(secs => %s::float8 * 86400)"
        " ORDER BY version"
    ).format(COLUMNS)
    return versions.fetch(store, statement, [use_case, days])


def drop_expired(store: Connection, use_case: int, days: float | None) -> None:
    """Drops what is `expired`, each in a transaction of its own, and the trained
    weights that nothing needs any more."""
    if days is None:
        return
    drop(store, expired(store, use_case, days))
    _forget_weights(store, use_case)


def drop(store: Connection, due: Iterable[ModelVersion]) -> None:
    """Each in a transaction of its own; one that somebody needs or holds stays."""
    for version in due:
        try:
            _drop(store, version)
        except (
            psycopg.errors.DependentObjectsStillExist,
            psycopg.errors.LockNotAvailable,
        ) as error:
            log.warning(
                "not dropped version=%d table=%s: %s; the next run tries again",
                *(version.version, version.table_name),
                error.diag.message_detail or error.diag.message_primary,
            )


# What goes with a version's vectors. What was measured of it stays.
_OF_VERSION = ("input", "rollup_day", "outcome_day", "baseline", "flag", "projection")


def _drop(store: Connection, version: ModelVersion) -> None:
    with store.transaction():
        versions.lock(store, version.use_case)
        # another run may have taken it up by now
        gone = store.execute(
            "UPDATE embedline.model_version SET dropped_at = now()"
            " WHERE id = %s AND state = 'retired' AND dropped_at IS NULL",
            [version.id],
        ).rowcount
        if not gone:
            return
        store.execute(
            "SELECT set_config('lock_timeout', %s, true)", [f"{DROP_LOCK_SECONDS}s"]
        )
        store.execute(
            "SELECT embedline.drop_vector_table(m) FROM embedline.model_version m"
            " WHERE id = %s",
            [version.id],
        )
        store.execute(
            "DELETE FROM embedline.prediction"
            " WHERE use_case = %s AND model_version = %s",
            [version.use_case, version.id],
        )
        for table in _OF_VERSION:
            store.execute(
                sql.SQL("DELETE FROM {} WHERE model_version = %s").format(
                    sql.Identifier("embedline", table)
                ),
                [version.id],
            )
    log.info(
        "dropped use_case=%d version=%d table=%s",
        *(version.use_case, version.version, version.table_name),
    )


def _forget_weights(store: Connection, use_case: int) -> None:
    """Those of no version that has a table, unless they are the latest of their
    settings, which the next sync makes vectors with."""
    statement = sql.SQL(
        "DELETE FROM embedline.trained_model t WHERE use_case = %s"
        " AND EXISTS (SELECT FROM embedline.trained_model later"
        "  WHERE later.use_case = t.use_case AND later.feature = t.feature"
        "   AND later.settings = t.settings AND later.id > t.id)"
        " AND NOT EXISTS (SELECT FROM embedline.model_version m"
        "  WHERE m.spec ->> 'weights' = t.digest AND {})"
        " RETURNING feature, digest"
    ).format(_HAS_TABLE)
    for feature, digest in store.execute(statement, [use_case]).fetchall():
        log.info(
            "dropped use_case=%d feature=%s weights=%s", use_case, feature, digest[:12]
        )


def _wanted(serving: ModelVersion | None, version: ModelVersion) -> sql.Composable:
    if serving is None:
        return sql.SQL(
            "(SELECT key, input_hash AS want_hash, NULL::bigint AS backfill"
            " FROM {} AS made)"
        ).format(_made(version))
    # What only a backfill asked for, and nobody has stored, stays that backfill's.
    return sql.SQL(
        "(SELECT key, want_hash, CASE WHEN have_hash IS NULL"
        "   AND NOT EXISTS (SELECT FROM {} v WHERE v.key = l.key) THEN backfill END"
        "   AS backfill"
        " FROM embedline.ledger l WHERE model_version = %(serving)s)"
    ).format(serving.table)


def _made(version: ModelVersion) -> sql.Composable:
    """All vectors of a record were made of one input."""
    return sql.SQL(
        "(SELECT DISTINCT ON (key) key, input_hash FROM {} ORDER BY key)"
    ).format(version.table)
