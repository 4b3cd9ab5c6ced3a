"""Texts through a model end to end, without padding, where the model allows it.

A model that takes an attention of another's is given one row of all texts, their
positions, and the bounds of each for the attention to keep to; its linear layers see
nothing else. Some models say they take it and do not, or number positions in a way of
their own: each is held against itself, one text at a time, when it is loaded, and where
it differs texts are padded.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from embedding_tasks import packing
from embedding_tasks.encoders import (
    acceleration,
    attention,
    devices,
    linears,
    transfer,
    transformer,
)
from embedding_tasks.encoders.attention import Segments
from embedding_tasks.encoders.tokenizing import Tokens
from embedding_tasks.errors import ModelError
from embedding_tasks.use_case import LayerMix

log = logging.getLogger(__name__)

# How far a token may be from the same token of a text that is alone, relative to its
# size: at most twice as far as when texts are padded, which is rounding alone, or so
# far where that happens to be less. A wrong position moved MiniLM's tokens by 1.5 in
# any precision, rounding by 3e-6 in float32 and 2e-2 in bfloat16.
_TIMES = 2
_ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Rows:
    """What a model says of texts, of real tokens alone: `hidden` (tokens, hidden), end
    to end within `segments`; `pooled` (texts, hidden) of its pooler; `logits` of its
    head, for each text or each token."""

    hidden: Tensor
    segments: Segments
    pooled: Tensor | None = None
    logits: Tensor | None = None


@dataclass(frozen=True)
class Wanted:
    """What is to be read of a model: which layers, the logits of which head, and
    whether its pooler's output."""

    layers: int | LayerMix | None = None
    head: Literal["text", "token"] | None = None
    pooler: bool = False


class Forward(Protocol):
    """Runs texts through a model. `free_of_padding`: a token costs what it is, whatever
    is beside it."""

    free_of_padding: bool

    def batches(self, lengths: Sequence[int], budget: int) -> Iterator[list[int]]: ...

    def __call__(self, tokens: Tokens) -> Rows: ...


def forward_of(
    model: PreTrainedModel, wanted: Wanted, pad: int | None, samples: Tokens
) -> Forward:
    """The fastest way through the model that says of `samples`, texts of several
    lengths, what the model as it was loaded says of each alone. Raises `ModelError`
    where there is none: a model that reads padding."""
    states = transformer.HiddenStates(model, wanted.layers)
    padded = Padded(model, states, wanted, pad)
    alone = [padded(samples.only([text])) for text in range(len(samples.lengths))]
    undo = _faster(model)
    drift = _drift(padded(samples), alone)
    if (packed := _packed(model, states, wanted, samples, alone, drift)) is not None:
        return packed
    if not drift < transformer.DRIFT[model.dtype]:
        undo()
        drift = _drift(padded(samples), alone)
        refuse_drift(drift, model.dtype)
    return padded


def _faster(model: PreTrainedModel) -> Callable[[], None]:
    if model.device.type == "cuda":
        return acceleration.accelerate(model, model.device)
    return linears.prepack(model)


def _packed(
    model: PreTrainedModel,
    states: transformer.HiddenStates,
    wanted: Wanted,
    samples: Tokens,
    alone: Sequence[Rows],
    rounding: float,
) -> Packed | None:
    stock = model.config._attn_implementation
    most = min(transformer.DRIFT[model.dtype], _TIMES * rounding)
    try:
        packed = Packed(model, states, wanted)
        drift = _drift(packed(samples), alone)
        if drift < max(_ROUNDING[model.dtype], most):
            return packed
        raise ModelError(f"tokens differ by {drift:.1e} of their size")
    except Exception as error:
        _set_attention(model, stock)
        log.info(
            "padding texts model_type=%s reason=%s",
            *(model.config.model_type, str(error).split("\n")[0]),
        )
    return None


def refuse_drift(drift: float, dtype: torch.dtype) -> None:
    """Whatever an architecture does with its mask: a text must not change because a
    longer one is beside it. Raises `ModelError`."""
    if not drift < transformer.DRIFT[dtype]:
        raise ModelError(
            "encoder.model: with this model a text's vector changes with the texts "
            f"beside it (by {drift:.1e} of its size): it reads padding, and is not "
            "supported"
        )


def _drift(made: Rows, alone: Sequence[Rows]) -> float:
    """The most that a row of anything is off, relative to its size. A row that is not
    finite when it is alone has none: half precision may not be enough for a model."""
    drifts = [0.0]
    for name in ("hidden", "pooled", "logits"):
        got = getattr(made, name)
        if got is None:
            continue
        wanted = torch.cat([getattr(rows, name) for rows in alone]).to(torch.float32)
        if got.shape != wanted.shape:
            return float("inf")
        finite = wanted.isfinite().all(dim=-1)
        wanted, got = wanted[finite], got[finite].to(torch.float32)
        size = wanted.norm(dim=-1)
        off = (got - wanted).norm(dim=-1) / size.clamp_min(size.mean())
        drifts += off.nan_to_num(nan=float("inf")).tolist()
    return max(drifts)


class Packed:
    """Without padding. Raises `ModelError` for a model that says it cannot."""

    free_of_padding = True

    def __init__(
        self, model: PreTrainedModel, states: transformer.HiddenStates, wanted: Wanted
    ) -> None:
        base: Any = model.base_model
        if not base.is_backend_compatible():
            raise ModelError("its attention cannot be changed")
        if not transformer.takes(base, "position_ids"):
            raise ModelError("it takes no position_ids")
        self._states, self._wanted = states, wanted
        self._device, self._base = model.device, base
        self._first_position = position_offset(model)
        self._types = bool(getattr(model.config, "type_vocab_size", 0))
        self._types &= transformer.takes(base, "token_type_ids")
        self._caches = transformer.takes(model, "use_cache")
        _set_attention(model, attention.NAME)

    def batches(self, lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
        return packing.packed_batches(lengths, budget)

    @torch.inference_mode()
    def __call__(self, tokens: Tokens) -> Rows:
        ids, positions, segments = self._laid_out(tokens)
        inputs: dict[str, Any] = {"input_ids": ids, "position_ids": positions}
        if self._types:
            inputs["token_type_ids"] = torch.zeros_like(ids)
        if self._caches:
            inputs["use_cache"] = False
        of_texts = self._wanted.head == "text"
        change = partial(self._of_first_tokens, segments) if of_texts else None
        with devices.errors():
            output, base, hidden = self._states.run(change, segments=segments, **inputs)
            pooled = logits = None
            if self._wanted.pooler:
                pooled = self._base.pooler(_first_tokens(base, segments))
            if self._wanted.head:
                logits = output.logits if of_texts else output.logits[0]
        return Rows(hidden[0], segments, pooled, logits)

    def _laid_out(self, tokens: Tokens) -> tuple[Tensor, Tensor, Segments]:
        """All that the device needs to know, in one copy."""
        lengths = tokens.lengths
        ends = lengths.cumsum()
        positions = np.arange(len(tokens.ids)) - np.repeat(ends - lengths, lengths)
        tiles = self._tiles(lengths)
        told: list[Any] = [
            tokens.ids,
            positions + self._first_position,
            np.append(0, ends),
            tiles.ravel(),
        ]
        sent = transfer.to_device(
            [np.asarray(part, np.int32) for part in told], self._device
        )
        ids, places, bounds, tiled = torch.split(sent, [*map(len, told)])
        segments = Segments(lengths, bounds, tiled.view(-1, 3) if len(tiled) else None)
        return ids.to(torch.long)[None], places.to(torch.long)[None], segments

    def _tiles(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        if not acceleration.usable(self._device):
            return np.empty((0, 3), np.int32)
        from embedding_tasks.encoders import kernels

        return kernels.tiles(lengths)

    def _of_first_tokens(self, segments: Segments, output: Any) -> Any:
        """A head that reads the first token of each text finds it where it looks: as
        if it were all of the text."""
        first = _first_tokens(output, segments)
        changed = copy.copy(output)
        changed["last_hidden_state"] = first
        if output.get("pooler_output") is not None:
            changed["pooler_output"] = self._base.pooler(first)
        return changed


def _first_tokens(output: Any, segments: Segments) -> Tensor:
    """(texts, 1, hidden)"""
    rows: Tensor = output.last_hidden_state[0]
    return rows.index_select(0, segments.starts)[:, None]


class Padded:
    """Texts of about one length side by side, with a mask: any model."""

    free_of_padding = False

    def __init__(
        self,
        model: PreTrainedModel,
        states: transformer.HiddenStates,
        wanted: Wanted,
        pad: int | None,
    ) -> None:
        self._states, self._wanted = states, wanted
        self._device, self._pad = model.device, pad or 0

    def batches(self, lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
        return packing.token_batches(lengths, budget)

    @torch.inference_mode()
    def __call__(self, tokens: Tokens) -> Rows:
        lengths = tokens.lengths
        # on the right, where positions count from the first token in every architecture
        real = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(real.shape, self._pad, np.int64)
        ids[real] = tokens.ids
        bounds = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
        places = self._sent(np.flatnonzero(real))
        with devices.errors():
            output, base, hidden = self._states(
                input_ids=self._sent(ids), attention_mask=self._sent(real.astype(int))
            )
            logits = output.logits if self._wanted.head else None
            if logits is not None and self._wanted.head == "token":
                logits = logits.flatten(0, 1).index_select(0, places)
            return Rows(
                hidden.flatten(0, 1).index_select(0, places),
                Segments(lengths, self._sent(bounds)),
                _pooler_output(base) if self._wanted.pooler else None,
                logits,
            )

    def _sent(self, array: npt.NDArray[Any]) -> Tensor:
        return transfer.to_device([array], self._device)


def _pooler_output(base: Any) -> Tensor:
    pooled: Tensor | None = getattr(base, "pooler_output", None)
    if pooled is None:
        raise ModelError(
            "pooling: this model has no pooler; valid: cls, mean, max, last"
        )
    return pooled


def _set_attention(model: PreTrainedModel, name: str) -> None:
    if model.config._attn_implementation != name:
        model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise ModelError("its attention cannot be changed")


def position_offset(model: nn.Module) -> int:
    """RoBERTa and its kin count positions from padding_idx + 1."""
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, nn.Embedding) and table.padding_idx is not None:
            return table.padding_idx + 1
    return 0
