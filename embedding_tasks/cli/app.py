"""The command itself, and what its verbs share."""

from __future__ import annotations

import logging
import sys
from typing import Annotated, NoReturn

import psycopg
import typer
from rich.logging import RichHandler
from rich.markup import escape

from embedding_tasks import __version__, terminal
from embedding_tasks.errors import EmbedlineError
from embedding_tasks.local import postgres

app = typer.Typer(
    help="Embeddings of Postgres records, kept exactly in step in pgvector.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out, err = terminal.out, terminal.err

Name = Annotated[str, typer.Argument(help="a use case: use_cases/NAME.yaml")]
OneName = Annotated[
    str | None, typer.Argument(help="one use case only: use_cases/NAME.yaml")
]
Key = Annotated[str, typer.Argument(help="a record's key")]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable output")]
Feature = Annotated[
    str | None, typer.Option(help="of a use case that declares several")
]
Count = Annotated[int, typer.Option("-k", min=1, help="how many")]


def main() -> None:
    try:
        app()
    except EmbedlineError as error:
        _fail(str(error))
    except psycopg.errors.InsufficientPrivilege as error:
        said = error.diag.message_primary
        _fail(f'{said}; docs/deploy.md, "Rights", says which role may do what')


def _fail(said: str) -> NoReturn:
    text = f"[red]error:[/red] {escape(said)}"
    err.print(text, highlight=False, soft_wrap=True)
    sys.exit(1)


@app.callback()
def options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="show what is being done")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="print the version")
    ] = False,
) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit
    logging.basicConfig(
        format="%(message)s", handlers=[RichHandler(console=err, show_path=False)]
    )
    level = logging.INFO if verbose else logging.WARNING
    logging.getLogger("embedding_tasks").setLevel(level)
    if postgres.exists():  # a source, too, may live in the embedded server
        postgres.hold()
