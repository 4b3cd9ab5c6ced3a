"""Where a model runs, and what to do when there is no room. Needs torch alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from embedding_tasks.errors import DeviceError, InputError

T = TypeVar("T")


def choose(asked: str) -> torch.device:
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(
            f"encoder.device: {asked!r} asked for, but this machine shows no CUDA "
            "device; valid here: 'cpu', 'auto'"
        )
    return torch.device(asked)


def within_memory(
    run: Callable[[Sequence[int]], T],
    batch: Sequence[int],
    device: torch.device,
    too_large: Callable[[int], str],
) -> list[T]:
    """Run a batch of positions; out of memory halves it, and charges nobody but a
    single input that does not fit alone."""
    try:
        return [run(batch)]
    except torch.OutOfMemoryError:
        pass  # leave the handler first: the traceback holds the tensors
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if len(batch) == 1:
        raise InputError(f"{too_large(batch[0])} does not fit the memory of {device}")
    half = len(batch) // 2
    return [
        part
        for positions in (batch[:half], batch[half:])
        for part in within_memory(run, positions, device, too_large)
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
