"""Models that are not BERT: each pooling equals the plain recipe, or is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from embedding_tasks.errors import ModelError
from tests import references
from tests.fix_models import Family
from tests.test_text_encoder import cosine, encoder
from tests.text_models import FAMILIES

DECODERS = ("gpt2", "llama", "qwen3")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_s_vectors_equal_the_plain_recipe(
    family: str, make_family: Family, tweets: list[str]
) -> None:
    folder, texts = make_family(family), tweets[:40]
    for pools in references.POOLINGS:
        if pools == "cls" and family in DECODERS:
            continue
        made = encoder(folder, 300, pooling=pools).encode(texts).vectors
        plain = references.of_texts(folder, texts, pools)
        assert cosine(made, plain).min() > 0.999999
        assert np.abs(made - plain).max() < 1e-4 * np.abs(plain).max()


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "albert"])
def test_the_pooler_s_output_is_the_model_s_own(
    family: str, make_family: Family, tweets: list[str]
) -> None:
    folder = make_family(family)
    made = encoder(folder, 300, pooling="pooler").encode(tweets[:40]).vectors
    plain = references.of_texts(folder, tweets[:40], "pooler")
    assert cosine(made, plain).min() > 0.999999


def test_a_model_without_a_pooler_is_refused(make_family: Family) -> None:
    with pytest.raises(ModelError, match="no pooler; valid: cls, mean, max, last"):
        encoder(make_family("modernbert"), pooling="pooler")


@pytest.mark.parametrize("family", DECODERS)
def test_the_first_token_of_a_decoder_is_refused(
    family: str, make_family: Family
) -> None:
    with pytest.raises(ModelError, match="has seen nothing but itself; valid: last"):
        encoder(make_family(family), pooling="cls")


def test_a_decoder_whose_tokenizer_pads_left_gives_the_same(
    make_family: Family, tweets: list[str]
) -> None:
    folder = make_family("llama")
    right = encoder(folder, 300, pooling="last").encode(tweets[:20]).vectors
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(folder)
    left = encoder(folder, 300, pooling="last").encode(tweets[:20]).vectors
    np.testing.assert_array_equal(left, right)


def test_layers_count_alike_in_every_family(
    make_family: Family, tweets: list[str]
) -> None:
    for family in ("roberta", "distilbert", "electra", "deberta-v2", "llama"):
        folder = make_family(family)
        made = encoder(
            folder, pooling="mean", layers={"last": 2, "combine": "concat"}
        ).encode(tweets[:5])
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder).eval()
        for text, vector in zip(tweets[:5], made.vectors, strict=True):
            tokens = tokenizer(text, return_tensors="pt")
            tokens.pop("token_type_ids", None)
            with torch.inference_mode():
                hidden = model(**tokens, output_hidden_states=True).hidden_states
            plain = torch.cat([h[0].mean(0) for h in hidden[-2:]]).numpy()
            np.testing.assert_allclose(vector, plain, atol=1e-5)
