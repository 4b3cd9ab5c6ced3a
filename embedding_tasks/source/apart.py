"""Telling rows that cannot be read (a cast in a view that fails for one value) from
those that can: one bad row costs one row.

Where the keys themselves cannot be read, or nothing can, no row is to blame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import psycopg
from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.errors import SourceError
from embedding_tasks.source.extract import Extract

Read = Callable[[sql.Composable], None]
"""Takes a selection of rows. Raises `SourceError`, or `psycopg.DataError`; what it had
done is undone."""

# So begins the error that is kept of such a row.
CHARGE = "SourceError: "

# Asked for at once, where a selection has failed.
_KEYS = 1_000
# Looked at, where all of those failed: anywhere, as bad rows may well lie together.
_OTHERS = sql.SQL("ORDER BY random() LIMIT 20")
_ALL = sql.SQL("")


def read(
    connection: Connection, extract: Extract, select: sql.Composable, by: Read
) -> dict[str, str]:
    """Returns the keys of the rows that cannot be read, and why. Raises what `by` does
    where they cannot be told from others."""
    try:
        by(select)
        return {}
    except (SourceError, psycopg.DataError) as error:
        if _of_data(error) is None:
            raise
        failure = error
    keys = _keys(connection, extract, select)
    unreadable: dict[str, str] = {}
    for start in range(0, len(keys), _KEYS):
        part = keys[start : start + _KEYS]
        unreadable |= dict(_halved(extract, part, by))
        nothing_was_read = len(unreadable) == start + len(part)
        if nothing_was_read and not _reads_others(connection, extract, part):
            raise failure
    if not keys:
        raise failure
    return unreadable


def _halved(
    extract: Extract, keys: Sequence[str], by: Read
) -> Iterator[tuple[str, str]]:
    try:
        by(extract.of_keys(keys))
        return
    except (SourceError, psycopg.DataError) as error:
        problem = _of_data(error)
        if problem is None:
            raise
        if len(keys) == 1:
            yield keys[0], f"{CHARGE}{problem.diag.message_primary or problem}"
            return
    half = len(keys) // 2
    yield from _halved(extract, keys[:half], by)
    yield from _halved(extract, keys[half:], by)


def _of_data(error: Exception) -> psycopg.DataError | None:
    """A value's fault, by SQLSTATE; nobody else's."""
    cause = error.__cause__ if isinstance(error, SourceError) else error
    return cause if isinstance(cause, psycopg.DataError) else None


def _keys(
    connection: Connection,
    extract: Extract,
    select: sql.Composable,
    some: sql.SQL = _ALL,
) -> list[str]:
    """None where they cannot be read by themselves."""
    statement = sql.SQL(
        "SELECT key FROM ({}) AS r ({}) WHERE key IS NOT NULL {}"
    ).format(
        select,
        sql.SQL(", ").join(map(sql.Identifier, ["key", *extract.fields])),
        some,
    )
    try:
        with connection.transaction():
            return [key for (key,) in connection.execute(statement)]
    except psycopg.DataError:
        return []


def _reads_others(
    connection: Connection, extract: Extract, keys: Sequence[str]
) -> bool:
    """Is anything but these fit to be read?"""
    for key in _keys(connection, extract, extract.but_for(keys), _OTHERS):
        try:
            with connection.transaction():
                connection.execute(sql.SQL("{}").format(extract.of_keys([key])))
                return True
        except psycopg.DataError:
            continue
    return False
