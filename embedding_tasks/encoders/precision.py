"""Half precision where it is enough, and more range where a model leaves it.

float16 is as fast as bfloat16 and sixty times closer to float32, but ends at 65,504:
some models go beyond that, and what they give is not a number. Such a model is loaded
again in bfloat16, for good.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from embedding_tasks.encoders import Encoder, memory
from embedding_tasks.encoders.encoded import Encoded

log = logging.getLogger(__name__)

_TOPIC = "overflowing"


class HalfPrecision:
    """Keeps `Encoder`. `load` takes a dtype; `weights` is the digest of the model's
    files, by which it is remembered that they need bfloat16."""

    def __init__(self, load: Callable[[str], Encoder], weights: str) -> None:
        self._load = load
        self._weights = weights
        self._lock = threading.Lock()
        self._wide = bool(memory.known(_TOPIC, weights))
        self.encoder = load("bfloat16" if self._wide else "float16")

    @property
    def shared(self) -> bool:
        return self.encoder.shared

    def surroundings(self) -> dict[str, str]:
        return self.encoder.surroundings()

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        return self._finite(lambda encoder: encoder.encode(inputs))

    def probe(self) -> Encoded:
        return self._finite(lambda encoder: encoder.probe())

    def _finite(self, encode: Callable[[Encoder], Encoded]) -> Encoded:
        encoder = self.encoder
        encoded = encode(encoder)
        if self._wide or np.isfinite(encoded.vectors).all():
            return encoded
        with self._lock:
            if self.encoder is encoder:
                return self._widened(encoded, encode)
        return encode(self.encoder)

    def _widened(
        self, narrow: Encoded, encode: Callable[[Encoder], Encoded]
    ) -> Encoded:
        """In bfloat16, unless that has no more finite vectors to give: then it is not
        the range that these inputs lack."""
        wider = self._load("bfloat16")
        encoded = encode(wider)
        if _finite_rows(encoded) <= _finite_rows(narrow):
            return narrow
        log.warning(
            "model overflows in float16, going on in bfloat16 weights=%s",
            self._weights[:12],
        )
        memory.keep(_TOPIC, self._weights, 1)
        self.encoder, self._wide = wider, True
        return encoded


def _finite_rows(encoded: Encoded) -> int:
    return int(np.isfinite(encoded.vectors).all(axis=1).sum())
