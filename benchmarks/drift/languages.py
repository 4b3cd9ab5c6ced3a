"""A share of the rows in another language: tweets with one row in five a text of
Airflow's user interface, in English on both sides when nothing drifts, and the same
texts in German when something does. MiniLM's vectors; the classes are ten groups of
k-means over tweets and English texts, into which German ones fall as they may."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import tweet_vectors
from benchmarks.drift.rows import CLASSES, Corpus, Rows, groups, unit

BASELINE = 2000
SHARE = 0.2
OTHER = "de"
# Shorter ones are often alike in both: "Status", "Version".
_FEWEST_CHARACTERS = 10

Place = tuple[str, ...]


def corpus() -> Corpus:
    pairs = texts(OTHER)
    tweets = unit(tweet_vectors.load())
    english, other = (
        unit(tweet_vectors.embedded(said)) for said in zip(*pairs, strict=True)
    )
    grouped = groups(np.concatenate([tweets, english]), CLASSES)
    sides = [
        Rows(vectors, grouped.predict(vectors).astype(np.int64))
        for vectors in (tweets, english, other)
    ]
    return Corpus(
        (200, 1000),
        {
            "no drift": partial(dealt, *sides, 0.0),
            "5 % German": partial(dealt, *sides, 0.05),
            "20 % German": partial(dealt, *sides, 0.2),
        },
    )


def dealt(
    tweets: Rows,
    english: Rows,
    other: Rows,
    share: float,
    rows: int,
    rng: np.random.Generator,
) -> tuple[Rows, Rows]:
    """`share` of the window's rows are in the other language; no text of the interface
    is on both sides in any."""
    order, said = rng.permutation(len(tweets)), rng.permutation(len(english))
    known, fresh = round(SHARE * BASELINE), round(SHARE * rows)
    foreign = round(share * rows)
    before = tweets.only(order[: BASELINE - known]).and_those(
        english.only(said[:known])
    )
    new = said[known : known + fresh]
    after = tweets.only(order[BASELINE - known :][: rows - fresh])
    return before, after.and_those(other.only(new[:foreign])).and_those(
        english.only(new[foreign:])
    )


def texts(other: str) -> list[tuple[str, str]]:
    """Of the interface, in English and in another language, each English one once."""
    here, there = _texts("en"), _texts(other)
    pairs = {
        text: there[place]
        for place, text in here.items()
        if len(text) >= _FEWEST_CHARACTERS and there.get(place, text) != text
    }
    return sorted(pairs.items())


def _texts(language: str) -> dict[Place, str]:
    found = find_spec("airflow.ui")
    assert found is not None
    assert found.submodule_search_locations is not None
    [ui] = found.submodule_search_locations
    folder = Path(ui) / "dist" / "i18n" / "locales" / language
    return {
        (file.stem, *place): text
        for file in sorted(folder.glob("*.json"))
        for place, text in _leaves(json.loads(file.read_text("utf-8")))
    }


def _leaves(tree: dict[str, Any], place: Place = ()) -> Iterator[tuple[Place, str]]:
    for name, branch in tree.items():
        if isinstance(branch, dict):
            yield from _leaves(branch, (*place, name))
        else:
            yield (*place, name), branch
