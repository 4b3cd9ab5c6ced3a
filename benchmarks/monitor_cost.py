"""What a day of monitoring costs, by the size of the store.

    python -m benchmarks.monitor_cost                          to 1,000,000 x 384
    python -m benchmarks.monitor_cost --rows 100000 300000     smaller ones only

The same number of rows a day for thirty days, ten classes, two values of a tag; random
vectors around a centre for each class, written directly into the store's tables: what
they say does not change what they cost. A baseline of ten days is frozen. Measured are
the first run, which sums every day up and measures all windows that are over; a run of
which nothing has changed; a run after one more day; and one after a late row in each of
three days.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from psycopg import sql
from psycopg.types.json import Jsonb
from rich.console import Console
from rich.table import Table

from benchmarks import harness
from embedding_tasks.connections import Connection
from embedding_tasks.local import postgres
from embedding_tasks.monitoring import watch
from embedding_tasks.store import copy
from embedding_tasks.store.connection import open_store
from embedding_tasks.use_case import UseCase

SEED = 3
SIZES = (100_000, 300_000, 1_000_000)
DAYS, BASELINE, DIMS, CLASSES = 30, 10, 384, 10
FIRST = date(2026, 1, 1)
NAME, TABLE = "things", "vector_things_v1"
SPEC = {
    "encoder": {"type": "text"},
    "input": ["text"],
    "separator": " ",
    "pooling": "mean",
}
RESULTS = Path(__file__).parent / "results" / "monitor_cost.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES)
    parser.add_argument("--json", type=Path, default=RESULTS)
    asked = parser.parse_args()
    found = {}
    for rows in asked.rows:
        found[str(rows)] = measured(rows)
        show(found)
    harness.save(asked.json, found, seed=SEED)


def measured(rows: int) -> dict[str, float]:
    """Seconds of each kind of run."""
    with opened() as store:
        things = Things(store, rows // DAYS)
        for day in range(DAYS):
            things.add(day)
        store.execute("VACUUM ANALYZE")
        seconds = {"first": run(store), "nothing changed": run(store)}
        things.add(DAYS)
        seconds["one more day"] = run(store)
        for day in (12, 17, 22):
            things.add(day, 1)
        seconds["late rows in three days"] = run(store)
        return seconds


def run(store: Connection) -> float:
    return harness.seconds(lambda: watch.watch(store, CASE))


CASE = UseCase.model_validate(
    {
        "name": NAME,
        "source": {
            **{"dsn": "dbname=nowhere", "table": NAME, "key": "id", "input": "text"},
            "tags": ["half"],
        },
        "encoder": {"model": "none"},
        "monitoring": {
            "baseline": {"since": FIRST, "until": FIRST + timedelta(days=BASELINE)},
            "slices": ["half"],
        },
    }
)


@contextmanager
def opened() -> Iterator[Connection]:
    with tempfile.TemporaryDirectory(prefix="monitored-") as name:
        os.environ["EMBEDLINE_PROJECT"] = os.environ["EMBEDLINE_HOME"] = name
        try:
            with open_store() as store:
                describe(store)
                yield store
        finally:
            postgres.release()


def describe(store: Connection) -> None:
    store.execute("INSERT INTO embedline.use_case (name) VALUES (%s)", [NAME])
    store.execute(
        "INSERT INTO embedline.model_version (use_case, version, fingerprint, spec,"
        " dims, storage, distance, table_name, state) SELECT id, 1, 'f', %s, %s,"
        " 'vector', 'cosine', %s, 'active' FROM embedline.use_case",
        [Jsonb(SPEC), DIMS, TABLE],
    )
    store.execute(
        "SELECT embedline.create_vector_table(m) FROM embedline.model_version m"
    )


@dataclass
class Things:
    store: Connection
    a_day: int
    rng: np.random.Generator = field(
        default_factory=lambda: np.random.default_rng(SEED)
    )
    written: int = 0

    def __post_init__(self) -> None:
        self.centres = self.rng.normal(size=(CLASSES, DIMS)).astype(np.float32)

    def add(self, day: int, rows: int | None = None) -> None:
        rows = rows or self.a_day
        classes = self.rng.integers(0, CLASSES, rows)
        noise = self.rng.standard_normal((rows, DIMS), np.float32)
        self._vectors(self.centres[classes] + noise)
        self._beside(day, classes)
        self.written += rows

    def _vectors(self, vectors: np.ndarray) -> None:
        rows = len(vectors)
        keys = [f"k{number}" for number in range(self.written, self.written + rows)]
        units, hashes = np.zeros(rows, np.int32), [bytes(copy.HASH_BYTES)] * rows
        statement = sql.SQL(
            "COPY embedline.{} (key, unit, input_hash, embedding, run_id)"
            " FROM STDIN (FORMAT binary)"
        ).format(sql.Identifier(TABLE))
        with self.store.cursor().copy(statement) as out:
            for block in copy.encode(keys, units, hashes, vectors, "vector", run_id=1):
                out.write(block)

    def _beside(self, day: int, classes: np.ndarray) -> None:
        at = f"{FIRST + timedelta(days=day)} 12:00Z"
        cursor = self.store.cursor()
        with cursor.copy(
            "COPY embedline.record (use_case, key, environment, tags, event_time)"
            " FROM STDIN"
        ) as out:
            for number in range(self.written, self.written + len(classes)):
                tags = f'{{"half": "{number % 2}"}}'
                out.write_row((1, f"k{number}", "production", tags, at))
        with cursor.copy(
            "COPY embedline.prediction (use_case, key, model_version, prediction)"
            " FROM STDIN"
        ) as out:
            for number, own in enumerate(classes.tolist(), self.written):
                out.write_row((1, f"k{number}", 1, str(own)))


def show(found: dict[str, dict[str, float]]) -> None:
    runs = list(next(iter(found.values())))
    table = Table("rows", *runs, title="seconds of a monitoring run")
    for rows, seconds in found.items():
        table.add_row(f"{int(rows):,}", *(f"{seconds[run]:.2f}" for run in runs))
    Console().print(table)


if __name__ == "__main__":
    main()
