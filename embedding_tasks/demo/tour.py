"""The way through the demo, step by step.

Every step asks the databases whether it has been done, so a demo that was stopped goes
on where it was, and one that is finished changes nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from psycopg.conninfo import conninfo_to_dict
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from embedding_tasks import settings
from embedding_tasks.connections import Connection, connect
from embedding_tasks.demo import report, source
from embedding_tasks.errors import ConfigError, EmbedlineError
from embedding_tasks.local import postgres
from embedding_tasks.store.connection import open_store

if TYPE_CHECKING:
    from embedding_tasks.local.airflow import Airflow

USE_CASE = "tweets"
DAG = f"embed_{USE_CASE}"
TASKS = 5  # sync, plan, embed (counted twice: it is most of the work), publish
BACKFILL = (source.FIRST_DAY, source.FIRST_DAY + timedelta(days=1))


def tour(console: Console, rows: int | None) -> None:
    """`rows` tweets, or all of them. Raises `EmbedlineError` when a run of the DAG
    does not succeed."""
    began = time.monotonic()
    with (
        connect(postgres.conninfo(source.DATABASE), role="source") as production,
        open_store() as store,
    ):
        _make_source(console, production, rows)
        _train(console, production)
        _save_connection()
        steps = _steps_to_do(store)
        if steps:
            _run(console, production, store, steps)
        else:
            console.print("everything has been done before: nothing to run")
        report.show(console, store)
    console.print(f"[dim]{time.monotonic() - began:.0f} s[/dim]")


def parse_rows(text: str) -> int | None:
    """DEMO_ROWS: a number, or 'all'. Raises `ConfigError`."""
    if text == "all":
        return None
    if not text.isdigit() or int(text) < 500:
        raise ConfigError(f"DEMO_ROWS: {text!r}; valid: a number from 500, or 'all'")
    return int(text)


def _make_source(console: Console, production: Connection, rows: int | None) -> None:
    made = source.rows_made(production)
    if made is None:
        with console.status("making the source"):
            made = source.create(production, rows)
        console.print(
            f"source: {made} real tweets over {source.DAYS} days, "
            f"database {source.DATABASE!r}"
        )
    elif made != source.rows_for(rows):
        wanted = "all" if rows is None else rows
        console.print(
            f"[yellow]the demo holds {made} tweets, not {wanted}; to make it anew: "
            f"make clean-demo demo DEMO_ROWS={wanted}[/yellow]"
        )


def _train(console: Console, production: Connection) -> None:
    folder = settings.home() / "models" / USE_CASE
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _bar(console, "training a sentiment classifier") as advance:
        from embedding_tasks.demo.train import train

        trained = train(production, folder, advance)
    console.print(
        f"model: MiniLM with a new head, trained on {trained.rows} tweets of the first "
        f"days; accuracy {trained.accuracy:.1%} on {trained.held_out} held out",
        soft_wrap=True,
    )


def _save_connection() -> None:
    """In Airflow's own format, for Airflow and for the command line."""
    file = settings.home() / "connections.json"
    saved = json.loads(file.read_text()) if file.exists() else {}
    parts = conninfo_to_dict(postgres.conninfo(source.DATABASE))
    saved["embedline_source"] = {
        "conn_type": "postgres",
        "description": "the demo's production database",
        "host": parts["host"],
        "login": parts["user"],
        "schema": parts["dbname"],
    }
    file.write_text(json.dumps(saved, indent=2))


@dataclass(frozen=True)
class _Stage:
    """What every step plays on."""

    console: Console
    airflow: Airflow
    production: Connection
    store: Connection


Step = tuple[str, Callable[[_Stage], None]]


def _steps_to_do(store: Connection) -> list[Step]:
    done = store.execute(
        "SELECT r.kind, r.external_id FROM embedline.run r"
        " JOIN embedline.use_case u ON u.id = r.use_case"
        " WHERE u.name = %s AND r.state = 'success'",
        [USE_CASE],
    ).fetchall()
    kinds = [kind for kind, _ in done]
    steps: list[Step] = []
    if "scheduled" not in kinds:
        steps.append(("First load, by the scheduler", _first_load))
    for day in source.days_after_first():
        if ("manual", _run_id(day)) not in done:
            title = f"{day:%A} {day}: a day passes, then a manual run"
            steps.append((title, partial(_day, day)))
    if kinds.count("backfill") < len(BACKFILL):
        first, last = BACKFILL
        steps.append((f"Backfill of {first} and {last}, by Airflow", _backfill))
    return steps


def _run(
    console: Console, production: Connection, store: Connection, steps: list[Step]
) -> None:
    from embedding_tasks.local import airflow

    with ExitStack() as stack:
        with console.status("starting Airflow: API server, scheduler, DAG processor"):
            server = stack.enter_context(airflow.running(triggerer=False))
        with console.status(f"waiting for the DAG {DAG}"):
            _wait(lambda: server.exists(f"/dags/{DAG}"), f"{DAG} to be parsed")
            server.patch(f"/dags/{DAG}", {"is_paused": False})
        for title, step in steps:
            console.print(f"[bold]{title}[/bold]")
            step(_Stage(console, server, production, store))
        console.print("stopping Airflow")


def _first_load(stage: _Stage) -> None:
    """The scheduler makes a run of its own as soon as the DAG is switched on."""
    path = f"/dags/{DAG}/dagRuns?run_type=scheduled&limit=1"
    runs = _wait(lambda: stage.airflow.get(path)["dag_runs"], "a scheduled run")
    _follow(stage, runs[0]["dag_run_id"])


def _day(day: date, stage: _Stage) -> None:
    happened = source.pass_day(stage.production, day)
    facts = ", ".join(f"{count} {what}" for what, count in happened.items())
    stage.console.print(f"  in production: {facts}", highlight=False, soft_wrap=True)
    run_id = _run_id(day)
    if not stage.airflow.exists(f"/dags/{DAG}/dagRuns/{run_id}"):
        body = {"dag_run_id": run_id, "logical_date": None}
        stage.airflow.post(f"/dags/{DAG}/dagRuns", body)
    _follow(stage, run_id)


def _backfill(stage: _Stage) -> None:
    first, last = BACKFILL
    if not stage.airflow.get(f"/backfills?dag_id={DAG}")["backfills"]:
        body = {
            "dag_id": DAG,
            "from_date": f"{first}T00:00:00Z",
            "to_date": f"{last}T00:00:00Z",
            "max_active_runs": 1,
            "dag_run_conf": {},
        }
        stage.airflow.post("/backfills", body)
    path = f"/dags/{DAG}/dagRuns?run_type=backfill&order_by=logical_date"

    def both() -> Any:
        runs = stage.airflow.get(path)["dag_runs"]
        return runs if len(runs) == len(BACKFILL) else None

    for run in _wait(both, "the backfill's runs"):
        _follow(stage, run["dag_run_id"])


def _follow(stage: _Stage, run_id: str) -> None:
    """Show a run of the DAG until it ends, then what it did, from the store."""
    path = f"/dags/{DAG}/dagRuns/{run_id}"
    with _bar(stage.console, f"  {run_id[:32]}") as advance:
        while (state := stage.airflow.get(path)["state"]) not in ("success", "failed"):
            tasks = stage.airflow.get(f"{path}/taskInstances")["task_instances"]
            done = sum(t["state"] in ("success", "skipped") for t in tasks)
            advance(done / TASKS + _coverage(stage.store) / TASKS)
            time.sleep(0.5)
        advance(1.0)
    if state == "failed":
        raise EmbedlineError(
            f"run {run_id} of {DAG} failed; `make airflow` shows it, its logs are in "
            f"{stage.airflow.home / 'logs'}; `make demo` goes on from here"
        )
    row = stage.store.execute(
        "SELECT r.new, r.changed, r.deleted, r.labels, r.embedded FROM embedline.run r"
        " JOIN embedline.use_case u ON u.id = r.use_case"
        " WHERE u.name = %s AND r.external_id = %s",
        [USE_CASE, run_id],
    ).fetchone()
    assert row is not None
    names = ("new", "changed", "deleted", "labels changed", "embedded")
    facts = ", ".join(f"{n} {what}" for what, n in zip(names, row, strict=True))
    stage.console.print(f"  in the store: {facts}", highlight=False, soft_wrap=True)


def _coverage(store: Connection) -> float:
    row = store.execute(
        "SELECT coverage FROM embedline.status WHERE use_case = %s AND wanted > 0",
        [USE_CASE],
    ).fetchone()
    return float(row[0]) if row else 0.0


def _run_id(day: date) -> str:
    return f"day__{day}"


def _wait(condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """The condition's first answer that is true."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise EmbedlineError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.5)
    return answer


@contextmanager
def _bar(console: Console, title: str) -> Iterator[Callable[[float], None]]:
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        console=console,
    )
    with progress:
        task = progress.add_task(title, total=1.0)
        yield lambda share: progress.update(task, completed=share)
