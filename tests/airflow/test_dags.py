from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from embedding_tasks import status
from embedding_tasks.connections import Connection
from tests.fix_project import Project

Write = Callable[..., None]
Run = Callable[..., Any]


def test_every_use_case_is_a_dag_of_four_tasks(
    project: Project, load_dags: Callable[[], Any]
) -> None:
    bag = load_dags()
    assert bag.import_errors == {}
    dag = bag.dags["embed_messages"]
    order = ["sync", "plan", "embed", "publish"]
    assert [t.task_id for t in dag.topological_sort()] == order
    assert dag.catchup is False
    assert dag.max_active_runs == 1
    assert dag.doc_md
    assert dag.get_task("embed").operator_class is not None  # mapped
    assert dag.get_task("embed").partial_kwargs["pool"] == "gpu"
    assert [a.name for a in dag.get_task("publish").outlets] == ["messages_embeddings"]
    assert type(dag.timetable).__name__ == "CronDataIntervalTimetable"
    scopes = {"since", "until", "keys", "everything"}
    others = {"reembed", "fresh", "audit", "dry_run", "allow_deletes"}
    assert {*dag.params} == scopes | others


def test_a_use_case_that_learns_is_trained_before_it_is_synced(
    project: Project,
    load_dags: Callable[[], Any],
    run_dag: Run,
    write_messages: Write,
    store: Connection,
) -> None:
    project.raw["encoder"] = {
        **{"type": "autoencoder", "size": 4, "epochs": 2, "min_rows": 50},
        "device": "cpu",
    }
    project.use_case(source={"input": ["author", "sent_at"]})
    dag = load_dags().dags["embed_messages"]
    order = ["train", "sync", "plan", "embed", "publish"]
    assert [t.task_id for t in dag.topological_sort()] == order
    assert dag.get_task("train").pool == "gpu"
    assert "retrain" in dag.params
    write_messages(range(60))
    dry = run_dag("embed_messages", dry_run=True)
    assert (dry.state, xcom(dry, "sync")) == ("success", {"to_train": 1})
    first = run_dag("embed_messages")
    assert xcom(first, "train") == {"trained": 1, "training_rows": 60}
    assert xcom(first, "publish")["stored"] == 60
    again = run_dag("embed_messages")
    assert xcom(again, "train") == {"trained": 0}
    assert xcom(again, "publish")["embedded"] == 0
    write_messages(range(60, 80))
    retrained = run_dag("embed_messages", retrain=True)
    assert xcom(retrained, "train") == {"trained": 1, "training_rows": 80}
    serving = store.execute(
        "SELECT version FROM embedline.model_version WHERE state = 'active'"
    )
    assert serving.fetchall() == [(2,)]
    kinds = store.execute("SELECT DISTINCT state FROM embedline.run").fetchall()
    assert kinds == [("success",)]


def test_parsing_touches_no_database_and_no_model_library(project: Project) -> None:
    project.use_case(source={"dsn": "host=/nowhere"}, encoder={"model": "./nowhere"})
    code = (
        "import sys, socket\n"
        "from airflow.dag_processing.dagbag import DagBag\n"
        "def refuse(*a, **k): raise SystemExit('a connection was opened')\n"
        "socket.socket.connect = refuse\n"
        "import psycopg; psycopg.connect = refuse\n"
        f"bag = DagBag({str(dags_folder())!r})\n"
        "assert 'embed_messages' in bag.dags, bag.import_errors\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pandas'} & {*sys.modules}\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def dags_folder() -> Any:
    from tests.airflow.conftest import ROOT

    return ROOT / "dags"


def test_a_file_that_is_not_valid_breaks_its_own_dag_and_no_other(
    project: Project, run_dag: Run, write_messages: Write
) -> None:
    write_messages(range(5))
    (project.folder / "use_cases" / "bad one.yaml").write_text("poolin: cls")
    assert run_dag("embed_messages").state == "success"
    broken = run_dag("embed_bad_one")
    assert broken.state == "failed"
    assert "poolin" in broken.dag.doc_md


def test_a_run_embeds_and_publishes_its_counts(
    project: Project, run_dag: Run, write_messages: Write, store: Connection
) -> None:
    project.use_case(prediction="head")
    write_messages(range(20))
    run = run_dag("embed_messages")
    assert run.state == "success"
    counts = xcom(run, "publish")
    assert (counts["new"], counts["embedded"], counts["stored"]) == (20, 20, 20)
    again = run_dag("embed_messages")
    assert again.state == "success"
    assert xcom(again, "publish")["embedded"] == 0
    states = {ti.task_id: ti.state for ti in again.get_task_instances()}
    assert states["embed"] == "skipped"
    kinds = store.execute("SELECT kind, state FROM embedline.run").fetchall()
    assert kinds == [("manual", "success")] * 2


def xcom(run: Any, task_id: str) -> Any:
    import json

    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    with create_session() as session:
        found = session.scalars(
            XComModel.get_many(run_id=run.run_id, task_ids=task_id, key="return_value")
        ).first()
        return json.loads(found.value) if isinstance(found.value, str) else found.value


def test_a_manual_run_with_a_window_embeds_that_window(
    project: Project, run_dag: Run, write_messages: Write, store: Connection
) -> None:
    project.use_case(source={"start": "2027-01-01T00:00:00Z"})
    write_messages(range(60))
    run = run_dag(
        "embed_messages", since="2026-01-01T00:10:00Z", until="2026-01-01T00:20:00Z"
    )
    assert run.state == "success"
    assert xcom(run, "publish")["embedded"] == 10
    assert status.of(store)[0]["wanted"] == 10


@pytest.mark.parametrize(
    ("conf", "embedded", "missing"),
    [({"keys": ["3", "5", "x"]}, 2, 1), ({"everything": True}, 60, 0)],
)
def test_a_manual_run_of_keys_or_of_everything_embeds_those(
    project: Project,
    run_dag: Run,
    write_messages: Write,
    conf: dict[str, Any],
    embedded: int,
    missing: int,
) -> None:
    project.use_case(source={"start": "2027-01-01T00:00:00Z"})
    write_messages(range(60))
    run = run_dag("embed_messages", **conf)
    assert run.state == "success"
    counts = xcom(run, "publish")
    assert (counts["embedded"], counts["not_found"]) == (embedded, missing)
    several = run_dag("embed_messages", **conf, since="2026-01-01T00:00:00Z")
    assert several.state == "failed"


def test_a_manual_run_fills_a_fresh_table_and_lets_it_serve(
    project: Project, run_dag: Run, write_messages: Write, store: Connection
) -> None:
    write_messages(range(20))
    run_dag("embed_messages")
    run = run_dag("embed_messages", fresh=True, reembed=True)
    assert (run.state, xcom(run, "publish")["embedded"]) == ("success", 20)
    assert [row["model_version"] for row in status.of(store)] == [2]
    refused = run_dag("embed_messages", fresh=True, keys=["3"])
    assert refused.state == "failed"


def test_a_dry_run_publishes_nothing(
    project: Project, run_dag: Run, write_messages: Write, store: Connection
) -> None:
    write_messages(range(20))
    run = run_dag("embed_messages", dry_run=True)
    states = {ti.task_id: ti.state for ti in run.get_task_instances()}
    assert states["sync"] == "success"
    assert states["publish"] == "skipped"
    foreseen = xcom(run, "sync")
    assert (foreseen["new"], foreseen["to_embed"], foreseen["workers"]) == (20, 20, 1)
    assert status.of(store) == []
    run_dag("embed_messages")
    again = xcom(run_dag("embed_messages", dry_run=True, reembed=True), "sync")
    assert again["expected_seconds"] == 20 / again["records_per_second"]


def test_only_counts_pass_between_tasks(
    project: Project, run_dag: Run, write_messages: Write
) -> None:
    write_messages(range(20))
    run = run_dag("embed_messages")
    for task_id in ("sync", "plan", "embed", "publish"):
        value = xcom(run, task_id)
        values = value.values() if isinstance(value, dict) else value
        assert all(isinstance(v, int | float) for v in values), value


@pytest.mark.parametrize("what", ["terminal", "transient"])
def test_errors_of_ours_are_retried_only_where_that_can_help(
    load_dags: Callable[[], Any], what: str
) -> None:
    from airflow.sdk import RetryAction

    from embedding_tasks.errors import DatabaseAway, SourceError

    policy = load_dags().dags["embed_messages"].get_task("sync").retry_policy
    error = SourceError("no") if what == "terminal" else DatabaseAway("no")
    action = policy.evaluate(error, 1, 3).action
    assert (action == RetryAction.FAIL) == (what == "terminal")


def test_the_names_of_connections_are_looked_up_in_airflow(
    project: Project,
    run_dag: Run,
    write_messages: Write,
    monkeypatch: pytest.MonkeyPatch,
    source_dsn: str,
    store_dsn: str,
) -> None:
    import json

    from psycopg.conninfo import conninfo_to_dict

    def connection(dsn: str) -> str:
        parts = conninfo_to_dict(dsn)
        return json.dumps(
            {
                "conn_type": "postgres",
                "host": parts["host"],
                "login": parts["user"],
                "schema": parts["dbname"],
                "port": int(parts["port"]) if "port" in parts else None,
                "password": parts.get("password"),
            }
        )

    monkeypatch.delenv("EMBEDLINE_STORE_DSN")
    monkeypatch.setenv("AIRFLOW_CONN_EMBEDLINE_STORE", connection(store_dsn))
    monkeypatch.setenv("AIRFLOW_CONN_CRM", connection(source_dsn))
    project.use_case(source={"connection": "crm", "dsn": None})
    write_messages(range(5))
    assert run_dag("embed_messages").state == "success"
    assert not (project.folder / ".embedline" / "postgres").exists()
