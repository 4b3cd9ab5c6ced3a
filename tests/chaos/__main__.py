"""Storms from the command line: python -m tests.chaos --seeds 1-20 --seconds 20."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tests.chaos.storm import Report


def main(
    seeds: Annotated[str, typer.Option(help="one, or a range: 1-20")] = "1",
    seconds: Annotated[float, typer.Option(help="of each storm")] = 20,
    mutant: Annotated[
        str | None, typer.Option(help="break the build: one of mutants.py")
    ] = None,
    rounds: Annotated[int, typer.Option(help="storms on one store, one by one")] = 1,
    out: Annotated[Path | None, typer.Option(help="write the figures here")] = None,
) -> None:
    """Exits with 1 where a store is not what a fresh full run gives."""
    # Here, as every task imports this module again.
    from tests.chaos import models, scene
    from tests.chaos.servers import started
    from tests.chaos.storm import storm

    logging.disable()
    first, _, last = seeds.partition("-")
    reports = []
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        made = models.make(folder / "models")
        with started(folder) as servers:
            for seed in range(int(first), int(last or first) + 1):
                report = storm(
                    scene.of_seed(seed),
                    *(servers, folder / f"seed{seed}", made, seconds),
                    mutant=mutant,
                    rounds=rounds,
                )
                reports.append(report)
                _tell(report)
    _sum_up(reports)
    if out is not None:
        out.write_text(json.dumps([_figures(r) for r in reports], indent=2))
    sys.exit(not all(report.is_clean for report in reports))


def _tell(report: Report) -> None:
    wrong = {what: len(names) for what, names in report.verdict.wrong.items()}
    print(
        f"seed {report.scene.seed:3}  {report.faults:4} faults  "
        f"{report.counts['transactions']:5} transactions  "
        f"{report.counts['runs']:3} runs  "
        f"{report.verdict.rows:5} rows compared  {report.seconds:5.1f} s  "
        f"{'clean' if report.is_clean else 'WRONG'}  {report.scene}",
        flush=True,
    )
    if wrong or report.errors:
        print(report, flush=True)


def _sum_up(reports: list[Report]) -> None:
    counts = sum((r.counts for r in reports), Counter[str]())
    print(", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    totals = {
        what: sum(len(getattr(r.verdict, what)) for r in reports)
        for what in ("missing", "stale", "orphaned", "duplicated", "undone")
    }
    print(
        f"{sum(r.faults for r in reports)} faults over {len(reports)} seeds: "
        + ", ".join(f"{n} {what}" for what, n in totals.items())
    )


def _figures(report: Report) -> dict[str, Any]:
    return {
        "scene": str(report.scene),
        "at": time.time(),
        **asdict(report.scene),
        "faults": report.faults,
        "counts": dict(report.counts),
        "rows": report.verdict.rows,
        "wrong": report.verdict.wrong,
        "seconds": report.seconds,
    }


if __name__ == "__main__":
    typer.run(main)
