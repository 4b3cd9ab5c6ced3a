"""The fenced write: a batch of finished records enters the store in one short
transaction, or not at all.

The staged records are joined to the ledger, whose rows are locked in key order, and
only those are taken that are still leased with this token, still wanted with this very
hash and not deleted. Everything a record has (vectors, predictions, kept input, the
ledger's word that it is there) changes in that same transaction.

Vectors go through a staging table and are upserted, unless their records have none yet:
then they are copied to where they belong, twice as fast. Nobody else can have written
one since the records were leased: who writes must hold the lease, a lease that was lost
never comes back, and the fence has just found all of them still held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

import psycopg
from psycopg import sql
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from embedding_tasks.connections import Connection, take_time
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.ledger import Lease
from embedding_tasks.store import copy


@dataclass(frozen=True)
class Finished:
    """Records that were encoded, all of them fit to store.

    `encoded.inputs` points into `keys`; `data` is what is kept of each input.
    """

    keys: Sequence[str]
    data: Sequence[str | None]
    encoded: Encoded


@dataclass(frozen=True)
class Written:
    """Records and vectors stored; `discarded` records the fence turned away."""

    records: int
    vectors: int
    discarded: int


@retry(
    retry=retry_if_exception_type(
        (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
    ),
    stop=stop_after_attempt(3),
    reraise=True,
)
def write(
    store: Connection,
    lease: Lease,
    finished: Finished,
    run_id: int,
    seconds: float = 0.0,
) -> Written:
    """`seconds` of the worker's time are counted with them."""
    with store.transaction():
        take_time(store)
        _stage_records(store, lease, finished)
        vectors = _Vectors.of(lease, finished, run_id)
        is_new = not _have_vectors(store, lease)
        if not is_new:
            _stage_vectors(store, lease, vectors)
        _stage_predictions(store, vectors.keys, finished.encoded)
        records = _fence(store, lease)
        if is_new and records == len(finished.keys):
            written_vectors = _copy(store, lease.version.table, vectors)
        else:
            if is_new:
                _stage_vectors(store, lease, vectors)
            if not vectors.are_one_each(lease, finished):
                _delete_surplus(store, lease.version.table)
            written_vectors = _upsert(store, lease.version.table)
        _write_predictions(store, lease)
        write_data(
            store,
            lease.version.id,
            "SELECT key, data, unknown_words, truncated"
            " FROM staged_record JOIN accepted USING (key)",
        )
        _settle(store)
        discarded = len(finished.keys) - records
        written = Written(records, written_vectors, discarded)
        store.execute(
            "UPDATE embedline.run SET embedded = embedded + %s, vectors = vectors + %s,"
            " discarded = discarded + %s, embed_seconds = embed_seconds + %s,"
            " truncated = truncated + (SELECT count(*) FROM staged_record"
            "  JOIN accepted USING (key) WHERE staged_record.truncated) WHERE id = %s",
            [*_counts(written), seconds, run_id],
        )
    return written


def _counts(written: Written) -> tuple[int, int, int]:
    return written.records, written.vectors, written.discarded


@dataclass(frozen=True)
class _Vectors:
    """As COPY takes them, a key and a hash for each."""

    keys: Sequence[str]
    hashes: Sequence[bytes]
    encoded: Encoded
    storage: str
    run_id: int

    @classmethod
    def of(cls, lease: Lease, finished: Finished, run_id: int) -> _Vectors:
        keys = [finished.keys[i] for i in finished.encoded.inputs]
        hashes = [lease.hashes[key] for key in keys]
        return cls(keys, hashes, finished.encoded, lease.version.storage, run_id)

    def are_one_each(self, lease: Lease, finished: Finished) -> bool:
        """Every record has its one vector, which takes the place of what there was."""
        return (
            lease.version.unit == "record"
            and len(self.keys) == len(finished.keys)
            and not self.encoded.units.any()
        )


def _stage_records(store: Connection, lease: Lease, finished: Finished) -> None:
    encoded = finished.encoded
    store.execute(
        'CREATE TEMP TABLE staged_record (key text COLLATE "C", hash bytea, data text,'
        " unknown_words real, truncated boolean) ON COMMIT DROP"
    )
    hashes = [lease.hashes[key] for key in finished.keys]
    said = [
        [None] * len(hashes) if array is None else array.tolist()
        for array in (encoded.unknown, encoded.truncated)
    ]
    with store.cursor().copy("COPY staged_record FROM STDIN") as rows:
        for record in zip(finished.keys, hashes, finished.data, *said, strict=True):
            rows.write_row(record)


def _have_vectors(store: Connection, lease: Lease) -> bool:
    """Any of the staged records. Each is looked up by its key: a join, of tables whose
    statistics are behind, may read all of the vectors."""
    row = store.execute(
        sql.SQL(
            "SELECT EXISTS (SELECT FROM staged_record s WHERE EXISTS"
            " (SELECT FROM {} v WHERE v.key = s.key OFFSET 0))"
        ).format(lease.version.table)
    ).fetchone()
    assert row is not None
    return bool(row[0])


def _stage_vectors(store: Connection, lease: Lease, vectors: _Vectors) -> None:
    store.execute(
        sql.SQL(
            "CREATE TEMP TABLE staged_vector (LIKE {} INCLUDING STORAGE"
            " INCLUDING DEFAULTS) ON COMMIT DROP"
        ).format(lease.version.table)
    )
    _copy(store, sql.Identifier("staged_vector"), vectors)


def _copy(store: Connection, table: sql.Identifier, vectors: _Vectors) -> int:
    if not vectors.keys:  # a sentence without a single word to keep
        return 0
    encoded = vectors.encoded
    columns = [*copy.COLUMNS]
    columns += [copy.SPAN] if encoded.spans is not None else []
    columns += [copy.BOX] if encoded.boxes is not None else []
    columns += [copy.RUN]
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(
        table, sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    blocks = copy.encode(
        vectors.keys,
        encoded.units,
        vectors.hashes,
        encoded.vectors,
        vectors.storage,
        encoded.spans,
        encoded.boxes,
        vectors.run_id,
    )
    with store.cursor() as cursor:
        with cursor.copy(statement) as out:
            for block in blocks:
                out.write(block)
        return cursor.rowcount


def _stage_predictions(
    store: Connection, keys: Sequence[str], encoded: Encoded
) -> None:
    store.execute(
        'CREATE TEMP TABLE staged_prediction (key text COLLATE "C", unit int,'
        " prediction text, score float8, probabilities real[]) ON COMMIT DROP"
    )
    if not encoded.predictions:
        return
    with store.cursor().copy(
        "COPY staged_prediction (key, unit, prediction, score, probabilities)"
        " FROM STDIN"
    ) as out:
        units = encoded.units.tolist()
        for key, unit, p in zip(keys, units, encoded.predictions, strict=True):
            probabilities = list(p.probabilities) or None
            out.write_row((key, unit, p.prediction, p.score, probabilities))


def _fence(store: Connection, lease: Lease) -> int:
    """Locks and keeps in `accepted` the records this lease may still write."""
    return store.execute(
        "CREATE TEMP TABLE accepted ON COMMIT DROP AS"
        " SELECT l.key, l.have_hash IS NULL AS anew, l.ctid AS place"
        " FROM embedline.ledger l"
        " JOIN staged_record s ON s.key = l.key"
        " WHERE l.model_version = %s AND l.lease_token = %s AND l.want_hash = s.hash"
        " ORDER BY l.key FOR UPDATE OF l",
        [lease.version.id, lease.token],
    ).rowcount


def _delete_surplus(store: Connection, table: sql.Identifier) -> None:
    """A record that had five units and now has three keeps three."""
    store.execute(
        sql.SQL(
            "DELETE FROM {} v USING accepted a WHERE v.key = a.key AND NOT EXISTS ("
            " SELECT FROM staged_vector s WHERE s.key = v.key AND s.unit = v.unit)"
        ).format(table)
    )


def _upsert(store: Connection, table: sql.Identifier) -> int:
    return store.execute(
        sql.SQL(
            "INSERT INTO {} AS v (key, unit, span, box, embedding, input_hash, run_id)"
            " SELECT s.key, s.unit, s.span, s.box, s.embedding, s.input_hash, s.run_id"
            " FROM staged_vector s JOIN accepted a USING (key)"
            " ORDER BY s.key, s.unit"
            " ON CONFLICT (key, unit) DO UPDATE SET embedding = EXCLUDED.embedding,"
            "  span = EXCLUDED.span, box = EXCLUDED.box,"
            "  input_hash = EXCLUDED.input_hash, run_id = EXCLUDED.run_id,"
            "  embedded_at = now()"
            " WHERE v.input_hash IS DISTINCT FROM EXCLUDED.input_hash"
            "  OR v.key IN (SELECT key FROM accepted WHERE anew)"
        ).format(table)
    ).rowcount


def _write_predictions(store: Connection, lease: Lease) -> None:
    ids = {"use_case": lease.version.use_case, "version": lease.version.id}
    store.execute(
        "DELETE FROM embedline.prediction p USING accepted a"
        " WHERE p.use_case = %(use_case)s AND p.key = a.key"
        "  AND p.model_version = %(version)s AND NOT EXISTS ("
        "   SELECT FROM staged_prediction s WHERE s.key = p.key AND s.unit = p.unit)",
        ids,
    )
    store.execute(
        "INSERT INTO embedline.prediction (use_case, key, unit, model_version,"
        "  prediction, score, probabilities)"
        " SELECT %(use_case)s, s.key, s.unit, %(version)s, s.prediction, s.score,"
        "  s.probabilities"
        " FROM staged_prediction s JOIN accepted USING (key) ORDER BY s.key, s.unit"
        " ON CONFLICT (use_case, key, unit, model_version) DO UPDATE SET"
        "  prediction = EXCLUDED.prediction, score = EXCLUDED.score,"
        "  probabilities = EXCLUDED.probabilities, predicted_at = now()",
        ids,
    )


def write_data(store: Connection, version_id: int, rows: LiteralString) -> None:
    """What is kept of the inputs, of a query's `rows` (key, data, unknown_words,
    truncated). Nothing is of one without data that was not cut, unless its words are
    known."""
    store.execute(
        f"DELETE FROM embedline.input i USING ({rows}) AS r"
        " WHERE i.model_version = %s AND i.key = r.key"
        " AND num_nonnulls(r.data, r.unknown_words, nullif(r.truncated, false)) = 0",
        [version_id],
    )
    store.execute(
        "INSERT INTO embedline.input AS i"
        " (model_version, key, data, unknown_words, truncated)"
        f" SELECT %s, key, data, unknown_words, truncated FROM ({rows}) AS r"
        " WHERE num_nonnulls(data, unknown_words, nullif(truncated, false)) > 0"
        " ORDER BY key"
        " ON CONFLICT (model_version, key) DO UPDATE SET data = EXCLUDED.data,"
        "  unknown_words = EXCLUDED.unknown_words, truncated = EXCLUDED.truncated"
        " WHERE (i.data, i.unknown_words, i.truncated) IS DISTINCT FROM"
        "  (EXCLUDED.data, EXCLUDED.unknown_words, EXCLUDED.truncated)",
        [version_id],
    )


def _settle(store: Connection) -> None:
    """Stored records are done; those the fence turned away are given back. The fence
    keeps the ledger's rows where they are: no need to search the ledger for them."""
    store.execute(
        "UPDATE embedline.ledger SET have_hash = want_hash, attempts = 0,"
        " deferred = false, error = NULL, lease_token = NULL, lease_holder = NULL,"
        " lease_until = NULL, backfill = NULL"
        " WHERE ctid = ANY (ARRAY(SELECT place FROM accepted))"
    )
