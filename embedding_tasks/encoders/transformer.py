"""Running models of the Hugging Face library: loading, hidden states, heads, memory."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from embedding_tasks import pooling
from embedding_tasks.encoders import devices
from embedding_tasks.encoders.encoded import Prediction
from embedding_tasks.errors import ModelError
from embedding_tasks.use_case import LayerMix

# How far a vector may move with what is beside its input, relative to its own size.
DRIFT = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}

# Words, and how many of them each text has that a model is tried with: some alike, and
# one longer than the windows that local attention has.
_WORDS = (
    "one,",
    "two",
    "and",
    "three",
    "short",
    "texts",
    "lie",
    "beside",
    "a",
    "longer",
)
_COUNTS = (1, 2, 5, 5, 11, 23, 3, 47, 200)


def load(
    kind: Any,
    folder: Path,
    dtype: str,
    device: torch.device,
    optional: str | Sequence[str] = "",
) -> PreTrainedModel:
    """The model, ready to run. `kind` is one of transformers' AutoModel classes.
    Weights whose names hold `optional`, or one of several, may be missing; any other
    would be random numbers."""
    with quiet():
        try:
            model, info = kind.from_pretrained(
                folder,
                dtype=getattr(torch, devices.precision(dtype, device)),
                output_loading_info=True,
                local_files_only=True,
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(
                f"encoder.model: {str(folder)!r} does not load: {error}"
            ) from error
    spared = [optional] if isinstance(optional, str) else optional
    missing = [
        key
        for key in info["missing_keys"]
        if not any(name and name in key for name in spared)
    ]
    if missing:
        raise ModelError(
            f"encoder.model: {str(folder)!r} lacks the weights "
            f"{', '.join(sorted(missing)[:5])}; it was not saved whole"
        )
    nn.Module.to(model, device).train(False)
    loaded: PreTrainedModel = model
    return loaded


def samples() -> list[str]:
    """Texts of several lengths, no two of them alike."""
    words = _WORDS * (max(_COUNTS) // len(_WORDS) + 2)
    return [" ".join(words[i : i + count]) for i, count in enumerate(_COUNTS)]


def takes(model: nn.Module, argument: str) -> bool:
    return argument in inspect.signature(model.forward).parameters


class HiddenStates:
    """Runs a model and returns its output and the hidden states asked for.

    The last ones are taken as the bare encoder returns them, final norm included, by
    a hook: `hidden_states[-1]` is not the same thing in every architecture, and
    keeping all layers costs memory. `base` is that encoder where the model itself
    does not say which of its modules it is. Several threads may call it at once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: int | LayerMix | None,
        base: nn.Module | None = None,
    ) -> None:
        self._model = model
        self._layers = layers
        self._own = threading.local()
        (base or model.base_model).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: object, output: Any) -> Any:
        self._own.base = output
        change = getattr(self._own, "change", None)
        return change(output) if change else None

    def __call__(self, **inputs: Tensor) -> tuple[Any, Any, Tensor]:
        """The model's output, its bare encoder's output, and hidden states."""
        return self.run(None, **inputs)

    def run(
        self, change: Callable[[Any], Any] | None, **inputs: Any
    ) -> tuple[Any, Any, Tensor]:
        """`change` makes of the bare encoder's output what a head is to read in its
        place."""
        wanted = self._layers is not None
        self._own.change = change
        try:
            output = self._model(**inputs, output_hidden_states=wanted)
            base = self._own.base
        finally:
            self._own.base = self._own.change = None
        if self._layers is not None:
            return output, base, pooling.mix_layers(output.hidden_states, self._layers)
        return output, base, base.last_hidden_state


class Head:
    """Logits (n, classes) to predictions, as the model's own configuration reads
    them: softmax, sigmoid for several labels at once, or one plain number."""

    def __init__(self, config: Any) -> None:
        self.names: list[str] = [config.id2label[i] for i in range(config.num_labels)]
        self._several = config.problem_type == "multi_label_classification"
        self._number = config.num_labels == 1

    def predictions(self, logits: Tensor) -> list[Prediction]:
        if self._number:
            values = logits[:, 0].tolist()
            return [Prediction(f"{value:.6g}", value) for value in values]
        return self.of_probabilities(
            logits.sigmoid() if self._several else logits.softmax(dim=-1)
        )

    def of_probabilities(self, spread: Tensor) -> list[Prediction]:
        best = spread.argmax(dim=-1).tolist()
        return [
            Prediction(self.names[b], row[b], row)
            for b, row in zip(best, spread.tolist(), strict=True)
        ]


def layers(choice: Any) -> int | LayerMix | None:
    """Of a spec; None is the last one."""
    if choice == "last":
        return None
    return choice if isinstance(choice, int) else LayerMix.model_validate(choice)


@contextmanager
def quiet() -> Iterator[None]:
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
