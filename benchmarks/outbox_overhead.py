"""What the outbox's triggers cost the application that writes to the source.

    make bench-outbox                100,000 rows, five repetitions

The same statements on the same table, without triggers and with those that
`embedline outbox install` puts there, by turns, in one run: one statement for all rows,
and one transaction for each of some rows. Medians and ranges, and how many rows the
outbox got.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.sync_cost import machine, put_outbox
from embedding_tasks.connections import Connection
from embedding_tasks.local import postgres
from embedding_tasks.source import installation
from embedding_tasks.use_case import UseCase

NAME = "tickets"
RESULTS = Path(__file__).parent / "results" / "outbox_overhead.json"
BODY = "repeat(md5(id::text), 6)"  # 192 characters
SINGLE = 2_000

# In this order, as each finds what the one before it left.
STATEMENTS = {
    "insert": f"INSERT INTO tickets SELECT id, {BODY}, 0"
    " FROM generate_series(1, {rows}) id",
    "update of another column": "UPDATE tickets SET views = views + 1",
    "update of the input": "UPDATE tickets SET body = body || '!'",
    "single updates of another column": "UPDATE tickets SET views = views + 1"
    " WHERE id = %s",
    "single updates of the input": "UPDATE tickets SET body = body || '?'"
    " WHERE id = %s",
    "delete": "DELETE FROM tickets",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    sides = ("without", "with")
    times: dict[str, dict[str, list[float]]] = {
        name: {side: [] for side in sides} for name in STATEMENTS
    }
    queued: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="outbox-") as home:
        conninfo = postgres.conninfo("production", Path(home))
        with psycopg.connect(conninfo, autocommit=True) as db:
            for _ in range(arguments.repeats):
                for side in sides:
                    prepare(db, conninfo, with_outbox=side == "with")
                    for name in STATEMENTS:
                        before = in_outbox(db)
                        seconds = run(db, name, arguments.rows)
                        times[name][side].append(seconds)
                        queued[name] = in_outbox(db) - before
        postgres.release(Path(home))
    report(times, queued)
    arguments.json.parent.mkdir(exist_ok=True)
    arguments.json.write_text(
        json.dumps({**machine(), "rows": arguments.rows, "times": times}, indent=1)
    )


def prepare(db: Connection, conninfo: str, *, with_outbox: bool) -> None:
    if script := installation.remove(db, NAME):
        installation.run(db, script)
    db.execute("DROP TABLE IF EXISTS tickets")
    db.execute("CREATE TABLE tickets (id bigint PRIMARY KEY, body text, views int)")
    if with_outbox:
        described = {
            "name": NAME,
            "source": {
                "dsn": conninfo,
                "table": NAME,
                "key": "id",
                "input": "body",
                "strategy": "outbox",
            },
            "encoder": {"model": "any"},
        }
        put_outbox(db, UseCase.model_validate(described))


def run(db: Connection, name: str, rows: int) -> float:
    statement: Any = STATEMENTS[name].replace("{rows}", str(rows))
    db.execute("CHECKPOINT")
    began = time.perf_counter()
    if name.startswith("single"):
        for key in range(1, SINGLE + 1):
            db.execute(statement, [key])
    else:
        db.execute(statement)
    return time.perf_counter() - began


def in_outbox(db: Connection) -> int:
    there = db.execute("SELECT to_regclass('embedline_outbox.tickets')").fetchone()
    if there == (None,):
        return 0
    row = db.execute("SELECT count(*) FROM embedline_outbox.tickets").fetchone()
    assert row is not None
    return int(row[0])


def report(times: dict[str, dict[str, list[float]]], queued: dict[str, int]) -> None:
    print("| statement | without, s | with, s | ratio | rows in the outbox |")
    print("|---|---|---|---|---|")
    for name, sides in times.items():
        medians = {side: statistics.median(found) for side, found in sides.items()}
        cells = [
            f"{medians[side]:.2f} ({min(found):.2f}-{max(found):.2f})"
            for side, found in sides.items()
        ]
        ratio = medians["with"] / medians["without"]
        print(f"| {name} | {' | '.join(cells)} | {ratio:.2f} | {queued[name]:,} |")


if __name__ == "__main__":
    main()
