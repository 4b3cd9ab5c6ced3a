"""How often the drift statistics alarm, with and without drift, beside others' rules.

    python -m benchmarks.drift                     two hours of a processor
    python -m benchmarks.drift --repetitions 10    a first look
    python -m benchmarks.drift --rules sums --changes "no drift" --repetitions 1000

Real embeddings, dealt at random to a baseline and to windows of some sizes, so that
nothing has drifted but what is planted. Every rule sees the same rows. A repetition
deals the whole corpus anew: each is as good as one of fresh rows, as far as the corpus
is like the world.

What has been found is kept after every tenth of a size's repetitions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.drift import digits, languages, tweets
from benchmarks.drift.rows import SEED, Corpus, Deal
from benchmarks.drift.rules import RULES

CORPORA: dict[str, Callable[[], Corpus]] = {
    "tweets": tweets.corpus,
    "digits": digits.corpus,
    "languages": languages.corpus,
}
# By rows of a window.
REPETITIONS = {200: 100, 1000: 40, 5000: 25}
RESULTS = Path(__file__).parents[1] / "results" / "drift.json"

Rates = dict[str, dict[str, float]]
"""By statistic and by change, the share of windows that alarm."""


def main() -> None:
    asked = _asked()
    found: dict[str, dict[str, Any]] = {}
    for name in asked.corpora:
        corpus = CORPORA[name]()
        changes = {
            change: deal
            for change, deal in corpus.changes.items()
            if not asked.changes or change in asked.changes
        }
        for rows in sorted({*corpus.sizes} & {*asked.sizes}):
            times = asked.repetitions or REPETITIONS[rows]
            title = f"{name}, n = {rows:,}"
            for done, rates in measured(changes, asked.rules, rows, times):
                found[title] = {"repetitions": done, **rates}
                harness.save(asked.json, found, seed=SEED)
                print(
                    f"{time.strftime('%H:%M')} {title}: {done} of {times}", flush=True
                )
            show(title, found[title], list(changes))


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", nargs="+", default=list(CORPORA), choices=CORPORA)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=list(REPETITIONS), choices=REPETITIONS
    )
    parser.add_argument("--changes", nargs="+", help="all there are if none is named")
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES)
    parser.add_argument("--repetitions", type=int, help="of each size")
    parser.add_argument("--json", type=Path, default=RESULTS)
    return parser.parse_args()


def measured(
    changes: Mapping[str, Deal], rules: Sequence[str], rows: int, times: int
) -> Iterator[tuple[int, Rates]]:
    """Ten times on the way: how many repetitions there are, and what they say."""
    alarms: dict[str, dict[str, list[bool]]] = {}
    for seed in range(times):
        for name, deal in changes.items():
            baseline, window = deal(rows, np.random.default_rng([SEED, seed, rows]))
            assert len(window) == rows, f"{name}: {len(window)} rows of {rows}"
            for rule in rules:
                for called, alarm in RULES[rule](baseline, window, seed).items():
                    alarms.setdefault(called, {}).setdefault(name, []).append(alarm)
        done = seed + 1
        if done * 10 // times > seed * 10 // times:
            yield done, _rates(alarms)


def _rates(alarms: Mapping[str, Mapping[str, Sequence[bool]]]) -> Rates:
    return {
        statistic: {change: float(np.mean(all_)) for change, all_ in by_change.items()}
        for statistic, by_change in alarms.items()
    }


def show(title: str, found: Mapping[str, Any], changes: Sequence[str]) -> None:
    print(f"\n{title}, {found['repetitions']} windows each: share that alarms")
    print(f"| statistic | {' | '.join(changes)} |\n|{'---|' * (len(changes) + 1)}")
    for statistic, by_change in found.items():
        if statistic != "repetitions":
            cells = " | ".join(f"{by_change[name]:.3g}" for name in changes)
            print(f"| {statistic} | {cells} |")
    print(flush=True)


if __name__ == "__main__":
    main()
