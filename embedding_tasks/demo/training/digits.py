"""Train a small Vision Transformer that reads the demo's digits, from nothing."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from embedding_tasks.connections import Connection
from embedding_tasks.demo.training.fit import Told, Trained, fit, hush, save

EPOCHS, BATCH, RATE = 10, 64, 2e-3

Examples = Sequence[tuple[bytes, int]]
"""Pictures, and what they show."""


def train(source: Connection, folder: Path, progress: Told, seed: int = 0) -> Trained:
    """Writes model and image processor to `folder`."""
    training, validation = (_examples(source, s) for s in ("training", "validation"))
    return learn(training, validation, folder, progress, seed)


def learn(
    training: Examples,
    validation: Examples,
    folder: Path,
    progress: Told,
    seed: int = 0,
) -> Trained:
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    hush()
    torch.manual_seed(seed)
    size = {"height": 28, "width": 28}
    processor = ViTImageProcessorPil(
        size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    names = {n: str(n) for n in range(10)}
    config = ViTConfig(
        image_size=28,
        patch_size=7,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        id2label=names,
        label2id={name: n for n, name in names.items()},
    )
    model = ViTForImageClassification(config)
    images, digits = _tensors(training, processor)
    order = random.Random(seed)
    batches = [
        places[start : start + BATCH]
        for _ in range(EPOCHS)
        for places in [order.sample(range(len(digits)), len(digits))]
        for start in range(0, len(digits), BATCH)
    ]

    def loss(batch: list[int]) -> Tensor:
        logits = model(pixel_values=images[batch]).logits
        return nn.functional.cross_entropy(logits, digits[batch])

    fit(model, {RATE: model.parameters()}, batches, loss, progress)
    seen, said = _tensors(validation, processor)
    with torch.inference_mode():
        right = (model(pixel_values=seen).logits.argmax(-1) == said).float().mean()
    save(folder, model, processor)
    return Trained(len(digits), len(said), float(right))


def _examples(source: Connection, split: str) -> Examples:
    return source.execute(
        "SELECT png, digit::int FROM public.scans WHERE split = %s ORDER BY scan_id",
        [split],
    ).fetchall()


def _tensors(examples: Examples, processor: Any) -> tuple[Tensor, Tensor]:
    images = [
        np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png, _ in examples
    ]
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    return pixels, torch.tensor([digit for _, digit in examples])
