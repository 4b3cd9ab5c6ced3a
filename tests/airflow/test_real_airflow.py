"""The components themselves: scheduler, API server, DAG processor, as `make airflow`
runs them. Scheduled, manual and backfilled runs, and a task killed with SIGKILL."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import yaml

from embedding_tasks.connections import Connection, connect
from embedding_tasks.local import postgres
from embedding_tasks.local.airflow import Airflow, running
from tests.airflow.conftest import ROOT
from tests.fix_project import MESSAGES

pytestmark = pytest.mark.slow

DAG = "/dags/embed_messages"
# Airflow's own way to have all DAGs of an installation otherwise.
POLICY = """
from datetime import timedelta

def task_policy(task):
    task.retry_delay = timedelta(seconds=1)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with dags/ and plugins/, and nothing configured."""
    project = tmp_path_factory.mktemp("project")
    for name in ("dags", "plugins"):
        (project / name).symlink_to(ROOT / name)
    (project / "use_cases").mkdir()
    return project


@pytest.fixture(scope="module")
def source(home: Path) -> Iterator[Connection]:
    conninfo = postgres.conninfo("crm", home / ".embedline")
    parts = psycopg.conninfo.conninfo_to_dict(conninfo)
    crm = {
        "conn_type": "postgres",
        "host": parts["host"],
        "login": parts["user"],
        "schema": "crm",
    }
    (home / ".embedline" / "connections.json").write_text(json.dumps({"crm": crm}))
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(MESSAGES)
        connection.execute(
            "INSERT INTO messages SELECT i, 'message number ' || i, NULL,"
            " '2026-01-01T00:00Z'::timestamptz + i * interval '1 minute'"
            " FROM generate_series(0, 4319) i"
        )
        yield connection
    postgres.release(home / ".embedline")


@pytest.fixture(scope="module")
def airflow(
    home: Path, source: Connection, tiny: Path, minilm: Path
) -> Iterator[Airflow]:
    use_case = {
        "name": "messages",
        "source": {
            "connection": "crm",
            "table": "messages",
            "key": "id",
            "input": "body",
            "event_time": "sent_at",
            "start": "2026-01-03T00:00:00Z",
        },
        "encoder": {"model": str(tiny), "device": "cpu"},
        "batch": {"claim": 8, "lease_seconds": 300},
    }
    (home / "use_cases" / "messages.yaml").write_text(yaml.safe_dump(use_case))
    local_settings = home / ".embedline/airflow/config/airflow_local_settings.py"
    local_settings.parent.mkdir(parents=True)
    local_settings.write_text(POLICY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDLINE_PROJECT", str(home))
        for name in ("EMBEDLINE_HOME", "EMBEDLINE_STORE_DSN"):
            patch.delenv(name, raising=False)
        before = {p.pid for p in psutil.process_iter()}
        with running(triggerer=False) as server:
            wait(lambda: server.exists(DAG))
            server.patch(DAG, {"is_paused": False})
            yield server
        left = [
            p.cmdline()
            for p in psutil.process_iter()
            if p.pid not in before
            and p.status() != psutil.STATUS_ZOMBIE
            and "airflow" in " ".join(p.cmdline())
            and "forkserver" not in " ".join(p.cmdline())  # the tests' own
        ]
        assert left == []


def wait(condition: Callable[[], Any], seconds: float = 150) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    return answer


def ended(airflow: Airflow, run_id: str) -> str:
    def state() -> str | None:
        now: str = airflow.get(f"{DAG}/dagRuns/{run_id}")["state"]
        return now if now in ("success", "failed") else None

    result: str = wait(state)
    return result


def counts(home: Path, run_id: str) -> tuple[Any, ...] | None:
    with connect(
        postgres.conninfo("embedline", home / ".embedline"), role="store"
    ) as store:
        return store.execute(
            "SELECT kind, state, new, embedded, discarded FROM embedline.run"
            " WHERE external_id = %s",
            [run_id],
        ).fetchone()


def test_the_scheduler_runs_it_by_itself(airflow: Airflow, home: Path) -> None:
    assert airflow.get("/importErrors")["import_errors"] == []
    path = f"{DAG}/dagRuns?run_type=scheduled"
    run = wait(lambda: airflow.get(path)["dag_runs"])[0]
    assert ended(airflow, run["dag_run_id"]) == "success"
    expected = ("scheduled", "success", 1440, 1440, 0)
    assert counts(home, run["dag_run_id"]) == expected
    assert run["data_interval_start"] < run["data_interval_end"]


def test_pool_and_connections_are_there(airflow: Airflow) -> None:
    assert airflow.get("/pools/gpu")["slots"] == 1
    for name in ("embedline_store", "crm"):
        assert airflow.get(f"/connections/{name}")["conn_type"] == "postgres"


def test_a_manual_run_with_a_window_and_bad_parameters(
    airflow: Airflow, home: Path
) -> None:
    window = {"since": "2026-01-01T00:00:00Z", "until": "2026-01-01T01:00:00Z"}
    body = {"dag_run_id": "by_hand", "logical_date": None, "conf": window}
    airflow.post(f"{DAG}/dagRuns", body)
    assert ended(airflow, "by_hand") == "success"
    assert counts(home, "by_hand") == ("manual", "success", 60, 60, 0)
    for conf in ({"reembed": "maybe"}, {"since": 12}):
        with pytest.raises(Exception, match="refused POST"):
            airflow.post(f"{DAG}/dagRuns", {"logical_date": None, "conf": conf})


def test_a_backfill_embeds_the_records_of_each_day(
    airflow: Airflow, home: Path
) -> None:
    body = {
        "dag_id": "embed_messages",
        "from_date": "2026-01-01T00:00:00Z",
        "to_date": "2026-01-01T00:00:00Z",
        "max_active_runs": 1,
        "dag_run_conf": {},
    }
    airflow.post("/backfills", body)
    path = f"{DAG}/dagRuns?run_type=backfill"
    run = wait(lambda: airflow.get(path)["dag_runs"])[0]
    assert ended(airflow, run["dag_run_id"]) == "success"
    expected = ("backfill", "success", 1380, 1380, 0)
    assert counts(home, run["dag_run_id"]) == expected


def test_an_embed_task_killed_with_sigkill_is_retried_and_loses_nothing(
    airflow: Airflow, home: Path, source: Connection
) -> None:
    source.execute("UPDATE messages SET body = body || ' again' WHERE id >= 2880")
    airflow.post(
        f"{DAG}/dagRuns", {"dag_run_id": "killed", "logical_date": None, "conf": {}}
    )
    store = connect(postgres.conninfo("embedline", home / ".embedline"), role="store")
    with store:

        def embedded() -> int:
            row = store.execute(
                "SELECT embedded FROM embedline.run WHERE external_id = 'killed'"
            ).fetchone()
            return int(row[0]) if row else 0

        wait(lambda: embedded() > 0)
        next(torch_users()).kill()
        assert 0 < embedded() < 1440
        path = f"{DAG}/dagRuns/killed/taskInstances"

        def retried() -> bool:
            tasks = airflow.get(path)["task_instances"]
            return any(t["task_id"] == "embed" and t["try_number"] > 1 for t in tasks)

        wait(retried)
        assert ended(airflow, "killed") == "success"
        assert counts(home, "killed") == ("manual", "success", 0, 1440, 0)
        row = store.execute("SELECT coverage, pending FROM embedline.status").fetchone()
        assert row == (1.0, 0)


def torch_users() -> Iterator[psutil.Process]:
    """Processes under this one that have loaded torch: the embed tasks."""
    for process in psutil.Process().children(recursive=True):
        try:
            if "libtorch_cpu" in Path(f"/proc/{process.pid}/maps").read_text():
                yield process
        except OSError:
            continue
