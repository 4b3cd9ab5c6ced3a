"""What every benchmark of the engine says beside its figures."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

from embedding_tasks import __version__


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Median and range."""
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:,{form}} ({least:,{form}}-{most:,{form}})"


def gemm_rate(about: float) -> float:
    """Operations a second of a half-precision product of matrices of 8192, for about so
    many seconds."""
    if not torch.cuda.is_available():
        return float("nan")
    left, right = (torch.randn(8192, 8192, device="cuda").half() for _ in range(2))
    once = 2 * 8192**3
    count = max(10, int(about * 7e14 / once))
    torch.mm(left, right)
    torch.cuda.synchronize()

    def products() -> None:
        for _ in range(count):
            torch.mm(left, right)
        torch.cuda.synchronize()

    return once * count / seconds(products)


def gemm_burst() -> list[float]:
    """The same for 30 ms each time, of a card that has been at rest."""
    rates = []
    for _ in range(3):
        time.sleep(2)
        rates.append(gemm_rate(0.03))
    return rates


def machine() -> dict[str, Any]:
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": " ".join(["python", "-m", *sys.orig_argv[-len(sys.argv) :]]),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "card": card,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "embedline": __version__,
    }


def save(path: Path, found: dict[str, Any], **asked: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**machine(), **asked, **found}, indent=1))


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
