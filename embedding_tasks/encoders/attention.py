"""Attention within the texts of a packed row: texts laid end to end, no padding.

transformers hands every attention it knows by name the queries, keys and values of a
whole row, and passes on arguments it does not know: here `segments`, where each text
of the row begins and ends. The name is registered together with a mask that refuses:
without one of its own transformers gives a name it does not know no mask at all, and
padded texts would attend to their padding in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

# transformers looks for "flash" and other words in a name.
NAME = "embedline_packed"

# What changes attention and is not computed here.
_UNKNOWN = ("softcap", "s_aux", "position_bias", "head_mask")


@dataclass(frozen=True)
class Segments:
    """The texts of a packed row: `lengths` on the host; `bounds` (texts + 1), int32 on
    the device, where each begins and the last one ends (`cu_seqlens`); `tiles` there,
    where `kernels` are used."""

    lengths: npt.NDArray[np.int64]
    bounds: Tensor
    tiles: Tensor | None = None

    @property
    def longest(self) -> int:
        return int(self.lengths.max())

    @property
    def starts(self) -> Tensor:
        return self.bounds[:-1]

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """First token, number of texts, and length of neighbours of one length."""
        first = 0
        for length, texts in groupby(self.lengths.tolist()):
            count = sum(1 for _ in texts)
            yield first, count, length
            first += count * length


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scale: float | None = None,
    window: int | None = None,
    causal: bool = False,
) -> Tensor:
    """(tokens, heads, size) each, of which key and value may have fewer heads. Every
    token attends to those of its own text: to those before it where `causal`, to those
    at most `window` away where there is one. Chosen by device."""
    size = query.shape[-1]
    if segments.tiles is not None and value.shape[-1] == size:
        from embedding_tasks.encoders import kernels

        scale = size**-0.5 if scale is None else scale
        return kernels.attention(
            query, key, value, segments.tiles, scale, window, causal
        )
    if query.is_cuda and query.dtype != torch.float32:
        return by_flash(query, key, value, segments, scale, window, causal)
    return by_runs(query, key, value, segments, scale, window, causal)


def by_flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scale: float | None = None,
    window: int | None = None,
    causal: bool = False,
) -> Tensor:
    """FlashAttention 2, which is part of torch, for texts end to end. Called as the
    operator: what torch wraps it in has another signature in every release."""
    out: Tensor = torch.ops.aten._flash_attention_forward(
        *(query, key, value, segments.bounds, segments.bounds),
        *(segments.longest, segments.longest, 0.0, causal, False),
        scale=scale,
        window_size_left=window,
        window_size_right=0 if causal and window is not None else window,
    )[0]
    return out


def by_runs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scale: float | None = None,
    window: int | None = None,
    causal: bool = False,
) -> Tensor:
    """Neighbours of one length as one batch of torch's own attention. Texts come sorted
    by length, so that there are few runs, and each is a view of the row."""
    shared = key.shape[1] != query.shape[1]
    out = query.new_empty((*query.shape[:2], value.shape[-1]))
    for first, count, length in segments.runs():
        rows = slice(first, first + count * length)
        q, k, v = (_apart(x[rows], length) for x in (query, key, value))
        seen = _seen(length, window, causal, query.device) if window else None
        made = torch.nn.functional.scaled_dot_product_attention(
            *(q, k, v),
            attn_mask=seen,
            scale=scale,
            is_causal=causal and seen is None,
            enable_gqa=shared,
        )
        _apart(out[rows], length).copy_(made)
    return out


def _apart(rows: Tensor, length: int) -> Tensor:
    """(tokens, heads, size) to (texts, heads, tokens, size), of the same memory."""
    return rows.view(-1, length, *rows.shape[1:]).transpose(1, 2)


@lru_cache(maxsize=256)
def _seen(
    length: int, window: int, causal: bool, device: torch.device
) -> Tensor | None:
    """Which tokens each token sees; None where those are all, or all before it."""
    if length <= window + 1:
        return None
    away = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    seen = away.abs() <= window
    return (seen & (away <= 0) if causal else seen).to(device)


def _packed(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    segments: Segments | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """(1, heads, tokens, size) to (1, tokens, heads, size)"""
    if attention_mask is not None or segments is None or len(query) != 1:
        raise ValueError(f"{NAME}: takes packed rows alone, with their segments")
    unknown = [name for name in _UNKNOWN if more.get(name) is not None]
    if unknown:
        raise ValueError(f"{NAME}: knows no {', '.join(unknown)}")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    window = None if sliding_window is None else sliding_window - 1
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    made = attention(query, key, value, segments, scaling, window, bool(causal))
    return made[None], None


def _no_mask(*sizes: Any, attention_mask: Tensor | None = None, **more: Any) -> None:
    if attention_mask is not None:
        raise ValueError(f"{NAME}: takes no attention_mask; padded texts are refused")


AttentionInterface.register(NAME, _packed)
AttentionMaskInterface.register(NAME, _no_mask)
