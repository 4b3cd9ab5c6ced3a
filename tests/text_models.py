"""Small models of the text families of transformers with seeded random weights, each
with a real tokenizer of its kind. The real families: only their size is not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)

# What the classes of a small model are called, and what sets it apart.
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
}
# Of 30,522, the commonest first.
WORDS = 5000
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


def save(
    folder: Path,
    family: str,
    texts: Sequence[str],
    wordpiece: Path,
    task: str = "Model",
    classes: Sequence[str] = (),
    **changes: Any,
) -> Path:
    """A model of a family and its tokenizer, which is trained on `texts` or, for the
    families that have it, the one in `wordpiece`. `task` is the head's name in
    transformers, like 'ForTokenClassification'."""
    name, kind, more = FAMILIES[family]
    tokenizer = _tokenizer(kind, wordpiece, tuple(texts))
    heads = {"id2label": dict(enumerate(classes))} if classes else {}
    config = getattr(transformers, f"{name}Config")(
        **{**SMALL, **more, **heads, **changes},
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
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@cache
def wordpiece(minilm: Path) -> Any:
    """BERT's own, but for its rarer words: it is loaded more often than all else."""
    whole = transformers.AutoTokenizer.from_pretrained(minilm)
    words = sorted(whole.vocab, key=whole.vocab.get)[:WORDS]
    return transformers.BertTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        model_max_length=whole.model_max_length,
    )


@cache
def _tokenizer(kind: str, minilm: Path, texts: tuple[str, ...]) -> Any:
    """Each kind divides texts into words in its own way: at spaces and punctuation, by
    bytes with the space before a word, by pieces with a mark in the space's place."""

    if kind == "wordpiece":
        return wordpiece(minilm)
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
        return transformers.RobertaTokenizerFast(tokenizer_object=made, **names)
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
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)
