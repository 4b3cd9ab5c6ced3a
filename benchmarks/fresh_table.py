"""A large re-embed, in place and into a fresh table.

    make bench-fresh                             20 %, 60 % and all of 38,158 vectors
    python -m benchmarks.fresh_table --shares 0.6 --rounds 1

MiniLM's vectors of all tweets, in a table with an index that serves. A share of the
source changes, and its rows get vectors that nobody has had, between a tweet's and a
near one's (`tweet_vectors.more`: pgvector keeps equal vectors in one node), by the same
claims and fenced writes of one worker in both ways; what makes the vectors is free. In
place they go through the index, which `maintain` then builds anew, as it does with so
many dead rows. A fresh table gets what has not changed by a copy in the sync, then the
others, then its index, and then takes over. Both begin with a new index.
"""

from __future__ import annotations

import argparse
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import harness, tweet_vectors
from benchmarks.store_write import NAME, change, fill, project, request, written
from embedding_tasks import maintenance, run, use_case
from embedding_tasks.connections import Connection
from embedding_tasks.store import index, recall, versions
from embedding_tasks.store.connection import open_store
from embedding_tasks.store.versions import ModelVersion

RESULTS = Path(__file__).parent / "results" / "fresh_table.json"
Found = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=38_158)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.2, 0.6, 1.0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--storage", choices=["vector", "halfvec"], default="vector")
    parser.add_argument("--vectors", type=Path, default=tweet_vectors.FILE)
    parser.add_argument("--json", type=Path, default=RESULTS)
    asked = parser.parse_args()
    vectors = tweet_vectors.load(asked.vectors)[: asked.rows]
    seeds = count()
    found: dict[str, list[Found]] = {}
    with project(asked.storage), open_store() as store:
        fill(len(vectors))
        run.sync_stage(request())
        written(store, serving(store), vectors)
        run.publish_stage(request())
        maintained()
        for _ in range(asked.rounds):
            for share in asked.shares:
                for way in (in_place, into_fresh):
                    change(round(share * len(vectors)))
                    measured = way(store, another(vectors, next(seeds)))
                    name = f"{share:.0%} {way.__name__}"
                    found.setdefault(name, []).append(measured)
                    print(name, measured, flush=True)
    show(found, len(vectors), asked.storage)
    harness.save(asked.json, found, rows=len(vectors), storage=asked.storage)


def another(vectors: Any, seed: int) -> Any:
    return tweet_vectors.more(vectors, 2 * len(vectors), seed)[len(vectors) :]


def in_place(store: Connection, vectors: Any) -> Found:
    version, built = serving(store), build_seconds(store)
    found: Found = {"sync": harness.seconds(lambda: run.sync_stage(request()))}
    waiting = pending(store)
    found["write"] = harness.seconds(lambda: written(store, version, vectors))
    found["through_index"] = found["write"] / waiting / (built / len(vectors))
    run.publish_stage(request())
    found |= state(store, "when written")
    found["index"] = harness.seconds(maintained)
    return ended(store, found, waiting)


def into_fresh(store: Connection, vectors: Any) -> Found:
    asked = request(fresh=True)
    found: Found = {"sync": harness.seconds(lambda: run.sync_stage(asked))}
    waiting = pending(store)
    filled = versions.live_by_name(store, NAME)[-1]
    found["write"] = harness.seconds(lambda: written(store, filled, vectors))
    found |= state(store, "when written")
    found["index"] = harness.seconds(lambda: run.publish_stage(asked))
    assert serving(store).id == filled.id
    return ended(store, found, waiting)


def ended(store: Connection, found: Found, waiting: int) -> Found:
    """`rows_per_second` are of what had changed, until its index is as good as new."""
    seconds = found["sync"] + found["write"] + found["index"]
    rates = {"seconds": seconds, "rows_per_second": waiting / seconds}
    return {"rows": waiting, **found, **rates, **state(store, "in the end")}


def state(store: Connection, when: str) -> Found:
    """Of what serves."""
    version = serving(store)
    rows = versions.count(store, version)
    (made,) = index.existing(store, version)
    row = store.execute(
        "SELECT pg_table_size(to_regclass('embedline.' || %s))", [version.table_name]
    ).fetchone()
    assert row is not None
    return {
        f"index_bytes {when}": made.bytes,
        f"table_bytes {when}": row[0],
        f"recall {when}": recall.measure(store, version, rows).share or 0.0,
    }


def serving(store: Connection) -> ModelVersion:
    return versions.live_by_name(store, NAME)[0]


def pending(store: Connection) -> int:
    row = store.execute(
        "SELECT sum(pending)::int FROM embedline.status WHERE use_case = %s", [NAME]
    ).fetchone()
    assert row is not None
    return int(row[0])


def build_seconds(store: Connection) -> float:
    row = store.execute(
        "SELECT build_seconds FROM embedline.index_status WHERE state = 'active'"
    ).fetchone()
    assert row is not None
    return float(row[0])


def maintained() -> None:
    done = maintenance.maintain(open_store, [use_case.find(NAME)])
    assert [step.work for step in done] in (["build"], ["reindex"]), done


def show(found: dict[str, list[Found]], rows: int, storage: str) -> None:
    print(f"\n{rows:,} rows, {storage}; medians")
    print(
        "| changed | sync and copy, s | write, s | index, s | all, s | rows/s |"
        " searches meanwhile: recall, index, table, MB |"
        " in the end: recall, index, table, MB |"
    )
    print(f"|{'---|' * 8}")
    for name, rounds in found.items():
        of = {key: median(r[key] for r in rounds) for key in rounds[0]}
        cells = [name.replace("_", " ")]
        cells += [f"{of[key]:.1f}" for key in ("sync", "write", "index", "seconds")]
        cells.append(harness.spread([r["rows_per_second"] for r in rounds], ".0f"))
        for when in ("when written", "in the end"):
            sizes = (of[f"{what}_bytes {when}"] / 1e6 for what in ("index", "table"))
            told = ", ".join(f"{size:.0f}" for size in sizes)
            cells.append(f"{of[f'recall {when}']:.3f}, {told}")
        print(f"| {' | '.join(cells)} |")
    through = [
        r["through_index"] for rs in found.values() for r in rs if "through_index" in r
    ]
    if through:
        print(
            f"\nthrough the index, of a build: {harness.spread(through, '.1f')} times"
        )


if __name__ == "__main__":
    main()
