"""Text through a transformer of the Hugging Face library.

One forward pass gives hidden states and, where the use case asks for it, the logits
of the model's own classification head.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from transformers.utils import logging as transformers_logging

from embedding_tasks import pooling
from embedding_tasks.encoders import Encoded, Prediction
from embedding_tasks.errors import DeviceError, InputError, ModelError
from embedding_tasks.packing import token_batches
from embedding_tasks.use_case import LayerMix

# A tokenizer without a limit of its own reports a huge number.
_NO_LIMIT = 1_000_000


class TextEncoder:
    """`spec` is a model version's; `batch_tokens` the padded tokens of one pass."""

    def __init__(
        self, folder: Path, spec: dict[str, Any], device: str, batch_tokens: int
    ) -> None:
        self.device = choose_device(device)
        self._pool = pooling.by_name(spec["pooling"])
        self._layers = _layers(spec["layers"])
        self._normalize = bool(spec["normalize"])
        self._budget = batch_tokens
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        dtype = getattr(torch, spec["encoder"]["dtype"])
        self._model = _load(folder, dtype, head=spec["head"])
        nn.Module.to(self._model, self.device).train(False)
        self._head = _Head(self._model.config) if spec["head"] else None
        self._hidden = _HiddenStates(self._model)
        self._max_length = self._usable_length(spec["encoder"]["max_length"])

    def encode(self, inputs: Sequence[str]) -> Encoded:
        tokens, truncated = self._tokenize(inputs)
        if not all(tokens):
            raise InputError("an input without a single token")
        batches = [
            (batch, *self._forward_within_memory(tokens, batch))
            for batch in token_batches([len(t) for t in tokens], self._budget)
        ]
        order = np.argsort(np.concatenate([batch for batch, _, _ in batches]))
        vectors = torch.cat([v for _, v, _ in batches]).numpy()[order]
        predictions: Sequence[Prediction] = ()
        if self._head is not None:
            logits = torch.cat([g for _, _, g in batches])[torch.from_numpy(order)]
            predictions = self._head.predictions(logits)
        count = len(inputs)
        return Encoded(
            vectors=vectors,
            inputs=np.arange(count, dtype=np.int32),
            units=np.zeros(count, dtype=np.int32),
            predictions=predictions,
            truncated=truncated,
        )

    def probe(self) -> Encoded:
        return self.encode(["one, two, three"])

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

    def _forward_within_memory(
        self, tokens: list[list[int]], batch: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Out of memory halves the batch, and charges nobody but a single input that
        does not fit alone."""
        try:
            return self._forward([tokens[i] for i in batch])
        except torch.OutOfMemoryError:
            pass  # leave the handler first: the traceback holds the tensors
        torch.cuda.empty_cache()
        if len(batch) == 1:
            raise InputError(
                f"one input of {len(tokens[batch[0]])} tokens does not fit the memory "
                f"of {self.device}; lower encoder.max_length"
            )
        half = len(batch) // 2
        parts = [
            self._forward_within_memory(tokens, part)
            for part in (batch[:half], batch[half:])
        ]
        return torch.cat([v for v, _ in parts]), torch.cat([g for _, g in parts])

    @torch.inference_mode()
    def _forward(self, tokens: list[list[int]]) -> tuple[Tensor, Tensor]:
        ids, mask = _padded(tokens, self._tokenizer.pad_token_id)
        ids, mask = ids.to(self.device), mask.to(self.device)
        with _device_errors():
            output, hidden = self._hidden(
                self._layers, input_ids=ids, attention_mask=mask
            )
            vectors = self._pool(hidden, mask).to(torch.float32)
            if self._normalize:
                vectors = pooling.normalized(vectors)
            logits = output.logits.to(torch.float32) if self._head else torch.empty(0)
            return vectors.cpu(), logits.cpu()

    def _usable_length(self, asked: int | None) -> int:
        limits = [self._tokenizer.model_max_length]
        positions = getattr(self._model.config, "max_position_embeddings", None)
        if positions is not None:
            limits.append(positions - _position_offset(self._model))
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


class _HiddenStates:
    """Runs a model and returns its output and the hidden states asked for.

    The last ones are taken as the bare encoder returns them, final norm included, by
    a hook: `hidden_states[-1]` is not the same thing in every architecture, and
    keeping all layers costs memory.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._last: Tensor | None = None
        base: nn.Module = model.base_model
        base.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: object, output: Any) -> None:
        self._last = output.last_hidden_state

    def __call__(
        self, layers: int | LayerMix | None, **inputs: Tensor
    ) -> tuple[Any, Tensor]:
        output = self._model(**inputs, output_hidden_states=layers is not None)
        if layers is not None:
            return output, pooling.mix_layers(output.hidden_states, layers)
        assert self._last is not None
        hidden, self._last = self._last, None
        return output, hidden


class _Head:
    """Logits (n, classes) to predictions, as the model's own configuration reads
    them: softmax, sigmoid for several labels at once, or one plain number."""

    def __init__(self, config: Any) -> None:
        self._names = [config.id2label[i] for i in range(config.num_labels)]
        self._several = config.problem_type == "multi_label_classification"
        self._number = config.num_labels == 1

    def predictions(self, logits: Tensor) -> list[Prediction]:
        if self._number:
            values = logits[:, 0].tolist()
            return [Prediction(f"{value:.6g}", value, ()) for value in values]
        spread = logits.sigmoid() if self._several else logits.softmax(dim=-1)
        best = spread.argmax(dim=-1).tolist()
        return [
            Prediction(self._names[b], row[b], row)
            for b, row in zip(best, spread.tolist(), strict=True)
        ]


def choose_device(asked: str) -> torch.device:
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(
            f"encoder.device: {asked!r} asked for, but this machine shows no CUDA "
            "device; valid here: 'cpu', 'auto'"
        )
    return torch.device(asked)


def _load(folder: Path, dtype: torch.dtype, *, head: bool) -> PreTrainedModel:
    kind = AutoModelForSequenceClassification if head else AutoModel
    with _quiet():
        try:
            model, info = kind.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, local_files_only=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"encoder.model: {str(folder)!r} does not load: {error}"
            ) from error
    # A pooler nobody asked for may be missing; anything else would be random numbers.
    missing = [k for k in info["missing_keys"] if head or not k.startswith("pooler.")]
    if missing:
        raise ModelError(
            f"encoder.model: {str(folder)!r} lacks the weights "
            f"{', '.join(sorted(missing)[:5])}; it was not saved whole"
        )
    loaded: PreTrainedModel = model
    return loaded


def _layers(choice: Any) -> int | LayerMix | None:
    if choice == "last":
        return None
    return choice if isinstance(choice, int) else LayerMix.model_validate(choice)


def _padded(tokens: list[list[int]], pad: int | None) -> tuple[Tensor, Tensor]:
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


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers reports every load on stderr; what matters in it raises here."""
    level = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def _device_errors() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except torch.AcceleratorError as error:
        raise DeviceError(f"the accelerator gave up: {error}") from error
    except RuntimeError as error:
        if "DefaultCPUAllocator" in str(error):
            raise torch.OutOfMemoryError(str(error)) from error
        raise
