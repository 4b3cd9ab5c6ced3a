"""From the columns of a record to what an encoder reads, and what of it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from embedding_tasks.errors import InputError
from embedding_tasks.use_case import Template

Part = str | list[str | None] | bytes | None
"""A column's value: an array of texts is a list, `bytea` is bytes, all else is text."""


@dataclass(frozen=True)
class Sentence:
    """A text whose words or entities are wanted. `words` are the characters
    [start, stop) of each word where the source gives them, else the tokenizer finds
    them. `labelled_words` (numbers) and `labelled_spans` (characters) are to be kept
    whatever is predicted for them."""

    text: str
    words: tuple[tuple[int, int], ...] | None = None
    labelled_words: frozenset[int] = frozenset()
    labelled_spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Form:
    """How one model version's inputs are made of a record's columns."""

    kind: str
    columns: tuple[str, ...]
    separator: str
    template: Template | None
    by_unit: bool

    @classmethod
    def of(cls, spec: dict[str, Any]) -> Form:
        """Of a model version's `spec`, which is its feature and more."""
        encoder, columns = spec["encoder"], tuple(spec["input"])
        template = spec.get("template")
        return cls(
            kind="image" if encoder.get("data") == "image" else encoder["type"],
            columns=columns,
            separator=spec["separator"],
            template=Template(template, columns) if template else None,
            by_unit=spec["pooling"] == "entities" or "words" in spec["pooling"],
        )

    def input(self, parts: Sequence[Part]) -> Any:
        """A text; a `Sentence`; an image's bytes or address; a tuple of a table's
        values. Raises `InputError`."""
        if self.kind == "image":
            return next(p for p in parts if p is not None)
        if self.kind in ("autoencoder", "gan"):
            return tuple(_text(p) for p in parts)
        if self.by_unit and isinstance(parts[0], list):
            return sentence_of(parts[0])
        text = self.text(parts)
        return Sentence(text) if self.by_unit else text

    def text(self, parts: Sequence[Part]) -> str:
        """The columns that are not null, joined or filled into the template."""
        texts = tuple(_text(p) for p in parts)
        if self.template is not None:
            return self.template.fill(texts, self.separator)
        return self.separator.join(t for t in texts if t is not None)

    def kept(self, parts: Sequence[Part]) -> str | None:
        """What can be kept of the input as text: of an image, its address."""
        if self.kind == "image":
            value = next(p for p in parts if p is not None)
            return value if isinstance(value, str) else None
        return self.text(parts)


def _text(part: Part) -> str | None:
    if part is None or isinstance(part, str):
        return part
    if isinstance(part, bytes):
        raise InputError("a bytea column is an image's; cast it to text")
    return " ".join(word or "" for word in part)


def sentence_of(words: Sequence[str | None]) -> Sentence:
    """Words as the source gives them, one space apart. Raises `InputError`."""
    ranges, start = [], 0
    for word in words:
        if not isinstance(word, str):
            raise InputError(f"its words hold {word!r}; valid: one array of texts")
        ranges.append((start, start + len(word)))
        start += len(word) + 1
    return Sentence(" ".join(w or "" for w in words), tuple(ranges))
