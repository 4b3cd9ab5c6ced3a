"""Images from bytes and addresses, as a person would see them: upright, opaque, RGB."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from embedding_tasks.encoders import addresses
from embedding_tasks.errors import InputError

# A file needs no more than four uncompressed channels of 16 bits, and its metadata.
_BYTES_PER_PIXEL, _METADATA_BYTES = 8, 4 << 20
_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_limit = threading.Lock()


def read(given: bytes | str, max_pixels: int) -> Image.Image:
    """The first frame of an image, turned as its EXIF orientation says, on white where
    it is transparent. Raises `InputError`, or `TransientError` when the store that
    `given` addresses is away."""
    if isinstance(given, str):
        most = max_pixels * _BYTES_PER_PIXEL + _METADATA_BYTES
        named, data = f"{addresses.shown(given)}: ", addresses.fetch(given, most)
    else:
        named, data = "", given
    try:
        with _opened(data, max_pixels) as image:
            return _rgb(_upright(image))
    except InputError as error:
        raise InputError(f"{named}{error}") from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{named}no image, or of a format that Pillow does not read"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # what Pillow's readers raise on broken files is open
        how = "truncated" if "truncated" in str(error) else "broken"
        raise InputError(
            f"{named}the image is {how} ({type(error).__name__})"
        ) from error


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    with _without_pillows_limit():
        opened = Image.open(io.BytesIO(data))
    with opened as image:
        if image.width * image.height > max_pixels:
            raise InputError(
                f"the image has {image.width} x {image.height} pixels; valid: at most "
                f"encoder.max_pixels={max_pixels}"
            )
        image.load()
        yield image


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Pillow warns and refuses by a limit of its own, for the whole process. It is
    lifted while a header is read, after which ours holds."""
    with _limit:
        theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = theirs


def _upright(image: Image.Image) -> Image.Image:
    with suppress(Exception):  # broken EXIF is no broken image
        return ImageOps.exif_transpose(image)
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BITS:
        image = _eight_bits(image)
    if image.mode == "F":
        raise InputError("an image of floats does not say what is white")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image


def _eight_bits(image: Image.Image) -> Image.Image:
    """The high byte, which is also what Pillow takes of 16-bit colours."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise InputError("an image of 32-bit integers does not say what is white")
    return Image.fromarray((values >> 8).astype(np.uint8))
