"""The mean of the words' own vectors: word2vec, GloVe, fastText, static models.

A word is a run of letters and digits of any script with the marks that belong to
them, and may hold an apostrophe inside ("don't"); all else separates words. Text in
a script that writes no spaces must come with spaces between its words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from embedding_tasks.encoders import Runtime
from embedding_tasks.encoders.encoded import Encoded, unit_length
from embedding_tasks.encoders.static import Mean, StaticFolder, StaticModel
from embedding_tasks.encoders.word_files import identify
from embedding_tasks.encoders.word_vectors import WordTable, load
from embedding_tasks.errors import InputError, ModelError

_MARKS = "".join(
    c for c in map(chr, range(0x300, 0x1E950)) if unicodedata.category(c)[0] == "M"
)
_RUN = rf"[^\W_](?:[^\W_]|[{_MARKS}])*"
WORD = re.compile(rf"{_RUN}(?:['\u2019]{_RUN})*")


class _Model(Protocol):
    normalize: bool

    def mean(self, text: str) -> Mean: ...

    def known(self) -> Iterable[str]: ...


class WordsEncoder:
    """`path` is a file or a folder, `spec` a model version's. `unknown` is the share
    of words that are not in the vocabulary, each occurrence counted."""

    shared = False

    def __init__(self, path: Path, spec: dict[str, Any], runtime: Runtime) -> None:
        self._lowercase = bool(spec["encoder"]["lowercase"])
        self._model: _Model
        if path.is_dir():
            self._model = StaticModel(StaticFolder.of(path))
        else:
            self._model = WordModel(load(identify(path)))
        self._normalize = bool(spec["normalize"]) or self._model.normalize

    def encode(self, inputs: Sequence[str]) -> Encoded:
        made = [
            self._model.mean(text.lower() if self._lowercase else text)
            for text in inputs
        ]
        vectors = np.stack([mean.vector for mean in made])
        return Encoded.of_records(
            unit_length(vectors) if self._normalize else vectors,
            unknown=np.array([mean.unknown for mean in made], np.float32),
            truncated=np.array([mean.truncated for mean in made], np.bool_),
        )

    def probe(self) -> Encoded:
        for word in self._model.known():
            with suppress(InputError):  # one that is never read as it stands
                return self.encode([word])
        raise ModelError(
            "encoder.model: none of its words is one that can occur here; is it of "
            "phrases, or does encoder.lowercase say other than it needs?"
        )

    def surroundings(self) -> dict[str, str]:
        return {"device": "cpu"}


class WordModel:
    """fastText with subwords makes a vector of any word that is long enough; one that
    is not in the vocabulary still counts as unknown."""

    normalize = False

    def __init__(self, table: WordTable) -> None:
        self._table = table

    def mean(self, text: str) -> Mean:
        places, vectors = self._table.places, self._table.vectors
        words = WORD.findall(text)
        rows = vectors[[places[word] for word in words if word in places]]
        missing = [word for word in words if word not in places]
        if made := self._table.of_subwords(missing):
            rows = np.vstack([rows, *made])
        if not len(rows):
            raise InputError(
                f"none of its {len(words)} words is in the vocabulary"
                if words
                else "a text without a single word"
            )
        return Mean(rows.mean(axis=0, dtype=np.float32), len(missing) / len(words))

    def known(self) -> Iterable[str]:
        return self._table.places
