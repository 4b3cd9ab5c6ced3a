"""Forget: erase a record on request, and keep it out."""

from __future__ import annotations

from typing import Annotated

import typer

from embedding_tasks import terminal, use_case
from embedding_tasks.cli.app import Key, Name, app
from embedding_tasks.errors import EmbedlineError
from embedding_tasks.use_case import UseCase


@app.command()
def forget(
    name: Name,
    key: Key,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="let the record come back")
    ] = False,
) -> None:
    """Erase all the store has of a record, and keep it out while the source has it."""
    from embedding_tasks import forgetting
    from embedding_tasks.store import versions
    from embedding_tasks.store.connection import open_store

    case = use_case.find(name)
    key = _as_stored(case, key)
    with open_store() as store:
        number = versions.use_case_id(store, name)
        if undo:
            lifted = forgetting.undo(store, number, key)
            terminal.say(_comes_back(case) if lifted else "it was not forgotten")
            return
        held = forgetting.holdings(store, number, key)
        terminal.say(f"this erases {_told(held)}, and keeps the record out")
        if not (yes or typer.confirm("go on?")):
            raise typer.Exit(1)
        erased = forgetting.forget(store, number, key)
    terminal.say(f"erased {_told(erased)}")
    terminal.say(
        "not reached: the source, backups, WAL, logs, trained weights; dead row "
        f"versions until: VACUUM {', '.join(f'embedline.{table}' for table in erased)}"
    )


def _comes_back(case: UseCase) -> str:
    told = "the next sync brings it back, if the source has it"
    if case.source.start:
        told += f"; one from before source.start: embedline backfill start {case.name}"
    return told


def _as_stored(case: UseCase, key: str) -> str:
    """In the source's own words, where it can be asked and has it."""
    from embedding_tasks.connections import for_source
    from embedding_tasks.source import extract, keys, snapshot

    canonical = keys.canonical_key(key, case.source.key)
    try:
        with snapshot.take(for_source(case.source)) as connection:
            found = keys.look_up(connection, extract.records(connection, case), [key])
    except EmbedlineError:
        return canonical
    return found.keys[0] if found.keys else canonical


def _told(counts: dict[str, int]) -> str:
    rows = [f"{n} of {table}" for table, n in counts.items() if n]
    return f"rows: {', '.join(rows)}" if rows else "nothing: the store has none of it"
