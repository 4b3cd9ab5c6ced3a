"""What is taken of the source, as SQL that the source runs.

Keys travel as text and inputs as SHA-256, both made by the source itself, so that one
expression decides what "changed" means wherever a row is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.errors import SourceError
from embedding_tasks.inputs import Form
from embedding_tasks.source import expressions
from embedding_tasks.source.expressions import is_words
from embedding_tasks.source.relation import (
    TIMES,
    Relation,
    of_query,
    of_table,
)
from embedding_tasks.use_case import (
    Column,
    Feature,
    LabelTable,
    PredictionColumn,
    UseCase,
)

_ANY = sql.SQL("true")


@dataclass(frozen=True)
class Extract:
    """What is taken from one relation: a key and fields for each row. `filter` is the
    text that `where` was made of. `inputs` are the columns an encoder sees; `followed`
    says, for each live model version, whether the relation still has the columns its
    vectors are made of."""

    relation: Relation
    key_columns: tuple[str, ...]
    key: sql.Composable
    fields: Mapping[str, sql.Composable]
    where: sql.Composable
    filter: str | None = None
    event_time: sql.Composable | None = None
    start: datetime | None = None
    inputs: tuple[sql.Composable, ...] = ()
    followed: tuple[bool, ...] = ()
    definition: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key_is_unique(self) -> bool:
        return any(u <= set(self.key_columns) for u in self.relation.unique_keys)

    def everything(self) -> sql.Composable:
        return self.rows(_ANY)

    def changed_since(self, horizon: int) -> sql.Composable:
        return self.rows(
            sql.SQL(
                "((xmin::text::bigint - {low} + 4294967296) % 4294967296) < 2147483648"
            ).format(low=sql.Literal(horizon % 2**32))
        )

    def of_keys(self, keys: Sequence[str]) -> sql.Composable:
        return self.rows(self.has_key(keys))

    def in_these_words(self, keys: Sequence[str]) -> sql.Composable:
        """Without those that are equal and written otherwise: 1.0 is not found by 1."""
        same = sql.SQL("{} = ANY ({}::text[])").format(self.key, sql.Literal([*keys]))
        return self.rows(sql.SQL("{} AND {}").format(self.has_key(keys), same))

    def but_for(self, keys: Sequence[str]) -> sql.Composable:
        return self.rows(sql.SQL("NOT ({})").format(self.has_key(keys)))

    def of_window(
        self, since: datetime | None, until: datetime | None
    ) -> sql.Composable:
        assert self.event_time is not None
        bounds = [
            sql.SQL("{} {} {}::timestamptz").format(
                self.event_time, sql.SQL(sign), sql.Literal(bound.isoformat())
            )
            for sign, bound in ((">=", since), ("<", until))
            if bound is not None
        ]
        return self.rows(sql.SQL(" AND ").join(bounds))

    def keys(self, condition: sql.Composable = _ANY) -> sql.Composable:
        """Keys, and whether each one's record lies before the use case's `start`."""
        early: sql.Composable = sql.SQL("false")
        if self.start is not None and self.event_time is not None:
            early = sql.SQL("coalesce({} < {}::timestamptz, false)").format(
                self.event_time, sql.Literal(self.start.isoformat())
            )
        return sql.SQL("SELECT {}, {} FROM {} WHERE {} AND {}").format(
            self.key, early, self.relation.from_, condition, self.where
        )

    def has_key(self, keys: Sequence[str]) -> sql.Composable:
        columns = self.key_arrays(keys)
        if len(columns) == 1:
            return sql.SQL("{} = ANY ({})").format(
                sql.Identifier(self.key_columns[0]), columns[0]
            )
        return sql.SQL("({}) IN (SELECT * FROM unnest({}))").format(
            sql.SQL(", ").join(map(sql.Identifier, self.key_columns)),
            sql.SQL(", ").join(columns),
        )

    def key_arrays(self, keys: Sequence[str]) -> list[sql.Composable]:
        """One array of its type for each key column."""
        parts: Sequence[Sequence[str]] = [keys]
        if len(self.key_columns) > 1:
            parts = list(zip(*(json.loads(key) for key in keys), strict=True))
        return [
            sql.SQL("{}::text[]::{}[]").format(
                sql.Literal(list(column)),
                expressions.trusted(self.relation.columns[name]),
            )
            for column, name in zip(parts, self.key_columns, strict=True)
        ]

    def rows(self, condition: sql.Composable) -> sql.Composable:
        """Key and fields of the rows that meet it."""
        return sql.SQL("SELECT {} FROM {} WHERE {} AND {}").format(
            sql.SQL(", ").join([self.key, *self.fields.values()]),
            self.relation.from_,
            condition,
            self.where,
        )


def records(
    connection: Connection,
    use_case: UseCase,
    *,
    forms: Sequence[Form] = (),
    with_data: bool = False,
) -> Extract:
    """Everything a sync takes of a record. `forms` say of each live model version what
    its vectors are made of, and the field `hashes` has one hash for each;
    `with_data` adds `data`, the text kept beside each one's vectors, which a sync
    needs only when the use case now keeps another part of it. Raises `SourceError`
    naming the field, the column and those there are."""
    source = use_case.source
    relation = _relation(connection, use_case)
    if source.where is not None:
        _try_where(connection, relation, source.where)
    for feature in use_case.all_features.values():
        _refuse_unfit(relation, feature)
    followed = tuple({*form.columns} <= relation.columns.keys() for form in forms)
    hashes = [
        expressions.digest(expressions.texts(relation, form.columns))
        if known
        else sql.SQL("NULL::bytea")
        for form, known in zip(forms, followed, strict=True)
    ]
    fields = {
        "hashes": sql.SQL("ARRAY[{}]::bytea[]").format(sql.SQL(", ").join(hashes)),
        **_record_fields(relation, use_case),
    }
    if with_data:
        data = [
            expressions.data(relation, form, use_case)
            if known
            else sql.SQL("NULL::text")
            for form, known in zip(forms, followed, strict=True)
        ]
        fields["data"] = sql.SQL("ARRAY[{}]::text[]").format(sql.SQL(", ").join(data))
    event_time = None
    if source.event_time is not None:
        event_time = relation.typed(source.event_time, "source.event_time", TIMES)
    return Extract(
        relation=relation,
        key_columns=source.key,
        key=expressions.key(relation, source.key, "source.key"),
        fields=fields,
        where=_where(source.where),
        filter=source.where,
        event_time=event_time,
        start=source.start,
        followed=followed,
        definition=_definition(relation, use_case),
    )


def inputs(
    connection: Connection, use_case: UseCase, columns: Sequence[str]
) -> Extract:
    """What a worker takes of a record: the columns that its model version's vectors
    are made of, which need not be those the use case names by now."""
    relation = _relation(connection, use_case)
    values = tuple(expressions.value(relation, name) for name in columns)
    return Extract(
        relation=relation,
        key_columns=use_case.source.key,
        key=expressions.key(relation, use_case.source.key, "source.key"),
        fields={
            "hash": expressions.digest(expressions.texts(relation, columns)),
            **{f"input {place}": value for place, value in enumerate(values)},
        },
        where=_where(use_case.source.where),
        inputs=values,
    )


def labels(connection: Connection, use_case: UseCase, label: LabelTable) -> Extract:
    relation = of_table(connection, label.table, "label.table")
    column = relation.column(label.label, "label.label")
    unit = use_case.first_feature.unit
    fields = {"label": expressions.label(relation, label.label, "label.label", unit)}
    if label.time is not None:
        fields["labeled_at"] = expressions.moment(relation, label.time, "label.time")
    return Extract(
        relation=relation,
        key_columns=label.key,
        key=expressions.key(relation, label.key, "label.key"),
        fields=fields,
        where=sql.SQL("{} IS NOT NULL").format(column),
        definition={
            "relation": relation.identity,
            "label": label.model_dump(mode="json"),
            "labelled": unit,
        },
    )


def _relation(connection: Connection, use_case: UseCase) -> Relation:
    source = use_case.source
    if source.table is not None:
        return of_table(connection, source.table, "source.table")
    return of_query(connection, source.query or "")


def _refuse_unfit(relation: Relation, feature: Feature) -> None:
    """What an encoder cannot read is known by the column's type."""
    types = [relation.columns.get(name, "") for name in feature.input]
    by_unit = feature.unit in ("word", "entity")
    if by_unit and len(types) > 1 and any(t.endswith("[]") for t in types):
        raise SourceError(
            "source.input: words are counted in one column; valid: the array alone"
        )
    if by_unit and types[0].endswith("[]") and not is_words(types[0]):
        raise SourceError(
            f"source.input: column {feature.input[0]!r} is of type {types[0]!r}; valid "
            "for words: text[], or a text"
        )
    for name in feature.input:
        relation.column(name, "source.input")
        type_ = relation.columns[name]
        if feature.reads_images and (type_ == "bytea" or not type_.endswith("[]")):
            continue
        if not feature.reads_images and type_ != "bytea":
            continue
        raise SourceError(
            f"source.input: column {name!r} is of type {type_!r}; valid for an encoder "
            f"of type {feature.encoder.type!r}: "
            + (
                "bytea, or a text with a path or URL"
                if feature.reads_images
                else "anything but bytea, which is an image's"
            )
        )


def _definition(relation: Relation, use_case: UseCase) -> dict[str, Any]:
    """Whatever of it changes, every row has to be read again."""
    label, prediction = use_case.label, use_case.prediction
    tenant = use_case.source.tenant
    return {
        # left out where there is none: a cursor of an earlier version stays of use
        **({} if tenant is None else {"tenant": tenant}),
        "relation": relation.identity,
        "data": kept_data(use_case),
        "source": use_case.source.model_dump(
            mode="json",
            include={
                *("table", "query", "key", "input", "where", "event_time"),
                *("environment", "link", "tags", "start"),
            },
        ),
        "labelled": use_case.first_feature.unit,
        "label": label.column if isinstance(label, Column) else type(label).__name__,
        "prediction": prediction.model_dump()
        if isinstance(prediction, PredictionColumn)
        else None,
    }


def kept_data(use_case: UseCase) -> list[Any]:
    """What of the inputs is kept beside the vectors, as a cursor remembers it."""
    return [
        use_case.storage.data,
        *([f.separator, f.template] for f in use_case.all_features.values()),
    ]


def _record_fields(relation: Relation, use_case: UseCase) -> dict[str, sql.Composable]:
    source = use_case.source
    fields: dict[str, sql.Composable] = {}
    if source.event_time is not None:
        fields["event_time"] = expressions.moment(
            relation, source.event_time, "source.event_time"
        )
    fields["environment"] = (
        expressions.text(
            relation.column(source.environment.column, "source.environment.column")
        )
        if isinstance(source.environment, Column)
        else sql.Literal(source.environment)
    )
    if source.link is not None:
        fields["link"] = expressions.text(relation.column(source.link, "source.link"))
    if source.tenant is not None:
        fields["tenant"] = expressions.text(
            relation.column(source.tenant, "source.tenant")
        )
    if source.tags:
        pairs = [
            part
            for name in source.tags
            for part in (sql.Literal(name), expressions.tag(relation, name))
        ]
        fields["tags"] = sql.SQL("jsonb_build_object({})").format(
            sql.SQL(", ").join(pairs)
        )
    if isinstance(use_case.label, Column):
        first = use_case.first_feature
        words = first.input[0] if is_words(relation.columns[first.input[0]]) else None
        fields["label"] = expressions.label(
            relation, use_case.label.column, "label.column", first.unit, words
        )
    if isinstance(use_case.prediction, PredictionColumn):
        fields["prediction"] = expressions.text(
            relation.column(use_case.prediction.column, "prediction.column")
        )
        if use_case.prediction.score is not None:
            fields["score"] = expressions.score(relation, use_case.prediction.score)
    return fields


def _where(where: str | None) -> sql.Composable:
    # On its own line: a trailing comment must not swallow the bracket.
    return (
        sql.SQL("true")
        if where is None
        else sql.SQL("({}\n)").format(expressions.trusted(where))
    )


def _try_where(connection: Connection, relation: Relation, where: str) -> None:
    """Asked by itself, a mistake in it is told from one in anything else."""
    statement = sql.SQL("SELECT FROM {} WHERE {} LIMIT 0").format(
        relation.from_, _where(where)
    )
    try:
        with connection.transaction():
            connection.execute(statement)
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        raise SourceError(
            f"source.where: {where!r}: {error.diag.message_primary}"
        ) from error
