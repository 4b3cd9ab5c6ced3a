"""Encoders trained on rows: ours beside a plain forward of the weights they saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from embedding_tasks import settings
from embedding_tasks.encoders import Runtime
from embedding_tasks.encoders.trained import images, model
from embedding_tasks.encoders.trained.encoder import TrainedEncoder
from embedding_tasks.use_case import UseCase
from tests import trained_references

Compared = tuple[str, str, np.ndarray, np.ndarray]
"""Kind, data, ours, theirs."""

SIDE = 8  # of images, which then take one convolution
COLUMNS = {"length": "integer", "words": "integer", "first": "text", "asks": "boolean"}


def compared(
    folder: Path, texts: list[str], pictures: list[bytes], device: str
) -> Iterator[Compared]:
    rows = [
        (len(t), len(t.split()), t[:1], "true" if "?" in t else "false") for t in texts
    ]
    for kind in ("autoencoder", "gan"):
        feature = _feature(kind, "table", device, tuple(COLUMNS))
        given = [tuple(map(str, row)) for row in rows]
        made, _ = model.of_table(feature, [*COLUMNS.values()], given)
        weights, ours = _trained(feature, made, folder, given, device)
        plain = trained_references.of_rows(weights, kind, rows, device)
        yield kind, "table", ours, plain.numpy()

        feature = _feature(kind, "image", device, ("x",))
        weights, ours = _trained(
            feature, model.of_images(feature, pictures), folder, pictures, device
        )
        pixels = images.stacked([images.pixels(p, SIDE) for p in pictures], 3)
        plain = trained_references.of_pixels(weights, kind, pixels, device)
        yield kind, "image", ours, plain.numpy()


def _feature(kind: str, data: str, device: str, columns: tuple[str, ...]) -> Any:
    encoder = {
        "type": kind,
        "data": data,
        "epochs": 3,
        "min_rows": 20,
        "device": device,
    }
    case = UseCase.model_validate(
        {
            "name": "parity",
            "source": {"connection": "c", "table": "t", "key": "k", "input": columns},
            "encoder": {**encoder, "image_size": SIDE, "device": device},
        }
    )
    return case.first_feature


def _trained(
    feature: Any, rows: model.Rows, folder: Path, given: list[Any], device: str
) -> tuple[bytes, np.ndarray]:
    """The weights, where an encoder finds them, and what it makes of the rows."""
    made, _ = model.make(feature, rows, folder, lambda trace: None)
    cached = settings.home() / "trained" / f"{made.digest}.safetensors"
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_bytes(made.weights)
    spec = {"weights": made.digest, "normalize": False}
    encoder = TrainedEncoder(spec, Runtime(device))
    return made.weights, encoder.encode(given).vectors
