"""Do: run, work, train, retry, promote."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedding_tasks import terminal, use_case
from embedding_tasks.cli.app import Name, app, err
from embedding_tasks.local.signals import interruptible

if TYPE_CHECKING:
    from embedding_tasks.request import Request


@app.command()
def run(
    name: Name,
    reembed: Annotated[
        bool, typer.Option("--reembed", help="make all vectors anew, changed or not")
    ] = False,
    audit: Annotated[
        bool, typer.Option("--audit", help="read every row of the source again")
    ] = False,
    allow_deletes: Annotated[
        bool,
        typer.Option("--allow-deletes", help="let the delete guard pass, this once"),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="count what would be done, and do nothing"),
    ] = False,
) -> None:
    """Bring a use case's vectors in step with its source."""
    from embedding_tasks.request import Request

    request = Request(
        use_case=use_case.find(name),
        external_id=external_id(),
        kind="cli",
        reembed=reembed,
        audit=audit,
        allow_deletes=allow_deletes,
        dry_run=dry_run,
    )
    carry_out(request, lambda: "stopped; what was finished is stored, the rest waits")


def external_id() -> str:
    return f"cli__{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}__{os.getpid()}"


def carry_out(request: Request, stopped_says: Callable[[], str]) -> dict[str, Any]:
    """All stages, with their progress; says what was done, or would be."""
    from embedding_tasks.run import run as run_all

    name = request.use_case.name
    with (
        interruptible() as stopped,
        terminal.bar() as bar,
    ):
        try:
            counts = run_all(
                request,
                terminal.embedding(bar, name, stopped),
                terminal.training(bar, name, stopped),
                terminal.maintaining(bar, stopped),
            )
        except KeyboardInterrupt:
            err.print(stopped_says(), soft_wrap=True, highlight=False)
            raise typer.Exit(130) from None
    _tell("would do" if request.dry_run else "done", counts)
    if request.dry_run and counts.get("to_embed"):
        terminal.say(terminal.expectation(counts))
        if "fresh_seconds" in counts:
            terminal.say(terminal.ways(counts))
    return counts


def _tell(head: str, counts: Mapping[str, Any]) -> None:
    facts = [f"{v} {k.replace('_', ' ')}" for k, v in _told(counts).items()]
    if version := counts.get("builds_version"):
        facts.append(f"as model version {version}, beside the serving one")
    terminal.say(f"{head}: {', '.join(facts) or 'nothing to do'}")


@app.command()
def work(
    name: Name,
    workers: Annotated[
        str, typer.Option(help="processes: a number; auto: one for each GPU")
    ] = "1",
) -> None:
    """Help to embed what waits, as one or more workers, until nothing is left."""
    from embedding_tasks.local import crew
    from embedding_tasks.request import Request

    case = use_case.find(name)
    count = crew.size(case) if workers == "auto" else _positive(workers)
    with interruptible() as stopped:
        try:
            if count > 1:
                _work_together(name, count)
            else:
                _work(Request(case, external_id=external_id(), kind="work"), stopped)
        except KeyboardInterrupt:
            err.print("stopped; what was finished is stored, the rest waits")
            raise typer.Exit(130) from None


def _positive(workers: str) -> int:
    if workers.isdecimal() and int(workers) > 0:
        return int(workers)
    raise typer.BadParameter(
        f"{workers!r}; valid: a number from 1, or auto", param_hint="--workers"
    )


def _work(request: Request, stopped: Event) -> None:
    from embedding_tasks.run import work as drain

    with terminal.bar() as bar:
        name = request.use_case.name
        counts = drain(request, terminal.embedding(bar, name, stopped))
    _tell("done", counts)


def _work_together(name: str, count: int) -> None:
    from embedding_tasks.local import crew

    level = logging.getLogger("embedding_tasks").getEffectiveLevel()
    verbose = ["--verbose"] if level <= logging.INFO else []

    if code := crew.work(
        [*verbose, "work", name],
        count,
        out=partial(terminal.say, markup=False),
        err=partial(terminal.say, console=err, markup=False),
    ):
        raise typer.Exit(code)


@app.command()
def train(
    name: Name,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="again, on the rows of today")
    ] = False,
) -> None:
    """Train the encoders that learn from a use case's own rows."""
    from embedding_tasks import training
    from embedding_tasks.request import Request
    from embedding_tasks.store import trained

    request = Request(use_case=use_case.find(name), external_id="", kind="cli")
    with request.open_store() as store:
        with interruptible() as stopped, terminal.bar() as bar:
            try:
                progress = terminal.training(bar, name, stopped)
                counts = training.train(
                    store, request, retrain=retrain, progress=progress
                )
            except KeyboardInterrupt:
                err.print("stopped; the next training goes on from its last epoch")
                raise typer.Exit(130) from None
        models = trained.models(store, request.use_case)
    if not models:
        terminal.say(f"{name}: none of its encoders is trained on its rows")
        return
    rows = [{"feature": f, **_rounded(m)} for f, m in models.items()]
    terminal.print_table(rows, ["feature", "kind", "rows", *_TRAINED])
    if not counts["trained"]:
        terminal.say("trained already; --retrain trains on the rows of today")


_TRAINED = (
    *("epoch", "epochs", "training_loss", "validation_loss", "baseline"),
    *("seconds", "digest"),
)


def _rounded(model: Mapping[str, Any]) -> dict[str, Any]:
    floats = {k: f"{v:.4g}" for k, v in model.items() if isinstance(v, float)}
    return {**model, **floats, "digest": model["digest"][:12]}


def _told(counts: Mapping[str, Any]) -> dict[str, Any]:
    untold = (
        *("seconds", "vectors", "pending", "builds_version"),
        *("workers", "records_per_second", "expected_seconds"),
        *("in_place_seconds", "fresh_seconds"),
    )
    return {k: v for k, v in counts.items() if v and k not in untold}


@app.command()
def retry(
    name: Name,
    dead: Annotated[bool, typer.Option("--dead", help="records set aside")] = False,
    key: Annotated[
        list[str] | None, typer.Option(help="only the record of this key; repeatable")
    ] = None,
) -> None:
    """Give records that were set aside another chance at the next run."""
    from embedding_tasks import ledger
    from embedding_tasks.source.keys import canonical_key
    from embedding_tasks.store import versions
    from embedding_tasks.store.connection import open_store

    if not dead:
        raise typer.BadParameter("say which: --dead")
    columns = use_case.find(name).source.key if key else ()
    keys = [canonical_key(k, columns) for k in key] if key else None
    with open_store() as store:
        live = versions.live(store, versions.use_case_id(store, name))
        revived = sum(ledger.retry_dead(store, version, keys) for version in live)
    terminal.say(f"{revived} records will be tried again")


@app.command()
def promote(name: Name) -> None:
    """Let a finished model version serve in place of the present one."""
    from embedding_tasks import run as stages

    promoted = stages.promote(
        stages.Request(use_case=use_case.find(name), external_id="", kind="cli")
    )
    for version in promoted:
        terminal.say(f"{name}: version {version.version} serves now")
