"""Watch a use case: monitor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from embedding_tasks import terminal, use_case
from embedding_tasks.cli.app import AsJson, Count, Feature, Name, app, err
from embedding_tasks.errors import ConfigError
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
            from embedding_tasks.monitoring.html import page

            html.write_text(page(store, found), "utf-8")
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


@app.command()
def compare(
    name: Name,
    a: Annotated[int, typer.Argument(help="a model version, as `versions` lists them")],
    b: Annotated[int, typer.Argument(help="another")],
    since: Annotated[datetime | None, typer.Option(help="first day, UTC")] = None,
    until: Annotated[datetime | None, typer.Option(help="last day, UTC")] = None,
    environment: Annotated[list[str] | None, typer.Option(help="repeatable")] = None,
    feature: Feature = None,
    as_json: AsJson = False,
) -> None:
    """Two model versions on the same labelled records: which is right more often, and
    whether that is chance."""
    from embedding_tasks.monitoring.labels import two_versions
    from embedding_tasks.monitoring.labels.outcomes import Selection
    from embedding_tasks.store import versions
    from embedding_tasks.store.connection import open_store

    selection = Selection(
        since.date() if since else None,
        until.date() if until else None,
        environment or (),
    )
    with open_store() as store:
        one, other = (versions.numbered(store, name, n, feature) for n in (a, b))
        found = two_versions.compare(store, one, other, selection)
    if as_json:
        terminal.print_json(asdict(found))
        return
    terminal.print_table(
        [asdict(found)], ["rows", "both", "only_a", "only_b", "neither"]
    )
    terminal.say(_verdict(a, b, found))


def _verdict(a: int, b: int, found: Any) -> str:
    if found.difference is None:
        return "no record has a label and a prediction of both"
    told = (
        f"version {b} is right {found.difference:+.1%} of the time more than version "
        f"{a} (95 % interval {found.low:+.1%} to {found.high:+.1%}); McNemar's test: "
        f"p = {found.p_value:.2g}"
    )
    return told if found.p_value < 0.05 else f"{told}: that may be chance"


@app.command()
def review(
    name: Name,
    kind: Annotated[
        str | None, typer.Option(help="label, conflict, empty, novel, outlier, …")
    ] = None,
    k: Count = 20,
    dismiss: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="nothing is wrong with it; takes --kind"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Labels and inputs to look at, as the last `embedline monitor` found them, the
    most suspicious first."""
    from embedding_tasks.monitoring.quality import listing
    from embedding_tasks.store.connection import open_store

    if dismiss and not kind:
        raise ConfigError("--dismiss KEY: of which --kind")
    with open_store() as store:
        if dismiss and kind:
            listing.dismiss(store, name, dismiss, kind)
            terminal.say(f"{dismiss} is off the list until it or its label changes")
            return
        rows = listing.top(store, name, k, kind)
    if as_json:
        terminal.print_json(rows)
    elif rows:
        terminal.print_table(rows, _REVIEWED)
    else:
        terminal.say("nothing to look at")


_REVIEWED = ("kind", "rank", "key", "label", "suggested_label", "prediction", "data")


@app.command("map")
def map_(
    name: Name,
    method: Annotated[str, typer.Option(help="pca or umap")] = "pca",
    seed: Annotated[int, typer.Option(help="the same seed, the same map")] = 0,
    sample: Annotated[int, typer.Option(help="vectors it is fitted on")] = 20_000,
    clusters: Annotated[int, typer.Option(min=1)] = 20,
    feature: Feature = None,
) -> None:
    """Fit a map of the vectors in two dimensions, with clusters and their words, into
    `embedline.map`. `embedline monitor` places what comes later on it."""
    from embedding_tasks.monitoring.maps import projection
    from embedding_tasks.store import versions
    from embedding_tasks.store.connection import open_store

    with open_store() as store:
        version = versions.active(store, name, feature)
        with err.status(f"fitting a map of {name}"):
            placed = projection.fit(
                *(store, version),
                method=method,  # type: ignore[arg-type]
                seed=seed,
                sample=sample,
                clusters=clusters,
            )
        found = projection.clusters(store, placed.projection)
    terminal.print_table(found, ["cluster", "name", "vectors"])
    terminal.say(
        f"{sum(c['vectors'] for c in found)} vectors: SELECT * FROM embedline.map "
        f"WHERE use_case = '{name}' AND method = '{method}'"
    )


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


_COLUMNS = ("metric", "last_day", "rows", "value", "usual_to", "p", "state")


def _row(metric: Mapping[str, Any]) -> dict[str, Any]:
    """`usual_to`: what is larger is worth a look, if it is no chance."""
    low, high, since = metric["low"], metric["high"], metric["since"]
    usual = max(metric["least"] or 0, metric["noise"] or 0)
    feature = metric["feature"] if metric["feature"] != use_case.ONE_FEATURE else ""
    between = "" if low is None else f" ({_number(low)} to {_number(high)})"
    return {
        "metric": " ".join(filter(None, (feature, metric["metric"], metric["slice"]))),
        "last_day": str(metric["last_day"]),
        "rows": metric["rows"],
        "value": _number(metric["value"]) + between,
        "usual_to": _number(usual) if metric["least"] is not None else "",
        "p": _number(metric["adjusted"]),
        "state": metric["state"] + (f" since {since}" if since else ""),
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
