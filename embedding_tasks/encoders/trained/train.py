"""The training loop: seeded, deterministic, and taken up again where it was killed.

All randomness of an epoch comes from the seed and the epoch's number, so a training
that goes on from a checkpoint sees the same batches and the same noise.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from embedding_tasks.encoders import devices
from embedding_tasks.errors import DeviceError, ModelError
from embedding_tasks.use_case.feature import Trained

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]


class Training(Protocol):
    """`kept` has what becomes the encoder, `parts` all that a checkpoint must have."""

    @property
    def keeps_best(self) -> bool: ...

    @property
    def kept(self) -> nn.Module: ...

    @property
    def parts(self) -> Mapping[str, Any]: ...

    def step(self, batch: Tensor, noise: torch.Generator) -> dict[str, Tensor]: ...

    def loss(self, batch: Tensor, noise: torch.Generator) -> Tensor: ...


@dataclass
class Trace:
    """How far a training has come. `epoch` is the one that `weights` are of."""

    losses: list[dict[str, float]] = field(default_factory=list)
    epoch: int = 0
    weights: Tensors = field(default_factory=dict)
    seconds: float = 0.0


def run(
    make: Callable[[torch.device], Training],
    encoder: Trained,
    training: Tensor,
    validation: Tensor,
    checkpoint: Path,
    progress: Callable[[Trace], None],
) -> Trace:
    """`progress` is told of each epoch once its checkpoint is written. Raises
    `ModelError` when the loss is no number any more, `DeviceError`."""
    device = devices.choose(encoder.device)
    try:
        with _deterministic(), devices.errors():
            task, trace = _begin(lambda: _made(make, device, encoder), checkpoint)
            if trace.losses:
                progress(trace)
            while len(trace.losses) < encoder.epochs:
                _epoch(task, encoder, training, validation, trace)
                _save(checkpoint, task, trace)
                progress(trace)
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"encoder.batch_size: {encoder.batch_size} does not fit the memory of "
            f"{device}"
        ) from error
    return trace


def inputs(batch: Tensor) -> Tensor:
    """Pixels are bytes until they are needed."""
    return batch / 127.5 - 1 if batch.dtype == torch.uint8 else batch


def mean_loss(training: Tensor, validation: Tensor, batch_size: int) -> float:
    """What least squares gives who answers every row with the mean one."""
    total = torch.zeros(training.shape[1:], dtype=torch.float64)
    for batch in batches(training, batch_size):
        total += inputs(batch).double().sum(dim=0)
    mean = total / len(training)
    errors = [
        float((inputs(batch).double() - mean).square().sum())
        for batch in batches(validation, batch_size)
    ]
    return math.fsum(errors) / validation.numel()


def batches(rows: Tensor, size: int) -> Sequence[Tensor]:
    return torch.split(rows, size)


def _epoch(
    task: Training, encoder: Trained, training: Tensor, validation: Tensor, trace: Trace
) -> None:
    began = time.monotonic()
    number = len(trace.losses) + 1
    noise = torch.Generator().manual_seed(_seed(encoder.seed, number))
    device = next(task.kept.parameters()).device
    sums: dict[str, Tensor] = {}
    order = torch.randperm(len(training), generator=noise)
    for rows in batches(order, encoder.batch_size):
        for name, loss in task.step(inputs(training[rows].to(device)), noise).items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + loss * len(
                rows
            )
    losses = {name: float(total) / len(training) for name, total in sums.items()}
    losses["validation"] = _validate(task, encoder, validation, device)
    if not all(map(math.isfinite, losses.values())):
        raise ModelError(
            f"the training came to nothing in epoch {number}: its loss is no number "
            f"any more; lower encoder.learning_rate ({encoder.learning_rate})"
        )
    best = min((e["validation"] for e in trace.losses), default=math.inf)
    trace.losses.append(losses)
    if not task.keeps_best or losses["validation"] < best:
        trace.epoch = number
        trace.weights = {
            k: v.detach().cpu().clone() for k, v in task.kept.state_dict().items()
        }
    trace.seconds += time.monotonic() - began


@torch.no_grad()
def _validate(
    task: Training, encoder: Trained, rows: Tensor, device: torch.device
) -> float:
    noise = torch.Generator().manual_seed(_seed(encoder.seed, -1))
    total = 0.0
    for batch in batches(rows, encoder.batch_size):
        total += float(task.loss(inputs(batch.to(device)), noise)) * len(batch)
    return total / len(rows)


def _made(
    make: Callable[[torch.device], Training], device: torch.device, encoder: Trained
) -> Training:
    torch.manual_seed(_seed(encoder.seed, 0))
    return make(device)


def _begin(make: Callable[[], Training], checkpoint: Path) -> tuple[Training, Trace]:
    task = make()
    try:
        return task, _restore(checkpoint, task)
    except FileNotFoundError:
        return task, Trace()
    except Exception as error:  # whatever is wrong with it, it can be done without
        log.warning("checkpoint not usable, training from the start error=%s", error)
        return make(), Trace()


def _restore(checkpoint: Path, task: Training) -> Trace:
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    for name, part in task.parts.items():
        part.load_state_dict(state["parts"][name])
    log.info("training goes on epoch=%d", len(state["losses"]) + 1)
    return Trace(state["losses"], state["epoch"], state["weights"], state["seconds"])


def _save(checkpoint: Path, task: Training, trace: Trace) -> None:
    state = {
        "parts": {name: part.state_dict() for name, part in task.parts.items()},
        "losses": trace.losses,
        "epoch": trace.epoch,
        "weights": trace.weights,
        "seconds": trace.seconds,
    }
    try:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        fresh = checkpoint.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(checkpoint)
    except OSError as error:
        # No place for it costs time, not correctness.
        log.warning("no checkpoint written error=%s", error)


def _seed(seed: int, epoch: int) -> int:
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


@contextmanager
def _deterministic() -> Iterator[None]:
    """Seeds nothing outside, and leaves torch as it was."""
    # cuBLAS needs it to be so (docs.nvidia.com/cuda/cublas, "Results Reproducibility")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    # Sums split over more threads round otherwise, so the weights would depend on the
    # number of cores; and for networks as small as these, with two busy cores, two
    # threads took 20 times longer than one.
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.set_num_threads(threads)
