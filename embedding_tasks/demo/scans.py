"""Handwritten digits: images in the demo's production database."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from embedding_tasks.connections import Connection
from embedding_tasks.demo import corpora
from embedding_tasks.demo.calendar import spread

# The last tenth has not been read by a person yet.
LABELLED = 0.9


def create(source: Connection) -> int:
    pixels, digits = corpora.digits()
    mixed = np.random.default_rng(0).permutation(len(digits))
    with source.cursor().copy("COPY public.scans FROM STDIN") as out:
        for n, place in enumerate(mixed.tolist()):
            split, at = spread(n / len(mixed))
            digit = str(digits.iloc[place]) if n < LABELLED * len(mixed) else None
            png = _png(pixels.iloc[place].to_numpy(np.uint8).reshape(28, 28))
            out.write_row((n + 1, png, f"scan-{n + 1:04}.png", digit, split, at))
    return len(mixed)


def _png(grey: np.ndarray) -> bytes:
    written = io.BytesIO()
    Image.fromarray(grey).save(written, "PNG")
    return written.getvalue()
