"""What the DAGs and the page share of Airflow. No plugin: it lies here since Airflow
puts this folder, and not the project's, on the path of every component and task."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import (
    Connection,
    CronDataIntervalTimetable,
    ExceptionRetryPolicy,
    RetryAction,
    RetryRule,
)
from airflow.sdk.exceptions import AirflowNotFoundException

from embedding_tasks.errors import TerminalError

# Old and fixed: a run whose date lies before it is marked a success without a single
# task (apache/airflow#26865).
START = datetime(2020, 1, 1, tzinfo=UTC)

RETRIES: dict[str, Any] = {
    "retries": 3,
    "retry_delay": timedelta(seconds=30),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=10),
    "retry_policy": ExceptionRetryPolicy(
        rules=[
            RetryRule(
                exception=TerminalError,
                action=RetryAction.FAIL,
                reason="trying again would give the same",
            )
        ]
    ),
}


def timetable(schedule: str | None) -> CronDataIntervalTimetable | None:
    # A bare cron string gives runs an interval of no width since Airflow 3.
    return CronDataIntervalTimetable(schedule, timezone="UTC") if schedule else None


def connection(connection_id: str) -> dict[str, Any]:
    """As `embedding_tasks` asks for one: raises `KeyError` where it is not defined."""
    try:
        found: dict[str, Any] = Connection.get(connection_id).to_dict(validate=False)
    except AirflowNotFoundException:
        raise KeyError(connection_id) from None
    return found
