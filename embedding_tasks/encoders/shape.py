"""What is known of an encoder's vectors before a model library is imported."""

from __future__ import annotations

from dataclasses import dataclass

from embedding_tasks.errors import ModelError
from embedding_tasks.use_case import Feature

# pgvector's limit for both of its dense types.
MAX_DIMS = 16_000


@dataclass(frozen=True)
class Shape:
    """`weights` names the exact model: a digest of its files wherever there are."""

    dims: int
    weights: str
    classes: list[str] | None = None


def of(feature: Feature, *, trained: str | None = None) -> Shape:
    """`trained` is the digest of a model trained on the use case's rows. Raises
    `ModelError` when the model cannot make what the feature asks for."""
    match feature.encoder.type:
        case "text":
            from embedding_tasks.encoders import configuration

            return configuration.text(feature)
        case "autoencoder" | "gan" if trained is not None:
            return Shape(feature.encoder.size, trained)
        case kind:
            raise ModelError(f"no encoder of type {kind!r}")
