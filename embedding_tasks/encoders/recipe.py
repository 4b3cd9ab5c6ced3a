"""From a use case to the recipes of its vectors: fingerprint, shape, classes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from embedding_tasks.connections import Resolve
from embedding_tasks.encoders import shape
from embedding_tasks.errors import ModelError, TransientError
from embedding_tasks.store.versions import Recipe
from embedding_tasks.use_case import Feature, UseCase
from embedding_tasks.use_case.feature import Trained

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
    "autoencoder": {"min_rows"},
    "gan": {"min_rows"},
}


def all_of(
    use_case: UseCase,
    resolve: Resolve | None = None,
    *,
    trained: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
) -> dict[str, Recipe]:
    """By feature, the first one first. `trained` has the digests of the models that
    were trained on the use case's rows (`store.trained.digests`). Raises `ModelError`
    when a model cannot make what the use case asks for, or is not trained yet."""
    trained = trained or {}
    features = {n: f for n, f in use_case.all_features.items() if n not in without}
    for name in untrained(use_case, trained):
        if name in features:
            raise ModelError(
                f"{use_case.name}: the encoder of feature {name!r} is not trained yet; "
                f"run `embedline train {use_case.name}`"
            )
    return {
        name: _of(use_case, feature, resolve, trained.get(name))
        for name, feature in features.items()
    }


def found(
    use_case: UseCase,
    resolve: Resolve | None = None,
    *,
    trained: Mapping[str, str] | None = None,
) -> tuple[dict[str, Recipe], dict[str, ModelError | TransientError]]:
    """As `all_of`, but a feature whose model cannot be had keeps no other from its
    recipe: by feature, the recipes, and why there is none."""
    recipes: dict[str, Recipe] = {}
    missing: dict[str, ModelError | TransientError] = {}
    for name in use_case.all_features:
        others = [other for other in use_case.all_features if other != name]
        try:
            recipes |= all_of(use_case, resolve, trained=trained, without=others)
        except (ModelError, TransientError) as error:
            missing[name] = error
    return recipes, missing


def untrained(use_case: UseCase, trained: Mapping[str, str]) -> list[str]:
    return [
        name
        for name, feature in use_case.all_features.items()
        if isinstance(feature.encoder, Trained) and name not in trained
    ]


def _of(
    use_case: UseCase, feature: Feature, resolve: Resolve | None, trained: str | None
) -> Recipe:
    found = shape.of(feature, resolve, trained=trained)
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
    told = {**spec, "encoder": encoder}
    # what there was no other way of before: its vectors are the same
    if encoder["type"] == "text":
        del encoder["type"]
    if told["template"] is None:
        del told["template"]
    text = json.dumps(told, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
