"""Each image recipe written plainly, over transformers alone, one picture at a time."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from tests.references import CPU, Place


class Plain:
    """transformers as its documentation uses it, one picture at a time."""

    def __init__(
        self, folder: Path, auto: Any = transformers.AutoModel, place: Place = CPU
    ) -> None:
        self.processor = transformers.AutoImageProcessor.from_pretrained(
            folder, backend="pil"
        )
        self.place = place
        self.model = place.put(auto.from_pretrained(folder))

    def inputs(self, picture: bytes) -> Any:
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        made = self.processor(images=image, return_tensors="pt")
        return made.to(self.place.device, getattr(torch, self.place.dtype))

    def __call__(self, picture: bytes, **options: Any) -> Any:
        with torch.inference_mode():
            return self.model(**self.inputs(picture), **options)

    def vision(self, picture: bytes) -> Any:
        with torch.inference_mode():
            return self.model.vision_model(**self.inputs(picture))

    def features(self, picture: bytes) -> Any:
        with torch.inference_mode():
            return self.model.get_image_features(**self.inputs(picture))


REFERENCES: dict[tuple[str, str], Callable[[Plain, bytes], torch.Tensor]] = {
    ("vit", "mean"): lambda m, x: m(x).last_hidden_state[0].mean(0),
    ("vit", "patches"): lambda m, x: m(x).last_hidden_state[0, 1:].mean(0),
    ("vit", "cls"): lambda m, x: m(x).last_hidden_state[0, 0],
    ("vit", "max"): lambda m, x: m(x).last_hidden_state[0].max(0).values,
    ("vit", "pooler"): lambda m, x: m(x).pooler_output[0],
    ("deit", "mean"): lambda m, x: m(x).last_hidden_state[0].mean(0),
    ("deit", "patches"): lambda m, x: m(x).last_hidden_state[0, 2:].mean(0),
    ("dinov2", "patches"): lambda m, x: m(x).last_hidden_state[0, 1:].mean(0),
    ("dinov2", "cls"): lambda m, x: m(x).pooler_output[0],
    ("registers", "patches"): lambda m, x: m(x).last_hidden_state[0, 3:].mean(0),
    ("registers", "cls"): lambda m, x: m(x).last_hidden_state[0, 0],
    ("swin", "mean"): lambda m, x: m(x).last_hidden_state[0].mean(0),
    ("swin", "patches"): lambda m, x: m(x).pooler_output[0],
    ("resnet", "mean"): lambda m, x: m(x).last_hidden_state[0].mean((1, 2)),
    ("resnet", "max"): lambda m, x: m(x).last_hidden_state[0].amax((1, 2)),
    ("resnet", "pooler"): lambda m, x: m(x).pooler_output[0, :, 0, 0],
    ("convnext", "mean"): lambda m, x: m(x).last_hidden_state[0].mean((1, 2)),
    ("convnext", "pooler"): lambda m, x: m(x).pooler_output[0],
    ("clip", "features"): lambda m, x: m.features(x).pooler_output[0],
    ("clip", "mean"): lambda m, x: m.vision(x).last_hidden_state[0].mean(0),
    ("clip", "patches"): lambda m, x: m.vision(x).last_hidden_state[0, 1:].mean(0),
    ("clip", "cls"): lambda m, x: m.vision(x).last_hidden_state[0, 0],
    ("clip", "pooler"): lambda m, x: m.vision(x).pooler_output[0],
    ("siglip", "features"): lambda m, x: m.features(x).pooler_output[0],
    ("siglip", "mean"): lambda m, x: m.vision(x).last_hidden_state[0].mean(0),
    ("siglip", "patches"): lambda m, x: m.vision(x).last_hidden_state[0].mean(0),
    ("siglip", "pooler"): lambda m, x: m.vision(x).pooler_output[0],
}


def of_pictures(
    folder: Path,
    name: str,
    pooling: str,
    pictures: list[bytes],
    place: Place = CPU,
) -> np.ndarray:
    """(pictures, dims)"""
    plain, reference = Plain(folder, place=place), REFERENCES[name, pooling]
    made = [reference(plain, x).float() for x in pictures]
    return torch.stack(made).cpu().numpy()


QUERIES = {"detr": 7, "yolos": 5}


def of_queries(
    folder: Path, name: str, pictures: list[bytes], place: Place = CPU
) -> np.ndarray:
    """(pictures, dims): the mean of a detector's object queries."""
    plain = Plain(folder, transformers.AutoModelForObjectDetection, place)
    made = [
        plain(x).last_hidden_state[0, -QUERIES[name] :].float().mean(0)
        for x in pictures
    ]
    return torch.stack(made).cpu().numpy()


def of_objects(
    folder: Path, name: str, pictures: list[bytes], place: Place = CPU
) -> np.ndarray:
    """(objects, dims): every query, for any score makes it an object here: in other
    numbers, a score near a threshold falls on its other side."""
    plain = Plain(folder, transformers.AutoModelForObjectDetection, place)
    made = [plain(x).last_hidden_state[0, -QUERIES[name] :].float() for x in pictures]
    return torch.cat(made).cpu().numpy()
