"""A use case is monitored when its embeddings are up to date, and tells each alarm
once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring import results
from tests.fix_project import Project

Write = Callable[..., None]
Run = Callable[..., Any]
A_DAY = 1440
BASELINE = {"since": "2026-01-01", "until": "2026-01-06"}


@pytest.fixture
def drifted(project: Project, write_messages: Write) -> Project:
    """Five days of a baseline, one like it, two of other texts."""
    for day in range(8):
        text = "a message, number {}" if day < 6 else "ЖЖЖ {} ££ %% §§ ¶"
        write_messages(range(day * A_DAY, day * A_DAY + 60), text)
    project.use_case(
        prediction="head", monitoring={"baseline": BASELINE, "least_rows": 50}
    )
    project.run()
    return project


def states(run: Any) -> dict[str, str]:
    return {t.task_id: str(t.state) for t in run.get_task_instances()}


def test_only_what_says_how_is_monitored(
    project: Project, load_dags: Callable[[], Any]
) -> None:
    assert "monitor_messages" not in load_dags().dags
    project.use_case(monitoring={"baseline": BASELINE})
    bag = load_dags()
    assert bag.import_errors == {}
    dag = bag.dags["monitor_messages"]
    assert [t.task_id for t in dag.topological_sort()] == ["measure", "tell", "gate"]
    assert dag.doc_md
    assert [a.name for a in dag.get_task("gate").outlets] == ["messages_healthy"]
    published = bag.dags["embed_messages"].get_task("publish").outlets
    assert [*dag.timetable.asset_condition.objects] == published


def test_an_alarm_is_told_once_and_fails_no_run(
    drifted: Project, run_dag: Run, store: Connection, tmp_path: Path
) -> None:
    told = tmp_path / "told.txt"
    notifier = {
        "notifier": "tests.airflow.notifier.Writes",
        "arguments": {
            "path": str(told),
            "text": "{{ alarm.metric }}: {{ alarm.text }}",
        },
    }
    drifted.use_case(monitoring={"notify": [notifier]})
    run = run_dag("monitor_messages")
    assert states(run) == dict.fromkeys(("measure", "tell", "gate"), "success")
    alarms = results.alarms(store, "messages")
    assert "centroid" in {alarm.metric for alarm in alarms}
    said = told.read_text()
    assert said.count("SELECT ") == len(alarms)
    assert "centroid: messages (model version 1): the vectors have moved by" in said
    again = states(run_dag("monitor_messages"))
    assert again == {"measure": "success", "tell": "skipped", "gate": "success"}
    assert told.read_text() == said


def test_a_gate_fails_or_skips_until_somebody_takes_the_alarm_on(
    drifted: Project, run_dag: Run, store: Connection
) -> None:
    drifted.use_case(monitoring={"gate": "fail"})
    assert states(run_dag("monitor_messages"))["gate"] == "failed"
    drifted.use_case(monitoring={"gate": "skip"})
    assert states(run_dag("monitor_messages"))["gate"] == "skipped"
    for alarm in results.alarms(store, "messages"):
        results.acknowledge(store, alarm.id, "ann", "")
    assert states(run_dag("monitor_messages"))["gate"] == "success"
