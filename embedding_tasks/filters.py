"""What a reading is of: conditions over the columns of a use case's view, from a
mapping of few keys, the same as the searches in SQL take. Every value is a quoted
literal; there is no way to give SQL."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, date, datetime
from typing import Any, LiteralString

from psycopg import sql

from embedding_tasks.errors import SearchError, valid_choices

Filter = Mapping[str, Any]


def condition(filter: Filter | None, columns: Collection[str]) -> sql.Composable:
    """A boolean expression over `columns`, those of the relation that is asked.

    prediction, label, environment, key: a value, or several of which any will do; None:
    there is none. misclassified: prediction and label differ
    (False: are equal). labelled: there is a label, or none. score: from, to, both
    included. event_time: from on, before; without a zone it is UTC. Either end may be
    None. tags: those a record has at least. Raises `SearchError`."""
    conditions = []
    for name, value in (filter or {}).items():
        if name not in _CONDITIONS:
            raise SearchError(
                f"filter: no key {valid_choices(name, list(_CONDITIONS))}"
            )
        needed, make = _CONDITIONS[name]
        if missing := [c for c in needed if c not in columns]:
            raise SearchError(
                f"filter {name} needs the column {missing[0]!r}, which is not here"
            )
        conditions.append(make(name, value))
    return sql.SQL(" AND ").join(conditions) if conditions else sql.SQL("true")


def _one_of(name: str, value: Any) -> sql.Composed:
    column = sql.Identifier(name)
    values = value if isinstance(value, list | tuple | set) else [value]
    texts = [_text(name, given) for given in values if given is not None]
    conditions = []
    if texts or not values:
        any_of = sql.SQL("{} = ANY ({}::text[])")
        conditions.append(any_of.format(column, sql.Literal(texts)))
    if None in values:
        conditions.append(sql.SQL("{} IS NULL").format(column))
    return sql.SQL("({})").format(sql.SQL(" OR ").join(conditions))


def _text(name: str, value: Any) -> str:
    """A number or a truth value as JSON writes it."""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if not isinstance(value, str):
        raise _refused(name, value, "a value or a list of values")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _refused(name, value, "a text of whole characters") from None
    if "\0" in value:
        raise _refused(name, value, "a text without NUL, which Postgres cannot hold")
    return value


def _misclassified(name: str, value: Any) -> sql.Composed:
    operator = sql.SQL("<>" if _truth(name, value) else "=")
    return sql.SQL("prediction {} label").format(operator)


def _labelled(name: str, value: Any) -> sql.Composed:
    is_so = sql.SQL("IS NOT NULL" if _truth(name, value) else "IS NULL")
    return sql.SQL("label {}").format(is_so)


def _truth(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refused(name, value, "true or false")
    return value


def _score(name: str, value: Any) -> sql.Composed:
    def number(bound: Any) -> sql.Composed:
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            raise _refused(name, value, "[from, to], numbers or null")
        return sql.SQL("{}::float8").format(sql.Literal(float(bound)))

    return _between(name, value, number, "<=")


def _event_time(name: str, value: Any) -> sql.Composed:
    def instant(bound: Any) -> sql.Composed:
        try:
            when = _instant(bound)
        except ValueError:
            raise _refused(
                name, value, "[from, before], as 2026-01-31 or 2026-01-31T12:00Z"
            ) from None
        return sql.SQL("{}::timestamptz").format(sql.Literal(when.isoformat()))

    return _between(name, value, instant, "<")


def _instant(value: Any) -> datetime:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    elif isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        raise ValueError
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _between(
    name: str, value: Any, literal: Callable[[Any], sql.Composed], below: LiteralString
) -> sql.Composed:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise _refused(name, value, "two values, of which either may be null")
    parts = [
        sql.SQL("{} {} {}").format(
            sql.Identifier(name),
            sql.SQL(operator),
            literal(bound),
        )
        for operator, bound in zip((">=", below), value, strict=True)
        if bound is not None
    ]
    known = sql.SQL("{} IS NOT NULL").format(sql.Identifier(name))
    return sql.SQL(" AND ").join(parts or [known])


def _tags(name: str, value: Any) -> sql.Composed:
    if not isinstance(value, Mapping):
        raise _refused(name, value, "a mapping of tags to values")
    try:
        text = json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError):
        raise _refused(name, value, "values that JSON has") from None
    if "\\u0000" in text:
        raise _refused(name, value, "texts without NUL, which Postgres cannot hold")
    return sql.SQL("tags @> {}::jsonb").format(sql.Literal(text))


def _refused(name: str, value: Any, valid: str) -> SearchError:
    return SearchError(f"filter {name}: {value!r} is not valid; valid: {valid}")


_CONDITIONS: dict[str, tuple[tuple[str, ...], Callable[[str, Any], sql.Composed]]] = {
    "key": (("key",), _one_of),
    "prediction": (("prediction",), _one_of),
    "label": (("label",), _one_of),
    "labelled": (("label",), _labelled),
    "misclassified": (("prediction", "label"), _misclassified),
    "score": (("score",), _score),
    "event_time": (("event_time",), _event_time),
    "environment": (("environment",), _one_of),
    "tags": (("tags",), _tags),
}
