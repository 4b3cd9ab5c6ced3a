"""Handwritten digits, out of focus or askew: vectors and predictions of the demo's
Vision Transformer (four layers of 64 dimensions, trained from nothing), which has seen
none of the digits that are dealt. It is a small model, and the only one of images that
needs no download."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from benchmarks.drift import changes
from benchmarks.drift.rows import SEED, Corpus, Rows, unit
from embedding_tasks.demo import corpora
from embedding_tasks.demo.training import digits
from embedding_tasks.encoders import Runtime, recipe
from embedding_tasks.encoders.image import ImageEncoder
from embedding_tasks.use_case import UseCase

TRAINED, VALIDATED = 1400, 100
BASELINE = 1500
# A radius in pixels of 28, and degrees.
SPOILT = {
    "blur 0.4": (0.4, 0),
    "blur 0.8": (0.8, 0),
    "turned 5°": (0, 5),
    "turned 15°": (0, 15),
}


def corpus() -> Corpus:
    pictures, shown = _pictures()
    known, checked = TRAINED, TRAINED + VALIDATED
    examples = [
        (_png(picture), digit) for picture, digit in zip(pictures, shown, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "digits"
        digits.learn(
            examples[:known], examples[known:checked], model, lambda share: None
        )
        encoder = _encoder(model)
        unseen = pictures[checked:]
        usual = _rows(encoder, unseen)
        spoilt = {
            name: _rows(encoder, [_spoilt(picture, *how) for picture in unseen])
            for name, how in SPOILT.items()
        }
    return Corpus(
        (200, 1000),
        {
            name: partial(changes.dealt, usual, BASELINE, change)
            for name, change in changes.of_the_mix(usual).items()
        }
        | {name: partial(_dealt, usual, rows) for name, rows in spoilt.items()},
    )


def _dealt(
    usual: Rows, spoilt: Rows, rows: int, rng: np.random.Generator
) -> tuple[Rows, Rows]:
    order = rng.permutation(len(usual))
    return usual.only(order[:BASELINE]), spoilt.only(order[BASELINE:][:rows])


def _pictures() -> tuple[list[Image.Image], list[int]]:
    pixels, shown = corpora.digits()
    mixed = np.random.default_rng(SEED).permutation(len(shown))
    grey = pixels.to_numpy(np.uint8)[mixed].reshape(-1, 28, 28)
    return [Image.fromarray(one) for one in grey], shown.to_numpy()[mixed].tolist()


def _spoilt(picture: Image.Image, blur: float, degrees: int) -> Image.Image:
    turned = picture.rotate(degrees, Image.Resampling.BILINEAR)
    return turned.filter(ImageFilter.GaussianBlur(blur))


def _png(picture: Image.Image) -> bytes:
    written = io.BytesIO()
    picture.save(written, "PNG")
    return written.getvalue()


def _rows(encoder: ImageEncoder, pictures: Sequence[Image.Image]) -> Rows:
    encoded = encoder.encode([_png(picture) for picture in pictures])
    classes = [int(predicted.prediction) for predicted in encoded.predictions]
    return Rows(unit(encoded.vectors), np.array(classes, np.int64))


def _encoder(model: Path) -> ImageEncoder:
    case = {
        "name": "digits",
        "source": {"connection": "c", "table": "t", "key": "id", "input": "png"},
        "encoder": {"type": "image", "model": str(model)},
        "pooling": "mean",
        "prediction": "head",
    }
    spec = recipe.all_of(UseCase.model_validate(case))["embedding"].spec
    return ImageEncoder(model, spec, Runtime("cpu"), processes=0)
