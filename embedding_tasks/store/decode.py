"""Postgres' binary COPY format back into arrays, column by column.

Rows have fields of varying length, so every row has a place of its own in a block of
bytes. All rows step from field to field together: one gather of their lengths, one of
their values. Nothing is done row by row but cutting texts.

Source: PostgreSQL's COPY documentation, "Binary Format", and the `_send` function of
each type (pgvector: `vector_send`, `halfvec_send`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedding_tasks.store.copy import HEADER, TRAILER

Ints = npt.NDArray[np.int64]
Valid = npt.NDArray[np.bool_]

# A block is as many rows as are asked for, or as this many bytes hold.
BYTES_PER_BLOCK = 64_000_000

# Postgres counts microseconds from 2000-01-01 on, numpy from 1970-01-01 on.
_EPOCH = np.int64(946_684_800_000_000)
_INFINITE = (np.iinfo(np.int64).max, np.iinfo(np.int64).min)


@dataclass(frozen=True)
class Cells:
    """One column of a block: where each value begins, and its bytes; -1 for null."""

    raw: bytes
    starts: Ints
    lengths: Ints

    @property
    def block(self) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self.raw, np.uint8)

    @property
    def valid(self) -> Valid:
        return self.lengths >= 0

    def fixed(self, dtype: Any, skip: int = 0) -> npt.NDArray[Any]:
        """Of values that all have this type at `skip` bytes from their start; zero
        where null. In this machine's byte order."""
        dtype = np.dtype(dtype)
        valid = self.valid
        taken = _at(self.block, self.starts[valid] + skip, dtype)
        native = taken.astype(dtype.newbyteorder("="), copy=False)
        if valid.all():
            return native
        out = np.zeros((len(valid), *native.shape[1:]), native.dtype)
        out[valid] = native
        return out

    def texts(self, skip: int = 0) -> tuple[npt.NDArray[np.int32], bytes]:
        """Offsets, one more than values, and all bytes from `skip` on in a row."""
        lengths = np.maximum(self.lengths - skip, 0)
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        there = lengths > 0
        starts = (self.starts + skip)[there]
        cut = zip(starts.tolist(), (starts + lengths[there]).tolist(), strict=True)
        raw = self.raw
        data = b"".join([raw[start:stop] for start, stop in cut])
        return offsets.astype(np.int32), data

    def vectors(self, dims: int, element: str) -> npt.NDArray[Any]:
        """(rows, dims), of `element` '>f4' or '>f2'; zero where null."""
        dtype = np.dtype(element)
        lengths = self.lengths[self.valid]
        if (lengths != 4 + dims * dtype.itemsize).any():
            raise ValueError(f"a vector is not of {dims} dimensions")
        whole = np.dtype(("V", dims * dtype.itemsize))
        raw = self.fixed(whole, skip=4)
        shaped = raw.view(dtype).reshape(len(self.lengths), dims)
        return shaped.byteswap(inplace=True).view(dtype.newbyteorder())

    def times(self) -> tuple[Ints, Valid]:
        """Microseconds since 1970-01-01 UTC. Infinite ones count as null."""
        values = self.fixed(">i8")
        valid = self.valid & ~np.isin(values, _INFINITE)
        return np.where(valid, values + _EPOCH, 0), valid

    def ranges(self) -> tuple[npt.NDArray[np.int32], Valid]:
        """(rows, 2) of int4range, canonical: the start included, the end not. Empty
        ones, and those without a bound, count as null."""
        whole = self.lengths == 17  # flags, and two bounds with their lengths
        bounded = Cells(self.raw, self.starts, np.where(whole, self.lengths, -1))
        start, stop = bounded.fixed(">i4", skip=5), bounded.fixed(">i4", skip=13)
        return np.stack([start, stop], axis=1), whole

    def reals(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Offsets, one more than values, and all numbers of real[] in a row."""
        raw = self.block
        lists = [
            _reals(raw[start : start + length]) if length > 0 else _NO_REALS
            for start, length in zip(self.starts, self.lengths, strict=True)
        ]
        offsets = np.zeros(len(lists) + 1, np.int32)
        np.cumsum([len(numbers) for numbers in lists], out=offsets[1:])
        return offsets, np.concatenate([*lists, _NO_REALS])


_NO_REALS = np.zeros(0, np.float32)


def _reals(raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    dimensions = int(raw[:4].view(">i4")[0])
    head = 12 + 8 * dimensions
    layout = np.dtype([("bytes", ">i4"), ("value", ">f4")])
    body = raw[head:]
    if len(body) % layout.itemsize:
        raise ValueError("an array of numbers has nulls in it")
    return body.view(layout)["value"].astype(np.float32)


def _at(
    block: npt.NDArray[np.uint8], starts: Ints, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """A value of this type at each place, however it is aligned."""
    if not len(starts):
        return np.zeros(0, dtype)
    places = np.ndarray(len(block) - dtype.itemsize + 1, dtype, block, strides=(1,))
    return places[starts]


def blocks(
    messages: Iterable[bytes | bytearray | memoryview], rows: int
) -> Iterator[Sequence[bytes]]:
    """The rows of a binary COPY, so many at a time. A server sends each row as a
    message of its own (PostgreSQL's protocol, "COPY Operations")."""
    held: list[bytes] = []
    size = 0
    for message in messages:
        row = bytes(message)
        if row.startswith(HEADER[:11]):  # before the first row, in its message
            row = row[len(HEADER) :]
        if not row or row == TRAILER:
            continue
        held.append(row)
        size += len(row)
        if len(held) >= rows or size >= BYTES_PER_BLOCK:
            yield held
            held, size = [], 0
    if held:
        yield held


def cells(rows: Sequence[bytes], columns: int) -> list[Cells]:
    """Each column of a block of rows. Raises `ValueError` where they are no such
    rows."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    raw = b"".join(rows)
    block = np.frombuffer(raw, np.uint8)
    ends = np.cumsum(lengths)
    places = ends - lengths
    if (_at(block, places, np.dtype(">i2")) != columns).any():
        raise ValueError(f"a row has not {columns} columns")
    places = places + 2
    found = []
    for _ in range(columns):
        sizes = _at(block, places, np.dtype(">i4")).astype(np.int64)
        places = places + 4
        found.append(Cells(raw, places, sizes))
        places = places + np.maximum(sizes, 0)
    if (places != ends).any():
        raise ValueError("a row does not end where it should")
    return found
