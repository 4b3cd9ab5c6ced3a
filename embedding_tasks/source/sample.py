"""Rows of the source to train a model on."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.inputs import Part
from embedding_tasks.source import extract, snapshot
from embedding_tasks.source.extract import Extract
from embedding_tasks.source.relation import TIMES
from embedding_tasks.use_case import Column, Feature, UseCase
from embedding_tasks.use_case.feature import Trained

_AT_A_TIME = 500


def take(
    connection: Connection,
    use_case: UseCase,
    feature: Feature,
    forgotten: Collection[bytes] = (),
) -> tuple[list[str], Iterator[tuple[Part, ...]]]:
    """The types of the feature's columns, and at most `encoder.max_rows` of the rows
    that are to be embedded, of its environment; none whose key has a `forgotten` hash.
    Which ones and in what order depends on their keys alone: it is that of the keys'
    hashes. Call in a transaction."""
    encoder = feature.encoder
    assert isinstance(encoder, Trained)
    taken = extract.inputs(connection, use_case, feature.input)
    statement = sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {} LIMIT {}").format(
        sql.SQL(", ").join(taken.inputs),
        taken.relation.from_,
        sql.SQL(" AND ").join(_conditions(taken, use_case, encoder, forgotten)),
        _hash(taken),
        sql.Literal(encoder.max_rows),
    )
    types = [taken.relation.columns[name] for name in feature.input]
    return types, _rows(connection, taken, statement)


def _conditions(
    taken: Extract, use_case: UseCase, encoder: Trained, forgotten: Collection[bytes]
) -> Iterator[sql.Composable]:
    source, relation = use_case.source, taken.relation
    yield taken.where
    yield sql.SQL("{} IS NOT NULL AND {} IS NOT NULL").format(
        taken.key, taken.fields["hash"]
    )
    if forgotten:
        yield sql.SQL("{} <> ALL ({}::bytea[])").format(
            _hash(taken), sql.Literal(list(forgotten))
        )
    if source.start is not None and source.event_time is not None:
        yield sql.SQL("coalesce({} >= {}::timestamptz, true)").format(
            relation.typed(source.event_time, "source.event_time", TIMES),
            sql.Literal(source.start.isoformat()),
        )
    if encoder.environment is not None:
        environment = (
            relation.column(source.environment.column, "source.environment.column")
            if isinstance(source.environment, Column)
            else sql.Literal(source.environment)
        )
        yield sql.SQL("{}::text = {}").format(
            environment, sql.Literal(encoder.environment)
        )


def _hash(taken: Extract) -> sql.Composable:
    return sql.SQL("sha256(convert_to({}, 'UTF8'))").format(taken.key)


def _rows(
    connection: Connection, taken: Extract, statement: sql.Composed
) -> Iterator[tuple[Part, ...]]:
    with (
        snapshot.refusals(connection, taken),
        connection.cursor(name="training") as cursor,
    ):
        cursor.itersize = _AT_A_TIME
        yield from cursor.execute(statement)
