"""Whole texts through a transformer of the Hugging Face library: one vector each.

One forward pass gives hidden states and, where the use case asks for it, the logits
of the model's own classification head.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from embedding_tasks import pooling
from embedding_tasks.encoders import Runtime, devices, transformer
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.errors import InputError, ModelError
from embedding_tasks.packing import token_batches

# A tokenizer without a limit of its own reports a huge number.
_NO_LIMIT = 1_000_000


class TextEncoder:
    """`spec` is a model version's."""

    shared = False

    def __init__(self, folder: Path, spec: dict[str, Any], runtime: Runtime) -> None:
        self._pools: str = spec["pooling"]
        self._normalize = bool(spec["normalize"])
        self._budget = runtime.tokens
        self.device = devices.choose(runtime.device)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        kind = AutoModelForSequenceClassification if spec["head"] else AutoModel
        self._dtype: str = spec["encoder"]["dtype"]
        model = load(kind, folder, spec, self.device)
        refuse_what_cannot_pool(model, self._pools)
        self._head = transformer.Head(model.config) if spec["head"] else None
        self._hidden = transformer.HiddenStates(
            model, transformer.layers(spec["layers"])
        )
        asked = spec["encoder"]["max_length"]
        self._max_length = usable_length(self._tokenizer, model, asked)
        self._refuse_a_model_that_reads_padding(model.dtype)

    def encode(self, inputs: Sequence[str]) -> Encoded:
        tokens, truncated = self._tokenize(inputs)
        if not all(tokens):
            raise InputError("an input without a single token")
        order: list[int] = []
        parts: list[tuple[Tensor, Tensor]] = []
        for batch in token_batches([len(t) for t in tokens], self._budget):
            order += batch
            parts += devices.within_memory(
                lambda positions: self._forward([tokens[i] for i in positions]),
                batch,
                self.device,
                lambda i: (
                    f"one input of {len(tokens[i])} tokens (lower encoder.max_length)"
                ),
            )
        back = torch.from_numpy(np.argsort(order))
        logits = torch.cat([g for _, g in parts])
        return Encoded.of_records(
            torch.cat([v for v, _ in parts])[back].numpy(),
            predictions=self._head.predictions(logits[back]) if self._head else (),
            truncated=truncated,
        )

    def probe(self) -> Encoded:
        return self.encode(["one, two, three"])

    def surroundings(self) -> dict[str, str]:
        return {"device": str(self.device), "dtype": self._dtype}

    def _tokenize(self, inputs: Sequence[str]) -> tuple[list[list[int]], int]:
        encoded = self._tokenizer(
            list(inputs),
            truncation=True,
            max_length=self._max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        tokens: list[list[int]] = encoded["input_ids"]
        if encoded.encodings:
            truncated = sum(bool(e.overflowing) for e in encoded.encodings)
        else:
            truncated = sum(len(t) >= self._max_length for t in tokens)
        return tokens, truncated

    @torch.inference_mode()
    def _forward(self, tokens: list[list[int]]) -> tuple[Tensor, Tensor]:
        ids, mask = padded(tokens, self._tokenizer.pad_token_id)
        ids, mask = ids.to(self.device), mask.to(self.device)
        with devices.errors():
            output, base, hidden = self._hidden(input_ids=ids, attention_mask=mask)
            if self._pools == "pooler":
                vectors = pooler_output(base)
            else:
                vectors = pooling.by_name(self._pools)(hidden, mask)
            vectors = vectors.to(torch.float32)
            if self._normalize:
                vectors = pooling.normalized(vectors)
            logits = output.logits.to(torch.float32) if self._head else torch.empty(0)
            return vectors.cpu(), logits.cpu()

    def _refuse_a_model_that_reads_padding(self, dtype: torch.dtype) -> None:
        short, long = self._tokenize(transformer.SHORT_AND_LONG)[0]
        alone, _ = self._forward([short])
        beside, _ = self._forward([short, long])
        transformer.refuse_drift(alone[0].to(dtype), beside[0].to(dtype))


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


def pooler_output(base: Any) -> Tensor:
    pooled: Tensor | None = getattr(base, "pooler_output", None)
    if pooled is None:
        raise ModelError(
            "pooling: this model has no pooler; valid: cls, mean, max, last"
        )
    return pooled


def usable_length(tokenizer: Any, model: PreTrainedModel, asked: int | None) -> int:
    limits = [tokenizer.model_max_length]
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None:
        limits.append(positions - _position_offset(model))
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


def padded(tokens: list[list[int]], pad: int | None) -> tuple[Tensor, Tensor]:
    """Ids and mask, (batch, longest). On the right, where positions count from the
    first real token in every architecture."""
    width = max(len(t) for t in tokens)
    ids = torch.full((len(tokens), width), pad or 0, dtype=torch.long)
    mask = torch.zeros((len(tokens), width), dtype=torch.long)
    for row, token_ids in enumerate(tokens):
        ids[row, : len(token_ids)] = torch.tensor(token_ids)
        mask[row, : len(token_ids)] = 1
    return ids, mask


def _position_offset(model: nn.Module) -> int:
    """RoBERTa and its kin count positions from padding_idx + 1."""
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, nn.Embedding) and table.padding_idx is not None:
            return table.padding_idx + 1
    return 0
