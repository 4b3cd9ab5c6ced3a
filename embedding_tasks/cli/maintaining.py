"""Keep the store fit: maintain."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import typer
from rich.markup import escape

from embedding_tasks import terminal, use_case
from embedding_tasks.cli.app import AsJson, OneName, app, err
from embedding_tasks.errors import ConfigError
from embedding_tasks.local.signals import interruptible


@app.command()
def maintain(
    name: OneName = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="say what would be done and why, do nothing"),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build and rebuild indexes that are due, measure them, drop what is outdated."""
    from embedding_tasks import maintenance
    from embedding_tasks.store.connection import open_store

    cases = [use_case.find(name)] if name else _every()
    if dry_run:
        with open_store() as store:
            _show(maintenance.plan(store, cases), as_json)
        return
    with interruptible() as stopped, terminal.bar() as bar:
        try:
            done = maintenance.maintain(
                partial(open_store, direct=True),
                cases,
                terminal.maintaining(bar, stopped),
            )
        except KeyboardInterrupt:
            err.print("stopped; no half-built index is left, and the rest is still due")
            raise typer.Exit(130) from None
    _show(done, as_json)


def _every() -> list[use_case.UseCase]:
    """Those that are valid: one that is not keeps no other from being kept fit."""
    cases = []
    for path in use_case.files():
        try:
            cases.append(use_case.load(path))
        except ConfigError as error:
            told = f"[red]{escape(str(error))}[/red]; the others are maintained"
            err.print(told, highlight=False, soft_wrap=True)
    return cases


def _show(steps: list[Any], as_json: bool) -> None:
    rows = [asdict(step) for step in steps]
    if as_json:
        terminal.print_json(rows)
    elif not rows:
        terminal.say("nothing to do")
    else:
        terminal.print_table(
            rows, ["use_case", "feature", "version", "work", "index", "why"]
        )
