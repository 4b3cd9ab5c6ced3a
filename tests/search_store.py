"""A store with known vectors, predictions, labels and tags, made without a model, and
the right answers by numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from embedding_tasks.connections import Connection

CLASSES = ("red", "green", "blue")
SPEC = {
    "encoder": {"type": "text"},
    "input": ["text"],
    "separator": " ",
    "pooling": "mean",
}
OPERATORS = {"cosine": "cosine", "l2": "l2", "inner_product": "ip"}


@dataclass(frozen=True)
class Row:
    key: str
    prediction: str
    score: float
    label: str | None
    environment: str
    minute: int
    tags: dict[str, Any]
    data: str


@dataclass(frozen=True)
class Made:
    """`vectors` (n, dims) as they are stored, in the order of `rows`."""

    name: str
    distance: str
    rows: list[Row]
    vectors: np.ndarray
    table: str

    def distances(self, query: np.ndarray) -> np.ndarray:
        product = self.vectors @ query
        if self.distance == "cosine":
            lengths = np.linalg.norm(self.vectors, axis=1) * np.linalg.norm(query)
            return np.asarray(1 - product / lengths)
        if self.distance == "l2":
            return np.linalg.norm(self.vectors - query, axis=1)
        return np.asarray(-product)

    def nearest(
        self, query: np.ndarray, k: int, keep: Callable[[Row], bool] = lambda row: True
    ) -> list[str]:
        order = np.argsort(self.distances(query), kind="stable")
        kept = [self.rows[i].key for i in order if keep(self.rows[i])]
        return kept[:k]

    def of(self, key: str) -> np.ndarray:
        return np.asarray(self.vectors[[row.key for row in self.rows].index(key)])


def make(
    store: Connection,
    name: str = "things",
    *,
    count: int = 300,
    dims: int = 16,
    storage: str = "vector",
    distance: str = "cosine",
    seed: int = 5,
) -> Made:
    """A use case of so many records, its view included. Vectors lie in ten heaps."""
    chooser = np.random.default_rng(seed)
    centres = chooser.normal(size=(10, dims))
    heaps = chooser.integers(0, 10, count)
    vectors = centres[heaps] + 0.5 * chooser.normal(size=(count, dims))
    vectors = vectors.astype(np.float16 if storage == "halfvec" else np.float32)
    rows = [_row(number, int(heap)) for number, heap in enumerate(heaps)]
    with store.transaction():
        table = describe(store, name, dims, storage, distance)
        fill(store, name, table, rows, vectors)
    store.execute("ANALYZE")
    return Made(name, distance, rows, vectors.astype(np.float64), table)


def _row(number: int, heap: int) -> Row:
    label = CLASSES[(number // 2) % 3] if number % 4 else None
    tags = {"tenth": number % 10 == 0, "heap": heap, "nested": {"parity": number % 2}}
    environment = "training" if number % 5 == 0 else "production"
    return Row(
        f"k{number}",
        CLASSES[number % 3],
        (number % 100) / 100,
        *(label, environment, number, tags),
        f"record {number} of heap{heap} {'even' if number % 2 == 0 else 'odd'}",
    )


def describe(
    store: Connection, name: str, dims: int, storage: str, distance: str
) -> str:
    table = f"vector_{name}_v1"
    store.execute("INSERT INTO embedline.use_case (name) VALUES (%s)", [name])
    store.execute(
        "INSERT INTO embedline.model_version (use_case, version, fingerprint, spec,"
        " dims, storage, distance, table_name, state) SELECT id, 1, 'f', %s, %s, %s,"
        " %s, %s, 'active' FROM embedline.use_case WHERE name = %s",
        [Jsonb(SPEC), dims, storage, distance, table, name],
    )
    store.execute(
        "SELECT embedline.create_vector_table(m) FROM embedline.model_version m"
        " WHERE table_name = %s",
        [table],
    )
    store.execute(
        "SELECT embedline.refresh_views(id, false) FROM embedline.use_case"
        " WHERE name = %s",
        [name],
    )
    return table


def fill(
    store: Connection, name: str, table: str, rows: Sequence[Row], vectors: np.ndarray
) -> None:
    ids = store.execute(
        "SELECT u.id, m.id FROM embedline.use_case u JOIN embedline.model_version m"
        " ON m.use_case = u.id WHERE u.name = %s",
        [name],
    ).fetchone()
    assert ids is not None
    use_case, version = ids
    statements: dict[str, list[tuple[Any, ...]]] = {
        f"embedline.{table} (key, embedding, input_hash, run_id)": [
            (row.key, str(vector.tolist()), b"\0" * 32, 1)
            for row, vector in zip(rows, vectors, strict=True)
        ],
        "embedline.record (use_case, key, environment, tags, event_time)": [
            (use_case, r.key, r.environment, Jsonb(r.tags), _minute(r.minute))
            for r in rows
        ],
        "embedline.prediction (use_case, key, model_version, prediction, score)": [
            (use_case, r.key, version, r.prediction, r.score) for r in rows
        ],
        "embedline.label (use_case, key, label)": [
            (use_case, r.key, r.label) for r in rows if r.label is not None
        ],
        "embedline.input (model_version, key, data)": [
            (version, r.key, r.data) for r in rows
        ],
    }
    for target, values in statements.items():
        with store.cursor().copy(f"COPY {target} FROM STDIN") as copy:
            for value in values:
                copy.write_row(value)


def _minute(minute: int) -> str:
    return f"2026-03-{1 + minute // 1440:02} {minute // 60 % 24:02}:{minute % 60:02}Z"


def add_index(store: Connection, made: Made, storage: str = "vector") -> None:
    store.execute(
        sql.SQL("CREATE INDEX {} ON {} USING hnsw (embedding {})").format(
            sql.Identifier(f"{made.name}_hnsw"),
            sql.Identifier("embedline", made.table),
            sql.SQL(f"{storage}_{OPERATORS[made.distance]}_ops"),  # type: ignore[arg-type]
        )
    )
    store.execute("ANALYZE")


def ask(store: Connection, question: str, *given: Any) -> list[dict[str, Any]]:
    """`question` is a call of a function in the schema `embeddings`."""
    with store.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            f"SELECT * FROM embeddings.{question}",  # type: ignore[arg-type]
            [_given(value) for value in given],
        ).fetchall()


def _given(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return str(value.tolist())
    return Jsonb(value) if isinstance(value, dict) else value


def keys(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [row["key"] for row in rows]
