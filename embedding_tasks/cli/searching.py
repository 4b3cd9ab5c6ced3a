"""Search: by a text, by a key, by words, among what a filter lets through."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.markup import escape

from embedding_tasks import terminal
from embedding_tasks.cli.app import AsJson, Count, Feature, Name, app
from embedding_tasks.errors import SearchError
from embedding_tasks.use_case.scope import Window

FILTERS = "Only among"

Several = list[str] | None


@app.command()
def search(
    name: Name,
    text: Annotated[str, typer.Argument(help="a text, or a key with --key")],
    k: Count = 10,
    key: Annotated[
        bool, typer.Option("--key", help="search near the record of this key")
    ] = False,
    hybrid: Annotated[
        bool, typer.Option("--hybrid", help="by the text's words, too")
    ] = False,
    language: Annotated[
        str, typer.Option(help="with --hybrid: a text search configuration, as english")
    ] = "simple",
    feature: Feature = None,
    unit: Annotated[
        int | None,
        typer.Option(help="with --key: the number of its word, entity or object"),
    ] = None,
    prediction: Annotated[
        Several, typer.Option(help="this one; repeatable", rich_help_panel=FILTERS)
    ] = None,
    label: Annotated[
        Several, typer.Option(help="this one; repeatable", rich_help_panel=FILTERS)
    ] = None,
    misclassified: Annotated[
        bool | None,
        typer.Option(
            "--misclassified/--correct",
            help="prediction and label differ, or are the same",
            rich_help_panel=FILTERS,
        ),
    ] = None,
    labelled: Annotated[
        bool | None,
        typer.Option(
            "--labelled/--unlabelled",
            help="there is a label, or none",
            rich_help_panel=FILTERS,
        ),
    ] = None,
    score: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LEAST MOST", help="both included", rich_help_panel=FILTERS
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            help="event time from, e.g. 2026-03-01T00:00Z", rich_help_panel=FILTERS
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="event time before", rich_help_panel=FILTERS)
    ] = None,
    environment: Annotated[
        Several, typer.Option(help="this one; repeatable", rich_help_panel=FILTERS)
    ] = None,
    tag: Annotated[
        Several,
        typer.Option(
            metavar="TAG=VALUE",
            help="a value as JSON, or a text; repeatable",
            rich_help_panel=FILTERS,
        ),
    ] = None,
    ef_search: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="more: nearer to exact, and slower"),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="say how the store searches")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """The records nearest to a text, embedded with the use case's own model."""
    from embedding_tasks import search as searches
    from embedding_tasks.store.connection import open_store

    if key + hybrid + explain > 1:
        raise SearchError("--key, --hybrid and --explain do not go together")
    if hybrid and ef_search is not None:
        raise SearchError("--hybrid takes no --ef-search")
    window = Window.parse(since, until)
    given = {
        "prediction": prediction,
        "label": label,
        "misclassified": misclassified,
        "labelled": labelled,
        "score": score and list(score),
        "event_time": [window.since, window.until] if window else None,
        "environment": environment,
        "tags": dict(map(_tag, tag)) if tag else None,
    }
    filter = {name: value for name, value in given.items() if value not in (None, [])}
    asked: dict[str, Any] = {"k": k, "feature": feature, "filter": filter}
    with open_store() as store:
        if explain:
            told = searches.explain(store, name, text, ef_search=ef_search, **asked)
            _print_explained(told, as_json)
            return
        if key:
            rows = searches.by_key(
                store, name, text, unit=unit, ef_search=ef_search, **asked
            )
        elif hybrid:
            rows = searches.hybrid(store, name, text, language=language, **asked)
        else:
            rows = searches.by_text(store, name, text, ef_search=ef_search, **asked)
    _print_found(rows, as_json)


def _tag(given: str) -> tuple[str, Any]:
    """A value is what JSON says it is, else a text."""
    name, equals, value = given.partition("=")
    if not equals:
        raise SearchError(f"--tag {given!r} is no TAG=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _print_found(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        terminal.print_json(rows)
        return
    if not rows:
        terminal.say("nothing found")
        return
    columns = ["key", "distance", "prediction", "score", "label", "data"]
    if any(row["text"] for row in rows):
        columns[1:1] = ["unit", "text"]
    if "fused" in rows[0]:
        columns[-1:-1] = ["vector_rank", "text_rank"]
    for row in rows:
        row["distance"] = f"{row['distance']:.4f}"
        row["score"] = "" if row["score"] is None else f"{row['score']:.3f}"
    terminal.print_table(rows, columns)


def _print_explained(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        terminal.print_json(told)
        return
    terminal.say(f"[bold]{told.pop('plan')}[/bold], {told.pop('milliseconds')} ms")
    for fact, value in told.items():
        if value is not None:
            terminal.say(f"  {fact.replace('_', ' ')}: {escape(terminal.plain(value))}")
