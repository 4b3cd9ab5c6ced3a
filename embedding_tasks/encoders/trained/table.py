"""Rows of a table as numbers, in the way that was fitted to the training rows.

A number or a moment is standardised as scikit-learn's `StandardScaler` does it, a null
is the mean; any other column is one-hot as `OneHotEncoder` does it with
`handle_unknown="infrequent_if_exist"`. What never occurred in the training rows has no
input of its own: a network would answer it with an untrained weight.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from embedding_tasks.errors import InputError, ModelError
from embedding_tasks.source.relation import NUMBERS, TIMES

# The commonest values have an input each, all others share one.
MAX_CATEGORIES = 64
# A single row far out would otherwise be all that a training sees.
_FARTHEST = 10.0
# Beyond it a variance is no float any more.
_LARGEST = 1e100

Floats = npt.NDArray[np.float32]
Values = Sequence[str | None]


@dataclass(frozen=True)
class Number:
    """`missing`: there were nulls, and an input that says so."""

    name: str
    moment: bool
    mean: float
    scale: float
    missing: bool

    @property
    def width(self) -> int:
        return 1 + self.missing

    def encode(self, values: Values) -> Floats:
        numbers = _numbers(self.name, values, self.moment)
        null = np.isnan(numbers)
        standard = np.where(null, 0.0, (numbers - self.mean) / self.scale)
        inputs = [standard.clip(-_FARTHEST, _FARTHEST), *([null] * self.missing)]
        return np.stack(inputs, axis=1).astype(np.float32)


@dataclass(frozen=True)
class Category:
    """`other`: rarer values, too, and an input that they share."""

    name: str
    values: tuple[str | None, ...]
    other: bool

    @property
    def width(self) -> int:
        return len(self.values) + self.other

    def encode(self, values: Values) -> Floats:
        place = {value: i for i, value in enumerate(self.values)}
        # a null is no rare value: where none is known it is nothing
        other = len(self.values) if self.other else None
        inputs = np.zeros((len(values), self.width), np.float32)
        for row, value in enumerate(values):
            column = place.get(value, None if value is None else other)
            if column is not None:
                inputs[row, column] = 1
        return inputs


@dataclass(frozen=True)
class Table:
    """`names` are all columns of a row; those of `columns` have inputs."""

    names: tuple[str, ...]
    columns: tuple[Number | Category, ...]

    @property
    def width(self) -> int:
        return sum(column.width for column in self.columns)

    def encode(self, rows: Sequence[Values]) -> Floats:
        """(rows, width). Raises `InputError` where a number is none."""
        by_name = dict(zip(self.names, zip(*rows, strict=True), strict=True))
        return np.concatenate([c.encode(by_name[c.name]) for c in self.columns], axis=1)

    def state(self) -> dict[str, Any]:
        return {"names": self.names, "columns": [asdict(c) for c in self.columns]}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Table:
        return cls(
            tuple(state["names"]),
            tuple(
                Number(**c)
                if "mean" in c
                else Category(c["name"], tuple(c["values"]), c["other"])
                for c in state["columns"]
            ),
        )


def fit(
    names: Sequence[str], types: Sequence[str], rows: Sequence[Values]
) -> tuple[Table, list[str]]:
    """Also says of each column that is left out why. Raises `ModelError` where none
    is left."""
    columns: list[Number | Category] = []
    left_out: list[str] = []
    for name, type_, values in zip(names, types, zip(*rows, strict=True), strict=True):
        base = type_.split("(")[0]
        moment = base.startswith(("timestamp", "date")) and not base.endswith("]")
        fitted = (
            _fit_number(name, values, moment)
            if moment or base in (*NUMBERS, *TIMES)
            else _fit_category(name, values)
        )
        if isinstance(fitted, str):
            left_out.append(fitted)
        else:
            columns.append(fitted)
    if not columns:
        raise ModelError(
            f"source.input: nothing to train on: {'; '.join(left_out)}; name columns "
            "whose values differ and recur"
        )
    return Table(tuple(names), tuple(columns)), left_out


def _fit_number(name: str, values: Values, moment: bool) -> Number | str:
    numbers = _numbers(name, values, moment)
    known = numbers[~np.isnan(numbers)]
    if not len(known):
        return f"column {name!r} is null in all training rows"
    mean, scale = float(known.mean()), float(known.std())
    # a mean of equal numbers is off by rounding
    if known.min() == known.max() or not scale:
        return f"column {name!r} is the same in all training rows"
    return Number(name, moment, mean, scale, missing=len(known) < len(numbers))


def _fit_category(name: str, values: Values) -> Category | str:
    counted = sorted(Counter(values).items(), key=lambda c: (-c[1], c[0] or ""))
    common = [value for value, count in counted if count > 1][:MAX_CATEGORIES]
    other = len(counted) > len(common)
    if len(common) + other < 2:
        if set(values) == {None}:
            return f"column {name!r} is null in all training rows"
        return (
            f"column {name!r} is the same in all training rows"
            if common
            else f"no value of column {name!r} occurs twice in the training rows"
        )
    return Category(name, tuple(common), other)


def _numbers(name: str, values: Values, moment: bool) -> npt.NDArray[np.float64]:
    """NaN where there is none: null, infinity, a moment before the year 1."""
    read = _days if moment else float
    try:
        numbers = np.array(
            [math.nan if v is None else read(v) for v in values], np.float64
        )
    except ValueError:
        raise InputError(
            f"column {name!r} holds no {'moment' if moment else 'number'} by now; if "
            "its type has changed, train anew"
        ) from None
    numbers[~(np.abs(numbers) < _LARGEST)] = math.nan
    return numbers


def _days(text: str) -> float:
    """Since 1970, of a date or a timestamp as PostgreSQL writes them in ISO style."""
    if text.endswith(("infinity", " BC")):
        return math.nan
    if len(text.partition("-")[0]) > 4:
        return math.nan  # beyond the year 9999
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.timestamp() / 86_400
