"""From an image to the numbers a model reads, as the model's own image processor says.

What it does to sizes happens here, in whole numbers; what it does to values (rescale,
normalise) is left to the device, where it costs nothing and a quarter is sent. A
processor that cannot be taken apart so does everything here. No model library is
imported before a processor is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from embedding_tasks.encoders import pictures
from embedding_tasks.errors import InputError, ModelError, TransientError

# By name, as a model takes them, of one image.
Arrays = Mapping[str, npt.NDArray[Any]]
Prepare = Callable[[Image.Image], Arrays]

T = TypeVar("T")

PIXELS = "pixel_values"
# How far values may be from the processor's, which rounds at other steps.
_ROUNDING = 2e-6
# Below this ConvNeXT's processor resizes to more and crops (Liu et al. 2022).
_WARPED_FROM = 384
# Of one chunk, images by address.
_FETCHES = 4
# (width, height): wide, high, narrow, and about what models take.
_SIZES = ((64, 48), (333, 501), (500, 375), (31, 200), (301, 33), (224, 224))


@dataclass(frozen=True)
class Scale:
    """Values of a channel as the model takes them: (value - offset) * factor."""

    offset: tuple[float, ...]
    factor: tuple[float, ...]

    @classmethod
    def of(cls, processor: Any) -> Scale:
        rescale = processor.rescale_factor if processor.do_rescale else 1.0
        mean, std = 0.0, 1.0
        if processor.do_normalize:
            mean, std = processor.image_mean, processor.image_std
        means, stds = np.broadcast_to(mean, 3), np.broadcast_to(std, 3)
        return cls(tuple((means / rescale).tolist()), tuple((rescale / stds).tolist()))

    def __call__(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        offset, factor = (
            np.array(values, np.float32)[:, None, None]
            for values in (self.offset, self.factor)
        )
        scaled: npt.NDArray[np.float32] = (pixels - offset) * factor
        return scaled


@dataclass(frozen=True)
class Plain:
    """Resize and crop by Pillow alone, without the copies that a processor makes for
    the same. `size` and `crop` are (height, width), `shortest` an edge in pixels."""

    size: tuple[int, int] | None = None
    shortest: int | None = None
    crop: tuple[int, int] | None = None
    resample: int = Image.Resampling.BILINEAR

    @classmethod
    def of(cls, processor: Any) -> Plain | None:
        """What a processor's settings say, if they say no more than this."""
        size = _edges(processor, "do_resize", "size")
        crop = _edges(processor, "do_center_crop", "crop_size")
        cropped = (crop["height"], crop["width"]) if crop else None
        resample = int(processor.resample)
        edge, share = size.get("shortest_edge"), getattr(processor, "crop_pct", None)
        if edge and share and edge < _WARPED_FROM:
            return cls(None, int(edge / share), (edge, edge), resample)
        if edge and share:
            return cls((edge, edge), None, None, resample)
        if {*size} == {"shortest_edge"}:
            return cls(None, edge, cropped, resample)
        if {*size} == {"height", "width"}:
            return cls((size["height"], size["width"]), None, cropped, resample)
        return None if size else cls(None, None, cropped, resample)

    def ready(self) -> Prepare:
        return self

    def __call__(self, image: Image.Image) -> Arrays:
        if (size := self._resized(image)) is not None:
            image = image.resize(size, self.resample)
        if self.crop:
            left = (image.width - self.crop[1]) // 2
            top = (image.height - self.crop[0]) // 2
            image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))
        return {PIXELS: np.moveaxis(np.asarray(image), -1, 0)}

    def _resized(self, image: Image.Image) -> tuple[int, int] | None:
        """(width, height)"""
        if self.size:
            return self.size[1], self.size[0]
        if not self.shortest:
            return None
        short, long = sorted(image.size)
        longer = int(self.shortest * long / short)
        wide = image.width > image.height
        return (longer, self.shortest) if wide else (self.shortest, longer)


@dataclass(frozen=True)
class Library:
    """The model's own processor; `whole` with what it does to values."""

    folder: Path
    wants: tuple[str, ...]
    whole: bool = True

    def ready(self) -> Prepare:
        return self.by(load(self.folder))

    def by(self, processor: Any) -> Prepare:
        parts = {} if self.whole else {"do_rescale": False, "do_normalize": False}

        def prepare(image: Image.Image) -> Arrays:
            made = processor(images=image, return_tensors="np", **parts)
            found = {n: np.asarray(made[n]) for n in self.wants if n in made}
            if any(len(array) != 1 for array in found.values()):
                raise ModelError(
                    "encoder.model: its image processor makes several of one image; "
                    "it is not supported"
                )
            return {name: array[0] for name, array in found.items()}

        return prepare


def load(folder: Path) -> Any:
    """Pillow's way of resizing, also where torchvision is installed: theirs differ,
    and an image has one vector on all machines."""
    from transformers import AutoImageProcessor

    from embedding_tasks.encoders import transformer

    try:
        with transformer.quiet():
            return AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                folder, backend="pil", local_files_only=True
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"encoder.model: {str(folder)!r} has no image processor that loads: {error}"
        ) from error


def choose(folder: Path, wants: Sequence[str]) -> tuple[Plain | Library, Scale | None]:
    """The cheapest way to what the processor makes, and what is left for the device.
    A way is taken if it makes the same of pictures of many sizes: the same pixels, and
    the same values but for their rounding."""
    processor = load(folder)
    whole, apart = (Library(folder, tuple(wants), w) for w in (True, False))
    wanted, unscaled = (_made(way.by(processor)) for way in (whole, apart))
    scale = _setting(Scale.of, processor)
    if scale is None or not _are_bytes(unscaled):
        return whole, None
    scaled = [made and {**made, PIXELS: scale(made[PIXELS])} for made in unscaled]
    if not _alike(scaled, wanted, _ROUNDING):
        return whole, None
    plain = _setting(Plain.of, processor)
    if plain is not None and _alike(_made(plain), unscaled, 0):
        return plain, scale
    return apart, scale


def _setting(of: Callable[[Any], T | None], processor: Any) -> T | None:
    """None where the processor has no such settings, or not in this form."""
    try:
        return of(processor)
    except (AttributeError, TypeError, ValueError, KeyError):
        return None


def _edges(processor: Any, switch: str, name: str) -> dict[str, int]:
    if not getattr(processor, switch, None):
        return {}
    edges = dict(getattr(processor, name, None) or {})
    return {edge: pixels for edge, pixels in edges.items() if pixels}


def _made(prepare: Prepare) -> list[Arrays | None]:
    """Of each picture that the ways are compared by; None where it makes nothing."""
    made: list[Arrays | None] = []
    draw = np.random.default_rng(0)
    for width, height in _SIZES:
        noise = draw.integers(0, 256, (height, width, 3), np.uint8)
        try:
            made.append(prepare(Image.fromarray(noise)))
        except Exception:  # whatever a processor raises that takes no such picture
            made.append(None)
    return made


def _are_bytes(made: Sequence[Arrays | None]) -> bool:
    kinds = {m[PIXELS].dtype for m in made if m is not None and PIXELS in m}
    return kinds == {np.dtype(np.uint8)}


def _alike(
    some: Sequence[Arrays | None], others: Sequence[Arrays | None], rounding: float
) -> bool:
    def alike(one: Arrays | None, other: Arrays | None) -> bool:
        if one is None or other is None:
            return one is other
        if {n: a.shape for n, a in one.items()} != {
            n: a.shape for n, a in other.items()
        }:
            return False
        most = rounding * max(1.0, float(np.abs(other[PIXELS]).max()))
        return all(
            np.abs(array.astype(np.float64) - other[name]).max() <= most
            for name, array in one.items()
        )

    return all(map(alike, some, others))


@dataclass(frozen=True)
class Ready:
    """An image as the model takes it, and its (height, width) as it is shown."""

    arrays: Arrays
    size: tuple[int, int]


@dataclass(frozen=True)
class Stack:
    """Images of one shape: their places among the inputs, the (height, width) they are
    shown in, and each of their arrays as (images, …)."""

    places: Sequence[int]
    sizes: Sequence[tuple[int, int]]
    arrays: Arrays

    @classmethod
    def of(cls, images: Mapping[int, Ready]) -> Stack:
        first, *_ = images.values()
        return cls(
            [*images],
            [image.size for image in images.values()],
            {
                name: np.stack([image.arrays[name] for image in images.values()])
                for name in first.arrays
            },
        )

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        return self.arrays[PIXELS].shape[1:]

    def part(self, start: int, stop: int, moved: int = 0) -> Stack:
        """Of these alone, their places moved on."""
        return Stack(
            [place + moved for place in self.places[start:stop]],
            self.sizes[start:stop],
            {name: array[start:stop] for name, array in self.arrays.items()},
        )


@dataclass(frozen=True)
class Prepared:
    """Of a chunk of inputs: what can be encoded, and why the others cannot."""

    stacks: list[Stack]
    failed: dict[int, str]


class Preparer:
    """From bytes and addresses to what a model takes. Raises `TransientError` when a
    store of images is away, `ModelError` where a package for it is missing."""

    def __init__(self, recipe: Plain | Library, max_pixels: int) -> None:
        self._prepare = recipe.ready()
        self._max_pixels = max_pixels

    def __call__(self, chunk: Sequence[bytes | str]) -> Prepared:
        failed: dict[int, str] = {}
        by_shape: dict[Any, dict[int, Ready]] = {}
        for place, made in enumerate(self._all(chunk)):
            if isinstance(made, str):
                failed[place] = made
            else:
                shape = made.arrays[PIXELS].shape
                by_shape.setdefault(shape, {})[place] = made
        return Prepared([Stack.of(images) for images in by_shape.values()], failed)

    def _all(self, chunk: Sequence[bytes | str]) -> Iterator[Ready | str]:
        if len(chunk) == 1 or not any(isinstance(given, str) for given in chunk):
            yield from map(self._one, chunk)
            return
        with ThreadPoolExecutor(_FETCHES) as pool:  # they are waited for
            yield from pool.map(self._one, chunk)

    def _one(self, given: bytes | str) -> Ready | str:
        try:
            return ready(self._prepare, pictures.read(given, self._max_pixels))
        except (ModelError, TransientError, MemoryError):
            raise
        except Exception as error:
            return f"{type(error).__name__}: {error}"


def ready(prepare: Prepare, image: Image.Image) -> Ready:
    try:
        return Ready(prepare(image), (image.height, image.width))
    except (ValueError, ZeroDivisionError, OSError) as error:
        raise InputError(
            f"an image of {image.width} x {image.height} pixels cannot be brought "
            f"to the model's size: {error}"
        ) from error
