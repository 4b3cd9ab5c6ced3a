"""Of which columns a sync takes something: those that an outbox must watch."""

from __future__ import annotations

import psycopg
from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.errors import SourceError
from embedding_tasks.source.extract import Extract
from embedding_tasks.use_case import Column, PredictionColumn, UseCase


def of_use_case(use_case: UseCase) -> set[str]:
    """All that its file names, but for those of the filter."""
    source, label, prediction = use_case.source, use_case.label, use_case.prediction
    columns = {*source.key, *source.tags, source.event_time, source.link, source.tenant}
    for feature in use_case.all_features.values():
        columns |= {*feature.input}
    if isinstance(source.environment, Column):
        columns.add(source.environment.column)
    if isinstance(label, Column):
        columns.add(label.column)
    if isinstance(prediction, PredictionColumn):
        columns |= {prediction.column, prediction.score}
    return {column for column in columns if column is not None}


def in_filter(connection: Connection, extract: Extract) -> set[str]:
    """Those that `source.where` refers to, by what PostgreSQL itself notes of a view
    made of it. Call in a transaction that is rolled back."""
    if extract.filter is None:
        return set()
    # in the binary protocol it can be no more than one statement, whatever the filter
    # says
    view = sql.SQL(
        "CREATE TEMP VIEW embedline_filter AS SELECT 1 AS one FROM {} WHERE {}"
    ).format(extract.relation.from_, extract.where)
    try:
        connection.execute(view, binary=True)
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        raise SourceError(
            "source.where: which columns it refers to is found by a temporary view, "
            f"and there can be none ({error.diag.message_primary}); use a connection "
            "that may create one: --connection"
        ) from error
    rows = connection.execute(
        "SELECT a.attname::text, r.ev_action::text ~ ':varattno 0 '"
        " FROM pg_rewrite r LEFT JOIN (pg_depend d JOIN pg_attribute a"
        "    ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid AND a.attnum > 0"
        "    AND a.attrelid = to_regclass(%s))"
        "  ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid"
        "   AND d.refclassid = 'pg_class'::regclass"
        " WHERE r.ev_class = 'pg_temp.embedline_filter'::regclass",
        [extract.relation.from_.as_string(connection)],
    ).fetchall()
    # A row as a whole is noted as no column at all.
    if any(whole_row for _, whole_row in rows):
        return {*extract.relation.columns}
    return {name for name, _ in rows if name is not None}
