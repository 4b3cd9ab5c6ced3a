"""Take out: export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from embedding_tasks import terminal
from embedding_tasks.cli.app import Feature, Name, app, err
from embedding_tasks.errors import SearchError
from embedding_tasks.local.signals import interruptible


@app.command()
def export(
    name: Name,
    to: Annotated[Path, typer.Option(help="the folder for the files")],
    filter: Annotated[
        str | None, typer.Option(help="""rows that meet it, as '{"label": "bug"}'""")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="some columns of the view, as key,label")
    ] = None,
    feature: Feature = None,
    model_version: Annotated[
        int | None, typer.Option(help="one that does not serve")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="of a file, at most")] = 100_000,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="begin anew, over the export there")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="count what would be written, write nothing"),
    ] = False,
) -> None:
    """Write a use case's rows into Parquet files; it can go on later."""
    from embedding_tasks import export as exports

    with interruptible(), terminal.bar() as progress:
        task = progress.add_task(f"exporting {name}", total=None, said="rows")

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)
            if not err.is_terminal:
                said = f"exporting {name}: {done} of {total} rows"
                err.print(said, highlight=False)

        try:
            made = exports.export(
                name,
                to,
                filter=_filter(filter),
                columns=columns.split(",") if columns else None,
                feature=feature,
                model_version=model_version,
                rows_per_part=rows,
                overwrite=overwrite,
                dry_run=dry_run,
                progress=show,
            )
        except KeyboardInterrupt:
            err.print("stopped; whole files are kept: the same command goes on")
            raise typer.Exit(130) from None
    terminal.say(escape(_told(made, to, dry_run)))


def _told(made: Any, folder: Path, dry_run: bool) -> str:
    verb = "would write" if dry_run else "wrote"
    told = f"{verb} {made.written} rows"
    if made.resumed:
        told += f", beside {made.rows - made.written} that were there"
    return f"{told}; {folder}: {made.rows} rows in {made.parts} files"


def _filter(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        given = json.loads(text)
    except ValueError as error:
        raise SearchError(f"--filter is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise SearchError("""--filter is no JSON object, as '{"label": "bug"}'""")
    return given
