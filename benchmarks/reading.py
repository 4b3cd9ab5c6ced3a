"""Reading vectors back: rows a second to numpy, Arrow and pandas, beside other ways.

    make bench-reading               all 38,157 tweets x 384 (a minute or two)

One store (an embedded Postgres in a temporary folder), filled by a run of a use case:
real tweets, whose vectors are means of random word vectors of 384 dimensions, since
what a number is does not matter here, but how many there are. Every way reads the same
rows, in turn in each round. The limit is `\\copy` in binary to /dev/null by psql: the
server's work and the socket's, and none of the client's.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import psycopg
import sqlalchemy
from pgvector.psycopg import register_vector
from psycopg.conninfo import conninfo_to_dict

from benchmarks import harness, sync_cost
from embedding_tasks import reading
from embedding_tasks.connections import Connection, as_environment
from embedding_tasks.local.postgres import binary
from embedding_tasks.selection import select
from embedding_tasks.store import connection as stores

NAME = sync_cost.NAME
DIMS = 384
RESULTS = Path(__file__).parent / "results" / "reading.json"
VECTORS = ["key", "embedding"]
WHOLE = "SELECT * FROM embeddings.tweets"
PAIR = "SELECT key, embedding FROM embeddings.tweets"

Matrix = npt.NDArray[np.float32]
Way = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=38_157)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with filled(arguments.rows) as store:
        truth = to_numpy(store)
        for way in (psycopg_text, psycopg_binary, read_sql):
            np.testing.assert_array_equal(truth, np.stack(way(PAIR)))
        found = {
            "key and embedding": measure(
                arguments.repeats,
                {
                    r"\copy to /dev/null (limit)": lambda: copy_away(PAIR),
                    "embedline, numpy": lambda: to_numpy(store),
                    "embedline, Arrow": lambda: reading.read_arrow(
                        NAME, columns=VECTORS, store=store
                    ),
                    "embedline, pandas": lambda: reading.read(
                        NAME, columns=VECTORS, store=store
                    ),
                    "psycopg, binary rows": lambda: psycopg_binary(PAIR),
                    "psycopg, text, parsed": lambda: psycopg_text(PAIR),
                    "pandas.read_sql, parsed": lambda: read_sql(PAIR),
                },
            ),
            "every column of the view": measure(
                arguments.repeats,
                {
                    r"\copy to /dev/null (limit)": lambda: copy_away(WHOLE),
                    "embedline, Arrow": lambda: reading.read_arrow(NAME, store=store),
                    "embedline, pandas": lambda: reading.read(NAME, store=store),
                    "pandas.read_sql, parsed": lambda: read_sql(WHOLE),
                },
            ),
        }
    for title, times in found.items():
        show(title, arguments.rows, times)
    harness.save(arguments.json, found, rows=arguments.rows, dims=DIMS)


@contextmanager
def filled(rows: int) -> Iterator[Connection]:
    with (
        sync_cost.project() as folder,
        psycopg.connect(sync_cost.source(), autocommit=True) as db,
    ):
        sync_cost.fill(db, rows)
        sync_cost.write_vectors(folder / "words.vec", DIMS)
        sync_cost.describe(folder, "snapshot")
        counts = sync_cost.one_run()
        assert counts["stored"] == rows, counts
        with stores.open_store() as store:
            store.execute("VACUUM ANALYZE")
            yield store


def to_numpy(store: Connection) -> Matrix:
    """The vectors in the order of the table."""
    with store.transaction():
        chosen = select(store, NAME, columns=VECTORS)
        blocks = reading.read_blocks(store, chosen)
        return np.concatenate([cells[1].vectors(DIMS, ">f4") for cells in blocks])


def copy_away(query: str) -> None:
    command = f"\\copy ({query}) TO '/dev/null' (FORMAT binary)"
    subprocess.run(
        [str(binary("psql")), "-X", "-q", "-c", command],
        env=as_environment(stores.conninfo()),
        check=True,
    )


def psycopg_binary(query: str) -> list[Any]:
    with psycopg.connect(stores.conninfo()) as connection:
        register_vector(connection)
        with connection.cursor(binary=True) as cursor:
            rows = cursor.execute(query).fetchall()  # type: ignore[arg-type]
        return [np.asarray(row[1].to_numpy()) for row in rows]


def psycopg_text(query: str) -> list[Matrix]:
    with psycopg.connect(stores.conninfo()) as connection:
        rows = connection.execute(query).fetchall()  # type: ignore[arg-type]
        return [parsed(row[1]) for row in rows]


def read_sql(query: str) -> pd.Series:
    parts = conninfo_to_dict(stores.conninfo())
    url = sqlalchemy.URL.create(
        "postgresql+psycopg",
        username=parts.get("user"),
        database=parts["dbname"],
        query={"host": parts["host"]},
    )
    engine = sqlalchemy.create_engine(url)
    try:
        frame = pd.read_sql(query, engine)
    finally:
        engine.dispose()
    return frame["embedding"].map(parsed)


def parsed(text: str) -> Matrix:
    return np.fromstring(text[1:-1], np.float32, sep=",")


def measure(repeats: int, ways: dict[str, Way]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            took = harness.seconds(way)
            if repeat:  # the first is to warm up
                times[name].append(took)
    return times


def show(title: str, rows: int, times: dict[str, list[float]]) -> None:
    limit, *_, slowest = (statistics.median(took) for took in times.values())
    print(f"\n{title}, {rows:,} rows x {DIMS}\n")
    print("| way | s | rows/s | of the limit | of the last |\n|---|---|---|---|---|")
    for name, took in times.items():
        middle = statistics.median(took)
        print(
            f"| {name} | {harness.spread(took, '.3f')} | {rows / middle:,.0f} |"
            f" {limit / middle:.2f} | {slowest / middle:.1f} |"
        )


if __name__ == "__main__":
    main()
