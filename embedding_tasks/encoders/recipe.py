"""From a use case to the recipes of its vectors: fingerprint, shape, classes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from embedding_tasks.connections import Resolve
from embedding_tasks.encoders import shape
from embedding_tasks.store.versions import Recipe
from embedding_tasks.use_case import Feature, UseCase

# Raise it when this package makes other vectors of the same files and settings.
VERSION = 1

# Of an encoder's settings those that shape no vector: where its files lie, which its
# digest stands for, and how fast a server may be asked.
_SHAPELESS = {
    "text": {"model", "revision"},
    "image": {"model", "revision", "max_pixels"},
    "words": {"model", "revision"},
    "openai": {
        *("url", "connection", "key_variable", "max_length", "items_per_request"),
        *("tokens_per_request", "concurrency", "timeout_seconds", "max_retries"),
    },
}


def all_of(use_case: UseCase, resolve: Resolve | None = None) -> dict[str, Recipe]:
    """By feature, the first one first. Raises `ModelError` when a model cannot make
    what the use case asks for."""
    return {
        name: _of(use_case, feature, resolve)
        for name, feature in use_case.all_features.items()
    }


def _of(use_case: UseCase, feature: Feature, resolve: Resolve | None) -> Recipe:
    found = shape.of(feature, resolve)
    spec = {
        **feature.model_dump(mode="json", exclude={"encoder": {"device"}}),
        "storage": use_case.storage.type,
        "weights": found.weights,
        "recipe": VERSION,
    }
    return Recipe(
        fingerprint=_fingerprint(spec),
        spec=spec,
        unit=feature.unit,
        dims=found.dims,
        classes=found.classes,
    )


def _fingerprint(spec: dict[str, Any]) -> str:
    """The name and place of a model shape nothing that its digest does not: moving a
    folder makes no new vectors."""
    shapeless = _SHAPELESS.get(spec["encoder"]["type"], set())
    encoder = {k: v for k, v in spec["encoder"].items() if k not in shapeless}
    text = json.dumps({**spec, "encoder": encoder}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
