"""Answers that took long to get, kept in the project's home from run to run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from embedding_tasks import settings

T = TypeVar("T", str, int)


def remembered(topic: str, key: str, find_out: Callable[[], T]) -> T:
    answer: T | None = known(topic, key)
    if answer is None:
        answer = find_out()
        keep(topic, key, answer)
    return answer


def known(topic: str, key: str) -> Any:
    """None where it has not been kept."""
    return _load(_path(topic)).get(key)


def keep(topic: str, key: str, answer: str | int) -> None:
    path = _path(topic)
    _save(path, {**_load(path), key: answer})


def forget(topic: str, key: str) -> None:
    path = _path(topic)
    known = _load(path)
    if known.pop(key, None) is not None:
        _save(path, known)


def _path(topic: str) -> Path:
    return settings.home() / f"{topic}.json"


def _load(path: Path) -> dict[str, Any]:
    try:
        known: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known


def _save(path: Path, known: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(known, indent=0))
        fresh.replace(path)
    except OSError:
        # A read-only home costs time, not correctness.
        return
