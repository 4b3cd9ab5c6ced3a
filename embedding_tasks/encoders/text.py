"""Whole texts through a transformer of the Hugging Face library: one vector each.

One forward pass gives hidden states and, where the use case asks for it, the logits
of the model's own classification head. Texts are cut into tokens, brought into batches
of about one size, run and pooled; only vectors come back from the device.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from embedding_tasks import pooling
from embedding_tasks.encoders import (
    Runtime,
    devices,
    packed,
    transfer,
    transformer,
)
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.encoders.preparing import Preparation
from embedding_tasks.encoders.tokenizing import Tokens, tokenizing_of
from embedding_tasks.errors import InputError, ModelError, Stopped

# A tokenizer without a limit of its own reports a huge number.
_NO_LIMIT = 1_000_000
# Texts whose tokens are in hand at a time: enough that texts of one length meet.
TEXTS_AT_A_TIME = 4096
# So many batches' tokens, where it is sizes that vary.
_BATCHES = 16
# Texts that a process cuts at a time: some milliseconds of work.
_CHUNK = 256

# Vectors and, where there is a head, its logits, of a batch.
Launched = list[Tensor]


class TextEncoder:
    """`spec` is a model version's. On an accelerator, processes cut texts into tokens,
    and the host launches batch after batch without waiting for any."""

    def __init__(self, folder: Path, spec: dict[str, Any], runtime: Runtime) -> None:
        self._pools: str = spec["pooling"]
        self._normalize = bool(spec["normalize"])
        self._stopped = runtime.stopped
        self.device = devices.choose(runtime.device)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        kind = AutoModelForSequenceClassification if spec["head"] else AutoModel
        model = load(kind, folder, spec, self.device)
        refuse_what_cannot_pool(model, self._pools)
        self._head = transformer.Head(model.config) if spec["head"] else None
        asked = spec["encoder"]["max_length"]
        tokenize = tokenizing_of(
            tokenizer, folder, usable_length(tokenizer, model, asked)
        )
        self._preparation: Preparation[Tokens] = Preparation(
            *(type(tokenize), *tokenize.settings),
            processes=devices.processes_beside(self.device),
            stopped=runtime.stopped,
        )
        self._dtype = model.dtype
        self._launching = threading.Lock()
        self.forward = packed.forward_of(
            model,
            packed.Wanted(
                transformer.layers(spec["layers"]),
                "text" if self._head else None,
                self._pools == "pooler",
            ),
            tokenizer.pad_token_id,
            tokenize(transformer.samples()),
        )
        weights: str = spec["weights"]
        self.budget = devices.Budget(runtime.tokens, model, self.device, weights)

    def encode(self, inputs: Sequence[str]) -> Encoded:
        order: list[int] = []
        made: list[Launched] = []
        truncated: list[npt.NDArray[np.bool_]] = []
        done = 0
        for tokens in self._in_hand(inputs):
            truncated.append(tokens.truncated)
            if not tokens.lengths.all():
                raise InputError("an input without a single token")
            lengths = tokens.lengths.tolist()
            for batch in self.forward.batches(lengths, self.budget.tokens):
                order += [done + position for position in batch]
                made += self._within_memory(tokens, batch)
            done += len(lengths)
        return self._collected(order, made, np.concatenate(truncated))

    def probe(self) -> Encoded:
        return self.encode(["one, two, three"])

    @property
    def shared(self) -> bool:
        return self.device.type != "cpu"

    def surroundings(self) -> dict[str, str]:
        return devices.described(self.device, self._dtype)

    def tokenized(self, inputs: Sequence[str]) -> Iterator[Tokens]:
        """In order, ahead of whoever takes them."""
        chunk = _CHUNK if self.shared else TEXTS_AT_A_TIME
        for _, tokens in self._preparation.run(inputs, chunk):
            yield tokens

    def _in_hand(self, inputs: Sequence[str]) -> Iterator[Tokens]:
        """Enough for a batch; for several where texts of one length are to meet."""
        batches = 1 if self.shared and self.forward.free_of_padding else _BATCHES
        hand: list[Tokens] = []
        size = 0
        for tokens in self.tokenized(inputs):
            if hand and size + len(tokens.ids) > batches * self.budget.tokens:
                yield Tokens.joined(hand)
                hand, size = [], 0
            hand.append(tokens)
            size += len(tokens.ids)
        if hand:
            yield Tokens.joined(hand)

    def _within_memory(self, tokens: Tokens, batch: list[int]) -> list[Launched]:
        if self._stopped.is_set():
            raise Stopped("stopped between two batches")
        with self._launching:
            return self.budget.run_tokens(
                lambda positions: self._launch(tokens.only(positions)),
                *(batch, tokens.lengths, "input"),
            )

    @torch.inference_mode()
    def _launch(self, tokens: Tokens) -> Launched:
        """Starts a batch. What it returns stays on the device, where it may not be
        there yet."""
        rows = self.forward(tokens)
        with devices.errors():
            vectors = rows.pooled
            if vectors is None:
                vectors = pooling.of_rows(
                    self._pools, rows.hidden, rows.segments.bounds
                )
            vectors = vectors.to(torch.float32)
            if self._normalize:
                vectors = pooling.normalized(vectors)
            heads = [] if rows.logits is None else [rows.logits.to(torch.float32)]
            return [vectors, *heads]

    def _collected(
        self,
        order: list[int],
        made: list[Launched],
        truncated: npt.NDArray[np.bool_],
    ) -> Encoded:
        """Waits for the device. `order` has the position of the input each vector
        belongs to."""
        back = torch.from_numpy(np.argsort(order))
        columns = [torch.cat(parts) for parts in zip(*made, strict=True)]
        with devices.errors():
            vectors, *logits = transfer.Returning(*columns).arrived()
        return Encoded.of_records(
            vectors[back].numpy(),
            predictions=self._head.predictions(logits[0][back]) if self._head else (),
            truncated=truncated,
        )


def load(
    kind: Any, folder: Path, spec: dict[str, Any], device: torch.device
) -> PreTrainedModel:
    """A text model, of an encoder-decoder its encoder. Raises `ModelError` for one
    that takes no attention mask."""
    # A pooler nobody asked for may be missing.
    optional = "" if spec["head"] or spec["pooling"] == "pooler" else "pooler."
    dtype = spec["encoder"]["dtype"]
    model = transformer.load(kind, folder, dtype, device, optional)
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    for argument in ("input_ids", "attention_mask"):
        if not transformer.takes(model, argument):
            raise ModelError(
                f"encoder.model: a model of type {model.config.model_type!r} takes no "
                f"{argument}; it is not supported as a text encoder"
            )
    return model


def refuse_what_cannot_pool(model: PreTrainedModel, pools: str) -> None:
    causal = bool(getattr(model.config, "is_decoder", False)) or _is_causal(model)
    if causal and pools == "cls":
        raise ModelError(
            f"pooling: 'cls' is the first token, which in a decoder "
            f"({model.config.model_type}) has seen nothing but itself; valid: last, "
            "mean, max"
        )


def _is_causal(model: PreTrainedModel) -> bool:
    """Decoder-only families, which transformers knows as causal language models and
    not as masked ones."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
    )
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED,
    )

    kind = model.config.model_type
    encoder = getattr(model.config, "is_encoder_decoder", False)
    return kind in CAUSAL and kind not in MASKED and not encoder


def usable_length(tokenizer: Any, model: PreTrainedModel, asked: int | None) -> int:
    limits = [tokenizer.model_max_length]
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None:
        limits.append(positions - packed.position_offset(model))
    limit = min(limits)
    if asked is not None and asked > limit:
        raise ModelError(
            f"encoder.max_length: {asked} is more than the model takes; "
            f"valid: at most {limit}"
        )
    if asked is None and limit >= _NO_LIMIT:
        raise ModelError(
            "encoder.max_length: the model names no limit of its own; set one"
        )
    return asked or limit
