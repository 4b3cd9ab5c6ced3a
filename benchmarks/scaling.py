"""Several cards of one host: from texts and from rows to vectors, by 1, 2, 4 … of them.

    make bench-gpu GPUS=2
    python -m benchmarks.scaling --device cpu --sizes minilm --texts 400 --processes 2

A process for each card, each with its own processes that cut texts into tokens; the
same work for every count of cards, all in one run. `memory` is texts in memory to
vectors in memory, from the moment all begin, loaded and warm, to the last vector.
`rows` is `embedline work` in each process, from rows in Postgres to vectors in
Postgres: the workers take their cards by the locks of the store, wait for each other
when their models are loaded, holding a first lease of 256 records in each of two lanes,
and are timed from there to the last write. Each round begins with an empty vector table
and the whole queue. Alone, by as many processes: tokenizing and the model (on a part of
the texts), reading, claiming, and claiming and writing vectors that are there already.
Efficiency is the rate over that of one card times the number of cards. At last one of
all workers is killed midway.

On the processor, processes stand for cards, and share its cores.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness, rows, sized_models
from benchmarks.scaling_host import Host, describe, go, started
from benchmarks.scaling_process import Interval, spans_of
from embedding_tasks.encoders import preparing
from embedding_tasks.timeline import WORK, Span

# For each card: about ten seconds in memory, five with the database.
TEXTS = {"minilm": 600_000, "bert-base": 300_000, "bert-large": 100_000}
ROWS = {"minilm": 200_000, "bert-base": 160_000, "bert-large": 60_000}
PART = 4  # of the texts: the stages alone
PARTS = ("memory", "rows", "kill")
CHECKS = ("missed", "twice", "overwritten", "discarded")
KILLED_AT = 0.5
KILLED_LEASE_SECONDS = 10
RESULTS = Path(__file__).parent / "results" / "scaling.json"

Asked = argparse.Namespace
Found = dict[str, Any]


def main() -> None:
    asked = arguments()
    logging.getLogger("embedding_tasks").setLevel(logging.ERROR)
    if asked.device == "cpu":  # of processes to come: the model takes its share alone
        threads = max(1, preparing.cores() // asked.processes)
        os.environ["OMP_NUM_THREADS"] = str(threads)
    print(harness.machine(), flush=True)
    sizes: dict[str, Any] = {}
    for size in asked.sizes or ["bert-base", "bert-large"]:
        found: Found = {}
        sizes[size] = found
        texts = asked.texts or TEXTS[size] * asked.processes
        stored = asked.rows or asked.texts or ROWS[size] * asked.processes
        with started(size, texts, stored, asked.processes, asked.device) as host:
            found["loaded"] = [card.result() for card in host.cards]
            print(f"\n## {size}: {texts:,} texts, {stored:,} rows", flush=True)
            print(found["loaded"], flush=True)
            for part in asked.parts:
                found[part] = MEASURE[part](host, texts, asked, found)
                harness.save(
                    *(asked.json, {"sizes": sizes}),
                    **{"seed": rows.SEED, "processes": asked.processes},
                )


def arguments() -> Asked:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=sized_models.SIZES)
    parser.add_argument("--processes", type=int, default=torch.cuda.device_count())
    parser.add_argument("--texts", type=int, help="in all, for every size")
    parser.add_argument("--rows", type=int, help="in all, for every size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto")
    parser.add_argument("--json", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if asked.device != "cpu" and asked.processes > torch.cuda.device_count():
        parser.error(f"this machine shows {torch.cuda.device_count()} cards")
    if asked.processes < 1:
        parser.error("no card here: --device cpu --processes 2 runs on the processor")
    return asked


def counts(processes: int) -> list[int]:
    """1, 2, 4 and so on, and all."""
    powers = [2**n for n in range(processes.bit_length())]
    return sorted({n for n in powers if n < processes} | {processes})


def memory(host: Host, texts: int, asked: Asked, before: Found) -> Found:
    found: dict[str, Any] = {str(n): {} for n in counts(asked.processes)}
    rates: dict[str, list[float]] = {count: [] for count in found}
    each: dict[str, list[list[float]]] = {count: [] for count in found}
    for _ in range(asked.rounds):
        for count in found:
            spans = host.all_do(int(count), "together")
            rates[count].append(texts / took(spans))
            share = texts / int(count)
            each[count].append([share / (ended - began) for began, ended in spans])
    for count, facts in found.items():
        alone = {
            stage: texts // PART / took(host.all_do(int(count), stage, PART))
            for stage in ("tokenize", "model")
        }
        facts |= {"texts_per_second": rates[count], "each": each[count], "alone": alone}
    judge(found, "texts_per_second")
    show_memory(found)
    return found


def from_rows(host: Host, texts: int, asked: Asked, before: Found) -> Found:
    found: dict[str, Any] = {str(n): {} for n in counts(asked.processes)}
    rates: dict[str, list[float]] = {count: [] for count in found}
    checks: dict[str, list[dict[str, int]]] = {count: [] for count in found}
    for number in range(asked.rounds):
        for count, facts in found.items():
            host.queue()
            names = [f"rows {count}/{number}/{i}" for i in range(int(count))]
            go(cards := host.start_workers(names))
            results = [card.result() for card in cards]
            spans = [(r["began"], r["ended"]) for r in results]
            rates[count].append(host.stored / took(spans))
            checks[count].append(host.judged(names))
            left = max(r["left"] for r in results) - max(r["ended"] for r in results)
            facts |= {
                "shares": [r["embedded"] for r in results],
                "places": [r["place"] for r in results],
                "seconds_until_the_last_has_left": left,
                "timeline": rows.timeline(working(results)),
            }
    for count, facts in found.items():
        facts |= {"rows_per_second": rates[count], "checks": checks[count]}
        facts["alone"] = {
            stage: host.stored / seconds
            for stage, seconds in stages_alone(host, int(count)).items()
        }
        if before.get("memory"):
            in_memory = before["memory"][count]["texts_per_second"]
            facts["alone"]["memory"] = statistics.median(in_memory)
    judge(found, "rows_per_second")
    show_rows(found)
    return found


def stages_alone(host: Host, count: int) -> dict[str, float]:
    host.queue()
    seconds = {"read": took(host.all_do(count, "read", host.stored))}
    seconds["claim"] = took(host.all_do(count, "claim"))
    host.queue()
    return seconds | {"write": took(host.all_do(count, "write"))}


def kill(host: Host, texts: int, asked: Asked, before: Found) -> Found:
    """One of all workers, when half is done: the others finish what it held when its
    lease has run out."""
    if asked.processes < 2:
        return {}
    describe(lease_seconds=KILLED_LEASE_SECONDS)
    host.queue()
    names = [f"kill {i}" for i in range(asked.processes)]
    go(cards := host.start_workers(names))
    while host.stored_now() < KILLED_AT * host.stored:
        time.sleep(0.02)
    victim, *others = cards
    victim.process.kill()
    victim.process.join()
    killed = time.monotonic()
    held, stored = host.held_by(names[0]), host.stored_now()
    results = [card.result() for card in others]
    ended = max(r["ended"] for r in results)
    found = {
        "stored_when_killed": stored,
        "held_by_the_killed": held,
        "lease_seconds": KILLED_LEASE_SECONDS,
        "seconds_to_the_last_write": ended - killed,
        "idle_seconds": idle(spans_of(results), killed, ended),
        "embedded_by_the_others": sum(r["embedded"] for r in results),
        "checks": host.judged(names),
    }
    print(f"\nkilled: {found}", flush=True)
    return found


def took(intervals: Sequence[Interval]) -> float:
    return max(end for _, end in intervals) - min(begin for begin, _ in intervals)


def working(results: Sequence[Found]) -> list[Span]:
    """Of all lanes, until the last write: who comes last finds nothing to claim."""
    last = max(result["ended"] for result in results)
    return [span for span in spans_of(results) if span.began < last]


def idle(spans: Sequence[Span], since: float, until: float) -> float:
    """Seconds in which no lane of any worker read, encoded or wrote."""
    seconds, busy_until = 0.0, since
    for span in sorted(spans, key=lambda s: s.began):
        if span.stage in WORK and span.ended > busy_until:
            seconds += max(0.0, min(span.began, until) - busy_until)
            busy_until = min(span.ended, until)
    return seconds + until - busy_until


def judge(found: dict[str, dict[str, Any]], rates: str) -> None:
    """Efficiency by the medians, and the stage that is slowest alone."""
    one = statistics.median(found["1"][rates])
    for count, facts in found.items():
        rate = statistics.median(facts[rates])
        facts["efficiency"] = rate / (int(count) * one)
        facts["slowest"] = slowest = min(facts["alone"], key=facts["alone"].get)
        facts["share_of_slowest"] = rate / facts["alone"][slowest]


def show_memory(found: dict[str, dict[str, Any]]) -> None:
    print(
        "\n| cards | memory, texts/s | efficiency | each, least-most |"
        " tokenize alone | model alone | of the slowest |\n" + "|---" * 7 + "|"
    )
    for count, facts in found.items():
        of_each = [rate for round_ in facts["each"] for rate in round_]
        print(
            f"| {count} | {harness.spread(facts['texts_per_second'], '.0f')} |"
            f" {facts['efficiency']:.3f} | {min(of_each):,.0f}-{max(of_each):,.0f} |"
            f" {facts['alone']['tokenize']:,.0f} | {facts['alone']['model']:,.0f} |"
            f" {facts['share_of_slowest']:.2f} {facts['slowest']} |",
            flush=True,
        )


def show_rows(found: dict[str, dict[str, Any]]) -> None:
    stages = [*next(iter(found.values()))["alone"]]
    alone = " | ".join(f"{stage} alone" for stage in stages)
    print(
        f"\n| cards | rows/s | efficiency | {alone} | of the slowest |"
        " missed, twice, overwritten, discarded |\n" + "|---" * (5 + len(stages)) + "|"
    )
    for count, facts in found.items():
        rates = " | ".join(f"{facts['alone'][stage]:,.0f}" for stage in stages)
        sums = {name: sum(c[name] for c in facts["checks"]) for name in CHECKS}
        print(
            f"| {count} | {harness.spread(facts['rows_per_second'], '.0f')} |"
            f" {facts['efficiency']:.3f} | {rates} |"
            f" {facts['share_of_slowest']:.2f} {facts['slowest']} |"
            f" {', '.join(str(sums[name]) for name in CHECKS)} |"
        )
    print("\nlanes of all processes, by tenth of the last round:", flush=True)
    for count, facts in found.items():
        print(f"{count} cards, devices {facts['places']}, rows {facts['shares']}")
        rows.show_timeline(facts["timeline"])


MEASURE = {"memory": memory, "rows": from_rows, "kill": kill}

if __name__ == "__main__":
    main()
