"""What the tasks of a monitoring run do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from embedding_tasks.connections import Connection, Resolve
from embedding_tasks.monitoring import results, telling, watch
from embedding_tasks.monitoring.results import Alarm
from embedding_tasks.store import versions
from embedding_tasks.store.connection import open_store
from embedding_tasks.use_case import UseCase

log = logging.getLogger(__name__)


def measure(
    case: UseCase, resolve: Resolve, *, again: bool = False, freeze: bool = False
) -> dict[str, int]:
    """Returns how many windows were measured, and how many alarms are on. What could
    not be done is in the log."""
    with open_store(resolve) as store:
        watched = watch.watch(store, case, again=again, freeze=freeze)
        for of in watched:
            for said in of.problems:
                log.warning("%s, %s: %s", case.name, of.feature, said)
        return {
            "windows": sum(len(w.windows) for w in watched),
            "alarms": len(_on(store, case)),
        }


def tell(
    case: UseCase, resolve: Resolve, notify: Callable[[dict[str, Any]], None]
) -> int:
    """Of each alarm that is on and was not told yet, once. One that fails is told
    again by the next run; the others are told, and then the first failure is raised.
    Returns how many."""
    told, failures = 0, list[Exception]()
    with open_store(resolve) as store:
        for alarm in _on(store, case):
            if alarm.told_at or alarm.acknowledged_at:
                continue
            try:
                notify({**asdict(alarm), "text": telling.tell(store, alarm)})
            except Exception as error:
                log.exception("alarm %d could not be told", alarm.id)
                failures.append(error)
            else:
                results.mark_told(store, alarm.id)
                told += 1
    if failures:
        raise failures[0]
    return told


def unacknowledged(case: UseCase, resolve: Resolve) -> list[str]:
    """What there is to say of each alarm that is on and nobody took on."""
    with open_store(resolve) as store:
        return [
            telling.tell(store, alarm)
            for alarm in _on(store, case)
            if not alarm.acknowledged_at
        ]


def _on(store: Connection, case: UseCase) -> list[Alarm]:
    """Of the versions that serve."""
    serving = {
        (version.feature, version.version)
        for version in versions.live_by_name(store, case.name)
        if version.state == "active"
    }
    return [
        alarm
        for alarm in results.alarms(store, case.name)
        if (alarm.feature, alarm.model_version) in serving
    ]
