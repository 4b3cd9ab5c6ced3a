"""Texts end to end, without padding: each is as it is alone, or texts are padded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModel, AutoModelForTokenClassification, AutoTokenizer

from embedding_tasks.encoders import attention, linears, packed, transformer
from embedding_tasks.encoders.packed import Wanted
from embedding_tasks.encoders.tokenizing import Tokens
from embedding_tasks.errors import ModelError
from tests.fix_models import Family
from tests.test_text_encoder import encoder
from tests.text_models import FAMILIES

# Their attention is their own, whatever they are told.
NOT_PACKED = ("mpnet", "deberta-v2", "t5")
# Heads that read the first token, or each; others need to know where a text ends.
HEADS = ("bert", "electra", "distilbert", "roberta", "modernbert", "xlm-roberta")
CLASSES = ("one", "two", "three")
LENGTHS = (3, 50, 9, 9, 1, 120, 17, 9, 3, 64)


def some_tokens(most: int = 900) -> Tokens:
    draw = np.random.default_rng(5)
    return Tokens.of([draw.integers(10, most, length).tolist() for length in LENGTHS])


def loaded(folder: Path, kind: Any = AutoModel, dtype: Any = torch.float32) -> Any:
    model = kind.from_pretrained(folder, dtype=dtype).eval()
    return model.get_encoder() if model.config.is_encoder_decoder else model


def alone(model: Any, wanted: Wanted, tokens: Tokens) -> packed.Rows:
    states = transformer.HiddenStates(model, wanted.layers)
    padded = packed.Padded(model, states, wanted, 0)
    rows = [padded(tokens.only([text])) for text in range(len(tokens.lengths))]
    logits = [r.logits for r in rows if r.logits is not None]
    return packed.Rows(
        torch.cat([r.hidden for r in rows]),
        rows[0].segments,
        logits=torch.cat(logits) if logits else None,
    )


def fastest(model: Any, wanted: Wanted = Wanted()) -> packed.Forward:  # noqa: B008
    return packed.forward_of(model, wanted, model.config.pad_token_id, some_tokens())


def worst(got: torch.Tensor | None, wanted: torch.Tensor | None) -> float:
    assert got is not None
    assert wanted is not None
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_is_as_it_is_when_its_text_is_alone(
    family: str, make_family: Family
) -> None:
    folder, tokens = make_family(family), some_tokens()
    forward = fastest(loaded(folder))
    assert forward.free_of_padding == (family not in NOT_PACKED)
    plain = alone(loaded(folder), Wanted(), tokens)
    assert worst(forward(tokens).hidden, plain.hidden) < 1e-5


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "t5"])
def test_the_head_of_a_text_says_what_it_says_of_the_text_alone(
    family: str, make_family: Family
) -> None:
    folder = make_family(family, "ForSequenceClassification", CLASSES)
    kind = transformers.AutoModelForSequenceClassification
    wanted, tokens = Wanted(head="text"), some_tokens()
    forward = fastest(loaded(folder, kind), wanted)
    assert forward.free_of_padding == (family in HEADS)
    plain = alone(loaded(folder, kind), wanted, tokens)
    assert worst(forward(tokens).logits, plain.logits) < 1e-5


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "deberta-v2"])
def test_the_head_of_tokens_says_what_it_says_of_the_text_alone(
    family: str, make_family: Family
) -> None:
    folder = make_family(family, "ForTokenClassification", CLASSES)
    wanted, tokens = Wanted(head="token"), some_tokens()
    forward = fastest(loaded(folder, AutoModelForTokenClassification), wanted)
    plain = alone(loaded(folder, AutoModelForTokenClassification), wanted, tokens)
    assert worst(forward(tokens).logits, plain.logits) < 1e-5


@pytest.mark.parametrize("family", ["bert", "modernbert", "llama"])
def test_no_text_reads_another(family: str, make_family: Family) -> None:
    forward = fastest(loaded(make_family(family)))
    tokens = some_tokens()
    begins = tokens.lengths.cumsum() - tokens.lengths
    before = forward(tokens).hidden
    for text, (begin, length) in enumerate(zip(begins, tokens.lengths, strict=True)):
        own = slice(int(begin), int(begin + length))
        others = np.full_like(tokens.ids, 7)
        others[own] = tokens.ids[own]
        after = forward(replace(tokens, ids=others)).hidden
        assert worst(after[own], before[own]) < 1e-5, text
        assert (after - before).abs().max() > 0.1


def test_no_token_is_a_pad(make_family: Family) -> None:
    model = loaded(make_family("bert"))
    seen: list[int] = []
    forward = fastest(model)
    linear = next(m for m in model.modules() if isinstance(m, linears.PrepackedLinear))
    linear.register_forward_hook(
        lambda module, args, out: seen.append(args[0].shape[:-1].numel())
    )
    tokens = some_tokens()
    forward(tokens)
    assert seen == [len(tokens.ids)]


def test_padded_texts_are_refused_by_the_packed_attention(
    make_family: Family,
) -> None:
    for family in ("bert", "modernbert", "gpt2"):
        model = loaded(make_family(family))
        model.set_attn_implementation(attention.NAME)
        ids = torch.tensor([[5, 6, 7], [8, 9, 0]])
        mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
        with pytest.raises(ValueError, match=attention.NAME):
            model(input_ids=ids, attention_mask=mask)
        with pytest.raises(ValueError, match=attention.NAME):
            model(input_ids=ids)


def wrong_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "position_offset", lambda model: 0)


def no_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(q: Any, k: Any, v: Any, segments: Any, *more: Any) -> Any:
        one = attention.Segments(segments.lengths.sum(keepdims=True), segments.bounds)
        return attention.by_runs(q, k, v, one, *more)

    monkeypatch.setattr(attention, "attention", whole)


def no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    def wide(q: Any, k: Any, v: Any, s: Any, scale: Any, window: Any, c: Any) -> Any:
        return attention.by_runs(q, k, v, s, scale, None, c)

    monkeypatch.setattr(attention, "attention", wide)


def both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    def seeing(q: Any, k: Any, v: Any, s: Any, scale: Any, window: Any, c: Any) -> Any:
        return attention.by_runs(q, k, v, s, scale, window, False)

    monkeypatch.setattr(attention, "attention", seeing)


def half_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    def flat(q: Any, k: Any, v: Any, s: Any, scale: Any, *more: Any) -> Any:
        return attention.by_runs(q, k, v, s, scale / 2, *more)

    monkeypatch.setattr(attention, "attention", flat)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        ("roberta", wrong_positions),
        ("bert", no_bounds),
        ("modernbert", no_window),
        ("gpt2", both_ways),
        ("distilbert", half_the_scale),
    ],
)
def test_a_packed_forward_that_is_wrong_is_found_and_not_taken(
    family: str,
    wrong: Callable[[pytest.MonkeyPatch], None],
    dtype: torch.dtype,
    make_family: Family,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, tokens = make_family(family), some_tokens()
    assert fastest(loaded(folder, dtype=dtype)).free_of_padding
    wrong(monkeypatch)
    caplog.set_level("INFO", "embedding_tasks")
    model = loaded(folder, dtype=dtype)
    forward = fastest(model)
    assert not forward.free_of_padding
    assert "padding texts" in caplog.text
    assert model.config._attn_implementation == "sdpa"
    if dtype == torch.float32:
        plain = alone(loaded(folder), Wanted(), tokens)
        assert worst(forward(tokens).hidden, plain.hidden) < 1e-5


def test_a_model_that_reads_padding_is_refused(
    make_family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(make_family("mpnet"))
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda attention_mask, **inputs: forward(**inputs)
    )
    with pytest.raises(ModelError, match="reads padding"):
        fastest(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prepacked_layers_compute_the_same(
    dtype: torch.dtype, make_family: Family
) -> None:
    tokens = some_tokens()
    for family in ("bert", "mpnet", "t5"):
        model = loaded(make_family(family), dtype=dtype)
        before = alone(model, Wanted(), tokens).hidden.float()
        undo = linears.prepack(model)
        after = alone(model, Wanted(), tokens).hidden.float()
        assert worst(after, before) < (1e-5 if dtype == torch.float32 else 5e-2)
        undo()
        assert not any(
            isinstance(m, linears.PrepackedLinear | nn.Identity)
            for m in model.modules()
        )
        assert torch.equal(alone(model, Wanted(), tokens).hidden.float(), before)


def test_a_text_encoder_reads_as_many_tokens_as_there_are(
    make_family: Family, tweets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `batch.tokens` counts."""
    folder = make_family("bert")
    made = encoder(folder, tokens=200)
    sizes: list[int] = []
    forward = packed.Packed.__call__

    def counted(self: packed.Packed, tokens: Tokens) -> packed.Rows:
        sizes.append(len(tokens.ids))
        return forward(self, tokens)

    monkeypatch.setattr(packed.Packed, "__call__", counted)
    made.encode(tweets[:100])
    assert max(sizes) <= 200
    real = AutoTokenizer.from_pretrained(folder)(tweets[:100])["input_ids"]
    assert sum(sizes) == sum(map(len, real))
