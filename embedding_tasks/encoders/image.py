"""Images through a vision model of the Hugging Face library.

Images are fetched, decoded and preprocessed one by one in threads, a batch ahead of
the model; only images that come out of that with one size share a forward pass, so
none is ever padded to another's.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor

from embedding_tasks.encoders import Runtime, devices, pictures, transformer
from embedding_tasks.encoders.detector import Detector
from embedding_tasks.encoders.encoded import Encoded, joined
from embedding_tasks.encoders.vision import Vision
from embedding_tasks.errors import InputError, ModelError

_THREADS = min(8, max(2, os.cpu_count() or 2))
# What of `batch.tokens` an image takes: one for each square of 16 by 16 pixels that
# the model sees, whatever it makes of them.
_PIXELS_PER_TOKEN = 256


class Model(Protocol):
    device: torch.device
    dtype: torch.dtype

    @property
    def wants(self) -> Sequence[str]: ...

    def __call__(
        self, pixels: dict[str, Tensor], sizes: Sequence[tuple[int, int]]
    ) -> Encoded:
        """Images of one size, `pixel_values` (batch, channels, height, width) and what
        else the model `wants`, and the (height, width) they are shown in."""
        ...


@dataclass(frozen=True)
class Ready:
    """An image as the model takes it, and its (height, width) as it is shown."""

    pixels: dict[str, Tensor]
    size: tuple[int, int]

    @property
    def shape(self) -> torch.Size:
        return self.pixels["pixel_values"].shape

    @property
    def tokens(self) -> int:
        return max(1, self.shape[-1] * self.shape[-2] // _PIXELS_PER_TOKEN)


class ImageEncoder:
    """`spec` is a model version's."""

    shared = False

    def __init__(self, folder: Path, spec: dict[str, Any], runtime: Runtime) -> None:
        self._max_pixels: int = spec["encoder"]["max_pixels"]
        self._budget = runtime.tokens
        device = devices.choose(runtime.device)
        self._processor = processor(folder)
        detects = spec["pooling"] == "queries" or isinstance(spec["pooling"], dict)
        kind: Callable[..., Model] = Detector if detects else Vision
        self._model = kind(folder, spec, device)
        self._refuse_what_does_not_fit()

    def encode(self, inputs: Sequence[bytes | str]) -> Encoded:
        parts: list[tuple[Sequence[int], Encoded]] = []
        start = 0
        for batch in self._batches(inputs):
            for places in of_one_size(batch):
                parts += devices.within_memory(
                    lambda chosen, batch=batch, start=start: (  # type: ignore[misc]
                        [start + i for i in chosen],
                        self._forward([batch[i] for i in chosen]),
                    ),
                    places,
                    self._model.device,
                    lambda i, batch=batch: (  # type: ignore[misc]
                        f"one image of {tuple(batch[i].shape[-2:])} pixels"
                    ),
                )
            start += len(batch)
        return in_order(joined(parts, len(inputs)))

    def probe(self) -> Encoded:
        return self._forward([self._prepared(probe_picture())])

    def surroundings(self) -> dict[str, str]:
        dtype = str(self._model.dtype).removeprefix("torch.")
        return {"device": str(self._model.device), "dtype": dtype}

    def _batches(self, inputs: Sequence[bytes | str]) -> Iterator[list[Ready]]:
        batch: list[Ready] = []
        held = 0
        for ready in self._decoded(inputs):
            if batch and held + ready.tokens > self._budget:
                yield batch
                batch, held = [], 0
            batch.append(ready)
            held += ready.tokens
        if batch:
            yield batch

    def _decoded(self, inputs: Sequence[bytes | str]) -> Iterator[Ready]:
        """In order, with threads at work on what comes next: about one batch of it,
        while the model runs the one before."""
        waiting = deque(inputs)
        coming: deque[Future[Ready]] = deque()
        ahead = _THREADS
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="images")
        try:
            while waiting or coming:
                while waiting and len(coming) < ahead:
                    coming.append(pool.submit(self._read, waiting.popleft()))
                ready = coming.popleft().result()
                ahead = max(_THREADS, self._budget // ready.tokens)
                yield ready
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, given: bytes | str) -> Ready:
        return self._prepared(pictures.read(given, self._max_pixels))

    def _prepared(self, image: Image.Image) -> Ready:
        """What the model's own image processor makes of it."""
        try:
            made = self._processor(images=image, return_tensors="pt")
        except (ValueError, ZeroDivisionError, OSError) as error:
            raise InputError(
                f"an image of {image.width} x {image.height} pixels cannot be brought "
                f"to the model's size: {error}"
            ) from error
        pixels = {name: made[name] for name in self._model.wants if name in made}
        return Ready(pixels, (image.height, image.width))

    def _forward(self, images: Sequence[Ready]) -> Encoded:
        model = self._model
        pixels = {
            name: torch.cat([i.pixels[name] for i in images]).to(model.device)
            for name in images[0].pixels
        }
        pixels["pixel_values"] = pixels["pixel_values"].to(model.dtype)
        with torch.inference_mode(), devices.errors():
            return model(pixels, [i.size for i in images])

    def _refuse_what_does_not_fit(self) -> None:
        """Whatever an architecture is: it takes what its image processor makes, and
        an image's vector is the same every time and beside any other."""
        picture = probe_picture()
        other = picture.transpose(Image.Transpose.ROTATE_180)
        try:
            one, two = (self._prepared(p) for p in (picture, other))
            alone = self._forward([one]).vectors
            beside = self._forward([two, one]).only([1]).vectors
        except (InputError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise ModelError(
                "encoder.model: the model does not take what its image processor "
                f"makes: {error}"
            ) from error
        if alone.shape != beside.shape:
            raise changes("number")
        if not len(alone):
            return
        drift = float(np.abs(alone - beside).max() / np.abs(alone).max())
        if not drift < transformer.DRIFT[self._model.dtype]:
            raise changes(f"values (by {drift:.1e} of their size)")


def changes(what: str) -> ModelError:
    return ModelError(
        f"encoder.model: with this model the {what} of an image's vectors changes from "
        "one time to the next, or with the images beside it; it is not supported"
    )


def processor(folder: Path) -> Any:
    """Pillow's way of resizing, also where torchvision is installed: theirs differ,
    and an image has one vector on all machines."""
    try:
        with transformer.quiet():
            return AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                folder, backend="pil", local_files_only=True
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"encoder.model: {str(folder)!r} has no image processor that loads: {error}"
        ) from error


def probe_picture() -> Image.Image:
    """A fixed pattern, of no class and wider than high."""
    rows, columns = np.mgrid[0:48, 0:64]
    colours = [rows * 5, columns * 4, (rows * columns) % 256]
    return Image.fromarray(np.stack(colours, axis=-1).astype(np.uint8))


def of_one_size(batch: Sequence[Ready]) -> list[list[int]]:
    """Positions of the images that share a shape."""
    groups: dict[torch.Size, list[int]] = {}
    for place, ready in enumerate(batch):
        groups.setdefault(ready.shape, []).append(place)
    return list(groups.values())


def in_order(encoded: Encoded) -> Encoded:
    return encoded.rows(np.lexsort((encoded.units, encoded.inputs)))
