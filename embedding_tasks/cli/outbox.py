"""The triggers that strategy `outbox` needs in the source: show, install, remove."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from embedding_tasks import terminal, use_case
from embedding_tasks.cli.app import Name, app, err
from embedding_tasks.connections import Connection, blame, connect, for_source
from embedding_tasks.source import installation
from embedding_tasks.source.installation import Reader
from embedding_tasks.use_case import Source, UseCase

outbox = typer.Typer(
    help="Triggers in the source that tell of changes, for strategy: outbox.",
    no_args_is_help=True,
)
app.add_typer(outbox, name="outbox")

By = Annotated[
    str | None,
    typer.Option(
        "--connection", help="of a role that may do this; else the use case's own"
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask")]


@outbox.command()
def show(name: Name, connection: By = None) -> None:
    """The SQL that `install` runs; psql can run it, too. What the outbox that is there
    lacks is said beside it."""
    found = use_case.find(name)
    with _source(found.source, connection) as source:
        print(_installation(found, source), end="")
    with _source(found.source, None) as own:
        told = installation.lacking(own, found, Reader.of(own), _inputs(name))
    if told:
        err.print(told, markup=False)


@outbox.command()
def install(name: Name, connection: By = None, yes: Yes = False) -> None:
    """Put the outbox into the source, or replace the one that is there."""
    found = use_case.find(name)
    with _source(found.source, connection) as source:
        _run(source, _installation(found, source), yes)
    terminal.say("installed; the next run reads every row once")
    if found.source.strategy != "outbox":
        terminal.say(f"it is used once use_cases/{name}.yaml says strategy: outbox")


@outbox.command()
def remove(name: Name, connection: By = None, yes: Yes = False) -> None:
    """Take the outbox out of the source. With --connection, the use case's file and
    its table need not be there any more."""
    own = Source(connection=connection, table=name, key=name) if connection else None
    with _source(own or use_case.find(name).source, None) as source:
        script = installation.remove(source, name)
        if script is None:
            terminal.say(f"the source has no outbox of {name}: nothing to remove")
            return
        _run(source, script, yes)
    terminal.say("removed")


@contextmanager
def _source(source: Source, connection_id: str | None) -> Iterator[Connection]:
    """Unlike a sync's, it may be written to."""
    if connection_id is not None:
        source = source.model_copy(update={"connection": connection_id, "dsn": None})
    connection = connect(for_source(source), role="source")
    with connection, blame(source=connection):
        yield connection


def _installation(found: UseCase, source: Connection) -> str:
    with _source(found.source, None) as own:
        reader = Reader.of(own)
    return installation.install(source, found, reader, _inputs(found.name))


def _inputs(name: str) -> list[str]:
    """Columns that the vectors in the store are made of: the file may name others by
    now, and both are followed until the new ones are complete. Those of a version that
    a rollback would take up again are among them."""
    from embedding_tasks.store import retired, versions
    from embedding_tasks.store.connection import open_store

    with open_store() as store, blame(store=store):
        live = versions.live_by_name(store, name)
        back = [retired.previous(store, serving) for serving in live if serving.serves]
    made = [*live, *(version for version in back if version is not None)]
    return [column for version in made for column in version.form.columns]


def _run(source: Connection, script: str, yes: bool) -> None:
    print(script)
    if not (yes or typer.confirm("run this in the source?")):
        raise typer.Exit(1)
    installation.run(source, script)
