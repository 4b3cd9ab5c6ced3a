"""Keys as people write them, looked up in the source."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.errors import SearchError
from embedding_tasks.source import snapshot
from embedding_tasks.source.extract import Extract

log = logging.getLogger(__name__)

# Looked up and read at a time.
KEYS_PER_READ = 10_000
_NAMED = 5


@dataclass(frozen=True)
class Found:
    """`keys` as the source itself writes them, each once; `missing` as they were asked
    for: the source has no such record, or they are no keys of its types."""

    keys: list[str]
    missing: list[str]


def look_up(connection: Connection, extract: Extract, asked: Sequence[str]) -> Found:
    """One odd key costs none of the others. Call in a transaction of the source."""
    keys: dict[str, None] = {}
    missing: list[str] = []
    for part in chunks(list(dict.fromkeys(asked))):
        canonical = {key: _canonical(extract, key) for key in part}
        typed = _castable(connection, extract, [k for k in canonical.values() if k])
        held = _held(connection, extract, typed)
        missing += [key for key, k in canonical.items() if k not in held]
        keys.update((key, None) for found in held.values() for key in found)
    if missing:
        log.warning(
            "keys not found relation=%s rows=%d first_keys=%s",
            *(extract.relation.name, len(missing), ", ".join(missing[:_NAMED])),
        )
    return Found([*keys], missing)


def canonical_key(key: str, columns: Sequence[str]) -> str:
    """A key as a person may write it, as the store has it. Raises `SearchError` where
    it cannot be one of several columns."""
    if len(columns) == 1:
        return key
    try:
        parts = json.loads(key)
    except ValueError:
        parts = None
    if not isinstance(parts, list) or len(parts) != len(columns):
        names = ", ".join(f'"{column}"' for column in columns)
        raise SearchError(
            f"the key has {len(columns)} columns: write it as a JSON list of texts, "
            f"'[{names}]', with their values; got {key!r}"
        )
    return json.dumps([str(part) for part in parts], ensure_ascii=False)


def chunks(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), KEYS_PER_READ):
        yield keys[start : start + KEYS_PER_READ]


def _canonical(extract: Extract, key: str) -> str | None:
    try:
        return canonical_key(key, extract.key_columns)
    except SearchError:
        return None


def _castable(
    connection: Connection, extract: Extract, keys: Sequence[str]
) -> list[str]:
    """Those that can be keys at all: a list that cannot be cast is halved."""
    if not keys:
        return []
    try:
        with connection.transaction():
            connection.execute(_cast_of(extract, keys))
        return list(keys)
    except (psycopg.DataError, UnicodeError):
        if len(keys) == 1:
            return []
    half = len(keys) // 2
    return _castable(connection, extract, keys[:half]) + _castable(
        connection, extract, keys[half:]
    )


def _held(
    connection: Connection, extract: Extract, keys: Sequence[str]
) -> dict[str | None, list[str]]:
    """By the key that was asked for, what the source calls it: 1 may find 1.0."""
    held: dict[str | None, list[str]] = {}
    if keys:
        with snapshot.refusals(connection, extract):
            rows = connection.execute(_lookup(extract, keys)).fetchall()
        for place, key in rows:
            held.setdefault(keys[place - 1], []).append(key)
    return held


def _cast_of(extract: Extract, keys: Sequence[str]) -> sql.Composed:
    """Fails where one of them cannot be a key of the columns' types."""
    return sql.SQL("SELECT num_nulls({})").format(
        sql.SQL(", ").join(extract.key_arrays(keys))
    )


def _lookup(extract: Extract, keys: Sequence[str]) -> sql.Composed:
    """The places (from 1) of those the relation has, and its own words for each."""
    names = [sql.Identifier(f"k{n}") for n in range(len(extract.key_columns))]
    held = [
        sql.SQL("{} AS {}").format(sql.Identifier(column), name)
        for column, name in zip(extract.key_columns, names, strict=True)
    ]
    return sql.SQL(
        "SELECT asked.place, held.key"
        " FROM unnest({keys}) WITH ORDINALITY AS asked ({names}, place)"
        " JOIN (SELECT {held}, {key} AS key FROM {relation} WHERE {where}) AS held"
        " USING ({names})"
    ).format(
        keys=sql.SQL(", ").join(extract.key_arrays(keys)),
        names=sql.SQL(", ").join(names),
        held=sql.SQL(", ").join(held),
        key=extract.key,
        relation=extract.relation.from_,
        where=extract.where,
    )
