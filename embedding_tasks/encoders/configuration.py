"""What a model's configuration says of its vectors, before the model is loaded.

Reads `config.json` alone; needs no torch.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
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


def image(feature: Feature) -> Shape:
    """Raises `ModelError` when the model cannot make what the feature asks for."""
    folder = weights.of_feature(feature)
    config = read(folder)
    if not any((folder / name).is_file() for name in _PROCESSORS):
        raise ModelError(
            f"encoder.model: {str(folder)!r} has no {_PROCESSORS[0]}; save the image "
            "processor beside the model with its save_pretrained"
        )
    dims = (
        _detector_dims(config, feature)
        if feature.pools in _OF_DETECTORS
        else _image_dims(config, feature, folder)
    )
    return Shape(
        dims=dims,
        weights=weights.digest(folder),
        classes=_classes(config, feature, _IMAGE_HEADS) if feature.head else None,
    )


_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_OF_DETECTORS = ("queries", "objects")
_IMAGE_HEADS = {
    "record": ("ForImageClassification", "ForImageClassificationWithTeacher"),
    "object": ("ForObjectDetection",),
}
# The channels of the last feature map, which in MobileViT is the neck's.
_CHANNELS = ("neck_hidden_sizes", "hidden_sizes")


def _detector_dims(config: dict[str, Any], feature: Feature) -> int:
    if not _detects(config):
        raise ModelError(
            f"pooling: {feature.pools!r} is of object detectors (*ForObjectDetection); "
            "valid for this model: mean, patches, cls, max, pooler, features"
        )
    if feature.head and feature.unit == "record":
        raise ModelError(
            "prediction: a detector predicts objects, not images; valid: 'none', a "
            "column, or pooling 'objects'"
        )
    backbone = config.get("backbone_config") or {}
    needs_timm = (
        config.get("use_timm_backbone") or backbone.get("model_type") == "timm_backbone"
    )
    if needs_timm and not find_spec("timm"):
        raise ModelError(
            "encoder.model: its backbone is one of the package timm, which is not "
            "installed; pip install timm"
        )
    return _first(config, ("d_model", "hidden_size"), "an object detector")


def _image_dims(config: dict[str, Any], feature: Feature, folder: Path) -> int:
    if _detects(config):
        raise ModelError(
            f"pooling: {feature.pools!r} is not of object detectors; valid for this "
            "model: queries, objects"
        )
    vision = config.get("vision_config")
    if feature.pools == "features":
        if vision is None or feature.head:
            raise ModelError(
                "pooling: 'features' are of models of images and texts like CLIP, "
                "without a head; valid: mean, patches, cls, max, pooler"
            )
        if isinstance(config.get("projection_dim"), int):
            return int(config["projection_dim"])
    if vision is not None and "hidden_size" not in vision:
        vision = _with_defaults(folder)
    seen = vision or config
    stages = seen.get("depths") or any(name in seen for name in _CHANNELS)
    if stages and feature.layers != "last":
        raise ModelError(
            "layers: this model's layers are stages that differ in width; valid: 'last'"
        )
    width = _width(seen, config)
    if feature.layers == "last":
        return width
    return mixed_dims(width, _first(seen, _DEPTH, "an image encoder"), feature)


def _detects(config: dict[str, Any]) -> bool:
    names = config.get("architectures") or []
    return any(name.endswith("ForObjectDetection") for name in names)


def _width(seen: dict[str, Any], config: dict[str, Any]) -> int:
    for name in _CHANNELS:
        if isinstance(seen.get(name), list) and not isinstance(
            seen.get("hidden_size"), int
        ):
            return int(seen[name][-1])
    return _first(
        {**seen, "model_type": config["model_type"]}, _WIDTH, "an image encoder"
    )


def _with_defaults(folder: Path) -> dict[str, Any]:
    """Configurations nested in others leave out what is their type's default, which
    transformers alone knows."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"encoder.model: {str(folder)!r}: {error}") from error
    vision: dict[str, Any] = config.vision_config.to_dict()
    return vision


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


def _first(
    config: dict[str, Any], names: tuple[str, ...], wanted: str = "a text encoder"
) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return int(config[name])
    raise ModelError(
        f"encoder.model: a model of type {config['model_type']!r} does not say its "
        f"{names[0]} in config.json; it is not supported as {wanted}"
    )


# The head that predicts what a vector stands for.
_HEADS: dict[str, tuple[str, ...]] = {
    "record": ("ForSequenceClassification",),
    "word": ("ForTokenClassification",),
    "entity": ("ForTokenClassification",),
}


def _classes(
    config: dict[str, Any], feature: Feature, heads: dict[str, tuple[str, ...]] = _HEADS
) -> list[str]:
    architectures = config.get("architectures") or []
    wanted = heads[feature.unit]
    if not any(name.endswith(wanted) for name in architectures):
        raise ModelError(
            f"prediction: the model is {', '.join(architectures) or 'untyped'}, which "
            f"has no trained head for pooling {feature.pools!r} (that is *{wanted[0]});"
            " valid: 'none', or a column"
        )
    if config.get("is_encoder_decoder") and heads is _HEADS:
        raise ModelError(
            "prediction: the head of an encoder-decoder reads the decoder, which "
            "embeds nothing here; valid: 'none', or a column"
        )
    return class_names(config)


def class_names(config: dict[str, Any]) -> list[str]:
    # transformers leaves the names out when they are its own default of two
    names: dict[str, str] = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return [names[str(i)] for i in range(len(names))]
