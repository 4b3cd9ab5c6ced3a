"""Columns of the source as SQL: how each comes into the store, or to an encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from psycopg import sql

from embedding_tasks.errors import SourceError
from embedding_tasks.inputs import Form
from embedding_tasks.source.relation import NUMBERS, TIMES, Relation
from embedding_tasks.use_case import Template, UseCase


def is_words(type_: str) -> bool:
    """An array of words, or of their tags."""
    plain = re.sub(r"\(\d+\)", "", type_)
    return plain in ("text[]", "character varying[]", "character[]", "name[]")


def texts(relation: Relation, columns: Sequence[str]) -> tuple[sql.Composable, ...]:
    return tuple(text(relation.column(name, "source.input")) for name in columns)


def value(relation: Relation, name: str) -> sql.Composable:
    """An input as an encoder gets it: bytes, a list of words, or text."""
    column = relation.column(name, "source.input")
    if relation.columns[name] == "bytea":
        return column
    if is_words(relation.columns[name]):
        return sql.SQL("to_json({})").format(column)
    return text(column)


# One value that cannot be taken as it is must not stop the reading of all others.
def moment(relation: Relation, name: str, field_name: str) -> sql.Composable:
    """Null where Python has no such moment: infinity, or beyond the year 9999."""
    return sql.SQL(
        "CASE WHEN {0} BETWEEN '0001-01-02' AND '9999-12-30' THEN {0}::timestamptz END"
    ).format(relation.typed(name, field_name, TIMES))


def score(relation: Relation, name: str) -> sql.Composable:
    """Null where it is not finite, or a numeric too large for float8."""
    return sql.SQL("CASE WHEN abs({0}) <= 1e308 THEN {0}::float8 END").format(
        relation.typed(name, "prediction.score", NUMBERS)
    )


def tag(relation: Relation, name: str) -> sql.Composable:
    """A json column may hold the escape of NUL, which jsonb refuses; a backslash that
    is escaped itself makes it none."""
    column = relation.column(name, "source.tags")
    if relation.columns[name] != "json":
        return column
    return sql.SQL(
        r"regexp_replace({}::text, '(?<!\\)((?:\\\\)*)\\u0000', '\1', 'g')::jsonb"
    ).format(column)


def label(
    relation: Relation,
    name: str,
    field_name: str,
    unit: str,
    words: str | None = None,
) -> sql.Composable:
    """A label as text; of words or entities as JSON: what `embedline.label_rows`
    takes apart."""
    column = relation.column(name, field_name)
    if unit in ("record", "object"):
        return text(column)
    type_ = relation.columns[name]
    if not is_words(type_) and type_ not in ("json", "jsonb"):
        raise SourceError(
            f"{field_name}: column {name!r} is of type {type_!r}; valid where words "
            "or entities have vectors: an array of tags, text[], or json with tags or "
            'with [{"start": 0, "end": 6, "label": "person"}, …]'
        )
    if unit == "entity" and is_words(type_) and words is None:
        raise SourceError(
            f"{field_name}: tags need the words they are given to beside them (the "
            "input a text[] of the same table); valid else: json with the characters "
            'of each entity, [{"start": 0, "end": 6, "label": "person"}, …]'
        )
    return sql.SQL(
        "CASE WHEN {0} IS NOT NULL"
        " THEN json_build_object('label', {0}, 'words', {1})::text END"
    ).format(column, sql.Identifier(words) if words else sql.SQL("NULL::text[]"))


def text(column: sql.Composable) -> sql.Composable:
    return sql.SQL("{}::text").format(column)


def key(
    relation: Relation, columns: tuple[str, ...], field_name: str
) -> sql.Composable:
    parts = [text(relation.column(name, field_name)) for name in columns]
    arrays = [name for name in columns if relation.columns[name].endswith("[]")]
    if arrays:
        raise SourceError(
            f"{field_name}: column {arrays[0]!r} is of type "
            f"{relation.columns[arrays[0]]!r}; valid: columns of a scalar type"
        )
    if len(parts) == 1:
        return parts[0]
    return sql.SQL("CASE WHEN num_nulls({0}) = 0 THEN to_jsonb(ARRAY[{0}])::text END")\
        .format(sql.SQL(", ").join(parts))  # fmt: skip


def digest(inputs: tuple[sql.Composable, ...]) -> sql.Composable:
    """A row's text form tells NULL from the empty string and one column from two."""
    columns = sql.SQL(", ").join(inputs)
    return sql.SQL(
        "CASE WHEN num_nonnulls(VARIADIC ARRAY[{0}]) > 0"
        " THEN sha256(convert_to(ROW({0})::text, 'UTF8')) END"
    ).format(columns)


def data(relation: Relation, form: Form, use_case: UseCase) -> sql.Composable:
    """In SQL what `Form.kept` and `UseCase.kept` do in Python."""
    keep = use_case.storage.data
    values = {name: _readable(relation, name) for name in form.columns}
    if keep == "none" or (
        form.kind == "image" and relation.columns[form.columns[0]] == "bytea"
    ):
        return sql.SQL("NULL::text")
    template = form.template
    if template is None:
        parts: list[sql.Composable] = [*values.values()]
    elif template.each:
        parts = [
            sql.SQL("CASE WHEN {} IS NOT NULL THEN {} END").format(
                value,
                _said(template, {"column": sql.Literal(name), "value": value}),
            )
            for name, value in values.items()
        ]
    else:
        parts = [_said(template, values)]
    joined = sql.SQL("array_to_string(ARRAY[{}], {})").format(
        sql.SQL(", ").join(parts), sql.Literal(form.separator)
    )
    return joined if keep == "all" else sql.SQL("left({}, {})").format(joined, keep)


def _readable(relation: Relation, name: str) -> sql.Composable:
    column = relation.column(name, "source.input")
    if is_words(relation.columns[name]):
        return sql.SQL("array_to_string({}, ' ', '')").format(column)
    return text(column)


def _said(template: Template, values: Mapping[str, sql.Composable]) -> sql.Composable:
    pieces = [
        piece
        for literal, name in template.pieces
        for piece in (
            sql.Literal(literal),
            sql.SQL("''") if name is None else values[name],
        )
    ]
    return sql.SQL("array_to_string(ARRAY[{}], '')").format(sql.SQL(", ").join(pieces))


def trusted(text: str) -> sql.SQL:
    """SQL that a use case's author wrote, or a type name the source itself printed.
    It runs with the source role's rights, in a read-only transaction."""
    return sql.SQL(text)
