"""Indexes: built by `embedline maintain` and by hand, and what changes do to them.

    make bench-index                                 38,158, 100,000 and 300,000 vectors
    python -m benchmarks.index_build --sizes 38158 --no-churn

MiniLM's vectors of all 38,158 tweets, and beyond those, points between a tweet and a
near one of its neighbours (`tweet_vectors.more`). `maintain` is all of it: the build
beside readers, statistics, size, recall against exact search. By hand are the plain
CREATE INDEX with the same memory, and with Postgres' default of 64 MB (not of the
largest size). Then a share of the rows gets other vectors in place, and what is dead is
taken away: by VACUUM alone, or by a REINDEX before it, as `maintain` does.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from psycopg import sql

from benchmarks import harness, tweet_vectors
from benchmarks.store_write import NAME, fill, project, request
from embedding_tasks import maintenance, run, use_case
from embedding_tasks.connections import Connection
from embedding_tasks.store import copy, index, recall, versions
from embedding_tasks.store.connection import open_store
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.use_case import UseCase

RESULTS = Path(__file__).parent / "results" / "index_build.json"
SEED = 5
QUERIES = 200
MILLION = 1_000_000
DEFAULT_MEMORY = index.Memory(0, 64 * 2**20)
HASH = bytes(32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[38_158, 100_000, 300_000]
    )
    parser.add_argument("--storage", choices=["vector", "halfvec"], default="vector")
    parser.add_argument("--churn", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.05, 0.2])
    parser.add_argument("--vectors", type=Path, default=tweet_vectors.FILE)
    parser.add_argument("--json", type=Path, default=RESULTS)
    asked = parser.parse_args()
    real = tweet_vectors.load(asked.vectors)
    with project(asked.storage), open_store() as store:
        store.execute("SET search_path = public")  # as by hand
        fill(100)
        run.sync_stage(request())
        version = versions.live_by_name(store, NAME)[0]
        found: dict[str, Any] = {"sizes": [], "churn": []}
        for size in asked.sizes:
            vectors = tweet_vectors.more(real, size, SEED)
            with_default = size == min(asked.sizes) or size < max(asked.sizes)
            measured = grown(store, version, vectors, with_default=with_default)
            found["sizes"].append(measured)
            print(measured)
        for share in asked.shares if asked.churn else []:
            found["churn"].append(churned(store, version, real, share))
            print(found["churn"][-1])
    show(found, asked.storage)
    harness.save(asked.json, found, storage=asked.storage, seed=SEED)


def grown(
    store: Connection, version: ModelVersion, vectors: Any, *, with_default: bool
) -> dict[str, Any]:
    size = len(vectors)
    loaded = harness.seconds(lambda: load(store, version, vectors))
    found: dict[str, Any] = {
        "rows": size,
        "load_rows_per_second": size / loaded,
        "table_bytes": value(store, "SELECT pg_table_size(%s)", version),
        "exact_ms": milliseconds(store, version, exact=True),
    }
    memory = index.memory(store, size, version)
    found["memory"] = memory.given
    found["by_hand_seconds"] = by_hand(store, version, memory)
    if with_default:
        found["default_memory_seconds"] = by_hand(store, version, DEFAULT_MEMORY)
    found["maintain_seconds"] = harness.seconds(lambda: maintained(case()))
    row = store.execute(
        "SELECT build_seconds, bytes, recall, ef_search FROM embedline.index_status"
    ).fetchone()
    assert row is not None
    names = ("build_seconds", "index_bytes", "recall", "ef_search")
    found |= dict(zip(names, row, strict=True))
    found["hnsw_ms"] = milliseconds(store, version, exact=False)
    return found


def churned(
    store: Connection, version: ModelVersion, vectors: Any, share: float
) -> dict[str, Any]:
    """So many rows get another vector, in a table with an index; twice, once for each
    way to clean up."""
    number = round(share * len(vectors))
    found: dict[str, Any] = {"share": share, "rows": len(vectors)}
    for way in ("vacuum", "reindex, vacuum"):
        load(store, version, vectors)
        maintained(case())
        store.execute(
            sql.SQL(
                "CREATE TEMP TABLE changed AS SELECT a.key, b.embedding FROM"
                " (SELECT key, row_number() OVER (ORDER BY md5(key)) AS n FROM {0}) a"
                " JOIN (SELECT embedding, row_number() OVER (ORDER BY md5(key || '.'))"
                "  AS n FROM {0}) b USING (n) WHERE n <= %s"
            ).format(version.table),
            [number],
        )
        changing = harness.seconds(lambda: update(store, version))
        found["changed_per_second"] = number / changing
        found["recall_changed"] = recall.measure(store, version, len(vectors)).share
        statements = [] if way == "vacuum" else ["REINDEX INDEX CONCURRENTLY {1}"]
        cleaning = harness.seconds(
            lambda: clean(store, version, [*statements, "VACUUM {0}"])  # noqa: B023
        )
        found[f"{way}, seconds"] = cleaning
        found[f"{way}, recall"] = recall.measure(store, version, len(vectors)).share
        found[f"{way}, index bytes"] = made(store, version).bytes
        store.execute("DROP TABLE changed")
    return found


def update(store: Connection, version: ModelVersion) -> None:
    store.execute(
        sql.SQL(
            "UPDATE {} v SET embedding = c.embedding FROM changed c WHERE c.key = v.key"
        ).format(version.table)
    )


def clean(store: Connection, version: ModelVersion, statements: Sequence[Any]) -> None:
    store.execute("SET maintenance_work_mem = '1GB'")
    name = made(store, version).identifier
    for statement in statements:
        store.execute(sql.SQL(statement).format(version.table, name))


def made(store: Connection, version: ModelVersion) -> index.Existing:
    return index.existing(store, version)[0]


def load(store: Connection, version: ModelVersion, vectors: Any) -> None:
    for old in index.existing(store, version):
        index.drop(store, old)
    store.execute(sql.SQL("TRUNCATE {}").format(version.table))
    store.execute(
        sql.SQL("ALTER TABLE {} SET (autovacuum_enabled = off)").format(version.table)
    )
    keys = [str(i) for i in range(len(vectors))]
    statement = sql.SQL(
        "COPY {} (key, unit, input_hash, embedding, run_id) FROM STDIN (FORMAT binary)"
    ).format(version.table)
    blocks: Iterator[bytes] = copy.encode(
        keys,
        np.zeros(len(keys), np.int32),
        [HASH] * len(keys),
        vectors,
        version.storage,
        run_id=1,
    )
    with store.cursor().copy(statement) as out:
        for block in blocks:
            out.write(block)
    store.execute(sql.SQL("VACUUM ANALYZE {}").format(version.table))
    store.execute("CHECKPOINT")


def by_hand(store: Connection, version: ModelVersion, memory: index.Memory) -> float:
    store.execute(
        "SELECT set_config('maintenance_work_mem', %s, false)",
        [f"{memory.given // 1024}kB"],
    )
    statement = sql.SQL("CREATE INDEX by_hand ON {} USING hnsw (embedding {})").format(
        version.table, sql.SQL(index.operator_class(version))
    )
    seconds = harness.seconds(lambda: store.execute(statement))
    store.execute("DROP INDEX embedline.by_hand")
    store.execute("CHECKPOINT")
    return seconds


def maintained(case: UseCase) -> None:
    done = maintenance.maintain(open_store, [case])
    assert [step.work for step in done] == ["build"], done


def case() -> UseCase:
    return use_case.find(NAME)


def milliseconds(store: Connection, version: ModelVersion, *, exact: bool) -> float:
    """Median of a search for ten, as its caller waits for it."""
    count = QUERIES // 10 if exact else QUERIES
    keys = np.random.default_rng(SEED).integers(0, 38_158, count)
    statement = sql.SQL(
        "SELECT key, unit FROM {0} ORDER BY embedding <=>"
        " (SELECT embedding FROM {0} WHERE key = %s) LIMIT 10"
    ).format(version.table)
    taken = [
        harness.seconds(lambda: store.execute(statement, [str(key)]).fetchall())  # noqa: B023
        for key in keys
    ]
    return 1000 * median(taken)


def value(store: Connection, query: Any, version: ModelVersion) -> Any:
    row = store.execute(query, [f"embedline.{version.table_name}"]).fetchone()
    assert row is not None
    return row[0]


def show(found: dict[str, Any], storage: str) -> None:
    print(f"\n{storage}, {len(os.sched_getaffinity(0))} cores")
    print(
        "| vectors | table, MB | exact, ms | build, s | with memory, MB | by hand, s |"
        " hand / ours | default memory, s | index, MB | recall@10, ef 40 | HNSW, ms |"
    )
    print(f"|{'---|' * 11}")
    for of in found["sizes"]:
        default = of.get("default_memory_seconds")
        print(
            f"| {of['rows']:,} | {of['table_bytes'] / 1e6:,.0f} |"
            f" {of['exact_ms']:.1f} |"
            f" {of['build_seconds']:.1f} | {of['memory'] / 2**20:,.0f} |"
            f" {of['by_hand_seconds']:.1f} |"
            f" {of['by_hand_seconds'] / of['build_seconds']:.2f} |"
            f" {f'{default:.1f}' if default else ''} | {of['index_bytes'] / 1e6:,.0f} |"
            f" {of['recall']:.3f} | {of['hnsw_ms']:.1f} |"
        )
    if found["sizes"]:
        print(on_paper(found["sizes"][-1]))
    if found["churn"]:
        print(
            "\n| changed | rows/s | recall then | VACUUM, s | index, MB | recall |"
            f" REINDEX + VACUUM, s | index, MB | recall |\n|{'---|' * 9}"
        )
    for of in found["churn"]:
        cells = [f"{of['share']:.0%}", f"{of['changed_per_second']:,.0f}"]
        cells.append(f"{of['recall_changed']:.3f}")
        for way in ("vacuum", "reindex, vacuum"):
            cells.append(f"{of[f'{way}, seconds']:.1f}")
            cells.append(f"{of[f'{way}, index bytes'] / 1e6:.0f}")
            cells.append(f"{of[f'{way}, recall']:.3f}")
        print(f"| {' | '.join(cells)} |")


def on_paper(largest: dict[str, Any]) -> str:
    """From the largest measured: space and exact scans by the row, the build by
    n log n, a search through the index by log n."""
    rows = largest["rows"]
    by_row = MILLION / rows
    by_log = math.log(MILLION) / math.log(rows)
    return (
        f"| 1,000,000 on paper | {largest['table_bytes'] * by_row / 1e6:,.0f} |"
        f" {largest['exact_ms'] * by_row:.0f} |"
        f" {largest['build_seconds'] * by_row * by_log:.0f} | | | | |"
        f" {largest['index_bytes'] * by_row / 1e6:,.0f} | |"
        f" {largest['hnsw_ms'] * by_log:.1f} |"
    )


if __name__ == "__main__":
    main()
