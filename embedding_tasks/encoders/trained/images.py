"""Images as numbers: small squares in grey or colour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from embedding_tasks.encoders import pictures

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
