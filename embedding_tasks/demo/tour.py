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
from importlib import import_module
from typing import TYPE_CHECKING, Any

from psycopg.conninfo import conninfo_to_dict
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from embedding_tasks import settings
from embedding_tasks.connections import Connection, connect
from embedding_tasks.demo import production as source
from embedding_tasks.demo import report, tweets
from embedding_tasks.demo.calendar import DAYS, FIRST_DAY
from embedding_tasks.errors import ConfigError, EmbedlineError
from embedding_tasks.local import postgres
from embedding_tasks.store.connection import open_store

if TYPE_CHECKING:
    from embedding_tasks.demo.training.fit import Trained
    from embedding_tasks.local.airflow import Airflow

TWEETS = "tweets"
USE_CASES = (TWEETS, "entities", "digits")
MONITORED = (TWEETS, "digits")
TASKS = 5  # sync, plan, embed (counted twice: it is most of the work), publish
MONITOR_TASKS = 3  # measure, tell, gate
BACKFILL = (FIRST_DAY, FIRST_DAY + timedelta(days=1))


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
    with console.status("making the source"):
        made = tweets.rows_made(production)
        created = tweets.create(production, rows) if made is None else None
        further = source.create_further(production)
    if created is not None:
        more = "".join(f", {count} {table}" for table, count in further.items())
        console.print(
            f"source: {created} real tweets{more}, over {DAYS} days, "
            f"database {source.DATABASE!r}",
            soft_wrap=True,
        )
    elif made != tweets.rows_for(rows):
        wanted = "all" if rows is None else rows
        console.print(
            f"[yellow]the demo holds {made} tweets, not {wanted}; to make it anew: "
            f"make clean-demo demo DEMO_ROWS={wanted}[/yellow]"
        )


def _train(console: Console, production: Connection) -> None:
    for use_case, what, told in _TRAININGS:
        folder = settings.home() / "models" / use_case
        if folder.exists():
            continue
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _bar(console, f"training {what}") as advance:
            module = import_module(f"embedding_tasks.demo.training.{use_case}")
            trained: Trained = module.train(production, folder, advance)
        console.print(
            f"model: {what}, trained on {trained.rows}; {told} {trained.quality:.1%} "
            f"on {trained.held_out} held out",
            soft_wrap=True,
        )


# Each is a module of `training`, and imports torch when it is its turn.
_TRAININGS = (
    (TWEETS, "a sentiment classifier (MiniLM with a new head)", "accuracy"),
    ("entities", "a tagger of named entities (MiniLM with a new head)", "tags right"),
    ("digits", "a small Vision Transformer that reads digits", "accuracy"),
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
        "SELECT u.name, r.kind, r.external_id FROM embedline.run r"
        " JOIN embedline.use_case u ON u.id = r.use_case WHERE r.state = 'success'"
    ).fetchall()
    loaded = {name for name, kind, _ in done if kind == "scheduled"}
    steps: list[Step] = [
        (f"First load of {name}, by the scheduler", partial(_first_load, name))
        for name in USE_CASES
        if name not in loaded
    ]
    for day in tweets.days_after_first():
        if (TWEETS, "manual", _run_id(day)) not in done:
            title = f"{day:%A} {day}: a day passes, then a manual run"
            steps.append((title, partial(_day, day)))
    backfills = [name for name, kind, _ in done if kind == "backfill"]
    if len(backfills) < len(BACKFILL):
        first, last = BACKFILL
        steps.append((f"Backfill of {first} and {last}, by Airflow", _backfill))
    steps += [
        (f"Monitoring of {name}: every day that has passed", partial(_monitor, name))
        for name in MONITORED
        if steps or not _is_monitored(store, name)
    ]
    return steps


def _is_monitored(store: Connection, name: str) -> bool:
    found = store.execute(
        "SELECT FROM embedline.monitor WHERE use_case = %s LIMIT 1", [name]
    )
    return found.fetchone() is not None


def _run(
    console: Console, production: Connection, store: Connection, steps: list[Step]
) -> None:
    from embedding_tasks.local import airflow

    with ExitStack() as stack:
        with console.status("starting Airflow: API server, scheduler, DAG processor"):
            server = stack.enter_context(airflow.running(triggerer=False))
        with console.status("waiting for the DAGs"):
            for dag in (*map(_dag, USE_CASES), *map(_monitoring, MONITORED)):
                _wait(partial(server.exists, f"/dags/{dag}"), f"{dag} to be parsed")
        for title, step in steps:
            console.print(f"[bold]{title}[/bold]")
            step(_Stage(console, server, production, store))
        console.print("stopping Airflow")


def _first_load(name: str, stage: _Stage) -> None:
    """The scheduler makes a run of its own as soon as the DAG is switched on."""
    dag = _dag(name)
    stage.airflow.patch(f"/dags/{dag}", {"is_paused": False})
    path = f"/dags/{dag}/dagRuns?run_type=scheduled&limit=1"
    runs = _wait(lambda: stage.airflow.get(path)["dag_runs"], "a scheduled run")
    _follow(stage, name, runs[0]["dag_run_id"])


def _day(day: date, stage: _Stage) -> None:
    happened = tweets.pass_day(stage.production, day)
    facts = ", ".join(f"{count} {what}" for what, count in happened.items())
    stage.console.print(f"  in production: {facts}", highlight=False, soft_wrap=True)
    run_id = _run_id(day)
    if not stage.airflow.exists(f"/dags/{_dag(TWEETS)}/dagRuns/{run_id}"):
        body = {"dag_run_id": run_id, "logical_date": None}
        stage.airflow.post(f"/dags/{_dag(TWEETS)}/dagRuns", body)
    _follow(stage, TWEETS, run_id)


def _backfill(stage: _Stage) -> None:
    first, last = BACKFILL
    if not stage.airflow.get(f"/backfills?dag_id={_dag(TWEETS)}")["backfills"]:
        body = {
            "dag_id": _dag(TWEETS),
            "from_date": f"{first}T00:00:00Z",
            "to_date": f"{last}T00:00:00Z",
            "max_active_runs": 1,
            "dag_run_conf": {},
        }
        stage.airflow.post("/backfills", body)
    path = f"/dags/{_dag(TWEETS)}/dagRuns?run_type=backfill&order_by=logical_date"

    def both() -> Any:
        runs = stage.airflow.get(path)["dag_runs"]
        return runs if len(runs) == len(BACKFILL) else None

    for run in _wait(both, "the backfill's runs"):
        _follow(stage, TWEETS, run["dag_run_id"])


def _monitor(name: str, stage: _Stage) -> None:
    """It runs by itself whenever the embeddings are up to date; here, once more."""
    dag = _monitoring(name)
    stage.airflow.patch(f"/dags/{dag}", {"is_paused": False})
    run = stage.airflow.post(f"/dags/{dag}/dagRuns", {"logical_date": None})
    _wait_for_run(stage, dag, run["dag_run_id"], lambda done: done / MONITOR_TASKS)
    on = stage.store.execute(
        "SELECT count(*) FROM embedline.monitor_alarms"
        " WHERE use_case = %s AND cleared IS NULL",
        [name],
    ).fetchone()
    assert on is not None
    stage.console.print(f"  alarms that are on: {on[0]}", highlight=False)


def _follow(stage: _Stage, name: str, run_id: str) -> None:
    """Show a run of a DAG until it ends, then what it did, from the store."""
    _wait_for_run(
        stage,
        _dag(name),
        run_id,
        lambda done: done / TASKS + _coverage(stage.store, name) / TASKS,
    )
    row = stage.store.execute(
        "SELECT r.new, r.changed, r.deleted, r.labels, r.embedded, r.vectors"
        " FROM embedline.run r JOIN embedline.use_case u ON u.id = r.use_case"
        " WHERE u.name = %s AND r.external_id = %s",
        [name, run_id],
    ).fetchone()
    assert row is not None
    names = ("new", "changed", "deleted", "labels changed", "embedded", "vectors")
    facts = ", ".join(f"{n} {what}" for what, n in zip(names, row, strict=True))
    stage.console.print(f"  in the store: {facts}", highlight=False, soft_wrap=True)


def _wait_for_run(
    stage: _Stage, dag: str, run_id: str, share: Callable[[int], float]
) -> None:
    path = f"/dags/{dag}/dagRuns/{run_id}"
    with _bar(stage.console, f"  {run_id[:32]}") as advance:
        while (state := stage.airflow.get(path)["state"]) not in ("success", "failed"):
            tasks = stage.airflow.get(f"{path}/taskInstances")["task_instances"]
            advance(share(sum(t["state"] in ("success", "skipped") for t in tasks)))
            time.sleep(0.5)
        advance(1.0)
    if state == "failed":
        raise EmbedlineError(
            f"run {run_id} of {dag} failed; `make airflow` shows it, its logs "
            f"are in {stage.airflow.home / 'logs'}; `make demo` goes on from here"
        )


def _coverage(store: Connection, name: str) -> float:
    row = store.execute(
        "SELECT coverage FROM embedline.status WHERE use_case = %s AND wanted > 0",
        [name],
    ).fetchone()
    return float(row[0]) if row else 0.0


def _dag(name: str) -> str:
    return f"embed_{name}"


def _monitoring(name: str) -> str:
    return f"monitor_{name}"


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
