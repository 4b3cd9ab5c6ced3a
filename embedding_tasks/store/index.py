"""The index of a vector table: what there is, and building it beside its readers.

Whatever is done to an index is done CONCURRENTLY, in a session of its own, by one
builder at a time over the store: two builds would wait for each other. An index is
named by what it is made with, so that one of other parameters is built beside the one
that serves, which goes when the new one is valid.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql
from psycopg.rows import class_row

from embedding_tasks import settings
from embedding_tasks.connections import Connection
from embedding_tasks.errors import ConfigError, StoreError
from embedding_tasks.store import migrate
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.use_case import Index

log = logging.getLogger(__name__)

# Any number that nobody else locks: 'hnsw' in letters.
_LOCK = 0x686E7377
_LOOK_SECONDS = 0.5
_BUSY_SECONDS = 2.0
_CANCEL_SECONDS = 1.0
# What HNSW takes of each type: pgvector's HNSW_MAX_DIM, and twice it for halves.
MOST_DIMS = {"vector": 2000, "halfvec": 4000}
_MOST_DIMS_OF_BITS = 64_000
_OPERATOR_CLASSES = {"cosine": "cosine", "l2": "l2", "inner_product": "ip"}
# Per vector beside its numbers, and the margin, measured at 384 dimensions: an index
# that outgrows its memory while it is built takes 2.4 times as long.
_BYTES_OF_NODE = 600
_MARGIN = 1.3
_LEAST_MEMORY = 64 * 2**20
# Of a container, where it has one: cgroup v2 and v1.
_MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
# A vacuum of half a table took ten times as long as building its index anew. So an
# indexed table is left to `maintain`, unless that does not come. Exact scans read past
# dead rows: without an index it comes early, as `create_vector_table` has it.
_VACUUM_SHARE_INDEXED = 0.3
_VACUUM_SHARE = 0.05

OpenStore = Callable[[], Connection]


@dataclass(frozen=True)
class Progress:
    """Of one statement: `done` of `total` blocks of the table, in a phase of
    pg_stat_progress_create_index. `waits_for` is the process it waits for."""

    phase: str
    done: int
    total: int
    waits_for: int | None = None


Tell = Callable[[Progress], None]


@dataclass(frozen=True)
class Existing:
    """An index over the embeddings. `options` as they were given."""

    name: str
    method: str
    is_valid: bool
    operator_class: str
    options: dict[str, str]
    bytes: int

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier("embedline", self.name)

    def is_ours(self, version: ModelVersion) -> bool:
        return self.name.startswith(_prefix(version))

    def serves(self, version: ModelVersion) -> bool:
        return self.is_valid and self.operator_class == operator_class(version)


@dataclass(frozen=True)
class Memory:
    """Of a build, in bytes: what keeps it in memory, and what it is given."""

    needed: int
    given: int


def name_of(version: ModelVersion, policy: Index) -> str:
    made = f"{version.distance}_m{policy.m}_ef{policy.ef_construction}"
    return f"{_prefix(version)}{made}"


def _prefix(version: ModelVersion) -> str:
    return f"hnsw_{version.id}_"


def operator_class(version: ModelVersion) -> str:
    return f"{version.storage}_{_OPERATOR_CLASSES[version.distance]}_ops"


def obstacle(dims: int, storage: str) -> str | None:
    """Why vectors of this kind can have no index, and what to do; None: they can."""
    if dims <= MOST_DIMS[storage]:
        return None
    told = f"HNSW takes {storage} of up to {MOST_DIMS[storage]:,} dimensions, not "
    told += f"{dims:,}: searches stay exact. "
    if dims <= MOST_DIMS["halfvec"]:
        return told + "Say storage.type: halfvec, which takes up to 4,000"
    shorter = "Say encoder.dimensions where the model can give fewer, or choose another"
    if dims <= _MOST_DIMS_OF_BITS:
        return (
            f"{told}{shorter}; or index binary_quantize(embedding)::bit({dims}) with "
            "bit_hamming_ops by hand, and order what it finds by the vectors "
            '(docs/sql.md, "Many dimensions")'
        )
    return told + shorter


def existing(store: Connection, version: ModelVersion) -> list[Existing]:
    """Those over all embeddings, valid or not, the oldest first."""
    with store.cursor(row_factory=class_row(Existing)) as cursor:
        return cursor.execute(
            "SELECT c.relname AS name, am.amname AS method, x.indisvalid AS is_valid,"
            "  o.opcname AS operator_class, pg_relation_size(c.oid) AS bytes,"
            "  coalesce((SELECT jsonb_object_agg(option_name, option_value)"
            "   FROM pg_options_to_table(c.reloptions)), '{}') AS options"
            " FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid"
            " JOIN pg_am am ON am.oid = c.relam"
            " JOIN pg_opclass o ON o.oid = x.indclass[0]"
            " JOIN pg_attribute a ON a.attrelid = x.indrelid"
            "  AND a.attnum = x.indkey[0] AND a.attname = 'embedding'"
            " WHERE x.indrelid = to_regclass(format('embedline.%%I', %s::text))"
            "  AND x.indpred IS NULL AND x.indnatts = 1 ORDER BY c.oid",
            [version.table_name],
        ).fetchall()


def memory(store: Connection, rows: int, version: ModelVersion) -> Memory:
    """Raises `ConfigError` for a limit in the environment that is no size."""
    width = version.dims * (2 if version.storage == "halfvec" else 4)
    needed = int(_MARGIN * rows * (width + _BYTES_OF_NODE))
    return Memory(needed, min(max(needed, _LEAST_MEMORY), _most_memory(store)))


def _most_memory(store: Connection) -> int:
    """What was set; else a quarter of the memory of a server on this machine. Of any
    other its memory cannot be asked: what it gives to its buffers, or to maintenance,
    is then what one can be sure of."""
    if limit := os.environ.get(settings.INDEX_MEMORY):
        try:
            return int(_value(store, "SELECT pg_size_bytes(%s)", limit))
        except psycopg.DataError as error:
            raise ConfigError(
                f"{settings.INDEX_MEMORY}={limit!r} is no size; valid: e.g. '2GB'"
            ) from error
    sizes = "pg_size_bytes(current_setting(%s))"
    known = [
        int(_value(store, f"SELECT {sizes}", name))
        for name in ("shared_buffers", "maintenance_work_mem")
    ]
    if store.info.host.startswith("/"):
        known.append(_machine_memory() // 4)
    return max(known)


def _machine_memory() -> int:
    total = psutil.virtual_memory().total
    for limit in _MEMORY_LIMITS:
        with suppress(OSError, ValueError):  # not there, or "max"
            total = min(total, int(limit.read_text()))
    return total


@contextmanager
def builder(open_store: OpenStore, tell: Tell) -> Iterator[Connection]:
    """The store's one builder: a session that no timeout ends. Waits until whoever
    builds now is done, without a statement open: a build waits for all of them."""
    with open_store() as session:
        _require_owner(session)
        session.execute(
            "SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN"
            " ('statement_timeout', 'lock_timeout', 'transaction_timeout',"
            "  'idle_session_timeout')"
        )
        while not _value(session, "SELECT pg_try_advisory_lock(%s)", _LOCK):
            tell(Progress("waiting for another builder", 0, 0, _holder(session)))
            time.sleep(_BUSY_SECONDS)
        yield session


def _require_owner(session: Connection) -> None:
    owner = _value(
        session,
        "SELECT CASE WHEN NOT pg_has_role(nspowner, 'USAGE')"
        " THEN pg_get_userbyid(nspowner) END FROM pg_namespace"
        " WHERE nspname = 'embedline'",
    )
    if owner is not None:
        raise StoreError(
            f"indexes are built by the store's owner, {owner!r}, which "
            f"{session.info.user!r} is not; set {settings.DIRECT_DSN}, or the "
            f"connection {settings.DIRECT_CONNECTION!r}, to a login that has it"
        )


def _holder(session: Connection) -> int | None:
    row = session.execute(
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted"
        " AND (classid, objid) = (0, %s) AND objsubid = 1",
        [_LOCK],
    ).fetchone()
    return row[0] if row else None


def build(
    store: Connection,
    session: Connection,
    version: ModelVersion,
    policy: Index,
    given: Memory,
    tell: Tell,
) -> str:
    """Returns its name. `store` is asked for the progress of `session`, the builder's.
    Stopped or failed, it leaves nothing behind."""
    name = name_of(version, policy)
    statement = sql.SQL(
        "CREATE INDEX CONCURRENTLY {} ON {} USING hnsw (embedding {})"
        " WITH (m = {}, ef_construction = {})"
    ).format(
        sql.Identifier(name),
        version.table,
        sql.Identifier(migrate.schema_of_vector(store), operator_class(version)),
        sql.Literal(policy.m),
        sql.Literal(policy.ef_construction),
    )
    drop_leftovers(session, version)  # of the same name, maybe
    _set_memory(session, given)
    with _nothing_left(session, version):
        try:
            _carry_out(store, session, statement, tell)
        except (psycopg.errors.DiskFull, psycopg.errors.OutOfMemory) as error:
            # Several processes build in shared memory, of which a container has little.
            log.warning("built by one process alone, for: %s", _primary(error))
            drop_leftovers(session, version)
            session.execute("SET max_parallel_maintenance_workers = 0")
            _carry_out(store, session, statement, tell)
    session.execute(sql.SQL("ANALYZE {}").format(version.table))
    set_vacuum_share(session, version)
    return name


def rebuild(
    store: Connection,
    session: Connection,
    version: ModelVersion,
    index: Existing,
    given: Memory,
    tell: Tell,
) -> None:
    """The index anew, and then a vacuum, which finds little left to take out of it."""
    _set_memory(session, given)
    statement = sql.SQL("REINDEX INDEX CONCURRENTLY {}").format(index.identifier)
    with _nothing_left(session, version):
        _carry_out(store, session, statement, tell)
    vacuum(store, session, version, tell)


def vacuum(
    store: Connection, session: Connection, version: ModelVersion, tell: Tell
) -> None:
    statement = sql.SQL("VACUUM (ANALYZE) {}").format(version.table)
    _carry_out(store, session, statement, tell)


def set_vacuum_share(session: Connection, version: ModelVersion) -> None:
    """To be called when an index has come or gone."""
    is_indexed = any(i.serves(version) for i in existing(session, version))
    share = _VACUUM_SHARE_INDEXED if is_indexed else _VACUUM_SHARE
    session.execute(
        sql.SQL("ALTER TABLE {} SET (autovacuum_vacuum_scale_factor = {})").format(
            version.table, sql.Literal(share)
        )
    )


def drop_leftovers(session: Connection, version: ModelVersion) -> list[str]:
    """Ours that are not valid, and what a REINDEX leaves. To be called by the builder:
    nobody else makes any."""
    left = [i for i in existing(session, version) if is_leftover(i, version)]
    for index in left:
        drop(session, index)
    return [index.name for index in left]


def is_leftover(index: Existing, version: ModelVersion) -> bool:
    made_by_reindex = re.search(r"_cc(new|old)\d*$", index.name)
    return not index.is_valid and bool(index.is_ours(version) or made_by_reindex)


def drop(session: Connection, index: Existing) -> None:
    session.execute(
        sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(index.identifier)
    )
    log.info("dropped index=%s valid=%s", index.name, index.is_valid)


@contextmanager
def _nothing_left(session: Connection, version: ModelVersion) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(psycopg.Error):  # the next builder looks for them, too
            drop_leftovers(session, version)
        raise


def _carry_out(
    store: Connection, session: Connection, statement: sql.Composed, tell: Tell
) -> None:
    """In a thread, so that the main one can tell the progress and be interrupted."""
    failed: list[BaseException] = []
    # A join that is interrupted takes the thread for ended (python/cpython#90882).
    ended = threading.Event()

    def execute() -> None:
        try:
            session.execute(statement)
        except BaseException as error:
            failed.append(error)
        finally:
            ended.set()

    threading.Thread(target=execute, name="index-builder", daemon=True).start()
    try:
        while not ended.wait(_LOOK_SECONDS):
            if progress := _look(store, session.info.backend_pid):
                tell(progress)
    except BaseException:
        while not ended.is_set():
            with suppress(psycopg.Error):
                session.cancel_safe(timeout=_CANCEL_SECONDS)
            ended.wait(_CANCEL_SECONDS)
        raise
    if failed:
        raise failed[0]


def _look(store: Connection, pid: int) -> Progress | None:
    with store.cursor(row_factory=class_row(Progress)) as cursor:
        return cursor.execute(
            "SELECT phase, blocks_done AS done, blocks_total AS total,"
            "  nullif(current_locker_pid, 0) AS waits_for"
            " FROM pg_stat_progress_create_index WHERE pid = %s",
            [pid],
        ).fetchone()


def _set_memory(session: Connection, given: Memory) -> None:
    session.execute(
        "SELECT set_config('maintenance_work_mem', %s, false)",
        [f"{given.given // 1024}kB"],
    )


def _primary(error: psycopg.Error) -> str:
    return str(error.diag.message_primary)


def _value(store: Connection, statement: Any, *parameters: Any) -> Any:
    row = store.execute(statement, parameters).fetchone()
    assert row is not None
    return row[0]
