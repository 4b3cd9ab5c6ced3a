"""Reading the source, always in one REPEATABLE READ READ ONLY transaction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import pq, sql
from psycopg.rows import dict_row

from embedding_tasks.connections import Connection, blame, connect, notice_loss
from embedding_tasks.errors import SourceError
from embedding_tasks.inputs import Part
from embedding_tasks.source import apart, horizon
from embedding_tasks.source.extract import Extract
from embedding_tasks.source.timestamp import Bound

# Keys and inputs are compared as text, so their text form must not depend on the
# server's or the role's settings. How long it may wait for the store is ours to say,
# how long a statement may load the source is not.
_SESSION = """
SET LOCAL TIME ZONE 'UTC';
SET LOCAL DateStyle = 'ISO, MDY';
SET LOCAL IntervalStyle = 'postgres';
SET LOCAL bytea_output = 'hex';
SET LOCAL extra_float_digits = 1;
SET LOCAL idle_in_transaction_session_timeout = 0;
"""


@dataclass(frozen=True)
class Position:
    """Where a snapshot of the source stands. `server` is the cluster's identifier and
    when it was started: a copy put back from a backup has the same identifier, and
    its transaction ids may have caught up with the horizon already. `bound` is known
    where the strategy is `timestamp`; `held_back`: see `horizon.held_back`."""

    server: str
    horizon: int
    bound: Bound | None = None
    held_back: dict[str, Any] | None = None


@dataclass(frozen=True)
class Input:
    """One record as the model is to see it, and the hash of exactly that."""

    key: str
    hash: bytes | None
    parts: tuple[Part, ...]


@contextmanager
def take(conninfo: str) -> Iterator[Connection]:
    """One consistent look at the source. Raises `DatabaseAway` for its own trouble;
    blame other connections inside."""
    with opened(conninfo) as connection, look(connection):
        yield connection


@contextmanager
def opened(conninfo: str) -> Iterator[Connection]:
    """The source, before it is looked at."""
    with connected(conninfo) as connection, blame(source=connection):
        yield connection


def connected(conninfo: str) -> Connection:
    """To be kept, and looked at again and again: `blame` it each time."""
    connection = connect(conninfo, role="source")
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    return connection


@contextmanager
def look(connection: Connection) -> Iterator[None]:
    with connection.transaction():
        connection.execute(_SESSION)
        notice_loss(connection)
        yield


@contextmanager
def refusals(connection: Connection, extract: Extract) -> Iterator[None]:
    """Turn a statement that the source refuses (a filter with a mistake, a missing
    right, a value that cannot be cast) into `SourceError`."""
    try:
        yield
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        if connection.info.transaction_status != pq.TransactionStatus.INERROR:
            raise
        message = str(error).strip().split("\n")[0]
        raise SourceError(f"{extract.relation.name}: {message}") from error


def position(connection: Connection, bound: Bound | None = None) -> Position:
    row = connection.execute(
        "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
    ).fetchone()
    assert row is not None
    held_back = horizon.held_back(connection, row[0])
    return Position(_server(connection), row[0], bound, held_back)


def _server(connection: Connection) -> str:
    row = connection.execute("SELECT pg_postmaster_start_time()::text").fetchone()
    assert row is not None
    try:
        with connection.transaction():
            system = connection.execute(
                "SELECT system_identifier FROM pg_control_system()"
            ).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        system = None
    return f"{system[0] if system else 'unknown'} since {row[0]}"


def read_inputs(
    connection: Connection, extract: Extract, keys: Sequence[str]
) -> tuple[dict[str, Input], dict[str, str]]:
    """The present inputs of these keys, and by key why some cannot be read. A key that
    is gone, or that the use case's filter no longer lets through, is in neither."""
    found: dict[str, Input] = {}

    def take(select: sql.Composable) -> None:
        with connection.transaction(), refusals(connection, extract):
            rows = connection.execute(sql.SQL("{}").format(select)).fetchall()
        found.update(
            (key, Input(key, digest, (*parts,))) for key, digest, *parts in rows
        )

    unreadable = apart.read(connection, extract, extract.of_keys(keys), take)
    return found, unreadable


def describe_record(
    connection: Connection, extract: Extract, key: str
) -> dict[str, Any] | None:
    """Every field a sync would take of one record, for `embedline explain`. None also
    where the key is no value of the key columns' types."""
    select = sql.SQL("SELECT * FROM ({}) AS r ({})").format(
        extract.of_keys([key]),
        sql.SQL(", ").join(map(sql.Identifier, ["key", *extract.fields])),
    )
    try:
        with connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(select).fetchone()
    except psycopg.DataError:
        return None
