"""Watch a use case: monitor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from embedding_tasks import terminal, use_case
from embedding_tasks.cli.app import AsJson, Name, app, err
from embedding_tasks.local.signals import interruptible


@app.command()
def monitor(
    name: Name,
    again: Annotated[
        bool, typer.Option("--again", help="measure every window anew")
    ] = False,
    freeze: Annotated[
        bool, typer.Option("--freeze", help="take the baseline anew, of today's rows")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="write a page with charts, too")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure drift, window by window, and say what is out of the usual, and since
    when."""
    from embedding_tasks.monitoring import report, watch
    from embedding_tasks.store.connection import open_store

    case = use_case.find(name)
    with open_store() as store:
        with interruptible() as stopped, terminal.bar() as bar:
            try:
                watched = watch.watch(
                    store,
                    case,
                    again=again,
                    freeze=freeze,
                    tell=terminal.watching(bar, name, stopped),
                )
            except KeyboardInterrupt:
                err.print("stopped; what was measured stays, the rest is still due")
                raise typer.Exit(130) from None
        found = report.of(store, case, watched)
        if html:
            from embedding_tasks.monitoring.html import write

            write(store, found, html)
    if as_json:
        terminal.print_json(asdict(found))
    else:
        _show(found)


@app.command()
def acknowledge(
    alarm: Annotated[
        int, typer.Argument(help="its number, as `embedline monitor` has it")
    ],
    remark: Annotated[str, typer.Option(help="for those who look at it later")] = "",
    by: Annotated[
        str | None, typer.Option(help="who; else the name of the login")
    ] = None,
) -> None:
    """Take an alarm on: it stays until it ends, and is told to nobody again."""
    from embedding_tasks.monitoring import results
    from embedding_tasks.store.connection import open_store

    with open_store() as store:
        results.acknowledge(store, alarm, by or _login(), remark)
    terminal.say(f"alarm {alarm} acknowledged")


def _login() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in a container
        return "unknown"


def _show(found: Any) -> None:
    for line in found.problems:
        terminal.warn(line)
    if found.metrics:
        terminal.print_table([_row(m) for m in found.metrics], _COLUMNS)
    elif not found.problems:
        terminal.say("no window is over yet: nothing to measure")
    for told in found.alarms:
        terminal.say(f"\n[red]alarm {told.id}[/red]")
        terminal.say(told.text, markup=False)


_COLUMNS = (
    *("metric", "slice", "last_day", "rows", "value", "interval", "usual_to", "p"),
    *("state", "since"),
)


def _row(metric: Mapping[str, Any]) -> dict[str, Any]:
    """`usual_to`: what is larger is worth a look, if it is no chance."""
    low, high = metric["low"], metric["high"]
    usual = max(metric["least"] or 0, metric["noise"] or 0)
    name = metric["metric"]
    if metric["feature"] != use_case.ONE_FEATURE:
        name = f"{metric['feature']}: {name}"
    return {
        **metric,
        "metric": name,
        "value": _number(metric["value"]),
        "interval": "" if low is None else f"{_number(low)} to {_number(high)}",
        "usual_to": _number(usual) if metric["least"] is not None else "",
        "p": _number(metric["adjusted"]),
        "last_day": str(metric["last_day"]),
        "since": str(metric["since"] or ""),
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
