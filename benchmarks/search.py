"""Searches through the functions against the same by hand, on real embeddings.

    python -m benchmarks.search                    38,158 tweets, by MiniLM
    python -m benchmarks.search --rows 10000 --queries 100

By hand is a statement that returns the same columns (prediction, score, label, text,
time) by joining the same tables to the ten nearest of the same table by the same index:
prepared, as psycopg does after five executions, and not, as through a pooler, which is
held against the functions not prepared. Every query is asked of all ways in turn; rates
are of one client. Filtered searches are held
against what people write, ORDER BY with WHERE, with pgvector's defaults. Recall is
against exact search; of vectors at one distance any will do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from psycopg import sql

from benchmarks import harness, tweet_store, tweet_vectors
from embedding_tasks.connections import Connection
from embedding_tasks.store import versions

RESULTS = Path(__file__).parent / "results" / "search.json"
K = 10
SEED = 3
EF_SEARCH = (40, 100, 200, 400)
FILTERS = {
    "random 10 %": ("tags", {"tenth": True}),
    "random 1 %": ("tags", {"hundredth": True}),
    "random 0.1 %": ("tags", {"thousandth": True}),
    "misclassified": ("misclassified", True),
    "unsure": ("score", [None, 0.45]),
    "one day": ("event_time", ["2026-01-10", "2026-01-11"]),
}
# The same as people write them, over r, p and l.
BY_HAND = {
    "random 10 %": """r.tags @> '{"tenth": true}'""",
    "random 1 %": """r.tags @> '{"hundredth": true}'""",
    "random 0.1 %": """r.tags @> '{"thousandth": true}'""",
    "misclassified": "p.prediction <> l.label",
    "unsure": "p.score <= 0.45",
    "one day": "r.event_time >= '2026-01-10' AND r.event_time < '2026-01-11'",
}
FUNCTIONS, UNPREPARED = "functions", "functions, not prepared"
COMPANY = """
LEFT JOIN embedline.record r ON r.use_case = {use_case} AND r.key = n.key
LEFT JOIN embedline.input i ON i.model_version = {version} AND i.key = n.key
LEFT JOIN embedline.prediction p ON p.use_case = {use_case} AND p.key = n.key
     AND p.unit = n.unit AND p.model_version = {version}
LEFT JOIN embedline.label l ON l.use_case = {use_case} AND l.key = n.key AND l.unit = 0
"""
COLUMNS = (
    "n.key, n.unit, n.distance, p.prediction, p.score, l.label, i.data, r.event_time"
)


@dataclass(frozen=True)
class Way:
    """A statement that takes a vector; `iterative` is hnsw.iterative_scan."""

    statement: str
    prepare: bool = True
    iterative: str = "relaxed_order"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vectors", type=Path, default=tweet_vectors.FILE)
    parser.add_argument("--json", type=Path, default=RESULTS)
    asked = parser.parse_args()
    with tweet_store.opened(asked.rows, asked.vectors) as (store, vectors):
        bench = Bench(store, vectors, asked.queries, asked.rounds)
        found = {
            "rows": len(vectors),
            "queries": asked.queries,
            "build_seconds": bench.build_seconds,
            "unfiltered": [bench.unfiltered(ef) for ef in EF_SEARCH],
            "filtered": [f for f in map(bench.filtered, FILTERS) if f is not None],
        }
    show(found)
    harness.save(asked.json, found, seed=SEED, k=K)


class Bench:
    def __init__(
        self, store: Connection, vectors: np.ndarray, queries: int, rounds: int
    ) -> None:
        self.store, self.vectors, self.rounds = store, vectors, rounds
        store.prepare_threshold = 5  # our own connections may be behind a pooler
        chosen = np.random.default_rng(SEED).choice(len(vectors), queries, False)
        self.numbers = [int(n) for n in chosen]
        self.queries = [str(vectors[n].tolist()) for n in self.numbers]
        self.iterative = ""
        self.similar = vectors[chosen] @ vectors.T
        self.version = versions.active(store, tweet_store.NAME)
        self.build_seconds = self._build()

    def _build(self) -> float:
        self.store.execute("SET maintenance_work_mem = '512MB'")
        statement = sql.SQL(
            "CREATE INDEX ON {} USING hnsw (embedding vector_cosine_ops)"
        ).format(self.version.table)
        took = harness.seconds(lambda: self.store.execute(statement))
        self.store.execute("VACUUM ANALYZE")
        return took

    def unfiltered(self, ef_search: int) -> dict[str, Any]:
        ours = (
            f"SELECT * FROM embeddings.nearest('{tweet_store.NAME}', %s::vector, {K},"
            f" ef_search => {ef_search})"
        )
        nearest = (
            "SELECT key, unit, embedding <=> %s::vector AS distance"
            f" FROM embedline.{self.version.table_name} ORDER BY distance LIMIT {K}"
        )
        joined = self._joined(nearest)
        self.store.execute(f"SET hnsw.ef_search = {ef_search}")
        ways: dict[str, Way] = {
            FUNCTIONS: Way(ours),
            UNPREPARED: Way(ours, prepare=False),
            "by hand": Way(joined),
            "by hand, not prepared": Way(joined, prepare=False),
            "by hand, keys only": Way(nearest),
        }
        measured = self._measure(ways, self.similar)
        return {"ef_search": ef_search, "ways": measured}

    def _joined(self, nearest: str) -> str:
        company = COMPANY.format(
            use_case=self.version.use_case, version=self.version.id
        )
        return f"SELECT {COLUMNS} FROM ({nearest}) n {company} ORDER BY n.distance"

    def filtered(self, name: str) -> dict[str, Any] | None:
        """None where no row passes, as with few `--rows`."""
        key, value = FILTERS[name]
        company = COMPANY.format(
            use_case=self.version.use_case, version=self.version.id
        )
        table = f"embedline.{self.version.table_name}"
        kept_by = f"FROM {table} n {company} WHERE {BY_HAND[name]}"
        by_hand = (
            f"SELECT {COLUMNS.replace('n.distance', 'n.embedding <=> %s::vector AS d')}"
            f" {kept_by} ORDER BY d LIMIT {K}"
        )
        kept = np.array(
            [int(k) for (k,) in self.store.execute(f"SELECT n.key {kept_by}")]
        )
        if not len(kept):
            return None
        self.store.execute("RESET hnsw.ef_search")
        filter = json.dumps({key: value})
        ours = (
            f"SELECT * FROM embeddings.nearest('{tweet_store.NAME}', %s::vector, {K},"
            f" filter => '{filter}')"
        )
        ways = {
            FUNCTIONS: Way(ours),
            "by hand": Way(by_hand, iterative="off"),
            "by hand, iterative": Way(by_hand),
        }
        plan = self.store.execute(
            ours.replace("* FROM embeddings.nearest", "embeddings.explain_nearest"),
            [self.queries[0]],
        ).fetchone()
        assert plan is not None
        return {
            "filter": name,
            "share": len(kept) / len(self.vectors),
            "plan": plan[0]["plan"],
            "ways": self._measure(ways, self.similar[:, kept]),
        }

    def _ask(self, way: Way, query: str) -> list[Any]:
        return self.store.execute(
            way.statement,  # type: ignore[arg-type]
            [query],
            prepare=way.prepare,
        ).fetchall()

    def _measure(
        self, ways: dict[str, Way], among: np.ndarray
    ) -> dict[str, dict[str, Any]]:
        """Round after round, every query of each way in turn. `among` (queries,
        vectors that match): similarities."""
        near_enough = np.sort(among)[:, -min(K, among.shape[1])] - 1e-6
        took: dict[str, list[list[float]]] = {
            name: [[] for _ in range(self.rounds)] for name in ways
        }
        found: dict[str, list[list[int]]] = {name: [] for name in ways}
        for name, way in ways.items():  # warm, and what comes back
            self._iterate(way)
            found[name] = [
                [int(row[0]) for row in self._ask(way, query)] for query in self.queries
            ]
        for turn in range(self.rounds):
            for number, query in enumerate(self.queries):
                # the first to ask pays for the cold cache
                for name, way in _rotated([*ways.items()], number + turn):
                    self._iterate(way)
                    began = time.perf_counter()
                    self._ask(way, query)
                    took[name][turn].append(time.perf_counter() - began)
        return {
            name: {
                "rows": statistics.mean(len(keys) for keys in found[name]),
                "recall": self._recall(found[name], near_enough),
                "p50_ms": [1000 * statistics.median(t) for t in took[name]],
                "per_second": [len(t) / sum(t) for t in took[name]],
            }
            for name in ways
        }

    def _recall(self, found: Sequence[Sequence[int]], near_enough: np.ndarray) -> float:
        right = [
            sum(self.similar[n, keys] >= near_enough[n]) / K
            for n, keys in enumerate(found)
        ]
        return float(statistics.mean(right))

    def _iterate(self, way: Way) -> None:
        if way.iterative != self.iterative:
            self.store.execute(f"SET hnsw.iterative_scan = {way.iterative}")
            self.iterative = way.iterative


def _rotated(items: list[Any], by: int) -> list[Any]:
    by %= len(items)
    return items[by:] + items[:by]


def show(found: dict[str, Any]) -> None:
    print(f"{found['rows']:,} vectors, {found['queries']} queries, k = {K}\n")
    print("| ef_search | | recall@10 | p50 ms (range) | queries/s (range) | ratio |")
    print("|---|---|---|---|---|---|")
    for row in found["unfiltered"]:
        _show_ways(row["ef_search"], row["ways"])
    print("\n| filter | | recall@10 | rows | p50 ms (range) | queries/s (range) |")
    print("|---|---|---|---|---|---|")
    for row in found["filtered"]:
        name = f"{row['filter']} ({row['share']:.2%}, {row['plan']})"
        for way, got in row["ways"].items():
            p50, rate = harness.spread(got["p50_ms"]), got["per_second"]
            cells = f"{got['recall']:.3f} | {got['rows']:.1f} | {p50}"
            print(f"| {name} | {way} | {cells} | {harness.spread(rate, '.0f')} |")


def _show_ways(title: object, ways: dict[str, dict[str, Any]]) -> None:
    for way, got in ways.items():
        like = UNPREPARED if way.endswith("not prepared") else FUNCTIONS
        ours = ways[like]["per_second"]
        ratios = [a / b for a, b in zip(ours, got["per_second"], strict=True)]
        p50, rate = harness.spread(got["p50_ms"]), got["per_second"]
        cells = f"{got['recall']:.3f} | {p50} | {harness.spread(rate, '.0f')}"
        print(f"| {title} | {way} | {cells} | {harness.spread(ratios)} |")


if __name__ == "__main__":
    main()
