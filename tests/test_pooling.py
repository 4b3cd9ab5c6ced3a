from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from embedding_tasks import pooling
from embedding_tasks.errors import ModelError
from embedding_tasks.use_case import LayerMix


def padded(lengths: list[int], side: str, noise: float) -> tuple[Tensor, Tensor]:
    """Hidden states whose padding holds `noise`."""
    generator = torch.Generator().manual_seed(0)
    width = max(lengths) + 3
    hidden = torch.full((len(lengths), width, 4), noise)
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        place = slice(0, length) if side == "right" else slice(width - length, width)
        hidden[row, place] = torch.randn(length, 4, generator=generator)
        mask[row, place] = 1
    return hidden, mask


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=8),
    st.sampled_from(["left", "right"]),
    st.sampled_from(sorted(pooling.POOLINGS)),
)
def test_no_pooling_reads_a_padded_position(
    lengths: list[int], side: str, name: str
) -> None:
    pool = pooling.by_name(name)
    quiet, mask = padded(lengths, side, 0.0)
    loud, _ = padded(lengths, side, 1e6)
    assert torch.equal(pool(quiet, mask), pool(loud, mask))


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=8),
    st.sampled_from(sorted(pooling.POOLINGS)),
)
def test_texts_end_to_end_are_pooled_as_texts_with_a_mask(
    lengths: list[int], name: str
) -> None:
    hidden, mask = padded(lengths, "right", 1e6)
    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).to(torch.int32)
    rows = pooling.of_rows(name, hidden[mask.bool()], bounds)
    assert torch.allclose(rows, pooling.by_name(name)(hidden, mask), atol=1e-6)


def test_cls_is_the_first_token_and_mean_the_average() -> None:
    hidden, mask = padded([3, 5], "left", 9.0)
    assert torch.equal(pooling.cls(hidden, mask)[0], hidden[0, -3])
    assert torch.allclose(pooling.mean(hidden, mask)[1], hidden[1, -5:].mean(0))


def test_layers_are_chosen_averaged_or_joined() -> None:
    layers = [torch.full((1, 2, 3), float(i)) for i in range(5)]
    assert pooling.mix_layers(layers, -2)[0, 0, 0] == 3
    averaged = pooling.mix_layers(layers, LayerMix(last=2, combine="mean"))
    assert averaged[0, 0].tolist() == [3.5] * 3
    joined = pooling.mix_layers(layers, LayerMix(last=2, combine="concat"))
    assert joined[0, 0].tolist() == [3, 3, 3, 4, 4, 4]


def test_normalized_has_length_one_and_leaves_zero_alone() -> None:
    vectors = pooling.normalized(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    assert vectors[0].norm().item() == pytest.approx(1)
    assert not vectors[1].any()


def test_an_unknown_pooling_is_refused_with_those_there_are() -> None:
    with pytest.raises(ModelError, match="valid: cls, mean"):
        pooling.by_name("median")
