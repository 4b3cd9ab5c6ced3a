"""Predictions and labels are counted by day: which of them, and how to forget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring import days
from embedding_tasks.monitoring.days import Daily, Refreshed
from embedding_tasks.store.versions import ModelVersion

LABELLED = sql.SQL(
    " AND (SELECT labelled_unit FROM embedline.use_case WHERE id = %(use_case)s)"
    " = %(unit)s"
)
"""Only parts of records that labels are given to have labels."""


def refresh(
    store: Connection,
    version: ModelVersion,
    tags: Sequence[str],
    *,
    digests: sql.Composed,
    insert: sql.Composed,
) -> Refreshed:
    """As `days.refresh`; both take the parameters of `parameters`."""
    daily = Daily("outcome_day", digests, insert, parameters(version))
    return days.refresh(store, version, tags, daily)


def parameters(version: ModelVersion) -> dict[str, Any]:
    return {
        "use_case": version.use_case,
        "version": version.id,
        "unit": "record" if version.unit == "object" else version.unit,
    }


def erase(store: Connection, use_case: int) -> None:
    """Every count of the use case's versions: all are counted anew at the next refresh.
    Of one record alone they do not tell which it is in: it may have been of another
    day, or of another class."""
    store.execute(
        "DELETE FROM embedline.outcome_day WHERE model_version IN"
        " (SELECT id FROM embedline.model_version WHERE use_case = %s)",
        [use_case],
    )
