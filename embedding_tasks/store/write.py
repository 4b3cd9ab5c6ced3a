"""The fenced write: a batch of finished records enters the store in one short
transaction, or not at all.

The staged records are joined to the ledger, whose rows are locked in key order, and
only those are taken that are still leased with this token, still wanted with this very
hash and not deleted. Everything a record has (vectors, predictions, kept input, the
ledger's word that it is there) changes in that same transaction.
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
        _stage(store, lease, finished)
        records = _fence(store, lease)
        vectors = _write_vectors(store, lease, run_id)
        _write_predictions(store, lease)
        write_data(
            store,
            lease.version.id,
            "SELECT key, data, unknown_words"
            " FROM staged_record JOIN accepted USING (key)",
        )
        _settle(store, lease)
        written = Written(records, vectors, len(finished.keys) - records)
        store.execute(
            "UPDATE embedline.run SET embedded = embedded + %s, vectors = vectors + %s,"
            " discarded = discarded + %s, truncated = truncated + %s,"
            " embed_seconds = embed_seconds + %s WHERE id = %s",
            [
                *_counts(written),
                finished.encoded.truncated,
                seconds,
                run_id,
            ],
        )
    return written


def _counts(written: Written) -> tuple[int, int, int]:
    return written.records, written.vectors, written.discarded


def _stage(store: Connection, lease: Lease, finished: Finished) -> None:
    version, encoded = lease.version, finished.encoded
    store.execute(
        'CREATE TEMP TABLE staged_record (key text COLLATE "C", hash bytea, data text,'
        " unknown_words real) ON COMMIT DROP"
    )
    store.execute(
        'CREATE TEMP TABLE staged_prediction (key text COLLATE "C", unit int,'
        " prediction text, score float8, probabilities real[]) ON COMMIT DROP"
    )
    store.execute(
        sql.SQL(
            "CREATE TEMP TABLE staged_vector (LIKE {} INCLUDING STORAGE) ON COMMIT DROP"
        ).format(version.table)
    )
    # Filled by COPY without these, which the fenced upsert adds.
    store.execute(
        "ALTER TABLE staged_vector ALTER run_id DROP NOT NULL,"
        " ALTER embedded_at DROP NOT NULL"
    )
    hashes = [lease.hashes[key] for key in finished.keys]
    unknown = [None] * len(hashes)
    if encoded.unknown is not None:
        unknown = encoded.unknown.tolist()
    with store.cursor().copy("COPY staged_record FROM STDIN") as rows:
        for record in zip(finished.keys, hashes, finished.data, unknown, strict=True):
            rows.write_row(record)
    keys = [finished.keys[i] for i in encoded.inputs]
    _copy_vectors(store, lease, keys, [hashes[i] for i in encoded.inputs], encoded)
    _copy_predictions(store, keys, encoded)


def _copy_vectors(
    store: Connection,
    lease: Lease,
    keys: Sequence[str],
    hashes: Sequence[bytes],
    encoded: Encoded,
) -> None:
    if not keys:  # a sentence without a single word to keep
        return
    columns = [*copy.COLUMNS]
    columns += [copy.SPAN] if encoded.spans is not None else []
    columns += [copy.BOX] if encoded.boxes is not None else []
    statement = sql.SQL("COPY staged_vector ({}) FROM STDIN (FORMAT binary)").format(
        sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    blocks = copy.encode(
        keys,
        encoded.units,
        hashes,
        encoded.vectors,
        lease.version.storage,
        encoded.spans,
        encoded.boxes,
    )
    with store.cursor().copy(statement) as out:
        for block in blocks:
            out.write(block)


def _copy_predictions(store: Connection, keys: Sequence[str], encoded: Encoded) -> None:
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
        " SELECT l.key, l.have_hash IS NULL AS anew FROM embedline.ledger l"
        " JOIN staged_record s ON s.key = l.key"
        " WHERE l.model_version = %s AND l.lease_token = %s AND l.want_hash = s.hash"
        " ORDER BY l.key FOR UPDATE OF l",
        [lease.version.id, lease.token],
    ).rowcount


def _write_vectors(store: Connection, lease: Lease, run_id: int) -> int:
    table = lease.version.table
    # A record that had five units and now has three keeps three.
    store.execute(
        sql.SQL(
            "DELETE FROM {} v USING accepted a WHERE v.key = a.key AND NOT EXISTS ("
            " SELECT FROM staged_vector s WHERE s.key = v.key AND s.unit = v.unit)"
        ).format(table)
    )
    return store.execute(
        sql.SQL(
            "INSERT INTO {} AS v (key, unit, span, box, embedding, input_hash, run_id)"
            " SELECT s.key, s.unit, s.span, s.box, s.embedding, s.input_hash, %s"
            " FROM staged_vector s JOIN accepted a USING (key)"
            " ORDER BY s.key, s.unit"
            " ON CONFLICT (key, unit) DO UPDATE SET embedding = EXCLUDED.embedding,"
            "  span = EXCLUDED.span, box = EXCLUDED.box,"
            "  input_hash = EXCLUDED.input_hash, run_id = EXCLUDED.run_id,"
            "  embedded_at = now()"
            " WHERE v.input_hash IS DISTINCT FROM EXCLUDED.input_hash"
            "  OR v.key IN (SELECT key FROM accepted WHERE anew)"
        ).format(table),
        [run_id],
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
    """What is kept of the inputs, of a query's `rows` (key, data, unknown_words);
    both null: nothing."""
    store.execute(
        f"DELETE FROM embedline.input i USING ({rows}) AS r"
        " WHERE i.model_version = %s AND i.key = r.key"
        " AND num_nonnulls(r.data, r.unknown_words) = 0",
        [version_id],
    )
    store.execute(
        "INSERT INTO embedline.input AS i (model_version, key, data, unknown_words)"
        f" SELECT %s, key, data, unknown_words FROM ({rows}) AS r"
        " WHERE num_nonnulls(data, unknown_words) > 0 ORDER BY key"
        " ON CONFLICT (model_version, key) DO UPDATE SET data = EXCLUDED.data,"
        "  unknown_words = EXCLUDED.unknown_words"
        " WHERE (i.data, i.unknown_words)"
        "  IS DISTINCT FROM (EXCLUDED.data, EXCLUDED.unknown_words)",
        [version_id],
    )


def _settle(store: Connection, lease: Lease) -> None:
    """Stored records are done; those the fence turned away are given back."""
    store.execute(
        "UPDATE embedline.ledger l SET have_hash = want_hash, attempts = 0,"
        " deferred = false, error = NULL, lease_token = NULL, lease_holder = NULL,"
        " lease_until = NULL, backfill = NULL"
        " FROM accepted a WHERE l.model_version = %s AND l.key = a.key",
        [lease.version.id],
    )
