"""Two that write the same of a version follow each other, each in its transaction."""

from __future__ import annotations

from typing import Literal

from embedding_tasks.connections import Connection
from embedding_tasks.store.versions import ModelVersion

What = Literal[
    "rollup_day", "outcome_day", "baseline", "measurement", "flag", "projection"
]


def take(store: Connection, version: ModelVersion, what: What) -> None:
    _take(store, version.id, what)


# What is made of records, and may name them.
_OF_RECORDS: tuple[What, ...] = (
    *("rollup_day", "outcome_day", "baseline"),
    *("flag", "projection"),
)


def take_all(store: Connection, use_case: int) -> None:
    """Of every version of the use case: nobody writes anything that was made of its
    records until this transaction has ended, and what was written is seen."""
    found = store.execute(
        "SELECT id FROM embedline.model_version WHERE use_case = %s ORDER BY id",
        [use_case],
    )
    for (version,) in found.fetchall():
        for what in _OF_RECORDS:
            _take(store, version, what)


def _take(store: Connection, version: int, what: What) -> None:
    store.execute(
        "SELECT pg_advisory_xact_lock(hashtext('embedline.' || %s), %s)",
        [what, version],
    )
