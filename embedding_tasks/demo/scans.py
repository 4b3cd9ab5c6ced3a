"""Handwritten digits: images in the demo's production database, and what goes wrong
there. From a day on the scanner is out of focus and pages lie askew; and of the sevens
one in seven is labelled a one by mistake."""

from __future__ import annotations

import io
from datetime import date, timedelta

import numpy as np
from PIL import Image, ImageFilter

from embedding_tasks.connections import Connection
from embedding_tasks.demo import corpora
from embedding_tasks.demo.calendar import DAYS, FIRST_DAY, spread

# The last tenth has not been read by a person yet.
LABELLED = 0.9
BLURRED_FROM = FIRST_DAY + timedelta(days=DAYS - 3)
DEGREES, BLUR = 15, 0.8
MISTAKEN, MISTAKEN_FOR, ONE_OF = "7", "1", 7


def create(source: Connection) -> int:
    pixels, digits = corpora.digits()
    mixed = np.random.default_rng(0).permutation(len(digits))
    with source.cursor().copy("COPY public.scans FROM STDIN") as out:
        for n, place in enumerate(mixed.tolist()):
            split, at = spread(n / len(mixed))
            label = _label(str(digits.iloc[place]), split, n)
            digit = label if n < LABELLED * len(mixed) else None
            grey = pixels.iloc[place].to_numpy(np.uint8).reshape(28, 28)
            png = _png(grey, at.date())
            out.write_row((n + 1, png, f"scan-{n + 1:04}.png", digit, split, at))
    return len(mixed)


def is_mistaken(digit: str, split: str, number: int) -> bool:
    return split == "production" and digit == MISTAKEN and number % ONE_OF == 0


def _label(digit: str, split: str, number: int) -> str:
    return MISTAKEN_FOR if is_mistaken(digit, split, number) else digit


def _png(grey: np.ndarray, day: date) -> bytes:
    image = Image.fromarray(grey)
    if day >= BLURRED_FROM:
        turned = image.rotate(DEGREES, Image.Resampling.BILINEAR)
        image = turned.filter(ImageFilter.GaussianBlur(BLUR))
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()
