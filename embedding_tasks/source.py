"""Reading the source: what its relations look like, what changed, what a row holds.

Everything is read in one REPEATABLE READ READ ONLY transaction. Keys travel as text
and inputs as SHA-256, both made by the source itself, so that one expression decides
what "changed" means wherever a row is read.

Strategy `snapshot` asks for row versions whose xmin is not older than the previous
look's `pg_snapshot_xmin` (the horizon). A row version visible now and not then was
written by a transaction unfinished then, whose id is at or after that horizon;
subtransactions have later ids than their parents. So it can only over-read, and the
hash takes the excess away. `pg_visible_in_snapshot(xmin)` would be wrong: the list it
consults omits subtransactions and is empty on a standby.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import psycopg
from psycopg import pq, sql
from psycopg.rows import dict_row

from embedding_tasks.connections import Connection, connect
from embedding_tasks.errors import SourceError, valid_choices
from embedding_tasks.use_case import Column, LabelTable, PredictionColumn, UseCase

# Keys and inputs are compared as text, so their text form must not depend on the
# server's or the role's settings.
_SESSION = """
SET LOCAL TIME ZONE 'UTC';
SET LOCAL DateStyle = 'ISO, MDY';
SET LOCAL IntervalStyle = 'postgres';
SET LOCAL bytea_output = 'hex';
SET LOCAL extra_float_digits = 1;
"""

_TIMES = ("timestamp with time zone", "timestamp without time zone", "date")
_NUMBERS = ("smallint", "integer", "bigint", "real", "double precision", "numeric")


@dataclass(frozen=True)
class Position:
    """Where a snapshot of the source stands."""

    system_identifier: int | None
    horizon: int


@dataclass(frozen=True)
class Relation:
    """A table, view or query of the source, as it is now."""

    name: str
    from_: sql.Composable
    columns: Mapping[str, str]
    has_row_versions: bool
    unique_keys: frozenset[frozenset[str]]
    identity: object

    def column(self, name: str, field_name: str) -> sql.Composable:
        if name not in self.columns:
            raise SourceError(
                f"{field_name}: no column {valid_choices(name, list(self.columns))} "
                f"(in {self.name})"
            )
        return sql.Identifier(name)

    def typed(
        self, name: str, field_name: str, valid: tuple[str, ...]
    ) -> sql.Composable:
        column = self.column(name, field_name)
        base = self.columns[name].split("(")[0]
        if not any(base.startswith(v.split(" ")[0]) for v in valid):
            raise SourceError(
                f"{field_name}: column {name!r} is of type {self.columns[name]!r}; "
                f"valid: {', '.join(valid)}"
            )
        return column


@dataclass(frozen=True)
class Extract:
    """What a sync takes from one relation: a key and fields for each row."""

    relation: Relation
    strategy: Literal["snapshot", "scan"]
    key_columns: tuple[str, ...]
    key: sql.Composable
    fields: Mapping[str, sql.Composable]
    where: sql.Composable
    event_time: sql.Composable | None = None
    start: datetime | None = None
    inputs: tuple[sql.Composable, ...] = ()
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


@dataclass(frozen=True)
class Input:
    """One record as the model is to see it, and the hash of exactly that."""

    key: str
    hash: bytes | None
    parts: tuple[str | None, ...]


@contextmanager
def snapshot(conninfo: str) -> Iterator[Connection]:
    """One consistent look at the source. Raises `DatabaseAway`."""
    connection = connect(conninfo, role="source")
    with connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        with connection.transaction():
            connection.execute(_SESSION)
            yield connection


@contextmanager
def refusals(connection: Connection, extract: Extract) -> Iterator[None]:
    """Turn a statement that the source refuses (a filter with a mistake, a missing
    right, a value that cannot be cast) into `SourceError`."""
    try:
        yield
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        if connection.info.transaction_status != pq.TransactionStatus.INERROR:
            raise
        message = str(error).strip().split("\n")[0]
        raise SourceError(f"{extract.relation.name}: {message}") from error


def position(connection: Connection) -> Position:
    row = connection.execute(
        "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
    ).fetchone()
    assert row is not None
    try:
        with connection.transaction():
            system = connection.execute(
                "SELECT system_identifier FROM pg_control_system()"
            ).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        system = None
    return Position(system[0] if system else None, row[0])


def records(
    connection: Connection, use_case: UseCase, *, with_data: bool = False
) -> Extract:
    """`with_data` adds the text kept beside the vectors, which a sync needs only when
    the use case now keeps another part of it. Raises `SourceError` naming the field,
    the column and those there are."""
    source = use_case.source
    relation = (
        _table(connection, source.table, "source.table")
        if source.table is not None
        else _query(connection, source.query or "")
    )
    inputs = tuple(
        sql.SQL("{}::text").format(relation.column(name, "source.input"))
        for name in source.input
    )
    fields = {"hash": _hash(inputs), **_record_fields(relation, use_case)}
    if with_data:
        fields["data"] = _data(inputs, use_case)
    event_time = None
    if source.event_time is not None:
        event_time = relation.typed(source.event_time, "source.event_time", _TIMES)
    return Extract(
        relation=relation,
        strategy=_strategy(relation, source.strategy),
        key_columns=source.key,
        key=_key(relation, source.key, "source.key"),
        fields=fields,
        where=_where(source.where),
        event_time=event_time,
        start=source.start,
        inputs=inputs,
        definition={
            "relation": relation.identity,
            "data": kept_data(use_case),
            "source": source.model_dump(
                mode="json",
                include={
                    *("table", "query", "key", "input", "where", "event_time"),
                    *("environment", "link", "tags", "start"),
                },
            ),
            "label": use_case.label.column
            if isinstance(use_case.label, Column)
            else None,
            "prediction": use_case.prediction.model_dump()
            if isinstance(use_case.prediction, PredictionColumn)
            else None,
        },
    )


def labels(connection: Connection, label: LabelTable) -> Extract:
    relation = _table(connection, label.table, "label.table")
    fields = {"label": _text(relation.column(label.label, "label.label"))}
    if label.time is not None:
        fields["labeled_at"] = sql.SQL("{}::timestamptz").format(
            relation.typed(label.time, "label.time", _TIMES)
        )
    return Extract(
        relation=relation,
        strategy=_strategy(relation, "auto"),
        key_columns=label.key,
        key=_key(relation, label.key, "label.key"),
        fields=fields,
        where=sql.SQL("true"),
        definition={
            "relation": relation.identity,
            "label": label.model_dump(mode="json"),
        },
    )


def kept_data(use_case: UseCase) -> list[Any]:
    """What of the inputs is kept beside the vectors, as a cursor remembers it."""
    return [use_case.storage.data, use_case.source.separator]


def read_inputs(
    connection: Connection, extract: Extract, keys: Sequence[str]
) -> dict[str, Input]:
    """The present inputs of these keys. A key that is gone, or that the use case's
    filter no longer lets through, is missing from the answer."""
    statement = sql.SQL("SELECT {} FROM {} WHERE {} AND {}").format(
        sql.SQL(", ").join([extract.key, extract.fields["hash"], *extract.inputs]),
        extract.relation.from_,
        extract.has_key(keys),
        extract.where,
    )
    with refusals(connection, extract):
        rows = connection.execute(statement)
    return {key: Input(key, digest, tuple(parts)) for key, digest, *parts in rows}


def describe_record(
    connection: Connection, extract: Extract, key: str
) -> dict[str, Any] | None:
    """Every field a sync would take of one record, for `embedline explain`."""
    with connection.cursor(row_factory=dict_row) as cursor:
        names = ["key", *extract.fields]
        select = sql.SQL("SELECT * FROM ({}) AS r ({})").format(
            extract.of_keys([key]), sql.SQL(", ").join(map(sql.Identifier, names))
        )
        return cursor.execute(select).fetchone()


def _record_fields(relation: Relation, use_case: UseCase) -> dict[str, sql.Composable]:
    source = use_case.source
    fields: dict[str, sql.Composable] = {}
    if source.event_time is not None:
        fields["event_time"] = sql.SQL("{}::timestamptz").format(
            relation.typed(source.event_time, "source.event_time", _TIMES)
        )
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
            for part in (sql.Literal(name), relation.column(name, "source.tags"))
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
            fields["score"] = sql.SQL("{}::float8").format(
                relation.typed(use_case.prediction.score, "prediction.score", _NUMBERS)
            )
    return fields


def _text(column: sql.Composable) -> sql.Composable:
    return sql.SQL("{}::text").format(column)


def _key(
    relation: Relation, columns: tuple[str, ...], field_name: str
) -> sql.Composable:
    parts = [_text(relation.column(name, field_name)) for name in columns]
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


def _table(connection: Connection, table: str, field_name: str) -> Relation:
    identifier = sql.Identifier(*table.split(".", 1))
    row = connection.execute(
        "SELECT c.oid, c.relkind FROM pg_class c WHERE c.oid = to_regclass(%s)",
        [identifier.as_string(connection)],
    ).fetchone()
    if row is None:
        raise SourceError(
            f"{field_name}: no table {table!r} in the source database "
            f"{connection.info.dbname!r}; write it as schema.table, in exact case"
        )
    oid, kind = row
    columns = connection.execute(
        "SELECT attname, format_type(atttypid, atttypmod), attnum FROM pg_attribute"
        " WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [oid],
    ).fetchall()
    return Relation(
        name=table,
        from_=identifier,
        columns={name: type_ for name, type_, _ in columns},
        has_row_versions=kind in ("r", "p"),
        unique_keys=_unique_keys(connection, oid),
        # A column made anew, a swapped table or an attached partition brings rows
        # older than the horizon: then the definition differs and all are read again.
        identity={
            "oids": _members(connection, oid),
            "columns": [list(column) for column in columns],
        },
    )


def _query(connection: Connection, query: str) -> Relation:
    from_ = sql.SQL("({}\n) AS source").format(_trusted(query))
    try:
        with connection.transaction():
            cursor = connection.execute(
                sql.SQL("SELECT * FROM {} LIMIT 0").format(from_)
            )
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        message = str(error).strip().split("\n")[0]
        raise SourceError(f"source.query: {message}") from error
    described = cursor.description or []
    names = connection.execute(
        "SELECT array_agg(format_type(t.oid, NULL) ORDER BY n)"
        " FROM unnest(%s::oid[]) WITH ORDINALITY AS t (oid, n)",
        [[column.type_code for column in described]],
    ).fetchone()
    assert names is not None
    columns = dict(zip((c.name for c in described), names[0] or [], strict=True))
    return Relation(
        name="source.query",
        from_=from_,
        columns=columns,
        has_row_versions=False,
        unique_keys=frozenset(),
        identity={"query": query, "columns": [list(c) for c in columns.items()]},
    )


def _members(connection: Connection, oid: int) -> list[int]:
    """A table and all its partitions or children, and its database."""
    rows = connection.execute(
        "WITH RECURSIVE member (oid) AS ("
        "  SELECT %s::oid"
        "  UNION SELECT i.inhrelid FROM pg_inherits i JOIN member m"
        "    ON i.inhparent = m.oid"
        ") SELECT oid::bigint FROM member UNION"
        " SELECT oid::bigint FROM pg_database WHERE datname = current_database()"
        " ORDER BY 1",
        [oid],
    )
    return [row[0] for row in rows]


def _unique_keys(connection: Connection, oid: int) -> frozenset[frozenset[str]]:
    rows = connection.execute(
        "SELECT array_agg(a.attname::text) FROM pg_index i JOIN pg_attribute a"
        "    ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)"
        " WHERE i.indrelid = %s AND i.indisunique AND i.indpred IS NULL"
        "   AND i.indexprs IS NULL AND i.indisvalid GROUP BY i.indexrelid",
        [oid],
    )
    return frozenset(frozenset(row[0]) for row in rows)
