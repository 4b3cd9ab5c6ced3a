"""Images as numbers: small squares in grey or colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from embedding_tasks.encoders import pictures
from embedding_tasks.errors import InputError

Bytes = npt.NDArray[np.uint8]
MAX_PIXELS = 50_000_000


def pixels(image: bytes | str, side: int) -> Bytes:
    """(1 or 3, side, side), grey where it has no colour; the whole of it, however long
    and narrow, fills the square. Raises `InputError`, or `TransientError` when the
    store it is addressed in is away."""
    opened = pictures.read(image, MAX_PIXELS)
    small = opened.resize((side, side), Image.Resampling.BILINEAR)
    array = np.moveaxis(np.asarray(small, np.uint8), -1, 0)
    return array[:1] if (array == array[:1]).all() else array


def stacked(images: Sequence[Bytes], channels: int | None = None) -> Bytes:
    """(images, channels, side, side): in colour if one of them is."""
    channels = channels or max(len(image) for image in images)
    return np.stack([_in(image, channels) for image in images])


def _in(image: Bytes, channels: int) -> Bytes:
    if len(image) == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=0)
    return np.asarray(Image.fromarray(np.moveaxis(image, 0, -1)).convert("L"))[None]


@dataclass(frozen=True)
class Opened:
    """Of a chunk: (images, channels, side, side) of those at `places`."""

    pixels: Bytes
    places: list[int]
    failed: dict[int, str]


class Opener:
    """Images to the size that a model was trained on."""

    def __init__(self, side: int, channels: int) -> None:
        self._side, self._channels = side, channels

    def __call__(self, chunk: Sequence[bytes | str]) -> Opened:
        found: dict[int, Bytes] = {}
        failed: dict[int, str] = {}
        for place, image in enumerate(chunk):
            try:
                found[place] = pixels(image, self._side)
            except InputError as error:
                failed[place] = f"InputError: {error}"
        none = np.empty((0, self._channels, self._side, self._side), np.uint8)
        made = stacked([*found.values()], self._channels) if found else none
        return Opened(made, [*found], failed)
