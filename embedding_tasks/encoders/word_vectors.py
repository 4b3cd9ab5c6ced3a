"""Reading files of word vectors into one table; all but plain text through gensim."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from embedding_tasks.encoders.word_files import WordFile, opened
from embedding_tasks.errors import ModelError

# Magic and version; twelve integers and a double; three integers and two longs.
_FASTTEXT_HEADER = 8 + 56 + 28

Vector = npt.NDArray[np.float32]

# All that a pickle of gensim's vectors is made of. It may name any function of Python,
# and would have it called: what is not here is not.
_ALLOWED = {
    "_codecs": {"encode"},
    "gensim.models.fasttext": {"FastTextKeyedVectors"},
    "gensim.models.keyedvectors": {
        *("KeyedVectors", "Word2VecKeyedVectors", "EuclideanKeyedVectors"),
        *("Vocab", "CompatVocab"),
    },
    "numpy": {"dtype", "ndarray"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
}


@dataclass(frozen=True)
class WordTable:
    """`vectors` (words, dims) and the place of each word in it. `subwords` is gensim's
    FastTextKeyedVectors."""

    places: dict[str, int]
    vectors: Vector
    subwords: Any = None

    @classmethod
    def of(cls, vectors: Any) -> WordTable:
        subwords = vectors if getattr(vectors, "bucket", 0) else None
        return cls(vectors.key_to_index, vectors.vectors, subwords)

    @property
    def dims(self) -> int:
        return int(self.vectors.shape[1])

    def of_subwords(self, words: Sequence[str]) -> list[Vector]:
        """Of those that are long enough. As gensim's `get_vector`, which writes a word
        that is not into the log."""
        if self.subwords is None:
            return []
        from gensim.models.fasttext import ft_ngram_hashes

        made = self.subwords
        hashes = (
            ft_ngram_hashes(word, made.min_n, made.max_n, made.bucket) for word in words
        )
        return [
            made.vectors_ngrams[rows].mean(axis=0, dtype=np.float32)
            for rows in hashes
            if len(rows)
        ]


def load(file: WordFile) -> WordTable:
    """Raises `ModelError` for a file that is damaged."""
    try:
        return _text(file) if file.kind == "text" else WordTable.of(_by_gensim(file))
    except ModelError:
        raise
    except Exception as error:  # gensim raises whatever it stumbles on
        raise ModelError(
            f"encoder.model: {str(file.path)!r} cannot be read as a {file.kind} file "
            f"of word vectors: {type(error).__name__}: {error}"
        ) from error


def _by_gensim(file: WordFile) -> Any:
    try:
        from gensim.models import KeyedVectors
        from gensim.models.fasttext import load_facebook_vectors
    except ImportError as error:
        raise ModelError(
            "encoder.type: 'words' needs gensim for such a file; "
            "pip install 'embedline[words]'"
        ) from error
    path = str(file.path)
    match file.kind:
        case "fasttext":
            _refuse_a_cut_dictionary(file)
            return load_facebook_vectors(path)
        case "gensim":
            return _unpickled(file.path)
        case _:
            # the C tool cuts words in the middle of a character
            return KeyedVectors.load_word2vec_format(
                path, binary=True, unicode_errors="replace"
            )


def _refuse_a_cut_dictionary(file: WordFile) -> None:
    """gensim 4.4 looks for the end of a word beyond the end of the file, for ever. A
    compressed file says itself that it is cut."""
    with opened(file.path) as start:
        head = start.read(_FASTTEXT_HEADER)
    words, own = struct.unpack("<2i", head[64:72]) if len(head) > 72 else (1, 1)
    least = _FASTTEXT_HEADER + 10 * words + 4 * own * file.dims
    packed = file.path.suffix in (".gz", ".bz2")
    if not packed and file.path.stat().st_size < least:
        raise ModelError(
            f"encoder.model: {str(file.path)!r} is shorter than its {words} words "
            "take; is it cut off?"
        )


def _text(file: WordFile) -> WordTable:
    """Not through gensim, which takes several times as long, and fails on the words of
    GloVe 840B that hold a space. Of a word that occurs twice, the first counts."""
    places: dict[str, int] = {}
    floats = bytearray()
    with opened(file.path) as lines:
        declared = int(lines.readline().split()[0]) if file.header else None
        count = 0
        for count, line in enumerate(lines, 1):
            word, *numbers = line.rsplit(maxsplit=file.dims)
            if len(numbers) != file.dims:
                raise ModelError(
                    f"encoder.model: line {count + file.header} of {str(file.path)!r} "
                    f"has {len(numbers)} numbers, not {file.dims}"
                )
            floats += np.array(numbers, dtype=np.float32).tobytes()
            places.setdefault(word.decode("utf-8", "replace"), count - 1)
    if declared not in (None, count):
        raise ModelError(
            f"encoder.model: {str(file.path)!r} has {count} words, not the {declared} "
            "of its first line; is it cut off?"
        )
    vectors = np.frombuffer(floats, np.float32).reshape(-1, file.dims)
    return WordTable(places, vectors)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise ModelError(
                f"encoder.model: a pickle with {module}.{name} in it, which is not "
                "loaded; valid: what gensim's KeyedVectors.save writes (model.wv.save)"
            )
        return super().find_class(module, name)


def _unpickled(path: Path) -> Any:
    """KeyedVectors.load, but for the calls a pickle could make. Large arrays lie
    beside it and are mapped: every worker of a machine shares them."""
    from gensim.utils import SaveLoad

    with path.open("rb") as file:
        found = _read(file)
    known = getattr(found, "__dict__", {})
    if not isinstance(found, SaveLoad) or any(
        known.get(name) for name in ("__scipys", "__recursive_saveloads")
    ):
        raise ModelError(
            f"encoder.model: {str(path)!r} holds no word vectors; save them with "
            "gensim's KeyedVectors.save (model.wv.save)"
        )
    compress, subname = SaveLoad._adapt_by_suffix(str(path))
    found._load_specials(str(path), "r", compress, subname)
    return found


def _read(file: IO[bytes]) -> Any:
    return _Unpickler(file, encoding="latin1").load()
