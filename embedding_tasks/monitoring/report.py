"""How a use case is, for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from psycopg.rows import dict_row

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring import results, telling
from embedding_tasks.monitoring.watch import Watched
from embedding_tasks.use_case import UseCase


@dataclass(frozen=True)
class Told:
    """An alarm, as `telling` tells it. `series` is its feature, metric and slice."""

    id: int
    series: tuple[str, str, str]
    since: date
    text: str


@dataclass(frozen=True)
class Report:
    """`metrics` are the latest of each metric and slice, as `embedline.monitor` has
    them; `alarms` those that are on; `problems` what kept anything from being
    measured."""

    use_case: str
    problems: list[str]
    metrics: list[dict[str, Any]]
    alarms: list[Told]


def of(store: Connection, case: UseCase, watched: Sequence[Watched]) -> Report:
    """After it was watched."""
    problems = [
        f"{case.name}, {w.feature}: {said}" for w in watched for said in w.problems
    ]
    if not watched:
        none = f"{case.name} has no serving vectors yet; embedline run {case.name}"
        return Report(case.name, [none], [], [])
    return stored(store, case.name, problems)


def stored(store: Connection, use_case: str, problems: Sequence[str] = ()) -> Report:
    """As it was found the last time."""
    alarms = [
        Told(a.id, (a.feature, a.metric, a.slice), a.since, telling.tell(store, a))
        for a in results.alarms(store, use_case)
    ]
    return Report(use_case, [*problems], _metrics(store, use_case), alarms)


def _metrics(store: Connection, use_case: str) -> list[dict[str, Any]]:
    with store.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "SELECT feature, metric, slice, last_day, rows, value, low, high, least,"
            " noise, adjusted, state, since, alarm FROM embedline.monitor"
            " WHERE use_case = %s"
            " ORDER BY feature, array_position(ARRAY['alarm', 'acknowledged'], state),"
            "  slice, metric",
            [use_case],
        ).fetchall()
