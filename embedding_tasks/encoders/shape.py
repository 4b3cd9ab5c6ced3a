"""What is known of an encoder's vectors before a model library is imported."""

from __future__ import annotations

from dataclasses import dataclass

from embedding_tasks.connections import Resolve
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


def of(
    feature: Feature, resolve: Resolve | None = None, *, trained: str | None = None
) -> Shape:
    """`trained` is the digest of a model trained on the use case's rows. Raises
    `ModelError` when the model cannot make what the feature asks for, and
    `TransientError` when a server that must be asked is away."""
    match feature.encoder.type:
        case "text":
            from embedding_tasks.encoders import configuration

            return configuration.text(feature)
        case "image":
            from embedding_tasks.encoders import configuration

            return configuration.image(feature)
        case "openai":
            from embedding_tasks.encoders import endpoint

            return endpoint.shape(feature, resolve)
        case "words":
            from embedding_tasks.encoders import word_files

            return word_files.shape(feature)
        case "autoencoder" | "gan" if trained is not None:
            return Shape(feature.encoder.size, trained)
        case kind:
            raise ModelError(f"no encoder of type {kind!r}")
