"""From rows in Postgres to vectors in Postgres, against each stage alone.

    python -m benchmarks.rows                              MiniLM's size, 20,000 rows
    python -m benchmarks.rows --size bert-base --rows 200000

Texts of log-normal lengths in an embedded Postgres; a model of a usual size with random
weights. `together` is the embed stage as a run has it. Alone are: reading the rows,
encoding texts that are in memory, and claiming and writing with vectors that are there
already; each by as many lanes as the worker has, on leases of one size, in the same
run. Lanes that read or write alone are processes. The timeline shows which share of
each tenth of the run the lanes spent where, from when the model is loaded.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import yaml
from psycopg import sql

from benchmarks import harness, lanes_alone, sized_models
from embedding_tasks import encoders, run, use_case, worker
from embedding_tasks.connections import Connection, for_source
from embedding_tasks.encoders import Encoder, Runtime
from embedding_tasks.lane_io import Work
from embedding_tasks.local import postgres
from embedding_tasks.run import Request
from embedding_tasks.store import versions
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.timeline import Span
from embedding_tasks.worker import LANES, Worker

NAME = "texts"
SEED = 5
RESULTS = Path(__file__).parent / "results" / "rows.json"

_runs = count()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sized_models.SIZES, default="minilm")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lanes", type=int, help="of a model that several may feed")
    parser.add_argument("--storage", choices=["vector", "halfvec"], default="vector")
    parser.add_argument("--json", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if asked.lanes:
        worker.LANES_APART = asked.lanes
    logging.getLogger("embedding_tasks").setLevel(logging.ERROR)
    with project(asked.size, asked.storage) as case:
        fill(sized_models.texts(asked.rows, SEED))
        run.sync_stage(request(case))
        found = measure(case, asked.rows, asked.rounds)
    show(found, asked)
    harness.save(asked.json, found, seed=SEED, size=asked.size, rows=asked.rows)


def measure(case: use_case.UseCase, rows: int, rounds: int) -> dict[str, Any]:
    with request(case).open_store() as store:
        version = versions.live(store, versions.use_case_id(store, NAME))[0]
    encoder = encoders.load(version, Runtime())
    lanes = worker.LANES_APART if encoder.shared else LANES
    keys = [str(i) for i in range(rows)]
    texts = sized_models.texts(rows, SEED)
    encoder.encode(texts[: len(texts) // 4])
    vectors = encoder.encode(texts[: lanes_alone.LEASE]).vectors
    work = Work(case, version, RUN, for_source(case.source))
    rates: dict[str, list[float]] = {}
    spans: list[Span] = []
    with lanes_alone.Lanes(work, request(case).store_conninfo(), lanes) as alone:
        for _ in range(rounds):
            for name, stage in {
                "read": lambda: harness.seconds(lambda: alone.read(keys)),
                "encode": lambda: harness.seconds(
                    lambda: encode(encoder, texts, lanes)
                ),
                "write": lambda: harness.seconds(lambda: alone.write(vectors)),
                "together": lambda: together(case, version, encoder, lanes, spans),
            }.items():
                if name in ("write", "together"):
                    with request(case).open_store() as store:
                        queue(store, version)
                rates.setdefault(name, []).append(rows / stage())
    medians = {name: statistics.median(rate) for name, rate in rates.items()}
    slowest = min(("read", "encode", "write"), key=medians.__getitem__)
    return {
        **encoder.surroundings(),
        "lanes": lanes,
        "rows_per_second": rates,
        "slowest": slowest,
        "share_of_slowest": medians["together"] / medians[slowest],
        "timeline": timeline(spans),
    }


def encode(encoder: Encoder, texts: Sequence[str], lanes: int) -> None:
    with ThreadPoolExecutor(lanes if encoder.shared else 1) as pool:
        for done in [
            pool.submit(encoder.encode, part) for part in lanes_alone.chunks(texts)
        ]:
            done.result()


LOADING = 10.0  # seconds at most
RUN = 1  # of the ledger's runs, the first sync


def queue(store: Connection, version: ModelVersion) -> None:
    """No vectors, and every row waits, as after a first sync."""
    for table in (version.table, sql.Identifier("embedline", "input")):
        store.execute(sql.SQL("TRUNCATE {}").format(table))
    store.execute(
        "UPDATE embedline.ledger SET have_hash = NULL, lease_token = NULL,"
        " lease_holder = NULL, lease_until = NULL WHERE model_version = %s",
        [version.id],
    )
    for statement in ("VACUUM ANALYZE embedline.ledger", "CHECKPOINT"):
        store.execute(statement)


def together(
    case: use_case.UseCase,
    version: ModelVersion,
    encoder: Encoder,
    lanes: int,
    spans: list[Span],
) -> float:
    """Seconds from when the model is loaded: what a worker pays once is no part of what
    a row costs. Until then its lanes start, and read what they have leased first."""
    asked, began = request(case), list[float]()
    spans.clear()

    def load(version: ModelVersion, runtime: Runtime) -> Encoder:
        until = time.monotonic() + LOADING
        while _have_read(spans) < lanes and time.monotonic() < until:
            time.sleep(0.01)
        began.append(time.monotonic())
        return encoder

    with asked.open_store() as store, replaced(encoders, "load", load):
        Worker(
            store=store,
            open_store=asked.open_store,
            store_conninfo=asked.store_conninfo(),
            source_conninfo=for_source(case.source),
            use_case=case,
            version=version,
            run_id=RUN,
            holder="bench",
            spans=spans,
        ).drain()
    return time.monotonic() - began[0]


def _have_read(spans: Sequence[Span]) -> int:
    return len({span.lane for span in spans if span.stage == "read"})


@contextmanager
def replaced(place: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


def timeline(spans: Sequence[Span]) -> list[dict[str, float]]:
    """By tenth of the run, seconds of all lanes in each stage per second."""
    first = min(s.began for s in spans if s.stage == "encode")
    last = max(s.ended for s in spans)
    step = (last - first) / 10
    tenths = []
    for tenth in range(10):
        begin = first + tenth * step
        shares: dict[str, float] = {}
        for span in spans:
            inside = min(span.ended, begin + step) - max(span.began, begin)
            if inside > 0:
                shares[span.stage] = shares.get(span.stage, 0.0) + inside / step
        tenths.append(shares)
    return tenths


def show(found: dict[str, Any], asked: argparse.Namespace) -> None:
    print(
        f"{asked.size}, {asked.rows:,} rows, {found['lanes']} lanes, {found['device']}"
    )
    print("| | rows/s, median (range) |\n|---|---|")
    for name, rates in found["rows_per_second"].items():
        print(f"| {name} | {harness.spread(rates, '.0f')} |")
    share, slowest = found["share_of_slowest"], found["slowest"]
    print(f"| share of the slowest alone ({slowest}) | {share:.2f} |\n")
    show_timeline(found["timeline"])


def show_timeline(tenths: Sequence[dict[str, float]]) -> None:
    stages = ["claim", "read", "wait", "encode", "write"]
    print(f"| tenth | {' | '.join(stages)} |\n|{'---|' * 6}")
    for number, tenth in enumerate(tenths, 1):
        cells = " | ".join(f"{tenth.get(stage, 0):.2f}" for stage in stages)
        print(f"| {number} | {cells} |")


def request(case: use_case.UseCase, **options: Any) -> Request:
    return Request(case, external_id=f"run{next(_runs)}", kind="cli", **options)


@contextmanager
def project(size: str, storage: str) -> Iterator[use_case.UseCase]:
    with tempfile.TemporaryDirectory(prefix="rows-") as name:
        folder = Path(name)
        os.environ["EMBEDLINE_PROJECT"] = os.environ["EMBEDLINE_HOME"] = name
        (folder / "use_cases").mkdir()
        model = sized_models.save(size, folder / "model")
        path = folder / "use_cases" / f"{NAME}.yaml"
        described = {
            "name": NAME,
            "source": {"dsn": source(), "table": NAME, "key": "id", "input": "body"},
            "encoder": {"model": str(model)},
            **{"pooling": "mean", "normalize": True},
            "storage": {"data": "none", "type": storage},
        }
        path.write_text(yaml.safe_dump(described))
        try:
            yield use_case.load(path)
        finally:
            postgres.release()


def source() -> str:
    return postgres.conninfo("production")


def fill(texts: Sequence[str]) -> None:
    with psycopg.connect(source(), autocommit=True) as db:
        db.execute("CREATE TABLE texts (id bigint PRIMARY KEY, body text NOT NULL)")
        with db.cursor().copy("COPY texts FROM STDIN") as copy:
            for number, text in enumerate(texts):
                copy.write_row((number, text))
        db.execute("VACUUM ANALYZE texts")


if __name__ == "__main__":
    main()
