"""Texts to the ids of their tokens: as transformers does it, without what it does for
every text besides. Imports neither torch nor transformers, so that processes of their
own can do it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# Of a long text no more is read than so many characters for each token it may have.
# English has four to five; what turns out to need more is read whole.
CHARACTERS_PER_TOKEN = 12
# How many tokens a cut text must have beyond its limit: the last of them may be halves
# of what was cut.
_SPARE = 16


@dataclass(frozen=True)
class Tokens:
    """Ids of texts end to end; for each text how many it has, and whether it was cut
    to the longest allowed."""

    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        ids: Sequence[Sequence[int]],
        truncated: npt.NDArray[np.bool_] | None = None,
    ) -> Tokens:
        """None: no text was cut."""
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum()))
        if truncated is None:
            truncated = np.zeros(len(ids), np.bool_)
        return cls(flat, lengths, truncated)

    @classmethod
    def joined(cls, parts: Sequence[Tokens]) -> Tokens:
        """One after the other."""
        return cls(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([part.truncated for part in parts]),
        )

    def only(self, positions: Sequence[int]) -> Tokens:
        """Of these texts, in this order."""
        chosen = np.asarray(positions, np.int64)
        starts = (self.lengths.cumsum() - self.lengths)[chosen]
        lengths = self.lengths[chosen]
        ids = self.ids[ranges(starts, lengths)]
        return Tokens(ids, lengths, self.truncated[chosen])


def ranges(
    starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Each start and what follows it, one after the other."""
    ends = lengths.cumsum()
    return np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)


class Tokenizing:
    """The ids transformers' tokenizer gives with truncation to `max_length`, special
    tokens included. `model` is the tokenizer itself, as JSON; `side` is where texts are
    cut. Goes to another process by pickle, or is built there of its `settings`."""

    def __init__(
        self, model: str, max_length: int, side: str = "right", split: bool = False
    ) -> None:
        self.settings = (model, max_length, side, split)
        self._max_length, self._cuts_end = max_length, side == "right"
        self._tokenizer = _loaded(*self.settings)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Tokenizing, self.settings)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        shown = [self._shortened(text) for text in texts]
        made = self._tokenizer.encode_batch_fast(shown)
        redo = [
            i
            for i, encoding in enumerate(made)
            if len(shown[i]) < len(texts[i]) and not _has_spare(encoding)
        ]
        if redo:
            whole = self._tokenizer.encode_batch_fast([texts[i] for i in redo])
            for i, encoding in zip(redo, whole, strict=True):
                made[i] = encoding
        truncated = np.fromiter(
            (len(e) == self._max_length and bool(e.overflowing) for e in made),
            *(np.bool_, len(made)),
        )
        return Tokens.of([e.ids for e in made], truncated)

    def _shortened(self, text: str) -> str:
        """Cut between two words: what follows a word changes no token of it."""
        most = self._max_length * CHARACTERS_PER_TOKEN
        if len(text) <= most or not self._cuts_end:
            return text
        space = text.rfind(" ", most // 2, most)
        return text if space < 0 else text[:space]


class PlainTokenizing:
    """The same for a tokenizer of transformers that is written in Python."""

    def __init__(self, folder: Path, max_length: int) -> None:
        self.settings = (folder, max_length)
        self._max_length = max_length
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return (PlainTokenizing, self.settings)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        ids = self._ids(texts, self._max_length)
        truncated = np.fromiter(map(len, ids), np.int64, len(ids)) >= self._max_length
        # what just fits is as long as what was cut
        if full := np.flatnonzero(truncated).tolist():
            more = self._ids([texts[i] for i in full], self._max_length + 1)
            truncated[full] = [len(own) > self._max_length for own in more]
        return Tokens.of(ids, truncated)

    def _ids(self, texts: Sequence[str], most: int) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(
            list(texts),
            truncation=True,
            max_length=most,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        return ids


def tokenizing_of(
    tokenizer: Any, folder: Path, max_length: int
) -> Tokenizing | PlainTokenizing:
    """That of a tokenizer of transformers, which was loaded from `folder`."""
    if not tokenizer.is_fast:
        return PlainTokenizing(folder, max_length)
    return Tokenizing(
        tokenizer.backend_tokenizer.to_str(),
        *(max_length, tokenizer.truncation_side, tokenizer.split_special_tokens),
    )


def _loaded(model: str, max_length: int, side: str, split: bool) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(model)
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, strategy="longest_first", direction=side)
    tokenizer.encode_special_tokens = split
    return tokenizer


def _has_spare(encoding: Any) -> bool:
    return sum(len(part) for part in encoding.overflowing[:2]) >= _SPARE
