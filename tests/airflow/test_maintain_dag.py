from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from embedding_tasks.connections import Connection
from embedding_tasks.store import index, versions
from tests.fix_project import Project

Write = Callable[..., None]
Run = Callable[..., Any]


def test_indexes_are_kept_once_a_day_one_use_case_at_a_time(
    project: Project, load_dags: Callable[[], Any]
) -> None:
    bag = load_dags()
    assert bag.import_errors == {}
    dag = bag.dags["maintain"]
    assert [t.task_id for t in dag.topological_sort()] == ["plan", "maintain"]
    assert dag.catchup is False
    assert dag.max_active_runs == 1
    assert dag.doc_md
    assert {*dag.params} == {"dry_run"}
    assert dag.get_task("maintain").partial_kwargs["max_active_tis_per_dag"] == 1
    assert type(dag.timetable).__name__ == "CronDataIntervalTimetable"


@pytest.mark.parametrize(
    ("schedule", "expression"), [("", None), ("@weekly", "0 0 * * 0")]
)
def test_its_schedule_comes_from_the_environment(
    project: Project,
    load_dags: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    schedule: str,
    expression: str | None,
) -> None:
    monkeypatch.setenv("EMBEDLINE_MAINTAIN_SCHEDULE", schedule)
    timetable = load_dags().dags["maintain"].timetable
    assert getattr(timetable, "expression", None) == expression


def test_what_is_due_is_done_and_a_dry_run_does_nothing(
    project: Project, run_dag: Run, write_messages: Write, store: Connection
) -> None:
    project.use_case(storage={"index": {"min_rows": 50}})
    (project.folder / "use_cases" / "broken.yaml").write_text("name: [")
    write_messages(range(60))
    run_dag("embed_messages")
    (version,) = versions.live_by_name(store, "messages")
    dry = run_dag("maintain", dry_run=True)
    assert dry.state == "success"
    assert index.existing(store, version) == []
    done = run_dag("maintain")
    assert done.state == "success"
    assert done.get_task_instance("plan").xcom_pull(task_ids="plan") == ["messages"]
    found = index.existing(store, version)
    assert [i.is_valid for i in found] == [True]
    again = run_dag("maintain")
    assert again.state == "success"
    assert again.get_task_instance("plan").xcom_pull(task_ids="plan") == []
