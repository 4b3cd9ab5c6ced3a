"""`embedline init --roles`: the roles of the store, and of a source."""

from __future__ import annotations

from collections.abc import Iterable

import typer

from embedding_tasks import terminal, use_case
from embedding_tasks.connections import (
    Connection,
    connect,
    describe,
    for_source,
    is_conninfo,
    place,
)
from embedding_tasks.errors import ConfigError
from embedding_tasks.source import rights
from embedding_tasks.store import migrate, roles
from embedding_tasks.store.roles import Names
from embedding_tasks.use_case import Source, UseCase


def of_store(store: Connection, names: Names, *, dry_run: bool) -> None:
    """Of a store that this version has initialised, or is to in the same dry run."""
    with store.transaction(force_rollback=dry_run):
        if dry_run:
            migrate.apply(store)
            store.execute("SET LOCAL ROLE NONE")
        former = roles.remembered(store)
        script = roles.statements(store, names)
    _run(store, script, "store", dry_run=dry_run)
    if dry_run:
        return
    if former is not None and former != names:
        terminal.say(
            f"roles {former.owner}, {former.writer}, {former.reader}: they have no "
            "rights on the store any more"
        )
    terminal.say(
        f"roles {names.owner}, {names.writer}, {names.reader}: grant them to logins"
    )


def of_source(connection: str, names: Names, *, dry_run: bool) -> None:
    """`connection` of a role that may grant there: a connection id or string."""
    conninfo = connection
    if not is_conninfo(connection):
        conninfo = for_source(Source(connection=connection, table="any", key=("any",)))
    found = list(_use_cases_of(conninfo))
    with connect(conninfo, role="source") as source:
        script = rights.statements(source, names.source_reader, found)
        _run(source, script, "source", dry_run=dry_run)
    if not dry_run:
        read = ", ".join(u.name for u in found)
        terminal.say(f"role {names.source_reader} may read what these name: {read}")


def _use_cases_of(conninfo: str) -> Iterable[UseCase]:
    """Those whose source is the same database, whoever reads it."""
    elsewhere = []
    found = []
    for path in use_case.files():
        loaded = use_case.load(path)
        try:
            own = for_source(loaded.source)
        except ConfigError as error:
            terminal.warn(f"{loaded.name} is left out: {error}")
            continue
        if place(own) == place(conninfo):
            found.append(loaded)
        else:
            elsewhere.append(f"{loaded.name}: {describe(own)}")
    if not found:
        raise ConfigError(
            f"--source: no use case reads {describe(conninfo)}; "
            f"there are: {', '.join(elsewhere) or 'none'}"
        )
    return found


def _run(
    connection: Connection, script: list[str], what: str, *, dry_run: bool
) -> None:
    if dry_run:
        _print(script)
    elif not roles.run(connection, script):
        _print(script)
        terminal.warn(
            f"the role {connection.info.user!r} may not do all of this in the {what}: "
            "nothing was changed; an administrator can, with the SQL above"
        )
        raise typer.Exit(1)


def _print(script: list[str]) -> None:
    for statement in script:
        print(f"{statement};")
