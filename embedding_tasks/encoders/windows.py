"""Texts to tokens that know their word and their characters, in overlapping windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from embedding_tasks.errors import ModelError
from embedding_tasks.inputs import Sentence


@dataclass(frozen=True)
class Window:
    """What a model reads at once. Of its `count` tokens from `ids[at]` on the hidden
    states are taken; the others are context, or special."""

    ids: list[int]
    at: int
    count: int


@dataclass(frozen=True)
class Word:
    """`number` in its text; tokens [first, stop); characters [begin, end)."""

    number: int
    first: int
    stop: int
    begin: int
    end: int


@dataclass(frozen=True)
class Tokens:
    """A text's windows, which have each token once; its words; and the characters of
    each token, [begin, end)."""

    windows: list[Window]
    words: list[Word]
    characters: list[tuple[int, int]]


class Tokenizer:
    """A fast tokenizer that reads texts as they are, and words that are given.
    Windows of `max_length` tokens overlap by a quarter."""

    def __init__(self, folder: Path, tokenizer: Any, max_length: int) -> None:
        if not tokenizer.is_fast:
            raise ModelError(
                "pooling: words and entities need a fast tokenizer, which knows the "
                "characters of each token; this model has none (no tokenizer.json)"
            )
        room = max_length - tokenizer.num_special_tokens_to_add()
        self._folder = folder
        self._of_texts = tokenizer
        self._of_words: Any = None
        self._options = {
            "truncation": True,
            "max_length": max_length,
            "stride": max(0, room // 4),
            "return_overflowing_tokens": True,
            "return_attention_mask": False,
            "return_token_type_ids": False,
        }
        self._finds_words = len({*tokenizer("one two").word_ids()} - {None}) > 1

    def read(self, sentences: Sequence[Sentence]) -> list[Tokens]:
        """In the order of the sentences."""
        found: dict[int, Tokens] = {}
        for given in (False, True):
            places = [
                place
                for place, sentence in enumerate(sentences)
                if (sentence.words is not None) == given and sentence.words != ()
            ]
            if places:
                read = self._read([sentences[p] for p in places], given)
                found |= zip(places, read, strict=True)
        return [found.get(p, Tokens([], [], [])) for p in range(len(sentences))]

    def _read(self, sentences: list[Sentence], given: bool) -> Iterator[Tokens]:
        if not given and not self._finds_words:
            raise ModelError(
                "pooling: this model's tokenizer finds no words in a text; give the "
                "words in the source, as text[]"
            )
        texts = [
            [s.text[begin:end] for begin, end in s.words] if s.words else s.text
            for s in sentences
        ]
        tokenizer = self._tokenizer_of_words() if given else self._of_texts
        encoded = tokenizer(texts, is_split_into_words=given, **self._options)
        pieces: list[list[Any]] = [[] for _ in sentences]
        for piece, sample in zip(
            encoded.encodings, encoded["overflow_to_sample_mapping"], strict=True
        ):
            pieces[sample].append(piece)
        for sentence, own in zip(sentences, pieces, strict=True):
            yield _tokens(sentence, own, self._options["stride"])

    def _tokenizer_of_words(self) -> Any:
        """Byte-level tokenizers read a word as they would within a text only with a
        space before it."""
        if self._of_words is None:
            self._of_words = AutoTokenizer.from_pretrained(
                self._folder, add_prefix_space=True
            )
        return self._of_words


def reader(
    folder: Path, max_length: int
) -> Callable[[Sequence[Sentence]], list[Tokens]]:
    """What a process of its own reads sentences with."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Tokenizer(folder, tokenizer, max_length).read


def _tokens(sentence: Sentence, pieces: list[Any], stride: int) -> Tokens:
    windows: list[Window] = []
    numbers: list[int | None] = []
    characters: list[tuple[int, int]] = []
    contents = [_content(piece) for piece in pieces]
    starts = [0]
    for first, stop in contents[:-1]:
        starts.append(starts[-1] + stop - first - stride)
    ends = [s + stop - f for s, (f, stop) in zip(starts, contents, strict=True)]
    # the overlap of two windows is shared out in its middle
    borders = [
        0,
        *((s + e + 1) // 2 for s, e in zip(starts[1:], ends[:-1], strict=True)),
        ends[-1],
    ]
    for k, piece in enumerate(pieces):
        at = contents[k][0] + borders[k] - starts[k]
        count = borders[k + 1] - borders[k]
        windows.append(Window(piece.ids, at, count))
        numbers += piece.word_ids[at : at + count]
        characters += piece.offsets[at : at + count]
    if sentence.words is not None:
        begins = [0 if n is None else sentence.words[n][0] for n in numbers]
        characters = [
            (begin + b, begin + e)
            for begin, (b, e) in zip(begins, characters, strict=True)
        ]
    return Tokens(windows, [*_found(sentence, numbers, characters)], characters)


def _content(piece: Any) -> tuple[int, int]:
    """Where the text's own tokens lie among the special ones."""
    mask = piece.special_tokens_mask
    first = next((i for i, special in enumerate(mask) if not special), len(mask))
    stop = next((i for i in range(first, len(mask)) if mask[i]), len(mask))
    return first, stop


def _found(
    sentence: Sentence,
    numbers: list[int | None],
    characters: list[tuple[int, int]],
) -> Iterator[Word]:
    """Runs of tokens of one word. The characters are the word's own, without the space
    that some tokenizers count to it."""
    first = 0
    while first < len(numbers):
        number, stop = numbers[first], first + 1
        while stop < len(numbers) and numbers[stop] == number:
            stop += 1
        if number is not None:
            if sentence.words is not None:
                begin, end = sentence.words[number]
            else:
                begin, end = _trimmed(sentence.text, characters[first:stop])
            if begin < end:
                yield Word(number, first, stop, begin, end)
        first = stop


def _trimmed(text: str, characters: list[tuple[int, int]]) -> tuple[int, int]:
    begin, end = min(b for b, _ in characters), max(e for _, e in characters)
    word = text[begin:end]
    begin += len(word) - len(word.lstrip())
    return begin, begin + len(word.strip())
