"""What Airflow keeps of a DAG and its runs has no secret of a connection in it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from embedding_tasks.connections import Connection
from tests.airflow.conftest import HOME
from tests.fix_project import Project

SECRET = "hunter2-of-a-connection"


def test_no_secret_is_in_what_airflow_keeps(
    full_use_case: Project,
    run_dag: Callable[..., Any],
    load_dags: Callable[[], Any],
    store: Connection,
    store_dsn: str,
    source_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Serialized DAGs, rendered fields, XComs, logs: of a run that succeeds, and of one
    whose source refuses it."""
    parts = conninfo_to_dict(source_dsn)
    crm = {
        "conn_type": "postgres",
        "host": parts["host"],
        "login": parts["user"],
        "password": SECRET,
        "schema": parts["dbname"],
    }
    monkeypatch.setenv("AIRFLOW_CONN_CRM", json.dumps(crm))
    monkeypatch.delenv("EMBEDLINE_STORE_DSN")
    monkeypatch.setenv(
        "AIRFLOW_CONN_EMBEDLINE_STORE",
        json.dumps(
            {
                **crm,
                **{"host": conninfo_to_dict(store_dsn)["host"]},
                "schema": conninfo_to_dict(store_dsn)["dbname"],
            }
        ),
    )
    del full_use_case.raw["source"]["dsn"]
    full_use_case.use_case(source={"connection": "crm"})
    done = run_dag("embed_messages")
    assert done.state == "success"
    # which no retry mends
    gone = json.dumps({**crm, "schema": "no_such_database"})
    monkeypatch.setenv("AIRFLOW_CONN_CRM", gone)
    failed = run_dag("embed_messages")
    assert failed.state == "failed"

    from airflow.serialization.serialized_objects import DagSerialization

    dag = load_dags().dags["embed_messages"]
    kept = str(DagSerialization.to_dict(dag))
    database = sqlite3.connect(f"file:{HOME}/airflow.db?mode=ro", uri=True)
    tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    for (table,) in tables.fetchall():
        kept += str(database.execute(f'SELECT * FROM "{table}"').fetchall())
    assert "return_value" in kept
    for log in Path(HOME, "logs").glob("**/*.log"):
        kept += log.read_text(errors="replace")
    kept += "".join(capfd.readouterr()) + caplog.text
    kept += str(store.execute("SELECT r::text FROM embedline.run r").fetchall())
    assert "run" in kept
    assert SECRET not in kept
    assert make_conninfo("", password=SECRET) not in kept
