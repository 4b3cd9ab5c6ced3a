"""Images as numbers: small squares in grey or colour."""

from __future__ import annotations

import io
from collections.abc import Sequence

import fsspec
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from embedding_tasks.errors import InputError

Bytes = npt.NDArray[np.uint8]

_GREY = ("1", "L", "LA", "I", "I;16")


def pixels(image: bytes | str, side: int) -> Bytes:
    """(1 or 3, side, side), of an image's own channels; the whole of it, however long
    and narrow, fills the square. Raises `InputError`."""
    opened = _open(image)
    mode = "L" if opened.mode in _GREY else "RGB"
    small = opened.convert(mode).resize((side, side), Image.Resampling.BILINEAR)
    array = np.asarray(small, np.uint8)
    return array[None] if mode == "L" else np.moveaxis(array, -1, 0)


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


def _open(image: bytes | str) -> Image.Image:
    try:
        if isinstance(image, str):
            with fsspec.open(image, "rb") as file:
                content: bytes = file.read()
        else:
            content = image
        return ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    except Exception as error:
        raise InputError(f"is no image: {type(error).__name__}: {error}") from error
