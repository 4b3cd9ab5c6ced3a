"""Finding the inputs that cannot be encoded, so that the others still are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from embedding_tasks.encoders import Encoder
from embedding_tasks.encoders.encoded import Encoded, joined
from embedding_tasks.errors import ModelError, TransientError


def isolate(encoder: Encoder, inputs: Sequence[Any]) -> tuple[Encoded, dict[int, str]]:
    """Encode all that can be encoded, and say by position what cannot and why: what
    the encoder itself set aside (`Encoded.failed`), and what made it fail. A batch
    that fails is halved until the bad input stands alone; what is None is left out.
    Raises `ModelError`, and transient trouble: neither is an input's fault."""
    parts: list[tuple[list[int], Encoded]] = []
    errors: dict[int, str] = {}

    def encode(positions: list[int]) -> None:
        try:
            parts.append((positions, encoder.encode([inputs[p] for p in positions])))
            return
        except (ModelError, TransientError):
            raise
        except Exception as error:
            if len(positions) == 1:
                errors[positions[0]] = f"{type(error).__name__}: {error}"
                return
        half = len(positions) // 2
        encode(positions[:half])
        encode(positions[half:])

    if formed := [p for p, given in enumerate(inputs) if given is not None]:
        encode(formed)
    encoded = joined(parts, len(inputs))
    return encoded, errors | dict(encoded.failed)
