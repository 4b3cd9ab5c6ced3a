"""Which keys must be compared one by one: those of buckets whose digests differ.

Keys fall into buckets by a hash of their text. Source and store each say of every
bucket how many keys it has and the exclusive or of their hashes; where both agree, so
do the keys. Hashes have 64 bits and a seed that nobody knows beforehand: by chance they
agree once in 2^64. So a million keys that are the same on both sides cross the wire as
a few thousand numbers. Two servers whose hashes differ (by byte order) agree nowhere,
and every key is read, as it would be without this.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from secrets import randbits

from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.source import snapshot
from embedding_tasks.source.extract import Extract
from embedding_tasks.target import Target

BUCKETS = 4096
# bit_xor came with PostgreSQL 14.
_OLDEST_SERVER = 14_00_00

_KEY = sql.Identifier("key")
# Of each bucket the keys and their digest; of none those that cannot be kept.
_Digests = dict[int | None, tuple[int, int | None]]


@dataclass(frozen=True)
class Doubt:
    """The buckets whose keys may differ. `unusable_keys` of the source are null or too
    long, and in no bucket."""

    buckets: list[int]
    seed: int
    unusable_keys: int

    def falls_on(self, key: sql.Composable) -> sql.Composable:
        if not self.buckets:
            return sql.SQL("false")
        return sql.SQL("{} & {} = ANY ({}::bigint[])").format(
            _hash(key, self.seed), sql.Literal(BUCKETS - 1), sql.Literal(self.buckets)
        )


def can_tell(connection: Connection, extract: Extract) -> bool:
    """Of keys that lie before the use case's `start` the store knows only some, so
    hardly a bucket would agree. A key that occurs twice shows in its bucket's number.
    """
    return extract.start is None and connection.info.server_version >= _OLDEST_SERVER


def compare(
    target: Target, connection: Connection, extract: Extract, longest: int
) -> Doubt:
    """`longest`: of a key, in bytes, to be kept in the store."""
    seed = randbits(62)
    fit = sql.SQL("CASE WHEN octet_length({}) <= {} THEN {} END").format(
        extract.key, sql.Literal(longest), _hash(extract.key, seed)
    )
    with snapshot.refusals(connection, extract):
        found = _digests(connection, fit, extract.relation.from_, extract.where)
    unusable_keys, _ = found.pop(None, (0, None))
    doubtful: set[int] = set()
    for relation, where in _known(target):
        known = _digests(target.store, _hash(_KEY, seed), relation, where)
        # of the pairs that are not in both
        doubtful |= {b for b, _ in found.items() ^ known.items() if b is not None}
    return Doubt(sorted(doubtful), seed, unusable_keys)


def _known(target: Target) -> Iterator[tuple[sql.Composable, sql.Composable]]:
    """Whatever has the keys of all records the store knows."""
    yield (
        sql.Identifier("embedline", "record"),
        sql.SQL("use_case = {}").format(sql.Literal(target.use_case)),
    )
    for version in target.versions:
        yield (
            sql.Identifier("embedline", "ledger"),
            sql.SQL("model_version = {}").format(sql.Literal(version.id)),
        )


def _digests(
    connection: Connection,
    hash_: sql.Composable,
    relation: sql.Composable,
    where: sql.Composable,
) -> _Digests:
    rows = connection.execute(
        sql.SQL(
            "SELECT h & {mask}, count(*), bit_xor(h)"
            " FROM (SELECT {hash} AS h FROM {relation} WHERE {where}) AS hashed"
            " GROUP BY 1"
        ).format(
            mask=sql.Literal(BUCKETS - 1), hash=hash_, relation=relation, where=where
        )
    )
    return {bucket: (keys, digest) for bucket, keys, digest in rows}


def _hash(key: sql.Composable, seed: int) -> sql.Composable:
    return sql.SQL('hashtextextended(({}) COLLATE "C", {})').format(
        key, sql.Literal(seed)
    )
