"""Backfills: start, list, pause, resume, cancel."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedding_tasks import terminal, use_case
from embedding_tasks.cli.app import AsJson, Name, app
from embedding_tasks.cli.running import carry_out, external_id
from embedding_tasks.errors import ConfigError
from embedding_tasks.use_case import scope_of

if TYPE_CHECKING:
    from embedding_tasks.connections import Connection
    from embedding_tasks.request import Request

    Change = Callable[[Connection, str, int | None], list[int]]

commands = typer.Typer(
    no_args_is_help=True,
    help="Embed a window of event times, some keys, or all: low priority, no cursor "
    "moved.",
)
app.add_typer(commands, name="backfill")

Run = Annotated[
    int | None, typer.Argument(metavar="[ID]", help="all that are not done, if none")
]


@commands.command()
def start(
    name: Name,
    since: Annotated[
        str | None, typer.Option(help="event time from, e.g. 2026-03-01T00:00Z")
    ] = None,
    until: Annotated[str | None, typer.Option(help="event time before")] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(help="the record of this key; repeatable"),
    ] = None,
    keys_from: Annotated[
        str | None, typer.Option(help="a file with one key a line, or - for stdin")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="every record of the source")
    ] = False,
    reembed: Annotated[
        bool, typer.Option("--reembed", help="make vectors anew, changed or not")
    ] = False,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="into a table beside the one that serves, which takes its place when "
            "it is complete: all that is stored, or --everything",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="count what would be done, and how long")
    ] = False,
) -> None:
    """Enqueue records at low priority and embed them."""
    from embedding_tasks import run as stages

    keys = [*(key or ()), *_lines(keys_from)]
    scope = scope_of(since=since, until=until, keys=keys, everything=everything)
    if scope is None and not fresh:
        raise ConfigError(
            "a backfill of what? valid: --since and/or --until, --key or --keys-from, "
            "--everything, --fresh"
        )
    request = stages.Request(
        use_case=use_case.find(name),
        external_id=external_id(),
        kind="cli",
        backfill=scope,
        reembed=reembed,
        fresh=fresh,
        dry_run=dry_run,
    )
    if dry_run:
        carry_out(request, lambda: "stopped")
        return
    number = stages.begin(request)
    terminal.say(f"backfill {number} of {name}")
    carry_out(request, lambda: _stopped(request, number))
    _say_how_it_ended(request, number)


def _lines(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--keys-from: {path}: cannot be read: {error}") from None
    keys = [line for line in text.splitlines() if line.strip()]
    if not keys:
        raise ConfigError(f"--keys-from: {path}: holds no key; valid: one a line")
    return keys


def _stopped(request: Request, number: int) -> str:
    from embedding_tasks import backfills

    name = request.use_case.name
    with request.open_store() as store:
        left = backfills.waiting(store, number)
        enqueued = backfills.is_enqueued(store, number)
        filling = backfills.filling(store, number)
    if not enqueued:
        return "stopped before anything was enqueued; start it again"
    if filling and not left:
        told = _versions(filling)
        return f"stopped; {told} is filled, and the next run lets it serve"
    if not left:
        return "stopped; nothing of it waits any more"
    return (
        f"stopped; what was finished is stored, {left} records wait: "
        f"`embedline work {name}` goes on, and so does the next run; "
        f"`embedline backfill pause {name} {number}` lets them wait, `cancel` lets "
        "them go"
    )


def _say_how_it_ended(request: Request, number: int) -> None:
    from embedding_tasks import backfills

    name = request.use_case.name
    with request.open_store() as store:
        left = backfills.waiting(store, number)
        paused = backfills.is_paused(store, number)
        cancelled = backfills.is_cancelled(store, number)
        filling = backfills.filling(store, number)
    if cancelled:
        terminal.say(f"backfill {number} was cancelled")
    elif paused and left:
        terminal.say(
            f"backfill {number} is paused, {left} records wait: "
            f"embedline backfill resume {name} {number}"
        )
    elif filling and not request.use_case.auto_promote:
        terminal.say(f"{_versions(filling)} is complete: embedline promote {name}")


def _versions(numbers: Sequence[int]) -> str:
    return f"version {', '.join(map(str, numbers))}"


@commands.command("list")
def list_(name: Name, as_json: AsJson = False) -> None:
    """How the latest backfills stand, and all that are not done."""
    from embedding_tasks import backfills
    from embedding_tasks.store.connection import open_store

    with open_store() as store:
        rows = backfills.of(store, name)
    if as_json:
        terminal.print_json(rows)
        return
    if not rows:
        terminal.say(f"no backfill yet: embedline backfill start {name} --help")
        return
    for row in rows:
        row["records"] = _what(row)
    columns = ("id", "state", "records", "enqueued", "waiting", "dead", "not_found")
    terminal.print_table(rows, [*columns, "started_at", "error"])


def _what(row: dict[str, Any]) -> str:
    told: str = row["scope"] or "all that is stored"
    if told == "window":
        since, until = terminal.plain(row["since"]), terminal.plain(row["until"])
        told = " ".join(
            f"{word} {time}"
            for word, time in (("since", since), ("until", until))
            if time
        )
    told += ", anew" if row["reembed"] else ""
    return f"{told}, as {_versions(row['versions'])}" if row["versions"] else told


@commands.command()
def pause(name: Name, run: Run = None) -> None:
    """Leave its records be until it is resumed."""
    from embedding_tasks import backfills

    waiting = _after(backfills.pause, name, run)
    for number, left in waiting.items():
        terminal.say(
            f"backfill {number} is paused, {left} records wait; a worker at work "
            "finishes what it holds"
        )
    _say_if_none([*waiting], "running or waiting")


@commands.command()
def resume(name: Name, run: Run = None) -> None:
    """Let its records be embedded again."""
    from embedding_tasks import backfills

    waiting = _after(backfills.resume, name, run)
    for number, left in waiting.items():
        terminal.say(
            f"backfill {number} goes on, {left} records wait: the next run embeds "
            f"them, or now: embedline work {name}"
        )
    _say_if_none([*waiting], "paused")


def _after(change: Change, name: str, run: int | None) -> dict[int, int]:
    """The backfills that were changed, and how many records wait for each."""
    from embedding_tasks import backfills
    from embedding_tasks.store.connection import open_store

    with open_store() as store:
        numbers = change(store, name, run)
        return {number: backfills.waiting(store, number) for number in numbers}


@commands.command()
def cancel(
    name: Name,
    run: Run = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Let go what it has not embedded yet. What it has stays."""
    from embedding_tasks import backfills
    from embedding_tasks.store.connection import open_store

    case = use_case.find(name)
    with open_store() as store:
        numbers = backfills.selected(store, name, run, backfills.CANCELLABLE)
        if not numbers:
            _say_if_none(numbers, "running, waiting or paused")
            return
        fates = backfills.foresee_cancel(store, case, numbers)
        told = ", ".join(map(str, numbers))
        terminal.say(f"backfill {told} of {name}, not embedded yet: {_fates(fates)}")
        if not (yes or typer.confirm("cancel?")):
            raise typer.Exit(1)
        fates = backfills.cancel(store, case, numbers)
    terminal.say(f"cancelled: {_fates(fates)}")


def _fates(fates: Any) -> str:
    dropped = f"{_versions(fates.versions)} is dropped, " if fates.versions else ""
    return (
        f"{dropped}{fates.restored} records keep the vectors they have, "
        f"{fates.removed} leave the store, {fates.left} are for the next run to embed"
    )


def _say_if_none(numbers: list[int], state: str) -> None:
    if not numbers:
        terminal.say(f"no backfill is {state}")
