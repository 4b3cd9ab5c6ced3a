"""What a trained encoder gives, from its stored weights, written plainly: by
safetensors and torch alone, without a line of the package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch.nn.functional import conv2d, leaky_relu, linear


def layers(weights: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """By safetensors alone, without a line of the package."""
    length = int.from_bytes(weights[:8], "little")
    metadata = json.loads(weights[8 : 8 + length])["__metadata__"]
    return json.loads(metadata["embedline"]), safetensors.torch.load(weights)


def numbers(state: dict[str, Any], rows: Sequence[Sequence[Any]]) -> torch.Tensor:
    """Numbers of a row, written out."""
    days = np.datetime64("1970-01-01")
    out = []
    for row in rows:
        values = dict(zip(state["table"]["names"], row, strict=True))
        told: list[float] = []
        for column in state["table"]["columns"]:
            value = values[column["name"]]
            if "mean" in column:
                if column["moment"]:
                    value = (np.datetime64(value) - days).astype(int)
                known = value is not None
                told.append((value - column["mean"]) / column["scale"] if known else 0)
                told += [float(not known)] * column["missing"]
            else:
                value = {True: "true", False: "false"}.get(value, value)
                told += [float(value == v) for v in column["values"]]
                told += [float(value not in column["values"])] * column["other"]
        out.append(told)
    return torch.tensor(np.array(out), dtype=torch.float32)


def of_rows(
    weights: bytes, kind: str, rows: Sequence[Sequence[Any]], device: str = "cpu"
) -> torch.Tensor:
    """(rows, size), of a table."""
    state, tensors = layers(weights)
    names, slope = (("0", "2"), 0.0) if kind == "autoencoder" else (("0.0", "0.2"), 0.2)
    first, last = (_layer(tensors, name, device) for name in names)
    hidden = leaky_relu(linear(numbers(state, rows).to(device), *first), slope)
    vectors = linear(hidden, *last)
    return (vectors if kind == "autoencoder" else leaky_relu(vectors, slope)).cpu()


def of_pixels(
    weights: bytes, kind: str, pixels: np.ndarray, device: str = "cpu"
) -> torch.Tensor:
    """(images, size), of bytes (images, channels, side, side)."""
    _, tensors = layers(weights)
    names, slope = (("0", "3"), 0.0) if kind == "autoencoder" else (("0.0", "0.3"), 0.2)
    first, last = (_layer(tensors, name, device) for name in names)
    inputs = torch.from_numpy(pixels).to(device).float() / 127.5 - 1
    maps = leaky_relu(conv2d(inputs, *first, stride=2, padding=1), slope)
    vectors = linear(maps.flatten(1), *last)
    return (vectors if kind == "autoencoder" else leaky_relu(vectors, slope)).cpu()


def _layer(
    tensors: dict[str, torch.Tensor], name: str, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    weight, bias = (tensors[f"features.{name}.{w}"] for w in ("weight", "bias"))
    return weight.to(device), bias.to(device)
