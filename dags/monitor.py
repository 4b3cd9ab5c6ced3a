"""One DAG for every use case that says how it is to be monitored: measure -> tell ->
gate, whenever its embeddings, predictions or labels have been brought up to date.

Wiring only: what the tasks do is in `embedding_tasks.monitoring`. Drift fails no task:
what is broken then is no pipeline. Who wants other DAGs to wait for health schedules
them on the asset that the gate updates.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from airflow.sdk import (
    DAG,
    Asset,
    Param,
    get_current_context,
    get_parsing_context,
    task,
)
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from embedding_tasks import use_case
from embedding_tasks.errors import ConfigError
from embedding_tasks.use_case import UseCase
from embedline_airflow import RETRIES, START, connection

PARAMS = {
    "again": Param(
        False,
        type="boolean",
        title="Measure every window anew",
        description="Else those that have not been, or whose rows have changed.",
    ),
    "freeze": Param(
        False,
        type="boolean",
        title="Take the baseline anew, of the rows there are now",
    ),
}


def build(case: UseCase, path: Path) -> DAG:
    name = case.name
    embeddings = Asset(f"{name}_embeddings", uri=f"embedline://{name}/embeddings")
    alarms = Asset(f"{name}_alarms", uri=f"embedline://{name}/alarms")
    healthy = Asset(f"{name}_healthy", uri=f"embedline://{name}/healthy")
    with DAG(
        f"monitor_{name}",
        description=f"Drift of {name}: measured, told, judged",
        doc_md=_doc(case, path),
        schedule=[embeddings],
        start_date=START,
        catchup=False,
        max_active_runs=1,
        params=PARAMS,
        default_args=RETRIES,
        tags=["embedline"],
    ) as dag:

        @task
        def measure() -> dict[str, int]:
            """Every window that has not been, or whose rows have changed"""
            from embedding_tasks.monitoring import stages

            params = get_current_context()["params"]
            return stages.measure(
                use_case.load(path),
                connection,
                again=params["again"],
                freeze=params["freeze"],
            )

        @task(outlets=[alarms])
        def tell() -> int:
            """Whom the use case names of alarms that are new"""
            from embedding_tasks.monitoring import stages

            case = use_case.load(path)
            told = stages.tell(case, connection, lambda alarm: _notify(case, alarm))
            if not told:
                raise AirflowSkipException("no alarm is new")
            return told

        @task(outlets=[healthy], trigger_rule="none_failed")
        def gate() -> None:
            """Update the asset of health, unless an alarm is on that nobody took on"""
            from embedding_tasks.monitoring import stages

            case = use_case.load(path)
            on = stages.unacknowledged(case, connection)
            if on and _gate(case) == "fail":
                raise AirflowFailException("\n\n".join(on))
            if on and _gate(case) == "skip":
                raise AirflowSkipException("\n\n".join(on))

        measure() >> tell() >> gate()
    return dag


def _gate(case: UseCase) -> str:
    return case.monitoring.gate if case.monitoring else "none"


def _notify(case: UseCase, alarm: dict[str, Any]) -> None:
    """By each of Airflow's notifiers that the use case names."""
    for named in case.monitoring.notify if case.monitoring else ():
        notifier = resolve_name(named.notifier)(**named.arguments)
        notifier({**get_current_context(), "alarm": alarm})


def _doc(case: UseCase, path: Path) -> str:
    gates = {
        "none": "always",
        "fail": "unless an alarm is on that nobody took on: then the run fails",
        "skip": "unless an alarm is on that nobody took on: then it is skipped",
    }
    return f"""Watches **{case.name}**, as described in `{path.name}`, whenever
`embed_{case.name}` has brought it up to date. `embedline monitor {case.name}` prints
what it found; `SELECT * FROM embedline.monitor` has it in SQL.

| asset | is updated |
|---|---|
| `{case.name}_alarms` | by a new alarm |
| `{case.name}_healthy` | {gates[_gate(case)]} |

An alarm is taken on by `embedline acknowledge NUMBER`.
"""


def _monitored() -> Iterator[tuple[UseCase, Path]]:
    """Of a file that is not valid its own DAG says so."""
    for path in use_case.files():
        try:
            case = use_case.load(path)
        except ConfigError:
            continue
        if case.monitoring is not None:
            yield case, path


def _dags() -> dict[str, DAG]:
    """Every DAG when the folder is parsed, and only its own in a task."""
    wanted = get_parsing_context().dag_id
    built = (build(case, path) for case, path in _monitored())
    return {d.dag_id: d for d in built if wanted in (None, d.dag_id)}


globals().update(_dags())
