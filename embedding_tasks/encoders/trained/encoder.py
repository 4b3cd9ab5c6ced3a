"""Vectors of a model that was trained on the use case's own rows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from embedding_tasks import pooling, settings
from embedding_tasks.encoders import Runtime, devices
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.encoders.trained import images, model
from embedding_tasks.errors import ModelError
from embedding_tasks.store import trained

# In one forward pass.
_ROWS = 4096
_IMAGES = 256


class TrainedEncoder:
    """`spec` is a model version's. Inputs are tuples of a row's texts, or images as
    bytes or addresses."""

    shared = False

    def __init__(self, spec: dict[str, Any], runtime: Runtime) -> None:
        self._normalize = bool(spec["normalize"])
        self.device = devices.choose(runtime.device)
        self._stored = model.read(_weights(spec["weights"], runtime))
        self._network = self._stored.network.to(self.device).train(False)

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        at_a_time = _IMAGES if self._stored.table is None else _ROWS
        parts = [
            part
            for start in range(0, len(inputs), at_a_time)
            for part in self._forward(self._read(inputs[start : start + at_a_time]))
        ]
        return Encoded.of_records(torch.cat(parts).numpy())

    def probe(self) -> Encoded:
        batch = torch.zeros(1, *self._stored.shape)
        return Encoded.of_records(torch.cat(self._forward(batch)).numpy())

    def surroundings(self) -> dict[str, str]:
        return {"device": str(self.device), "dtype": "float32"}

    def _read(self, inputs: Sequence[Any]) -> Tensor:
        if self._stored.table is not None:
            return torch.from_numpy(self._stored.table.encode(inputs))
        channels, side, _ = self._stored.shape
        opened = [images.pixels(image, side) for image in inputs]
        return torch.from_numpy(images.stacked(opened, channels))

    def _forward(self, batch: Tensor) -> list[Tensor]:
        return devices.within_memory(
            lambda rows: self._vectors(batch[list(rows)]),
            range(len(batch)),
            self.device,
            lambda row: "one row",
        )

    @torch.inference_mode()
    def _vectors(self, batch: Tensor) -> Tensor:
        with devices.errors():
            vectors = model.features(self._network, batch.to(self.device))
            if self._normalize:
                vectors = pooling.normalized(vectors)
            return vectors.cpu()


def _weights(digest: str, runtime: Runtime) -> bytes:
    """From this machine if they have been here, else from the store."""
    cached = settings.home() / "trained" / f"{digest}.safetensors"
    try:
        found: bytes | None = cached.read_bytes()
    except OSError:
        found = None
    if found is not None and hashlib.sha256(found).hexdigest() == digest:
        return found
    if runtime.open_store is None:
        raise ModelError("a trained model comes from the store, and none is given")
    with runtime.open_store() as store:
        found = trained.weights(store, digest)
    if found is None or hashlib.sha256(found).hexdigest() != digest:
        raise ModelError(
            f"the store has no trained model {digest[:12]} any more "
            "(embedline.trained_model); restore it, or train a new one with "
            "`embedline train NAME --retrain`"
        )
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        fresh = cached.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(found)
        fresh.replace(cached)
    except OSError:
        pass  # a read-only home costs time, not correctness
    return found
