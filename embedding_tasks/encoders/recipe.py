"""From a use case to the recipe of its vectors: fingerprint, shape, classes.

Reads the model's configuration and files; needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from embedding_tasks.encoders import weights
from embedding_tasks.errors import ModelError
from embedding_tasks.store.versions import Recipe
from embedding_tasks.use_case import LayerMix, UseCase

# Raise it when this package makes other vectors of the same files and settings.
VERSION = 1

# pgvector's limit for both of its dense types.
MAX_DIMS = 16_000

# The same thing under the names different model families gave it.
_WIDTH = ("hidden_size", "d_model", "n_embd", "dim")
_DEPTH = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")


def of(use_case: UseCase) -> Recipe:
    """Raises `ModelError` when the model cannot make what the use case asks for."""
    folder = weights.locate(use_case.encoder.model, use_case.encoder.revision)
    config = _config(folder)
    dims = _dims(config, use_case)
    wants_head = use_case.prediction == "head"
    spec = {
        "encoder": use_case.encoder.model_dump(mode="json", exclude={"device"}),
        "pooling": use_case.pooling,
        "layers": use_case.model_dump(mode="json")["layers"],
        "normalize": use_case.normalize,
        "head": wants_head,
        "input": list(use_case.source.input),
        "separator": use_case.source.separator,
        "storage": use_case.storage.type,
        "weights": weights.digest(folder),
        "recipe": VERSION,
    }
    return Recipe(
        fingerprint=_fingerprint(spec),
        spec=spec,
        dims=dims,
        classes=_classes(config) if wants_head else None,
    )


def _fingerprint(spec: dict[str, Any]) -> str:
    """The name and place of a model shape nothing that its digest does not: moving a
    folder makes no new vectors."""
    encoder = {
        k: v for k, v in spec["encoder"].items() if k not in ("model", "revision")
    }
    text = json.dumps({**spec, "encoder": encoder}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise ModelError(
            f"encoder.model: {str(folder / 'config.json')!r} is not valid JSON: {error}"
        ) from error
    if "model_type" not in config:
        raise ModelError(
            f"encoder.model: {str(folder / 'config.json')!r} names no model_type; "
            "save the model with transformers' save_pretrained"
        )
    return config


def _dims(config: dict[str, Any], use_case: UseCase) -> int:
    width = _first(config, _WIDTH)
    depth = _first(config, _DEPTH)
    layers = use_case.layers
    wanted = layers.last if isinstance(layers, LayerMix) else layers
    # hidden states: the embedding output, then one per layer
    if isinstance(wanted, int) and not -(depth + 1) <= wanted <= depth + (
        1 if isinstance(layers, LayerMix) else 0
    ):
        raise ModelError(
            f"layers: {wanted} is not among the model's {depth} layers; "
            f"valid: {-(depth + 1)} to {depth} (0 is the embedding output)"
        )
    concat = isinstance(layers, LayerMix) and layers.combine == "concat"
    dims = width * layers.last if concat and isinstance(layers, LayerMix) else width
    if dims > MAX_DIMS:
        raise ModelError(
            f"layers: a concatenation of {dims} dimensions is more than pgvector's "
            f"{MAX_DIMS}; valid: at most {MAX_DIMS // width} layers"
        )
    return dims


def _first(config: dict[str, Any], names: tuple[str, ...]) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return int(config[name])
    raise ModelError(
        f"encoder.model: a model of type {config['model_type']!r} does not say its "
        f"{names[0]} in config.json; it is not supported as a text encoder"
    )


def _classes(config: dict[str, Any]) -> list[str]:
    architectures = config.get("architectures") or []
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise ModelError(
            f"prediction: the model is {', '.join(architectures) or 'untyped'}, which "
            "has no trained classification head; valid: 'none', or a column"
        )
    # transformers leaves the names out when they are its own default of two
    names: dict[str, str] = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return [names[str(i)] for i in range(len(names))]
