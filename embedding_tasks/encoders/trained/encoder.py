"""Vectors of a model that was trained on the use case's own rows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedding_tasks import pooling, settings
from embedding_tasks.encoders import Runtime, devices, preparing
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.encoders.preparing import Preparation
from embedding_tasks.encoders.trained import images, model
from embedding_tasks.errors import ModelError
from embedding_tasks.store import trained

# In one forward pass; images are small, and each of them is opened first.
_ROWS = 4096
_IMAGES = 32


class TrainedEncoder:
    """`spec` is a model version's. Inputs are tuples of a row's texts, or images as
    bytes or addresses."""

    shared = False

    def __init__(self, spec: dict[str, Any], runtime: Runtime) -> None:
        self._normalize = bool(spec["normalize"])
        self.device = devices.choose(runtime.device)
        self._stored = model.read(_weights(spec["weights"], runtime))
        self._network = self._stored.network.to(self.device).train(False)
        channels, side = self._stored.shape[0], self._stored.shape[-1]
        self._opening: Preparation[images.Opened] = Preparation(
            *(images.Opener, side, channels),
            threads=preparing.THREADS,
            stopped=runtime.stopped,
        )

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        table = self._stored.table
        if table is None:
            return self._of_images(inputs)
        parts = [
            part
            for start in range(0, len(inputs), _ROWS)
            for part in self._forward(
                torch.from_numpy(table.encode(inputs[start : start + _ROWS]))
            )
        ]
        return Encoded.of_records(torch.cat(parts).numpy())

    def _of_images(self, inputs: Sequence[bytes | str]) -> Encoded:
        places: list[int] = []
        failed: dict[int, str] = {}
        parts: list[Tensor] = []
        for chunk, opened in self._opening.run(inputs, _IMAGES):
            places += [chunk.start + place for place in opened.places]
            failed |= {chunk.start + i: why for i, why in opened.failed.items()}
            if opened.places:
                parts += self._forward(torch.from_numpy(opened.pixels))
        return Encoded(
            torch.cat(parts).numpy() if parts else np.empty((0, 0), np.float32),
            inputs=np.array(places, np.int32),
            units=np.zeros(len(places), np.int32),
            failed=failed,
        )

    def probe(self) -> Encoded:
        batch = torch.zeros(1, *self._stored.shape)
        return Encoded.of_records(torch.cat(self._forward(batch)).numpy())

    def surroundings(self) -> dict[str, str]:
        return {"device": str(self.device), "dtype": "float32"}

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
