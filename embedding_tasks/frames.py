"""Decoded columns as pandas and Arrow have them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from embedding_tasks.errors import ConfigError
from embedding_tasks.selection import Column, Selection
from embedding_tasks.store.decode import Cells

if TYPE_CHECKING:
    import pandas
    import pyarrow

METADATA = b"embedline"

_NUMBERS = {
    "bool": ("?", "boolean"),
    "int2": (">i2", "Int16"),
    "int4": (">i4", "Int32"),
    "int8": (">i8", "Int64"),
    "float4": (">f4", None),
    "float8": (">f8", None),
}
_ELEMENTS = {"vector": ">f4", "halfvec": ">f2"}


def to_pandas(chosen: Selection, blocks: Sequence[list[Cells]]) -> pandas.DataFrame:
    import pandas

    data = {
        column.name: _series(column, [block[i] for block in blocks])
        for i, column in enumerate(chosen.columns)
    }
    frame = pandas.DataFrame(data, columns=[column.name for column in chosen.columns])
    frame.attrs["embedline"] = chosen.facts
    return frame


def _series(column: Column, parts: list[Cells]) -> pandas.Series:
    import pandas

    if column.kind in _NUMBERS:
        return _numbers(column, parts)
    if column.kind == "timestamptz":
        return _instants(parts)
    make = _OBJECTS.get(column.kind, _texts)
    values = [value for part in parts for value in make(column, part)]
    if make is _texts and values:
        return pandas.Series(values)
    series = pandas.Series(np.empty(len(values), object))
    series[:] = values
    return series


def _numbers(column: Column, parts: list[Cells]) -> pandas.Series:
    import pandas

    dtype, nullable = _NUMBERS[column.kind]
    none = np.zeros(0, np.dtype(dtype).newbyteorder("="))
    values = np.concatenate([none, *(part.fixed(dtype) for part in parts)])
    valid = np.concatenate([np.zeros(0, bool), *(part.valid for part in parts)])
    if nullable is None:
        values[~valid] = np.nan
    elif not valid.all():
        return pandas.Series(values, dtype=nullable).where(valid)
    return pandas.Series(values)


def _instants(parts: list[Cells]) -> pandas.Series:
    import pandas

    decoded = [part.times() for part in parts]
    times = np.concatenate([np.zeros(0, np.int64), *(times for times, _ in decoded)])
    known = np.concatenate([np.zeros(0, bool), *(known for _, known in decoded)])
    instants = times.view("M8[us]")
    instants[~known] = np.datetime64("NaT")
    return pandas.Series(instants).dt.tz_localize("UTC")


def _texts(column: Column, cells: Cells, skip: int = 0) -> list[str | None]:
    offsets, data = cells.texts(skip)
    bounds = offsets.tolist()
    pairs = pairwise(bounds)
    whole = data.decode()
    if len(whole) == len(data):  # a byte is a character
        texts = [whole[start:stop] for start, stop in pairs]
    else:
        texts = [data[start:stop].decode() for start, stop in pairs]
    return _with_nulls(texts, cells)


def _with_nulls(values: Sequence[Any], cells: Cells) -> list[Any]:
    valid = cells.valid
    if valid.all():
        return list(values)
    return [v if there else None for v, there in zip(values, valid, strict=True)]


def _json(column: Column, cells: Cells) -> list[Any]:
    # the first byte is jsonb's version
    texts = _texts(column, cells, skip=1)
    return [None if text is None else json.loads(text) for text in texts]


def _ranges(column: Column, cells: Cells) -> list[Any]:
    bounds, whole = cells.ranges()
    pairs = map(tuple, bounds.tolist())
    return [p if there else None for p, there in zip(pairs, whole, strict=True)]


def _reals(column: Column, cells: Cells) -> list[Any]:
    offsets, numbers = cells.reals()
    return _with_nulls(np.split(numbers, offsets[1:-1]), cells)


def _vectors(column: Column, cells: Cells) -> list[Any]:
    vectors = cells.vectors(column.dims, _ELEMENTS[column.kind])
    return _with_nulls(vectors, cells)  # type: ignore[arg-type]


_OBJECTS: dict[str, Callable[[Column, Cells], list[Any]]] = {
    "jsonb": _json,
    "int4range": _ranges,
    "reals": _reals,
    "vector": _vectors,
    "halfvec": _vectors,
}


def arrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise ConfigError(
            "Arrow and Parquet need pyarrow: pip install 'embedline[arrow]'"
        ) from None
    return pyarrow


def schema(chosen: Selection, facts: Mapping[str, Any] | None = None) -> pyarrow.Schema:
    """With where the rows come from, and what else is to be known of them."""
    pa = arrow()
    fields = [
        pa.field(
            column.name,
            _type(column),
            metadata={"embedline": "json"} if column.kind == "jsonb" else None,
        )
        for column in chosen.columns
    ]
    return pa.schema(
        fields, metadata={METADATA: json.dumps({**chosen.facts, **(facts or {})})}
    )


def _type(column: Column) -> Any:
    pa = arrow()
    if column.is_vector:
        element = pa.float32() if column.kind == "vector" else pa.float16()
        return pa.list_(element, column.dims)
    return {
        "bool": pa.bool_(),
        "int2": pa.int16(),
        "int4": pa.int32(),
        "int8": pa.int64(),
        "float4": pa.float32(),
        "float8": pa.float64(),
        "timestamptz": pa.timestamp("us", tz="UTC"),
        "int4range": pa.struct({"start": pa.int32(), "stop": pa.int32()}),
        "reals": pa.list_(pa.float32()),
    }.get(column.kind, pa.string())


def to_table(chosen: Selection, blocks: Sequence[list[Cells]]) -> pyarrow.Table:
    made = schema(chosen)
    batches = [to_batch(chosen, block, made) for block in blocks]
    return arrow().Table.from_batches(batches, made)


def to_batch(
    chosen: Selection, block: list[Cells], made: pyarrow.Schema
) -> pyarrow.RecordBatch:
    """`made` is the selection's schema."""
    arrays = [
        _array(column, cells, made.field(i).type)
        for i, (column, cells) in enumerate(zip(chosen.columns, block, strict=True))
    ]
    return arrow().RecordBatch.from_arrays(arrays, schema=made)


def _array(column: Column, cells: Cells, kind: Any) -> Any:
    pa = arrow()
    if column.is_vector:
        vectors = cells.vectors(column.dims, _ELEMENTS[column.kind])
        flat = pa.array(vectors.reshape(-1), kind.value_type)
        return pa.FixedSizeListArray.from_arrays(
            flat, type=kind, mask=_mask(cells.valid)
        )
    if column.kind in _NUMBERS:
        return pa.array(cells.fixed(_NUMBERS[column.kind][0]), kind, ~cells.valid)
    if column.kind == "timestamptz":
        times, known = cells.times()
        return pa.array(times.view("M8[us]"), pa.timestamp("us"), ~known).cast(kind)
    if column.kind == "int4range":
        bounds, whole = cells.ranges()
        ends = [pa.array(np.ascontiguousarray(end)) for end in bounds.T]
        return pa.StructArray.from_arrays(ends, fields=list(kind), mask=_mask(whole))
    if column.kind == "reals":
        offsets, numbers = cells.reals()
        return pa.ListArray.from_arrays(offsets, numbers, mask=_mask(cells.valid))
    offsets, data = cells.texts(skip=column.kind == "jsonb")
    absent = pa.array(cells.valid)
    return pa.Array.from_buffers(
        kind,
        len(cells.lengths),
        [absent.buffers()[1], pa.py_buffer(offsets), pa.py_buffer(data)],
    )


def _mask(valid: Any) -> Any:
    return arrow().array(~valid)
