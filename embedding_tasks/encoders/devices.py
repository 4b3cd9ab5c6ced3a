"""Where a model runs, how precisely, and what to do when there is no room. Needs torch
alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from embedding_tasks.encoders import memory, preparing
from embedding_tasks.errors import DeviceError, InputError

T = TypeVar("T")

# Read when CUDA is first used: batches of all sizes, and no memory lost between them.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

# Tokens of one pass where nothing else is said. On a CPU what stays in its caches; on
# an accelerator what keeps it busy for longer than the next pass takes to launch, by a
# thread that others keep waiting.
_CPU_TOKENS = 4096
_ACCELERATOR_TOKENS = 131_072
_SHARE_OF_FREE_MEMORY = 0.5
_GOOD_PASSES, _GROWTH = 20, 1.5
_CARDS = Path("/proc/driver/nvidia/gpus")


def choose(asked: str) -> torch.device:
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(
            f"encoder.device: {asked!r} asked for, but this machine shows no CUDA "
            "device; valid here: 'cpu', 'auto'"
        )
    return torch.device(asked)


def precision(asked: str, device: torch.device) -> str:
    """`auto` is half precision on CUDA, whose vectors are float32's to a cosine of
    0.99999, and float32 elsewhere."""
    if asked == "auto":
        return "float16" if device.type == "cuda" else "float32"
    return asked


def processes_beside(device: torch.device) -> int:
    """That prepare inputs for a model there; none where the model itself takes the
    cores."""
    if device.type == "cpu":
        return 0
    return preparing.processes(max(torch.cuda.device_count(), _cards()))


def _cards() -> int:
    """Of this machine: those that CUDA_VISIBLE_DEVICES hides are other workers', who
    tokenize on the same cores."""
    return sum(1 for _ in _CARDS.glob("*"))


def described(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """What made vectors, for the record of the run that wrote them."""
    named = {"device": str(device), "dtype": str(dtype).removeprefix("torch.")}
    if device.type == "cuda":
        named["card"] = torch.cuda.get_device_name(device)
    return named


class Budget:
    """How many tokens share a pass: as asked for, else by the memory that is free. Half
    as many where memory has run out, half as many again after passes that went well;
    what was found out is remembered for a model on a kind of device."""

    def __init__(
        self, asked: int | None, model: nn.Module, device: torch.device, name: str
    ) -> None:
        """`name` is the model's: the digest of its weights."""
        self.device = device
        self._most = asked or _affordable(model, device)
        self._lock = threading.Lock()
        self._good = 0
        kind = described(device, next(model.parameters()).dtype)
        self._key = " ".join([name, kind.get("card", device.type), kind["dtype"]])
        known: int | None = memory.known("token_budgets", self._key)
        self._tokens = self._most if known is None else min(known, self._most)

    @property
    def tokens(self) -> int:
        return self._tokens

    def run(
        self,
        forward: Callable[[Sequence[int]], T],
        batch: Sequence[int],
        size: Callable[[int], int],
        too_large: Callable[[int], str],
    ) -> list[T]:
        """`within_memory`, and what is learned from it; `size`: a position's tokens."""
        ran_out: list[int] = []
        made = within_memory(
            *(forward, batch, self.device, too_large),
            ran_out=lambda part: ran_out.append(sum(map(size, part))),
        )
        with self._lock:
            if ran_out:
                self._set(max(1, min(self._tokens, *ran_out) // 2))
            elif self._tokens < self._most:
                self._good += 1
                if self._good == _GOOD_PASSES:
                    self._set(min(self._most, int(self._tokens * _GROWTH) + 1))
        return made

    def run_tokens(
        self,
        forward: Callable[[Sequence[int]], T],
        batch: Sequence[int],
        lengths: npt.NDArray[np.int64],
        what: str,
    ) -> list[T]:
        """`run` for inputs of so many tokens each."""
        return self.run(
            forward,
            batch,
            size=lambda i: int(lengths[i]),
            too_large=lambda i: (
                f"one {what} of {lengths[i]} tokens (lower encoder.max_length)"
            ),
        )

    def _set(self, tokens: int) -> None:
        self._tokens, self._good = tokens, 0
        memory.keep("token_budgets", self._key, tokens)


def _affordable(model: nn.Module, device: torch.device) -> int:
    if device.type != "cuda":
        return _CPU_TOKENS
    config: Any = getattr(model, "config", None)
    width = getattr(config, "hidden_size", None) or 1024
    inner = getattr(config, "intermediate_size", None) or 4 * width
    # What lives at once in the widest place of a layer: its input and what was added
    # to it, query, key, value and attention, and the inner layer before and after GELU.
    token_bytes = (6 * width + 2 * inner) * next(model.parameters()).element_size()
    free, _ = torch.cuda.mem_get_info(device)
    fits = int(free * _SHARE_OF_FREE_MEMORY / token_bytes)
    return max(1, min(fits, _ACCELERATOR_TOKENS))


def within_memory(
    run: Callable[[Sequence[int]], T],
    batch: Sequence[int],
    device: torch.device,
    too_large: Callable[[int], str],
    ran_out: Callable[[Sequence[int]], None] = lambda batch: None,
) -> list[T]:
    """Run a batch of positions; out of memory halves it, and charges nobody but a
    single input that does not fit alone. `ran_out` is told each batch that did not."""
    try:
        return [run(batch)]
    except torch.OutOfMemoryError:
        pass  # leave the handler first: the traceback holds the tensors
    ran_out(batch)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if len(batch) == 1:
        raise InputError(f"{too_large(batch[0])} does not fit the memory of {device}")
    half = len(batch) // 2
    return [
        part
        for positions in (batch[:half], batch[half:])
        for part in within_memory(run, positions, device, too_large, ran_out)
    ]


@contextmanager
def errors() -> Iterator[None]:
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
