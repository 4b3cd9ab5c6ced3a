"""What the demo's trainings have in common."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Batch = TypeVar("Batch")
T = TypeVar("T")
Told = Callable[[float], None]
"""Is told the share done."""


@dataclass(frozen=True)
class Trained:
    rows: int
    held_out: int
    quality: float


def fit(
    model: nn.Module,
    rates: dict[float, Iterable[nn.Parameter]],
    batches: Sequence[Batch],
    loss: Callable[[Batch], Tensor],
    progress: Told,
) -> None:
    """AdamW with a learning rate for each group of parameters, warmed up over eight
    steps and then falling to nothing."""
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.requires_grad], "lr": rate}
            for rate, parameters in rates.items()
        ]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 8) * (1 - step / len(batches))
    )
    model.train()
    for done, batch in enumerate(batches, 1):
        value = loss(batch)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        progress(done / len(batches))
    model.eval()


def head_and_body(
    model: nn.Module, is_head: Callable[[str], bool], frozen_layers: int
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """A BERT's parameters; its embeddings and first layers stay as they are."""
    still = ["bert.embeddings", *(f"encoder.layer.{n}." for n in range(frozen_layers))]
    head: list[nn.Parameter] = []
    body: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not any(part in name for part in still)
        (head if is_head(name) else body).append(parameter)
    return head, body


def of_like_length(
    examples: Sequence[T],
    length: Callable[[T], int],
    order: random.Random,
    epochs: int,
    size: int,
) -> list[list[T]]:
    """Random batches of about equal lengths: sorted within stretches of eight."""
    batches = []
    for _ in range(epochs):
        mixed = order.sample(examples, len(examples))
        epoch = [
            stretch[i : i + size]
            for start in range(0, len(mixed), size * 8)
            for stretch in [sorted(mixed[start : start + size * 8], key=length)]
            for i in range(0, len(stretch), size)
        ]
        order.shuffle(epoch)
        batches += epoch
    return batches


def save(folder: Path, *parts: Any) -> None:
    """Whole or not at all."""
    fresh = folder.with_name(f"{folder.name}.new")
    for part in parts:
        part.save_pretrained(fresh)
    fresh.rename(folder)


def hush() -> None:
    """transformers would write over the progress bar."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
