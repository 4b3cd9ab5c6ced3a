"""The `embedline` command: the same functions as the DAGs, without Airflow."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.logging import RichHandler
from rich.markup import escape

from embedding_tasks import __version__, settings, terminal, use_case
from embedding_tasks.errors import EmbedlineError
from embedding_tasks.local import postgres
from embedding_tasks.local.signals import interruptible
from embedding_tasks.use_case import Window

app = typer.Typer(
    help="Embeddings of Postgres records, kept exactly in step in pgvector.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out, err = terminal.out, terminal.err

Name = Annotated[str, typer.Argument(help="a use case: use_cases/NAME.yaml")]
Key = Annotated[str, typer.Argument(help="a record's key")]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable output")]
Feature = Annotated[
    str | None, typer.Option(help="of a use case that declares several")
]
Count = Annotated[int, typer.Option("-k", min=1, help="how many")]


def main() -> None:
    try:
        app()
    except EmbedlineError as error:
        text = f"[red]error:[/red] {escape(str(error))}"
        err.print(text, highlight=False, soft_wrap=True)
        sys.exit(1)


@app.callback()
def options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="show what is being done")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="print the version")
    ] = False,
) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit
    logging.basicConfig(
        format="%(message)s", handlers=[RichHandler(console=err, show_path=False)]
    )
    level = logging.INFO if verbose else logging.WARNING
    logging.getLogger("embedding_tasks").setLevel(level)
    if postgres.exists():  # a source, too, may live in the embedded server
        postgres.hold()


@app.command()
def init() -> None:
    """Prepare the store: schema, functions and views. Safe to repeat."""
    from embedding_tasks.connections import connect, describe
    from embedding_tasks.store import connection, migrate

    conninfo = connection.conninfo()
    with connect(conninfo, role="store") as store:
        applied = migrate.apply(store)
        connection.warn_of_old_pgvector(store)
    for name in applied:
        terminal.say(f"applied sql/{name}")
    terminal.say(f"the store ({describe(conninfo)}) is up to date")


@app.command()
def check(
    names: Annotated[
        list[str] | None, typer.Argument(help="use cases; all when none is named")
    ] = None,
    model: Annotated[
        bool, typer.Option(help="load the model and embed one text")
    ] = True,
) -> None:
    """Is every use case fit to run? Its file, source, keys, model and store."""
    from embedding_tasks import check as checks

    for name in names or []:
        use_case.path_of(name)
    paths = [p for p in use_case.files() if not names or p.stem in names]
    good = True
    for finding, loaded in checks.files(paths):
        good &= _show(finding)
        if loaded is not None:
            for further in checks.use_case(loaded, with_model=model):
                good &= _show(further)
    if not paths:
        terminal.say(f"no use case in {settings.use_cases()}")
    if not good:
        raise typer.Exit(1)


def _show(finding: Any) -> bool:
    sign = "[green]ok[/green]  " if finding.problem is None else "[red]fail[/red]"
    text = finding.detail if finding.problem is None else finding.problem
    out.print(
        f"{sign} {finding.subject} {finding.what}: {escape(text)}",
        highlight=False,
        soft_wrap=True,
    )
    return finding.problem is None


@app.command()
def run(
    name: Name,
    since: Annotated[
        str | None, typer.Option(help="event time from, e.g. 2026-03-01T00:00Z")
    ] = None,
    until: Annotated[str | None, typer.Option(help="event time before")] = None,
    reembed: Annotated[
        bool, typer.Option(help="make these vectors anew, changed or not")
    ] = False,
    allow_deletes: Annotated[
        bool, typer.Option(help="let the delete guard pass, this once")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option(help="count what would be done, and do nothing")
    ] = False,
) -> None:
    """Bring a use case's vectors in step with its source."""
    from embedding_tasks.run import Request
    from embedding_tasks.run import run as run_all

    request = Request(
        use_case=use_case.find(name),
        external_id=f"cli__{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}__{os.getpid()}",
        kind="cli",
        window=Window.parse(since, until),
        reembed=reembed,
        allow_deletes=allow_deletes,
        dry_run=dry_run,
    )
    with (
        interruptible() as stopped,
        terminal.bar() as bar,
    ):
        try:
            counts = run_all(
                request,
                terminal.embedding(bar, name, stopped),
                terminal.training(bar, name, stopped),
            )
        except KeyboardInterrupt:
            err.print("stopped; what was finished is stored, the rest waits")
            raise typer.Exit(130) from None
    head = "would do" if dry_run else "done"
    version = counts.pop("builds_version", 0)
    facts = [f"{v} {k.replace('_', ' ')}" for k, v in _told(counts).items()]
    if version:
        facts.append(f"as model version {version}, beside the serving one")
    terminal.say(f"{head}: {', '.join(facts) or 'nothing to do'}")


@app.command()
def train(
    name: Name,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="again, on the rows of today")
    ] = False,
) -> None:
    """Train the encoders that learn from a use case's own rows."""
    from embedding_tasks import training
    from embedding_tasks.run import Request
    from embedding_tasks.store import trained

    request = Request(use_case=use_case.find(name), external_id="", kind="cli")
    with request.open_store() as store:
        with interruptible() as stopped, terminal.bar() as bar:
            try:
                progress = terminal.training(bar, name, stopped)
                counts = training.train(
                    store, request, retrain=retrain, progress=progress
                )
            except KeyboardInterrupt:
                err.print("stopped; the next training goes on from its last epoch")
                raise typer.Exit(130) from None
        models = trained.models(store, request.use_case)
    if not models:
        terminal.say(f"{name}: none of its encoders is trained on its rows")
        return
    rows = [{"feature": f, **_rounded(m)} for f, m in models.items()]
    terminal.print_table(rows, ["feature", "kind", "rows", *_TRAINED])
    if not counts["trained"]:
        terminal.say("trained already; --retrain trains on the rows of today")


_TRAINED = (
    *("epoch", "epochs", "training_loss", "validation_loss", "baseline"),
    *("seconds", "digest"),
)


def _rounded(model: Mapping[str, Any]) -> dict[str, Any]:
    floats = {k: f"{v:.4g}" for k, v in model.items() if isinstance(v, float)}
    return {**model, **floats, "digest": model["digest"][:12]}


def _told(counts: Mapping[str, Any]) -> dict[str, Any]:
    untold = ("seconds", "vectors", "pending")
    return {k: v for k, v in counts.items() if v and k not in untold}


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="one use case only")] = None,
    as_json: AsJson = False,
) -> None:
    """Coverage, backlog, oldest pending age and dead records: exact numbers."""
    from embedding_tasks import status as statuses
    from embedding_tasks.store.connection import open_store

    with open_store() as store:
        rows = statuses.of(store, name)
        for row in rows:
            row["dead_errors"] = statuses.dead_errors(
                store, row["use_case"], row["model_version"]
            )
    if name and not rows:
        use_case.path_of(name)
    if as_json:
        terminal.print_json(rows)
        return
    if not rows:
        terminal.say(f"nothing has run yet: embedline run {name or 'NAME'}")
        return
    for row in rows:
        _print_status(row)


def _print_status(row: dict[str, Any]) -> None:
    name = row["use_case"]
    if row["feature"] != use_case.ONE_FEATURE:
        name += f" {row['feature']}"
    head = f"{name}, model version {row['model_version']} ({row['state']})"
    terminal.say(f"[bold]{head}[/bold]: {row['coverage']:.2%} covered")
    counts = ("wanted", "stored", "pending", "leased", "retrying", "dead", "skipped")
    terminal.say("  " + ", ".join(f"{row[c]} {c}" for c in counts))
    if row["oldest_pending_age"]:
        terminal.say(f"  oldest pending since {row['oldest_pending_age']}")
    for dead in row["dead_errors"]:
        told = f"{dead['records']} dead: {dead['error']}; e.g. key {dead['key']}"
        terminal.say(f"  [red]{escape(told)}[/red]")
    for what in ("deletes", "labels"):
        if withheld := row[f"{what}_withheld"]:
            terminal.say(f"  [red]{withheld} {what} withheld by the delete guard[/red]")
    last = f"last run {row['last_run_kind'] or ''} {row['last_run_state'] or 'never'}"
    success = terminal.plain(row["last_success"]) or "never"
    terminal.say(f"  {last}; last success {success}")
    if row["last_run_error"]:
        terminal.say(f"  [red]{escape(row['last_run_error'])}[/red]")


@app.command()
def search(
    name: Name,
    text: Annotated[str, typer.Argument(help="a text, or a key with --key")],
    k: Count = 10,
    key: Annotated[
        bool, typer.Option("--key", help="search near the record of this key")
    ] = False,
    feature: Feature = None,
    unit: Annotated[
        int | None,
        typer.Option(help="with --key: the number of its word, entity or object"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The records nearest to a text, embedded with the use case's own model."""
    from embedding_tasks import search as searches
    from embedding_tasks.store.connection import open_store

    with open_store() as store:
        if key:
            rows = searches.by_key(store, name, text, k, feature=feature, unit=unit)
        else:
            rows = searches.by_text(store, name, text, k, feature=feature)
    if as_json:
        terminal.print_json(rows)
        return
    for row in rows:
        row["distance"] = f"{row['distance']:.4f}"
        row["score"] = "" if row["score"] is None else f"{row['score']:.3f}"
    columns = ["key", "distance", "prediction", "score", "label", "data"]
    if any(row["text"] for row in rows):
        columns[1:1] = ["unit", "text"]
    terminal.print_table(rows, columns)


@app.command()
def explain(
    name: Name, key: Key, feature: Feature = None, as_json: AsJson = False
) -> None:
    """Why this record is, or is not, in the store."""
    from embedding_tasks import status as statuses
    from embedding_tasks.store.connection import open_store

    with open_store() as store:
        facts = statuses.explain(store, use_case.find(name), key, feature=feature)
    if as_json:
        terminal.print_json(facts)
        return
    terminal.say(f"{name} {key}: [bold]{escape(facts.pop('verdict'))}[/bold]")
    for fact, value in facts.items():
        if fact not in ("use_case", "key") and value not in (None, []):
            terminal.say(f"  {fact}: {escape(terminal.plain(value))}")


@app.command()
def retry(
    name: Name,
    dead: Annotated[bool, typer.Option("--dead", help="records set aside")] = False,
) -> None:
    """Give records that were set aside another chance at the next run."""
    from embedding_tasks import ledger
    from embedding_tasks.store import versions
    from embedding_tasks.store.connection import open_store

    if not dead:
        raise typer.BadParameter("say which: --dead")
    with open_store() as store:
        live = versions.live(store, versions.use_case_id(store, name))
        revived = sum(ledger.retry_dead(store, version) for version in live)
    terminal.say(f"{revived} records will be tried again")


@app.command()
def promote(name: Name) -> None:
    """Let a finished model version serve in place of the present one."""
    from embedding_tasks import run as stages

    promoted = stages.promote(
        stages.Request(use_case=use_case.find(name), external_id="", kind="cli")
    )
    for version in promoted:
        terminal.say(f"{name}: version {version.version} serves now")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def psql(context: typer.Context) -> None:
    """Open the store in psql; all arguments are psql's."""
    from embedding_tasks.connections import as_environment
    from embedding_tasks.store import connection

    with connection.open_store():
        pass
    # By environment: what stands there, psql's own arguments can overrule, and no
    # password is among arguments that every user of the machine can list.
    done = subprocess.run(
        [str(postgres.binary("psql")), *context.args],
        env={**os.environ, **as_environment(connection.conninfo())},
    )
    raise typer.Exit(done.returncode)


@app.command()
def demo(
    rows: Annotated[
        str, typer.Option(envvar="DEMO_ROWS", help="how many tweets, or 'all'")
    ] = "4000",
    reset: Annotated[
        bool,
        typer.Option("--reset", help="remove all that demo and Airflow made here"),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """The main job on real tweets, through Airflow, against an embedded Postgres."""
    from embedding_tasks.demo.tour import parse_rows, tour

    if reset:
        _reset(yes)
    else:
        tour(out, parse_rows(rows))


def _reset(yes: bool) -> None:
    """The whole home goes, so say first what is in it."""
    home = settings.home()
    if not home.exists():
        terminal.say(f"{home} is not there: nothing to remove")
        return
    databases = postgres.databases() if postgres.exists() else []
    terminal.say(f"this removes {home} with the databases {', '.join(databases)}")
    if not (yes or typer.confirm("go on?")):
        raise typer.Exit(1)
    if postgres.exists():
        postgres.stop()
    shutil.rmtree(home)


@app.command()
def airflow(
    port: Annotated[int, typer.Option(help="of the Airflow UI")] = 8080,
) -> None:
    """Serve the Airflow UI with these DAGs until Ctrl-C."""
    from embedding_tasks.local.airflow import USER, running

    with ExitStack() as stack:
        with out.status("starting Airflow"):
            server = stack.enter_context(running(port))
        terminal.say(f"Airflow: {server.url}  user {USER}  password {server.password}")
        terminal.say(f"logs in {server.home}; Ctrl-C stops it")
        with suppress(KeyboardInterrupt):  # the way it is meant to end
            signal.pause()
        terminal.say("stopping Airflow")
