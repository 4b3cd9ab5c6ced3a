"""Which kind of word vectors a file holds, told by its content, and how long they are.

The formats: word2vec's text and binary, GloVe's text (no first line), fastText's .vec
(as word2vec's text) and .bin (with subwords), gensim's .kv; gzip and bzip2 of all but
the last. A folder is a static sentence model, see `static`.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from embedding_tasks.encoders import memory, static, weights
from embedding_tasks.encoders.shape import MAX_DIMS, Shape
from embedding_tasks.errors import ModelError
from embedding_tasks.use_case import Feature
from embedding_tasks.use_case.feature import WordVectors

Kind = Literal["text", "binary", "fasttext", "gensim"]

# https://github.com/facebookresearch/fastText, FASTTEXT_FILEFORMAT_MAGIC_INT32
_FASTTEXT = struct.pack("<i", 793712314)
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_PACKED = {b"\x1f\x8b": ".gz", b"BZh": ".bz2"}
# Two lines of the longest vectors there may be.
_START = 1 << 19


@dataclass(frozen=True)
class WordFile:
    """`header` is the number of lines before the first word. What a gensim file's
    `dims` are, only gensim can say."""

    path: Path
    kind: Kind
    dims: int = 0
    header: int = 0


def shape(feature: Feature) -> Shape:
    encoder = feature.encoder
    assert isinstance(encoder, WordVectors)
    path = find(encoder.model, encoder.revision)
    exact = digest(path)
    if path.is_dir():
        dims = static.StaticFolder.of(path).dims
    elif not (dims := (file := identify(path)).dims):
        from embedding_tasks.encoders import word_vectors

        dims = memory.remembered(
            "word_vectors", exact, lambda: word_vectors.load(file).dims
        )
    if dims > MAX_DIMS:
        raise ModelError(
            f"encoder.model: {dims} dimensions are more than pgvector's {MAX_DIMS}"
        )
    return Shape(dims, weights=exact)


def find(model: str, revision: str) -> Path:
    """A file or a folder; a Hugging Face id is a folder. Raises `ModelError`, or
    `TransientError` when the hub cannot be reached."""
    path = weights.local(model)
    if path is None:
        return weights.locate(model, revision)
    if not path.exists():
        raise ModelError(f"encoder.model: there is no file or folder {str(path)!r}")
    return path


def digest(path: Path) -> str:
    if path.is_dir():
        return static.StaticFolder.of(path).digest()
    beside = sorted(path.parent.glob(f"{path.name}.*.npy"))  # gensim's large arrays
    if not beside:
        return weights.file_digest(path)
    names = [f"{p.name}:{weights.file_digest(p)}" for p in (path, *beside)]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def identify(path: Path) -> WordFile:
    try:
        with opened(path) as file:
            start = file.read(_START)
    except (OSError, EOFError, zlib.error) as error:
        raise ModelError(f"encoder.model: {str(path)!r}: {error}") from error
    if start[:4] == _FASTTEXT and len(start) >= 12:
        return WordFile(path, "fasttext", dims=struct.unpack("<3i", start[:12])[2])
    if start[:2] in _PICKLES and path.suffix not in _PACKED.values():
        return WordFile(path, "gensim")
    return _by_lines(path, start)


def _by_lines(path: Path, start: bytes) -> WordFile:
    first, _, rest = start.partition(b"\n")
    second = rest.partition(b"\n")[0]
    if (dims := _declared(first)) is not None:
        if not _is_text(rest[: 4 * dims + 64]):
            return WordFile(path, "binary", dims=dims, header=1)
        if _numbers(second) >= dims:
            return WordFile(path, "text", dims=dims, header=1)
    elif (dims := _numbers(first)) > 1 and (not second or _numbers(second) == dims):
        return WordFile(path, "text", dims=dims)
    raise ModelError(
        f"encoder.model: {str(path)!r} is no file of word vectors; valid: word2vec "
        "(text, binary), GloVe, fastText (.vec, .bin), gensim's KeyedVectors.save"
    )


def _declared(line: bytes) -> int | None:
    """word2vec's first line: how many words, of how many dimensions."""
    parts = line.split()
    if len(parts) == 2 and all(p.isdigit() for p in parts) and int(parts[1]) > 0:
        return int(parts[1])
    return None


def _numbers(line: bytes) -> int:
    """How many there are at its end, the word itself apart: it may be one, and may
    hold spaces (GloVe 840B)."""
    parts = line.split()
    count = 0
    for part in reversed(parts[1:]):
        try:
            float(part)
        except ValueError:
            break
        count += 1
    return count


def _is_text(some: bytes) -> bool:
    """Floats are not, but for a handful of them: some byte is a control character, or
    no UTF-8."""
    try:
        text = some[:-4].decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return not re.search(r"[\x00-\x08\x0e-\x1f]", text)


def opened(path: Path) -> IO[bytes]:
    """The file as it was before it was compressed."""
    with path.open("rb") as file:
        start = file.read(3)
    suffix = next((_PACKED[magic] for magic in _PACKED if start.startswith(magic)), "")
    if suffix and path.suffix != suffix:  # by which gensim goes
        raise ModelError(
            f"encoder.model: {str(path)!r} is compressed; let its name end in {suffix}"
        )
    open_: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}
    file_: IO[bytes] = open_[suffix](path) if suffix else path.open("rb")
    return file_
