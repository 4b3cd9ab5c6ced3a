"""Static sentence models: one vector per token, and a text is their mean.

A folder with `tokenizer.json` and `model.safetensors`, as sentence-transformers'
StaticEmbedding saves it, whole (with `modules.json`) or alone, and as model2vec does.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from embedding_tasks.encoders import weights
from embedding_tasks.errors import InputError, ModelError

Array = npt.NDArray[Any]

_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8"}
# sentence-transformers' name for the table, and model2vec's
_TABLES = ("embedding.weight", "embeddings")


class Mean(NamedTuple):
    """Of one text's words, and the share of them that is unknown."""

    vector: npt.NDArray[np.float32]
    unknown: float
    truncated: bool = False


@dataclass(frozen=True)
class StaticFolder:
    folder: Path
    normalize: bool

    @classmethod
    def of(cls, folder: Path) -> StaticFolder:
        """Raises `ModelError` for a folder with another kind of model."""
        modules = _json(folder / "modules.json") or []
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        if kinds not in ([], ["StaticEmbedding"], ["StaticEmbedding", "Normalize"]):
            raise ModelError(
                f"encoder.model: {str(folder)!r} is made of {', '.join(kinds)}; valid: "
                "StaticEmbedding, with or without Normalize; for a transformer set "
                "encoder.type: text"
            )
        config = _json(folder / "config.json") or {}  # model2vec's
        where = folder / (modules[0].get("path") or "") if modules else folder
        for name in ("tokenizer.json", "model.safetensors"):
            if not (where / name).is_file():
                raise ModelError(
                    f"encoder.model: {str(where)!r} has no {name}; valid: a file of "
                    "word vectors, or a folder with a static sentence model"
                )
        return cls(where, "Normalize" in kinds or bool(config.get("normalize")))

    @cached_property
    def header(self) -> dict[str, Any]:
        """Of the safetensors file: name to dtype, shape and place.
        https://huggingface.co/docs/safetensors, "Format"."""
        try:
            with self.weights.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                found: dict[str, Any] = json.loads(file.read(length))
        except (ValueError, struct.error, MemoryError, OverflowError) as error:
            raise ModelError(
                f"encoder.model: {str(self.weights)!r} is no safetensors file"
            ) from error
        return {
            name: {**tensor, "start": 8 + length + tensor["data_offsets"][0]}
            for name, tensor in found.items()
            if name != "__metadata__"
        }

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def table(self) -> str:
        for name in _TABLES:
            if len(self.header.get(name, {}).get("shape", ())) == 2:
                return name
        raise ModelError(
            f"encoder.model: {str(self.weights)!r} holds "
            f"{', '.join(sorted(self.header))}, and no table of token vectors; valid: "
            f"{' or '.join(_TABLES)}"
        )

    @property
    def dims(self) -> int:
        return int(self.header[self.table]["shape"][1])

    def array(self, name: str) -> Array:
        """Mapped, not read: every worker of a machine shares it."""
        tensor = self.header[name]
        if tensor["dtype"] not in _DTYPES:
            raise ModelError(
                f"encoder.model: {name} in {str(self.weights)!r} is of type "
                f"{tensor['dtype']}; valid: {', '.join(_DTYPES)}"
            )
        return np.memmap(
            self.weights,
            dtype=_DTYPES[tensor["dtype"]],
            mode="r",
            offset=tensor["start"],
            shape=tuple(tensor["shape"]),
        )

    def digest(self) -> str:
        files = [self.folder / "tokenizer.json", self.weights]
        said = [f"{p.name}:{weights.file_digest(p)}" for p in files]
        said.append(f"normalize:{self.normalize}")
        return hashlib.sha256("\n".join(said).encode()).hexdigest()


class StaticModel:
    """As sentence-transformers' StaticEmbedding: no special tokens, [UNK] is a token
    like any other."""

    def __init__(self, found: StaticFolder) -> None:
        from tokenizers import Tokenizer

        self.normalize = found.normalize
        self._table = found.array(found.table)
        self._mapping, self._weights = (
            found.array(name) if name in found.header else None
            for name in ("mapping", "weights")
        )
        path = found.folder / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # its own kind is Exception itself
            raise ModelError(f"encoder.model: {str(path)!r}: {error}") from error
        self._tokenizer.no_padding()
        self._unknown = _unknown_token(json.loads(self._tokenizer.to_str())["model"])
        size, rows = self._tokenizer.get_vocab_size(), len(self._rows)
        if size > rows:
            raise ModelError(
                f"encoder.model: its tokenizer has {size} tokens, its table {rows}"
            )

    def mean(self, text: str) -> Mean:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, np.int64)
        if not len(ids):
            raise InputError("a text without a single token")
        unknown = float((ids == self._unknown).mean())
        if unknown == 1:
            raise InputError(f"none of its {len(ids)} tokens is in the vocabulary")
        vector = self._vectors(ids).mean(axis=0, dtype=np.float32)
        return Mean(vector, unknown, bool(encoding.overflowing))

    def known(self) -> Iterable[str]:
        return ["one, two, three", *self._tokenizer.get_vocab()]

    @property
    def _rows(self) -> Array:
        return self._table if self._mapping is None else self._mapping

    def _vectors(self, ids: Array) -> Array:
        rows = self._table[ids if self._mapping is None else self._mapping[ids]]
        if self._weights is None:
            return rows
        weighed: Array = rows.astype(np.promote_types(rows.dtype, np.float32))
        weighed *= self._weights[ids][:, None]
        return weighed.astype(rows.dtype)


def _unknown_token(model: dict[str, Any]) -> int:
    """-1 for a tokenizer that knows every byte."""
    if isinstance(number := model.get("unk_id"), int):  # Unigram
        return number
    vocabulary, token = model.get("vocab"), model.get("unk_token")
    if not isinstance(vocabulary, dict) or token is None:
        return -1
    return int(vocabulary.get(token, -1))


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"encoder.model: {str(path)!r} is not valid JSON") from error
