"""What it costs to stay in step with a million rows.

    make bench-sync                  1,000,000 tweets, all strategies (some minutes)

On one store and one source (an embedded Postgres in a temporary folder), in one run: a
full run (every row is read, embedded by word vectors, the cheapest encoder there is,
and written), then for each strategy runs in which nothing has changed and runs in which
1 % of the rows have, beside a bare `SELECT` of the keys in the same moment. Rows are
real tweets with a number, so no two are alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import psycopg
import yaml

from embedding_tasks import __version__, run, use_case
from embedding_tasks.connections import Connection, connect
from embedding_tasks.demo import corpora
from embedding_tasks.local import postgres
from embedding_tasks.source import installation
from embedding_tasks.use_case import UseCase

NAME = "tweets"
SEED = 7
DIMS = 64
RESULTS = Path(__file__).parent / "results" / "sync_cost.json"
STRATEGIES: dict[str, dict[str, Any]] = {
    "snapshot": {},
    "timestamp": {"updated_at": "updated_at", "slack_seconds": 0},
    "timestamp, keys at audits": {
        "strategy": "timestamp",
        "updated_at": "updated_at",
        "slack_seconds": 0,
        "key_scan": "audit",
    },
    "outbox": {},
    "scan": {},
}

_runs = count()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with project() as folder, psycopg.connect(source(), autocommit=True) as db:
        fill(db, arguments.rows)
        write_vectors(folder / "words.vec")
        describe(folder, "snapshot")
        full, counts = timed(one_run)
        assert counts["stored"] == arguments.rows, counts
        print(f"full run of {arguments.rows:,} rows: {full:.1f} s\n", flush=True)
        print(
            "| strategy | keys alone, s | nothing changed, s | to keys | to full |"
            " 1 % changed, s | to keys | to full |\n|---|---|---|---|---|---|---|---|"
        )
        rows = [
            strategy(db, folder, name, arguments.rows, arguments.repeats, full)
            for name in STRATEGIES
        ]
    arguments.json.parent.mkdir(exist_ok=True)
    arguments.json.write_text(
        json.dumps({**machine(), "full": full, "strategies": rows}, indent=1)
    )


def strategy(
    db: Connection, folder: Path, name: str, rows: int, repeats: int, full: float
) -> dict[str, Any]:
    """Each repetition in turn, so that whatever else the machine does meets all."""
    describe(folder, name)
    one_run()  # a change of strategy reads everything once
    times: dict[str, list[float]] = {"keys": [], "none": [], "some": []}
    for repeat in range(repeats):
        times["keys"].append(timed(lambda: keys_alone(db))[0])
        seconds, counts = timed(one_run)
        assert counts["embedded"] == 0, counts
        times["none"].append(seconds)
        changed = change(db, rows, repeat)
        seconds, counts = timed(one_run)
        assert counts["embedded"] == changed, (counts, changed)
        times["some"].append(seconds)
    keys, none, some = (statistics.median(times[what]) for what in times)
    print(
        f"| {name} | {spread(times['keys'])} | {spread(times['none'])} |"
        f" {none / keys:.2f} | {none / full:.4f} | {spread(times['some'])} |"
        f" {some / keys:.2f} | {some / full:.4f} |",
        flush=True,
    )
    return {"strategy": name, **times}


def spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    made = work()
    return time.perf_counter() - began, made


def one_run() -> dict[str, Any]:
    return run.run(
        run.Request(use_case.find(NAME), external_id=f"run{next(_runs)}", kind="cli")
    )


def keys_alone(db: Connection) -> int:
    """The least that anybody does who looks for deletions: all keys, to this side."""
    size = 0
    with db.cursor().copy("COPY (SELECT id FROM tweets) TO STDOUT") as out:
        for block in out:
            size += len(block)
    return size


def change(db: Connection, rows: int, repeat: int) -> int:
    """Every hundredth row, spread over the table."""
    return db.execute(
        "UPDATE tweets SET body = body || '!', updated_at = now() WHERE id %% 100 = %s",
        [repeat],
    ).rowcount


def source() -> str:
    return postgres.conninfo("production")


@contextmanager
def project() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sync-cost-") as name:
        folder = Path(name)
        (folder / "use_cases").mkdir()
        os.environ["EMBEDLINE_PROJECT"] = os.environ["EMBEDLINE_HOME"] = name
        try:
            yield folder
        finally:
            postgres.release()


def fill(db: Connection, rows: int) -> None:
    texts = corpora.tweets()["text"].tolist()
    db.execute(
        "CREATE TABLE tweets (id bigint PRIMARY KEY, body text NOT NULL,"
        " updated_at timestamptz NOT NULL DEFAULT now())"
    )
    with db.cursor().copy("COPY tweets (id, body) FROM STDIN") as copy:
        for number in range(rows):
            # a word that has a vector, whatever the tweet
            copy.write_row((number, f"the {texts[number % len(texts)]} {number}"))
    db.execute("CREATE INDEX ON tweets (updated_at)")
    db.execute("VACUUM ANALYZE tweets")


def write_vectors(path: Path, dims: int = DIMS) -> None:
    """One for every word of the tweets."""
    words = sorted({w for text in corpora.tweets()["text"] for w in text.split()})
    vectors = np.random.default_rng(SEED).standard_normal((len(words), dims))
    with path.open("w") as out:
        out.write(f"{len(words)} {dims}\n")
        for word, vector in zip(words, vectors, strict=True):
            out.write(f"{word} {' '.join(f'{v:.4f}' for v in vector)}\n")


def describe(folder: Path, name: str) -> None:
    described = {
        "name": NAME,
        "source": {
            "dsn": source(),
            "table": "tweets",
            "key": "id",
            "input": "body",
            **{"strategy": name, **STRATEGIES[name]},
        },
        "encoder": {"type": "words", "model": str(folder / "words.vec")},
        "storage": {"data": "none"},
        "batch": {"claim": 8192},
    }
    path = folder / "use_cases" / f"{NAME}.yaml"
    path.write_text(yaml.safe_dump(described))
    if name == "outbox":
        with connect(source(), role="source") as db:
            put_outbox(db, use_case.find(NAME))


def put_outbox(db: Connection, described: UseCase) -> None:
    script = installation.install(db, described, installation.Reader.of(db))
    installation.run(db, script)


def machine() -> dict[str, Any]:
    return {
        "embedline": __version__,
        "python": platform.python_version(),
        "cores": psutil.cpu_count(),
        "seed": SEED,
    }


if __name__ == "__main__":
    main()
