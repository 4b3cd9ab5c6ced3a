"""What is taken of the source, as SQL that the source runs.

Keys travel as text and inputs as SHA-256, both made by the source itself, so that one
expression decides what "changed" means wherever a row is read.

Strategy `snapshot` asks for row versions whose xmin is not older than the previous
look's `pg_snapshot_xmin` (the horizon). A row version visible now and not then was
written by a transaction unfinished then, whose id is at or after that horizon;
subtransactions have later ids than their parents. So it can only over-read, and the
hash takes the excess away. `pg_visible_in_snapshot(xmin)` would be wrong: the list it
consults omits subtransactions and is empty on a standby.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import psycopg
from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.errors import SearchError, SourceError
from embedding_tasks.source.relation import (
    NUMBERS,
    TIMES,
    Relation,
    of_query,
    of_table,
)
from embedding_tasks.use_case import Column, LabelTable, PredictionColumn, UseCase


@dataclass(frozen=True)
class Extract:
    """What is taken from one relation: a key and fields for each row. `inputs` are
    the columns a model sees; `followed` says, for each live model version, whether
    the relation still has the columns its vectors are made of."""

    relation: Relation
    strategy: Literal["snapshot", "scan"]
    key_columns: tuple[str, ...]
    key: sql.Composable
    fields: Mapping[str, sql.Composable]
    where: sql.Composable
    event_time: sql.Composable | None = None
    start: datetime | None = None
    inputs: tuple[sql.Composable, ...] = ()
    followed: tuple[bool, ...] = ()
    definition: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key_is_unique(self) -> bool:
        return any(u <= set(self.key_columns) for u in self.relation.unique_keys)

    def everything(self) -> sql.Composable:
        return self._select(sql.SQL("true"))

    def changed_since(self, horizon: int) -> sql.Composable:
        return self._select(
            sql.SQL(
                "((xmin::text::bigint - {low} + 4294967296) % 4294967296) < 2147483648"
            ).format(low=sql.Literal(horizon % 2**32))
        )

    def of_keys(self, keys: Sequence[str]) -> sql.Composable:
        return self._select(self.has_key(keys))

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
        return self._select(sql.SQL(" AND ").join(bounds))

    def keys(self) -> sql.Composable:
        """Every key, and whether its record lies before the use case's `start`."""
        early: sql.Composable = sql.SQL("false")
        if self.start is not None and self.event_time is not None:
            early = sql.SQL("coalesce({} < {}::timestamptz, false)").format(
                self.event_time, sql.Literal(self.start.isoformat())
            )
        return sql.SQL("SELECT {}, {} FROM {} WHERE {}").format(
            self.key, early, self.relation.from_, self.where
        )

    def canonical(self, key: str) -> str:
        """A key as a person may write it, as the store has it. Raises `SearchError`
        where it cannot be one of several columns."""
        if len(self.key_columns) == 1:
            return key
        try:
            parts = json.loads(key)
        except ValueError:
            parts = None
        if not isinstance(parts, list) or len(parts) != len(self.key_columns):
            columns = ", ".join(f'"{column}"' for column in self.key_columns)
            raise SearchError(
                f"the key has {len(self.key_columns)} columns: write it as a JSON list "
                f"of texts, '[{columns}]', with their values; got {key!r}"
            )
        return json.dumps([str(part) for part in parts], ensure_ascii=False)

    def has_key(self, keys: Sequence[str]) -> sql.Composable:
        types = [self.relation.columns[c] for c in self.key_columns]
        if len(self.key_columns) == 1:
            return sql.SQL("{} = ANY ({}::text[]::{}[])").format(
                sql.Identifier(self.key_columns[0]),
                sql.Literal(list(keys)),
                _trusted(types[0]),
            )
        parts = zip(*(json.loads(key) for key in keys), strict=True)
        return sql.SQL("({}) IN (SELECT * FROM unnest({}))").format(
            sql.SQL(", ").join(map(sql.Identifier, self.key_columns)),
            sql.SQL(", ").join(
                sql.SQL("{}::text[]::{}[]").format(
                    sql.Literal(list(column)), _trusted(type_)
                )
                for column, type_ in zip(parts, types, strict=True)
            ),
        )

    def _select(self, condition: sql.Composable) -> sql.Composable:
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
    inputs: Sequence[Sequence[str]] = (),
    with_data: bool = False,
) -> Extract:
    """Everything a sync takes of a record. `inputs` are the columns that each live
    model version's vectors are made of (where there is none, those the use case
    names), and the field `hashes` has one hash for each;
    `with_data` adds the text kept beside the vectors, which a sync needs only when
    the use case now keeps another part of it. Raises `SourceError` naming the field,
    the column and those there are."""
    source = use_case.source
    relation = _relation(connection, use_case)
    if source.where is not None:
        _try_where(connection, relation, source.where)
    own = _inputs(relation, source.input)
    inputs = inputs or [source.input]
    followed = tuple({*columns} <= relation.columns.keys() for columns in inputs)
    hashes = [
        _hash(_inputs(relation, columns)) if known else sql.SQL("NULL::bytea")
        for columns, known in zip(inputs, followed, strict=True)
    ]
    fields = {
        "hashes": sql.SQL("ARRAY[{}]").format(sql.SQL(", ").join(hashes)),
        **_record_fields(relation, use_case),
    }
    if with_data:
        fields["data"] = _data(own, use_case)
    event_time = None
    if source.event_time is not None:
        event_time = relation.typed(source.event_time, "source.event_time", TIMES)
    return Extract(
        relation=relation,
        strategy=_strategy(relation, source.strategy),
        key_columns=source.key,
        key=_key(relation, source.key, "source.key"),
        fields=fields,
        where=_where(source.where),
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
    parts = _inputs(relation, columns)
    return Extract(
        relation=relation,
        strategy="scan",
        key_columns=use_case.source.key,
        key=_key(relation, use_case.source.key, "source.key"),
        fields={"hash": _hash(parts)},
        where=_where(use_case.source.where),
        inputs=parts,
    )


def labels(connection: Connection, label: LabelTable) -> Extract:
    relation = of_table(connection, label.table, "label.table")
    column = relation.column(label.label, "label.label")
    fields = {"label": _text(column)}
    if label.time is not None:
        fields["labeled_at"] = _moment(relation, label.time, "label.time")
    return Extract(
        relation=relation,
        strategy=_strategy(relation, "auto"),
        key_columns=label.key,
        key=_key(relation, label.key, "label.key"),
        fields=fields,
        where=sql.SQL("{} IS NOT NULL").format(column),
        definition={
            "relation": relation.identity,
            "label": label.model_dump(mode="json"),
        },
    )


def _relation(connection: Connection, use_case: UseCase) -> Relation:
    source = use_case.source
    if source.table is not None:
        return of_table(connection, source.table, "source.table")
    return of_query(connection, source.query or "")


def _inputs(relation: Relation, columns: Sequence[str]) -> tuple[sql.Composable, ...]:
    return tuple(_text(relation.column(name, "source.input")) for name in columns)


def _definition(relation: Relation, use_case: UseCase) -> dict[str, Any]:
    """Whatever of it changes, every row has to be read again."""
    label, prediction = use_case.label, use_case.prediction
    return {
        "relation": relation.identity,
        "data": kept_data(use_case),
        "source": use_case.source.model_dump(
            mode="json",
            include={
                *("table", "query", "key", "input", "where", "event_time"),
                *("environment", "link", "tags", "start"),
            },
        ),
        "label": label.column if isinstance(label, Column) else type(label).__name__,
        "prediction": prediction.model_dump()
        if isinstance(prediction, PredictionColumn)
        else None,
    }


def kept_data(use_case: UseCase) -> list[Any]:
    """What of the inputs is kept beside the vectors, as a cursor remembers it."""
    return [use_case.storage.data, use_case.source.separator]


def _record_fields(relation: Relation, use_case: UseCase) -> dict[str, sql.Composable]:
    source = use_case.source
    fields: dict[str, sql.Composable] = {}
    if source.event_time is not None:
        fields["event_time"] = _moment(relation, source.event_time, "source.event_time")
    fields["environment"] = (
        _text(relation.column(source.environment.column, "source.environment.column"))
        if isinstance(source.environment, Column)
        else sql.Literal(source.environment)
    )
    if source.link is not None:
        fields["link"] = _text(relation.column(source.link, "source.link"))
    if source.tags:
        pairs = [
            part
            for name in source.tags
            for part in (sql.Literal(name), _tag(relation, name))
        ]
        fields["tags"] = sql.SQL("jsonb_build_object({})").format(
            sql.SQL(", ").join(pairs)
        )
    if isinstance(use_case.label, Column):
        fields["label"] = _text(relation.column(use_case.label.column, "label.column"))
    if isinstance(use_case.prediction, PredictionColumn):
        fields["prediction"] = _text(
            relation.column(use_case.prediction.column, "prediction.column")
        )
        if use_case.prediction.score is not None:
            fields["score"] = _score(relation, use_case.prediction.score)
    return fields


# One value that cannot be taken as it is must not stop the reading of all others.
def _moment(relation: Relation, name: str, field_name: str) -> sql.Composable:
    """Null where Python has no such moment: infinity, or beyond the year 9999."""
    return sql.SQL(
        "CASE WHEN {0} BETWEEN '0001-01-02' AND '9999-12-30' THEN {0}::timestamptz END"
    ).format(relation.typed(name, field_name, TIMES))


def _score(relation: Relation, name: str) -> sql.Composable:
    """Null where it is not finite, or a numeric too large for float8."""
    return sql.SQL("CASE WHEN abs({0}) <= 1e308 THEN {0}::float8 END").format(
        relation.typed(name, "prediction.score", NUMBERS)
    )


def _tag(relation: Relation, name: str) -> sql.Composable:
    """A json column may hold the escape of NUL, which jsonb refuses."""
    column = relation.column(name, "source.tags")
    if relation.columns[name] != "json":
        return column
    return sql.SQL("replace({}::text, '\\u0000', '')::jsonb").format(column)


def _text(column: sql.Composable) -> sql.Composable:
    return sql.SQL("{}::text").format(column)


def _key(
    relation: Relation, columns: tuple[str, ...], field_name: str
) -> sql.Composable:
    parts = [_text(relation.column(name, field_name)) for name in columns]
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


def _hash(inputs: tuple[sql.Composable, ...]) -> sql.Composable:
    """A row's text form tells NULL from the empty string and one column from two."""
    columns = sql.SQL(", ").join(inputs)
    return sql.SQL(
        "CASE WHEN num_nonnulls({0}) > 0"
        " THEN sha256(convert_to(ROW({0})::text, 'UTF8')) END"
    ).format(columns)


def _data(inputs: tuple[sql.Composable, ...], use_case: UseCase) -> sql.Composable:
    """In SQL what `UseCase.kept` does in Python."""
    keep = use_case.storage.data
    if keep == "none":
        return sql.SQL("NULL::text")
    text = sql.SQL("concat_ws({}, {})").format(
        sql.Literal(use_case.source.separator), sql.SQL(", ").join(inputs)
    )
    return text if keep == "all" else sql.SQL("left({}, {})").format(text, keep)


def _where(where: str | None) -> sql.Composable:
    # On its own line: a trailing comment must not swallow the bracket.
    return (
        sql.SQL("true") if where is None else sql.SQL("({}\n)").format(_trusted(where))
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


def _trusted(text: str) -> sql.SQL:
    """SQL that a use case's author wrote, or a type name the source itself printed.
    It runs with the source role's rights, in a read-only transaction."""
    return sql.SQL(text)


def _strategy(relation: Relation, asked: str) -> Literal["snapshot", "scan"]:
    if asked == "snapshot" and not relation.has_row_versions:
        raise SourceError(
            f"source.strategy: {relation.name} has no row versions to compare, "
            "so 'snapshot' cannot read it; valid: 'scan', 'auto'"
        )
    return "snapshot" if asked != "scan" and relation.has_row_versions else "scan"
