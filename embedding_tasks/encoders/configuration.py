"""What a model's configuration says of its vectors, before the model is loaded.

Reads `config.json` alone; needs no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from embedding_tasks.encoders import weights
from embedding_tasks.encoders.shape import MAX_DIMS, Shape
from embedding_tasks.errors import ModelError
from embedding_tasks.use_case import Feature, LayerMix

# The same thing under the names different model families gave it.
_WIDTH = ("hidden_size", "d_model", "n_embd", "dim")
_DEPTH = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers")


def text(feature: Feature) -> Shape:
    """Raises `ModelError` when the model cannot make what the feature asks for."""
    folder = weights.of_feature(feature)
    config = read(folder)
    return Shape(
        dims=_dims(config, feature),
        weights=weights.digest(folder),
        classes=_classes(config, feature) if feature.head else None,
    )


def read(folder: Path) -> dict[str, Any]:
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


def _dims(config: dict[str, Any], feature: Feature) -> int:
    return mixed_dims(_first(config, _WIDTH), _first(config, _DEPTH), feature)


def mixed_dims(width: int, depth: int, feature: Feature) -> int:
    """Dimensions after the choice of layers, among the embedding output and one for
    each of `depth` layers."""
    layers = feature.layers
    if isinstance(layers, LayerMix):
        wanted, most = layers.last, depth + 1
    else:
        wanted, most = (-1 if layers == "last" else layers), depth
    if not -(depth + 1) <= wanted <= most:
        raise ModelError(
            f"layers: {wanted} is not among the model's {depth} layers; "
            f"valid: {-(depth + 1)} to {depth} (0 is the embedding output)"
        )
    concat = isinstance(layers, LayerMix) and layers.combine == "concat"
    dims = width * wanted if concat else width
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


# The head that predicts what a vector stands for.
_HEADS = {
    "record": "ForSequenceClassification",
    "word": "ForTokenClassification",
    "entity": "ForTokenClassification",
}


def _classes(config: dict[str, Any], feature: Feature) -> list[str]:
    architectures = config.get("architectures") or []
    wanted = _HEADS[feature.unit]
    if not any(name.endswith(wanted) for name in architectures):
        raise ModelError(
            f"prediction: the model is {', '.join(architectures) or 'untyped'}, which "
            f"has no trained head for pooling {feature.pools!r} (that is *{wanted}); "
            "valid: 'none', or a column"
        )
    if config.get("is_encoder_decoder"):
        raise ModelError(
            "prediction: the head of an encoder-decoder reads the decoder, which "
            "embeds nothing here; valid: 'none', or a column"
        )
    return class_names(config)


def class_names(config: dict[str, Any]) -> list[str]:
    # transformers leaves the names out when they are its own default of two
    names: dict[str, str] = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return [names[str(i)] for i in range(len(names))]
