"""What a run of a use case is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from embedding_tasks.connections import Connection, Resolve
from embedding_tasks.errors import ConfigError
from embedding_tasks.store import connection
from embedding_tasks.sync import Backfill
from embedding_tasks.use_case import (
    Everything,
    PredictionColumn,
    Scope,
    UseCase,
    Window,
)


@dataclass(frozen=True)
class Request:
    """One run of a use case. `external_id` names it across stages and retries;
    `backfill` is what it asks for, in place of all that is new, changed or gone.
    `fresh`: into a table that takes the serving one's place when it is complete."""

    use_case: UseCase
    external_id: str
    kind: Literal["scheduled", "manual", "backfill", "cli", "work"]
    backfill: Scope | None = None
    reembed: bool = False
    fresh: bool = False
    audit: bool = False
    allow_deletes: bool = False
    dry_run: bool = False
    resolve: Resolve | None = None

    def __post_init__(self) -> None:
        no_time = self.use_case.source.event_time is None
        if isinstance(self.backfill, Window) and no_time:
            raise ConfigError(
                f"use case {self.use_case.name!r} names no source.event_time, so there "
                "is nothing a window could select by; valid: keys, or everything"
            )
        if self.backfill is not None and self.audit:
            raise ConfigError(
                "an audit reads every row of the source; leave out since, until, keys "
                "and everything, and do not ask for it in a backfill"
            )
        if self.fresh and not isinstance(self.backfill, Everything | None):
            raise ConfigError(
                "a fresh table takes every record, and no window and no keys alone; "
                "valid with fresh: everything, or no scope"
            )

    @property
    def prediction_from_source(self) -> bool:
        return isinstance(self.use_case.prediction, PredictionColumn)

    def of_run(self, run_id: int) -> Backfill | None:
        if self.backfill is None:
            return None
        return Backfill(run_id or None, self.backfill)

    def open_store(self) -> Connection:
        return connection.open_store(self.resolve)

    def open_direct(self) -> Connection:
        return connection.open_store(self.resolve, direct=True)

    def store_conninfo(self) -> str:
        """For processes that cannot resolve it; it may hold a password."""
        return connection.conninfo(self.resolve)
