"""Train a small Vision Transformer that reads the demo's digits, from nothing."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from embedding_tasks.connections import Connection
from embedding_tasks.demo.training.fit import Told, Trained, fit, hush, save

EPOCHS, BATCH, RATE = 10, 64, 2e-3


def train(source: Connection, folder: Path, progress: Told, seed: int = 0) -> Trained:
    """Writes model and image processor to `folder`."""
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
    images, digits = _examples(source, "training", processor)
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
    seen, said = _examples(source, "validation", processor)
    with torch.inference_mode():
        right = (model(pixel_values=seen).logits.argmax(-1) == said).float().mean()
    save(folder, model, processor)
    return Trained(len(digits), len(said), float(right))


def _examples(
    source: Connection, split: str, processor: object
) -> tuple[Tensor, Tensor]:
    rows = source.execute(
        "SELECT png, digit::int FROM public.scans WHERE split = %s ORDER BY scan_id",
        [split],
    ).fetchall()
    images = [np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png, _ in rows]
    pixels = processor(images, return_tensors="pt")["pixel_values"]  # type: ignore[operator]
    return pixels, torch.tensor([digit for _, digit in rows])
