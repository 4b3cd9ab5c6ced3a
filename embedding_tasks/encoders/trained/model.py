"""From training rows to a model, and from a stored model back to what it computes.

A model is one safetensors file: its weights, and as JSON in its metadata all else that
its vectors depend on. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from embedding_tasks.encoders.trained import images, table, train
from embedding_tasks.encoders.trained.autoencoder import (
    Autoencoder,
    AutoencoderTraining,
)
from embedding_tasks.encoders.trained.gan import Discriminator, GanTraining
from embedding_tasks.encoders.trained.networks import Shape
from embedding_tasks.encoders.trained.table import Number, Table
from embedding_tasks.encoders.trained.train import Tensors, Trace
from embedding_tasks.errors import InputError, ModelError
from embedding_tasks.store.trained import Model
from embedding_tasks.use_case import Feature
from embedding_tasks.use_case.feature import Trained

# One row in so many tells how well the others were learned.
_VALIDATION = 10
Network = Autoencoder | Discriminator
_NETWORKS: dict[str, type[Network]] = {
    "autoencoder": Autoencoder,
    "gan": Discriminator,
}


@dataclass(frozen=True)
class Rows:
    """`data` (rows, *shape): float32 of a table, bytes of images. `unusable` images
    could not be opened."""

    data: Tensor
    table: Table | None = None
    unusable: int = 0

    @property
    def shape(self) -> Shape:
        return tuple(self.data.shape[1:])

    def split(self) -> tuple[Tensor, Tensor]:
        """For training, and for validation."""
        at = _training_rows(len(self.data))
        return self.data[:at], self.data[at:]


def of_table(
    feature: Feature, types: Sequence[str], rows: Sequence[tuple[str | None, ...]]
) -> tuple[Rows, list[str]]:
    """The rows as numbers, fitted to those for training, and why a column is left
    out."""
    _refuse_too_few(feature, len(rows), 0)
    fitted, left_out = table.fit(
        feature.input, types, rows[: _training_rows(len(rows))]
    )
    return Rows(torch.from_numpy(fitted.encode(rows)), fitted), left_out


def of_images(feature: Feature, given: Iterable[bytes | str]) -> Rows:
    assert isinstance(feature.encoder, Trained)
    opened, unusable = [], 0
    for image in given:
        try:
            opened.append(images.pixels(image, feature.encoder.image_size))
        except InputError:
            unusable += 1
    _refuse_too_few(feature, len(opened), unusable)
    return Rows(torch.from_numpy(images.stacked(opened)), unusable=unusable)


def make(
    feature: Feature, rows: Rows, folder: Path, progress: Callable[[Trace], None]
) -> tuple[Model, Path]:
    """Trains, or goes on where a training of the same settings and rows was killed:
    its checkpoint, the path returned, is in this folder."""
    encoder = feature.encoder
    assert isinstance(encoder, Trained)
    checkpoint = folder / f"{_checkpoint(feature, rows)}.pt"
    training, validation = rows.split()
    trace = train.run(
        lambda device: _training(feature, rows, device),
        encoder,
        *(training, validation, checkpoint, progress),
    )
    baseline = None
    if encoder.type == "autoencoder":
        baseline = train.mean_loss(training, validation, encoder.batch_size)
    weights = _written(feature, rows, trace.weights)
    made = Model(
        rows=len(rows.data),
        epoch=trace.epoch,
        losses=trace.losses,
        baseline=baseline,
        seconds=trace.seconds,
        digest=hashlib.sha256(weights).hexdigest(),
        weights=weights,
    )
    return made, checkpoint


@dataclass(frozen=True)
class Stored:
    """A model as the store has it. `table` is None where it sees images."""

    network: Network
    shape: Shape
    table: Table | None


def read(weights: bytes) -> Stored:
    state = _state(weights)
    shape = tuple(state["shape"])
    network = _NETWORKS[state["kind"]](shape, state["size"])
    network.load_state_dict(safetensors.torch.load(weights))
    fitted = Table.of_state(state["table"]) if state["table"] else None
    return Stored(network, shape, fitted)


def _state(weights: bytes) -> dict[str, Any]:
    """safetensors gives a file's metadata, but not those of bytes: eight bytes with
    the header's length, then the header."""
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])
    state: dict[str, Any] = json.loads(header["__metadata__"]["embedline"])
    return state


def _written(feature: Feature, rows: Rows, tensors: Tensors) -> bytes:
    encoder = feature.encoder
    assert isinstance(encoder, Trained)
    state = {
        "kind": encoder.type,
        "shape": rows.shape,
        "size": encoder.size,
        "table": rows.table.state() if rows.table else None,
    }
    # a single entry: safetensors writes several in any order
    metadata = {"embedline": json.dumps(state, sort_keys=True)}
    written: bytes = safetensors.torch.save(tensors, metadata)
    return written


def _training(feature: Feature, rows: Rows, device: torch.device) -> train.Training:
    encoder = feature.encoder
    assert isinstance(encoder, Trained)
    given = (rows.shape, encoder.size, encoder.learning_rate, device)
    if encoder.type == "autoencoder":
        return AutoencoderTraining(*given)
    return GanTraining(*given, _choices(rows.table))


def _choices(fitted: Table | None) -> list[tuple[int, int]]:
    """Which inputs [start, stop) are one-hot, or say that a number is missing."""
    choices, at = [], 0
    for column in fitted.columns if fitted else ():
        start = at + isinstance(column, Number)
        at += column.width
        if start < at:
            choices.append((start, at))
    return choices


def _training_rows(count: int) -> int:
    return count - max(1, count // _VALIDATION)


def _refuse_too_few(feature: Feature, count: int, unusable: int) -> None:
    encoder = feature.encoder
    assert isinstance(encoder, Trained)
    if count >= encoder.min_rows:
        return
    where = f" of environment {encoder.environment!r}" if encoder.environment else ""
    more = f" ({unusable} more are images that do not open)" if unusable else ""
    raise ModelError(
        f"{count} rows{where} to train on{more}, where encoder.min_rows asks for "
        f"{encoder.min_rows}; wait for more, or lower it"
    )


def _checkpoint(feature: Feature, rows: Rows) -> str:
    """Of these settings and rows; any other training begins anew."""
    given = hashlib.sha256(feature.model_dump_json().encode())
    given.update(json.dumps(rows.table.state() if rows.table else None).encode())
    given.update(rows.data.contiguous().numpy().data)
    return given.hexdigest()[:32]


def features(network: Network, batch: Tensor) -> Tensor:
    vectors: Tensor = network.features(train.inputs(batch))
    return vectors
