"""Opening the store: $EMBEDLINE_STORE_DSN, else the connection `embedline_store`,
else an embedded PostgreSQL under the project's home."""

from __future__ import annotations

import os
import warnings

from embedding_tasks import settings
from embedding_tasks.connections import Connection, Resolve, blame, connect, lookup
from embedding_tasks.local import postgres
from embedding_tasks.store import migrate

EMBEDDED_DATABASE = "embedline"

# Where everybody may create functions, somebody may have one that fits a call of ours
# better than PostgreSQL's own (CVE-2018-1058): no name is looked for there.
_PATH = "-csearch_path=pg_catalog,pg_temp"


def conninfo(resolve: Resolve | None = None) -> str:
    return _configured(resolve) or postgres.conninfo(EMBEDDED_DATABASE)


def reach(conninfo: str) -> Connection:
    """A connection to a store as it is. It finds no name but PostgreSQL's own that is
    written without its schema: neither pgvector's, nor people's."""
    return connect(conninfo, role="store", options=_PATH)


def open_store(resolve: Resolve | None = None, *, direct: bool = False) -> Connection:
    """As `reach`, in autocommit mode; `direct`: by $EMBEDLINE_STORE_DIRECT_DSN or the
    connection `embedline_store_direct`, where one of them is set. An embedded store is
    initialised on the way; any other must have been, by `embedline init`. Raises
    `DatabaseAway`, or `StoreError` where the schema is missing, older or newer than
    this version."""
    configured = _direct(resolve) if direct else _configured(resolve)
    connection = reach(configured or conninfo())
    try:
        with blame(store=connection):
            if configured is None:
                migrate.apply(connection)
            else:
                migrate.require_current(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _configured(resolve: Resolve | None) -> str | None:
    return _known(settings.STORE_DSN, settings.STORE_CONNECTION, resolve)


def _direct(resolve: Resolve | None) -> str | None:
    found = _known(settings.DIRECT_DSN, settings.DIRECT_CONNECTION, resolve)
    return found or _configured(resolve)


def _known(variable: str, connection_id: str, resolve: Resolve | None) -> str | None:
    if dsn := os.environ.get(variable):
        return dsn
    try:
        return lookup(connection_id, resolve)
    except KeyError:
        return None


def warn_of_old_pgvector(connection: Connection) -> None:
    """0.8.3 fixed a corrupted HNSW graph, 0.8.4 one left unrepaired
    (pgvector/pgvector#988, #993)."""
    row = connection.execute(
        "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
    ).fetchone()
    assert row is not None
    version = tuple(int(part) for part in row[0].split("."))
    if version < (0, 8, 4):
        warnings.warn(
            f"pgvector {row[0]} has known HNSW faults, fixed in 0.8.4: update it",
            stacklevel=2,
        )
