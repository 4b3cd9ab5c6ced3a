"""Model versions: list them, go back."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

import typer

from embedding_tasks import terminal, use_case
from embedding_tasks.cli.app import AsJson, Feature, Name, app


@app.command()
def versions(name: Name, as_json: AsJson = False) -> None:
    """Every model version of a use case, and how long the retired ones are kept."""
    from embedding_tasks.store import versions as versions_
    from embedding_tasks.store.connection import open_store

    days = use_case.find(name).keep_retired_days
    with open_store() as store:
        rows = versions_.history(store, versions_.use_case_id(store, name))
    for row in rows:
        row["kept_until"] = _kept_until(row, days)
    if as_json:
        terminal.print_json(rows)
        return
    for row in rows:
        row["fingerprint"] = row["fingerprint"][:12]
        row["kept"] = _kept(row)
    terminal.print_table(rows, [*_COLUMNS, "kept"])


_COLUMNS = (
    *("feature", "version", "state", "fingerprint", "dims", "vectors"),
    *("made", "activated", "retired"),
)


def _kept_until(row: dict[str, Any], days: float | None) -> Any:
    if row["retired"] is None or row["vectors"] is None or days is None:
        return None
    return row["retired"] + timedelta(days=days)


def _kept(row: dict[str, Any]) -> str:
    if row["retired"] is None:
        return ""
    told = "rolled back, " if row["rolled_back"] else ""
    if row["vectors"] is None:
        return f"{told}dropped {terminal.plain(row['dropped'])}".rstrip()
    if row["kept_until"] is None:
        return f"{told}for ever"
    return f"{told}until {terminal.plain(row['kept_until'])}"


@app.command()
def rollback(
    name: Name,
    feature: Feature = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="let what was rolled back be built again")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Let the model version that served before serve again."""
    from embedding_tasks import promotion
    from embedding_tasks.request import Request

    case = use_case.find(name)
    request = Request(use_case=case, external_id="", kind="cli")
    if undo:
        for version in promotion.undo_rollback(request, feature):
            terminal.say(
                f"{name}: version {version.version} serves again after the next run, "
                "if the file describes it"
            )
        return
    asked = Request(use_case=case, external_id="", kind="cli", dry_run=True)
    foreseen = promotion.rollback(asked, feature)
    serving, back = foreseen.serving.version, foreseen.back.version
    terminal.say(
        f"{name}: version {back} will serve in place of version {serving}, with "
        f"{foreseen.vectors} vectors that are current; the next run embeds "
        f"{foreseen.to_embed} records. Version {serving} is not built again before "
        f"`embedline rollback {name} --undo`, or another recipe in the file"
    )
    if not (yes or typer.confirm("go on?")):
        raise typer.Exit(1)
    done = promotion.rollback(request, feature, agreed=foreseen)
    terminal.say(
        f"{name}: version {back} serves now, with {done.vectors} vectors; "
        f"{done.to_embed} records wait for the next run"
    )
