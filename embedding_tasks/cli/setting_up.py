"""Prepare and try: init, check, psql, demo, airflow."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import ExitStack, suppress
from typing import Annotated, Any

import typer
from rich.markup import escape

from embedding_tasks import settings, terminal, use_case
from embedding_tasks.cli import roles as making_roles
from embedding_tasks.cli.app import app, out
from embedding_tasks.errors import ConfigError
from embedding_tasks.local import postgres
from embedding_tasks.store import roles as store_roles
from embedding_tasks.store.roles import DEFAULT_PREFIX, Names


@app.command()
def init(
    roles: Annotated[
        bool,
        typer.Option(
            "--roles", help="make roles for owner, writer, reader and source reader"
        ),
    ] = False,
    prefix: Annotated[
        str | None,
        typer.Option(
            help="of the roles' names: another takes the store from those that have it",
            show_default=f"theirs, or {DEFAULT_PREFIX}",
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="with --roles, the source reader's: a connection, or a connection "
            "string, of a role that may grant there"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="with --roles, print the SQL only")
    ] = False,
) -> None:
    """Prepare the store: schema, functions, views, and roles. Safe to repeat."""
    from embedding_tasks.connections import describe
    from embedding_tasks.store import connection, migrate

    if (source or dry_run) and not roles:
        raise ConfigError("--source and --dry-run belong to --roles")
    named = None if prefix is None else Names.of(prefix)
    conninfo = connection.conninfo()
    with connection.reach(conninfo) as store:
        if not dry_run:
            applied = migrate.apply(store)
            connection.warn_of_old_pgvector(store)
            for name in applied:
                terminal.say(f"applied sql/{name}")
            terminal.say(f"the store ({describe(conninfo)}) is up to date")
            if danger := store_roles.danger(store):
                terminal.warn(danger)
        names = named or store_roles.remembered(store) or Names.of(DEFAULT_PREFIX)
        if roles:
            making_roles.of_store(store, names, dry_run=dry_run)
    if source:
        making_roles.of_source(source, names, dry_run=dry_run)


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
