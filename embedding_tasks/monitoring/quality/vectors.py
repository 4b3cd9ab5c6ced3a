"""Vectors of the store as arrays, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.store import decode
from embedding_tasks.store.versions import ModelVersion

Vectors = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

ROWS_PER_BLOCK = 10_000
_ELEMENTS = {"vector": ">f4", "halfvec": ">f2"}


@dataclass(frozen=True)
class Block:
    """`vectors` (rows, dims), and whose each is. A `hash` is of the input it was made
    of."""

    keys: list[str]
    units: list[int]
    hashes: list[bytes]
    vectors: Vectors

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def of(cls, version: ModelVersion, blocks: Iterable[Block]) -> Block:
        """All of them in one."""
        whole = cls([], [], [], np.zeros((0, version.dims), np.float32))
        parts = [whole, *blocks]
        return cls(
            [key for part in parts for key in part.keys],
            [unit for part in parts for unit in part.units],
            [digest for part in parts for digest in part.hashes],
            np.concatenate([part.vectors for part in parts]),
        )

    def without_vectors(self) -> Block:
        return replace(self, vectors=self.vectors[:, :0].copy())


def read(
    store: Connection,
    version: ModelVersion,
    rows: sql.Composable,
    given: Mapping[str, Any],
) -> Iterator[Block]:
    """`rows` is what follows the columns of a SELECT, of `v`, the vectors."""
    statement = sql.SQL(
        "COPY (SELECT v.key, v.unit, v.input_hash, v.embedding {}) TO STDOUT"
        " (FORMAT binary)"
    ).format(rows)
    with store.cursor() as cursor, cursor.copy(statement, given) as copy:
        for raw in decode.blocks(copy, ROWS_PER_BLOCK):
            keys, units, hashes, vectors = decode.cells(raw, 4)
            yield Block(
                keys=[key.decode() for key in _bytes(keys)],
                units=units.fixed(">i4").tolist(),
                hashes=_bytes(hashes),
                vectors=_of(version, vectors),
            )


def directions(of: Vectors) -> Vectors:
    """Each of length 1, but for zero."""
    norms = np.linalg.norm(of, axis=1, keepdims=True)
    unit: Vectors = of / np.maximum(norms, np.finfo(np.float32).tiny)
    return unit


def _bytes(cells: decode.Cells) -> list[bytes]:
    offsets, data = cells.texts()
    bounds = offsets.tolist()
    return [data[a:b] for a, b in pairwise(bounds)]


def _of(version: ModelVersion, cells: decode.Cells) -> Vectors:
    vectors = cells.vectors(version.dims, _ELEMENTS[version.storage])
    return vectors.astype(np.float32, copy=False)
