"""Images through a vision model of the Hugging Face library.

Images are fetched, decoded and brought to the model's size ahead of it, in processes
where the model is on a device of its own. Only images that come out of that with one
shape share a forward pass, so none is ever padded to another's; where all have one,
all passes but the last have one number of images.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from embedding_tasks.encoders import (
    Runtime,
    acceleration,
    devices,
    preparing,
    preprocessing,
    transfer,
    transformer,
)
from embedding_tasks.encoders.detector import Detector
from embedding_tasks.encoders.encoded import Encoded, joined
from embedding_tasks.encoders.preparing import Preparation
from embedding_tasks.encoders.preprocessing import PIXELS, Prepared, Scale, Stack
from embedding_tasks.encoders.vision import Vision
from embedding_tasks.errors import InputError, ModelError, Stopped

log = logging.getLogger(__name__)

# Images that a process makes at a time: 5 MB of 224 x 224, so that a few dozen of them
# under way are little memory.
_CHUNK = 32
# What of `batch.tokens` an image takes: one for each square of 16 by 16 pixels that
# the model sees, whatever it makes of them.
_PIXELS_PER_TOKEN = 256
# Images that wait for others of their shape, in batches.
_WAITING = 4

Later = Callable[[], Encoded]


class Model(Protocol):
    device: torch.device
    dtype: torch.dtype

    @property
    def network(self) -> nn.Module: ...

    @property
    def wants(self) -> Sequence[str]: ...

    def __call__(
        self, pixels: dict[str, Tensor], sizes: Sequence[tuple[int, int]]
    ) -> Later:
        """Images of one size, `pixel_values` (batch, channels, height, width) and what
        else the model `wants`, and the (height, width) they are shown in. The work is
        launched; what comes back waits for it."""
        ...


@dataclass(frozen=True)
class Batch:
    """Images of one shape, in the pieces they came in."""

    stacks: Sequence[Stack]

    def __len__(self) -> int:
        return sum(map(len, self.stacks))

    @property
    def places(self) -> list[int]:
        return [place for stack in self.stacks for place in stack.places]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [size for stack in self.stacks for size in stack.sizes]

    @property
    def tokens(self) -> int:
        """Of one image."""
        height, width = self.stacks[0].shape[-2:]
        return max(1, height * width // _PIXELS_PER_TOKEN)

    def split(self, count: int) -> tuple[Batch, Batch]:
        """The first so many, and the others."""
        left: list[Stack] = []
        right: list[Stack] = []
        for stack in self.stacks:
            taken = min(count, len(stack))
            count -= taken
            left += [stack.part(0, taken)] if taken else []
            right += [stack.part(taken, len(stack))] if taken < len(stack) else []
        return Batch(left), Batch(right)


class ImageEncoder:
    """`spec` is a model version's. Images are prepared in so many processes; of None,
    in threads beside a model on the CPU, and on all cores but two beside any other."""

    def __init__(
        self,
        folder: Path,
        spec: dict[str, Any],
        runtime: Runtime,
        *,
        processes: int | None = None,
    ) -> None:
        self._stopped = runtime.stopped
        device = devices.choose(runtime.device)
        detects = spec["pooling"] == "queries" or isinstance(spec["pooling"], dict)
        kind: Callable[..., Model] = Detector if detects else Vision
        self._model = kind(folder, spec, device)
        network = self._model.network
        self._budget = devices.Budget(runtime.tokens, network, device, spec["weights"])
        # what hooks keep of a pass is one thread's at a time
        self._launching = threading.Lock()
        recipe, scale = preprocessing.choose(folder, self._model.wants)
        self._prepare = recipe.ready()
        self._scaled = scaled_on(device, scale) if scale else None
        self.shared = device.type == "cuda"
        self._processes = (
            devices.processes_beside(device) if processes is None else processes
        )
        self._preparation: Preparation[Prepared] = Preparation(
            preprocessing.Preparer,
            *(recipe, spec["encoder"]["max_pixels"]),
            processes=self._processes,
            threads=preparing.THREADS,
            stopped=runtime.stopped,
        )
        self._refuse_what_does_not_fit()
        self._accelerate()
        self._tokens = self._of([probe_picture()]).tokens  # of an image, about

    def surroundings(self) -> dict[str, str]:
        return devices.described(self._model.device, self._model.dtype)

    def encode(self, inputs: Sequence[bytes | str]) -> Encoded:
        failed: dict[int, str] = {}
        parts: list[tuple[Sequence[int], Encoded]] = []
        launched: deque[tuple[Sequence[int], Later]] = deque()
        for batch in self.batches(inputs, failed):
            if self._stopped.is_set():
                raise Stopped("stopped between two batches of images")
            launched += self._within_memory(batch)
            while len(launched) > 1:  # the device has work while one is waited for
                parts.append(arrived(*launched.popleft()))
        parts += [arrived(*each) for each in launched]
        return replace(in_order(joined(parts, len(inputs))), failed=failed)

    def probe(self) -> Encoded:
        return self.forward(self._of([probe_picture()]))()

    def prepared(
        self, inputs: Sequence[bytes | str]
    ) -> Iterator[tuple[range, Prepared]]:
        """In order, about a batch ahead of whoever takes it."""
        chunk = 1
        if self._processes:
            chunk = max(1, min(_CHUNK, len(inputs) // self._processes))
        return self._preparation.run(inputs, chunk, self._budget.tokens // self._tokens)

    def batches(
        self, inputs: Sequence[bytes | str], failed: dict[int, str]
    ) -> Iterator[Batch]:
        """What cannot be prepared goes to `failed`."""
        waiting = Waiting(self._budget.tokens)
        for places, prepared in self.prepared(inputs):
            failed |= {places.start + i: why for i, why in prepared.failed.items()}
            for stack in prepared.stacks:
                yield from waiting.add(stack.part(0, len(stack), places.start))
        yield from waiting.rest()

    def _within_memory(self, batch: Batch) -> list[tuple[Sequence[int], Later]]:
        def forward(chosen: Sequence[int]) -> tuple[Sequence[int], Later]:
            some = batch.split(chosen[-1] + 1)[0].split(chosen[0])[1]
            return some.places, self.forward(some)

        size = batch.stacks[0].shape[-2:]
        return self._budget.run(
            forward,
            range(len(batch)),
            lambda i: batch.tokens,
            lambda i: f"one image of {size} pixels",
        )

    def forward(self, batch: Batch) -> Later:
        """Launches it; what comes back waits for its vectors, in the batch's order."""
        model = self._model
        with torch.inference_mode(), devices.errors():
            pixels = {
                name: transfer.to_device(
                    [stack.arrays[name] for stack in batch.stacks], model.device
                )
                for name in batch.stacks[0].arrays
            }
            if self._scaled is not None:
                pixels[PIXELS] = self._scaled(pixels[PIXELS])
            pixels[PIXELS] = pixels[PIXELS].to(model.dtype)
            with self._launching:
                return model(pixels, batch.sizes)

    def _of(self, images: Sequence[Image.Image]) -> Batch:
        ready = [preprocessing.ready(self._prepare, image) for image in images]
        return Batch([Stack.of(dict(enumerate(ready)))])

    def _refuse_what_does_not_fit(self) -> None:
        """Whatever an architecture is: it takes what its image processor makes, and
        an image's vector is the same every time and beside any other."""
        picture = probe_picture()
        other = picture.transpose(Image.Transpose.ROTATE_180)
        try:
            alone = self.forward(self._of([picture]))().vectors
            beside = self.forward(self._of([other, picture]))().only([1]).vectors
        except (InputError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise ModelError(
                "encoder.model: the model does not take what its image processor "
                f"makes: {error}"
            ) from error
        if alone.shape != beside.shape:
            raise changes("number")
        if not (drift := drifted(alone, beside)) < transformer.DRIFT[self._model.dtype]:
            raise changes(f"values (by {drift:.1e} of their size)")

    def _accelerate(self) -> None:
        if not acceleration.usable(self._model.device):
            return
        plain = self.probe().vectors
        undo = acceleration.accelerate(self._model.network, self._model.device)
        fast = self.probe().vectors
        least = transformer.DRIFT[self._model.dtype]
        if fast.shape != plain.shape or not drifted(plain, fast) < least:
            log.info("running as loaded: with fast kernels the vectors change")
            undo()


def drifted(vectors: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> float:
    """Relative to the size of the first ones; nothing where there are none."""
    if not len(vectors):
        return 0.0
    return float(np.abs(vectors - others).max() / np.abs(vectors).max())


def changes(what: str) -> ModelError:
    return ModelError(
        f"encoder.model: with this model the {what} of an image's vectors changes from "
        "one time to the next, or with the images beside it; it is not supported"
    )


class Waiting:
    """Images until there are enough of one shape to fill a batch of `budget` tokens,
    or too many of all."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._held: dict[tuple[int, ...], Batch] = {}

    def add(self, stack: Stack) -> Iterator[Batch]:
        held = self._held.get(stack.shape, Batch([]))
        batch = self._held[stack.shape] = Batch([*held.stacks, stack])
        full = max(1, self._budget // batch.tokens)
        while len(batch) >= full:
            taken, batch = batch.split(full)
            yield taken
        self._held[stack.shape] = batch
        if not len(batch):
            del self._held[stack.shape]
        while self._tokens() > _WAITING * self._budget:
            yield self._held.pop(max(self._held, key=lambda s: len(self._held[s])))

    def rest(self) -> Iterator[Batch]:
        yield from self._held.values()

    def _tokens(self) -> int:
        return sum(len(batch) * batch.tokens for batch in self._held.values())


def scaled_on(device: torch.device, scale: Scale) -> Callable[[Tensor], Tensor]:
    """The processor's values of pixels in whole numbers, float32 whatever follows."""
    offset, factor = (
        torch.tensor(values, device=device)[:, None, None]
        for values in (scale.offset, scale.factor)
    )

    def scaled(pixels: Tensor) -> Tensor:
        return torch.sub(pixels, offset).mul_(factor)

    return scaled


def arrived(places: Sequence[int], later: Later) -> tuple[Sequence[int], Encoded]:
    with devices.errors():
        return places, later()


def probe_picture() -> Image.Image:
    """A fixed pattern, of no class and wider than high."""
    rows, columns = np.mgrid[0:48, 0:64]
    colours = [rows * 5, columns * 4, (rows * columns) % 256]
    return Image.fromarray(np.stack(colours, axis=-1).astype(np.uint8))


def in_order(encoded: Encoded) -> Encoded:
    return encoded.rows(np.lexsort((encoded.units, encoded.inputs)))
