"""Taking out of an outbox what every store has seen.

Several stores may read one outbox, and none knows of the others. So each takes out only
what had been visible four days ago, and one that has not looked for three reads
everything (`reading.OUTBOX_DAYS`). For this the horizon of a look is kept until it is
old enough; then all below it goes, and the present one takes its place.
"""

from __future__ import annotations

import logging

import psycopg

from embedding_tasks.connections import Connection, blame, connect
from embedding_tasks.errors import EmbedlineError
from embedding_tasks.source import outbox
from embedding_tasks.source.reading import OUTBOX_DAYS
from embedding_tasks.use_case import UseCase

log = logging.getLogger(__name__)


def prune(
    store: Connection, use_case_id: int, use_case: UseCase, conninfo: str
) -> None:
    """Call when the sync has been committed. A source that does not let us (a standby,
    no right to delete) keeps its rows: the sync itself is done, and the next
    generation takes them with it."""
    if use_case.source.strategy != "outbox":
        return
    row = store.execute(
        "SELECT prune_horizon::text::bigint FROM embedline.source_cursor"
        " WHERE use_case = %s AND relation = 'records'"
        " AND prune_at < now() - make_interval(days => %s)",
        [use_case_id, OUTBOX_DAYS + 1],
    ).fetchone()
    if row is None:
        return
    _prune(use_case.name, conninfo, row[0])
    store.execute(
        "UPDATE embedline.source_cursor SET prune_horizon = horizon,"
        " prune_at = synced_at WHERE use_case = %s AND relation = 'records'",
        [use_case_id],
    )


def _prune(name: str, conninfo: str, horizon: int) -> None:
    try:
        with connect(conninfo, role="source") as source, blame(source=source):
            gone = outbox.prune(source, name, horizon)
    except (EmbedlineError, psycopg.Error) as error:
        log.warning(
            "outbox not pruned use_case=%s error=%s; who may can run: "
            "DELETE FROM %s.%s WHERE xid < '%d'",
            *(name, str(error).strip(), outbox.SCHEMA, name, horizon),
        )
    else:
        log.info("pruned outbox use_case=%s rows=%d", name, gone)
