"""What the `embedline` command shows: sentences, tables, progress."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from threading import Event
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from embedding_tasks import use_case
from embedding_tasks.index_policy import Step
from embedding_tasks.pipeline import Drained
from embedding_tasks.store.index import Progress as BuildProgress
from embedding_tasks.training import Epoch

out = Console()
err = Console(stderr=True)


def say(text: str, console: Console = out, markup: bool = True) -> None:
    """A sentence: never broken, so that it can be searched and copied."""
    console.print(text, highlight=False, soft_wrap=True, markup=markup)


def warn(text: str) -> None:
    err.print(f"[yellow]warning:[/yellow] {escape(text)}", soft_wrap=True)


def bar() -> Progress:
    """In a terminal; elsewhere a line now and then is printed in its place."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        disable=not err.is_terminal,
    )


def embedding(
    progress: Progress, name: str, stopped: Event
) -> Callable[[Drained], None]:
    title = f"embedding {name}"
    task = progress.add_task(title, total=None, said="")

    def show(drained: Drained) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        rate = f"{drained.embedded / max(drained.seconds, 1e-9):.0f}/s"
        progress.update(
            task, total=drained.pending, completed=drained.embedded, said=rate
        )
        if not err.is_terminal:
            done = f"{drained.embedded} of {drained.pending}"
            err.print(f"{title}: {done}, {rate}", highlight=False)

    return show


def training(progress: Progress, name: str, stopped: Event) -> Callable[[Epoch], None]:
    """Nothing is shown where there is nothing to train."""
    tasks: dict[str, TaskID] = {}

    def show(epoch: Epoch) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        title = f"training {name}"
        if epoch.feature != use_case.ONE_FEATURE:
            title += f" {epoch.feature}"
        losses = ", ".join(f"{k} {v:.4g}" for k, v in epoch.losses.items())
        if title not in tasks:
            tasks[title] = progress.add_task(title, total=epoch.of, said="")
        progress.update(tasks[title], completed=epoch.number, said=losses)
        if not err.is_terminal:
            done = f"epoch {epoch.number} of {epoch.of}"
            err.print(f"{title}: {done}, {losses}", highlight=False)

    return show


def maintaining(
    progress: Progress, stopped: Event
) -> Callable[[Step, BuildProgress], None]:
    """A bar for each step, from its first progress on."""
    tasks: dict[Step, TaskID] = {}
    last: dict[Step, str] = {}

    def show(step: Step, now: BuildProgress) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        title = step.index or step.use_case
        title = title if step.work == "none" else f"{step.work} {title}"
        said = now.phase
        if now.waits_for:
            said += f", waits for process {now.waits_for}"
        if step not in tasks:
            tasks[step] = progress.add_task(title, total=None, said="")
        progress.update(
            tasks[step], total=now.total or None, completed=now.done, said=said
        )
        if not err.is_terminal and last.get(step) != said:
            last[step] = said
            err.print(f"{title}: {said}", highlight=False)

    return show


def watching(
    progress: Progress, name: str, stopped: Event
) -> Callable[[str, int, int], None]:
    tasks: dict[str, TaskID] = {}

    def show(phase: str, done: int, of: int) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        title = f"{phase} {name}"
        if title not in tasks:
            tasks[title] = progress.add_task(title, total=of, said="")
        progress.update(tasks[title], completed=done, total=of)
        if not err.is_terminal and done == of:
            err.print(f"{title}: {done} of {of}", highlight=False)

    return show


def expectation(counts: Mapping[str, Any]) -> str:
    """How long a dry run's records would take."""
    workers = counts["workers"]
    if "expected_seconds" not in counts:
        return f"no rate measured yet, so no saying how long; {_some(workers)}"
    rate, seconds = counts["records_per_second"], counts["expected_seconds"]
    told = (
        f"{about(seconds)} at the measured {rate:.{0 if rate >= 10 else 2}f} "
        "records/s per worker, "
        f"{_some(workers)}"
    )
    if workers > 1:
        told += f"; {about(seconds * workers)} with one, as here"
    return told


def ways(counts: Mapping[str, Any]) -> str:
    """In place or into a fresh table, where a dry run could tell."""
    in_place, fresh = counts["in_place_seconds"], counts["fresh_seconds"]
    return (
        f"in place, row by row through the index that serves: {about(in_place)}, and "
        "`embedline maintain` then builds it anew; into a fresh table (--fresh): "
        f"{about(fresh)}, its index included, and what has changed is served as it was "
        "until then"
    )


def _some(workers: int) -> str:
    return f"{workers} worker{'s' * (workers > 1)}"


def about(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {max(1, round(seconds))} s"


def print_json(value: Any) -> None:
    print(json.dumps(value, default=plain, ensure_ascii=False, indent=2))


def print_table(rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(escape(plain(row[c])) for c in columns))
    out.print(table)


def plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()[:16]
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    if isinstance(value, dict):
        return ", ".join(f"{k}={plain(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, list):
        return "; ".join(map(plain, value))
    return str(value)
