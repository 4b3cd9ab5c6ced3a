"""Is what a run leaves undone within what its use case allows?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, LiteralString

from embedding_tasks.connections import Connection
from embedding_tasks.errors import ThresholdError
from embedding_tasks.ledger import WANTED_NOW
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.use_case import UseCase


@dataclass(frozen=True)
class Left:
    """What of a model version is not done, in records: `pending`, which this run should
    have done; `deferred`, because the source had moved on, which is the next one's."""

    wanted: int
    pending: int
    deferred: int
    dead: int


_SERVED: LiteralString = (
    "EXISTS (SELECT FROM embedline.model_version own"
    " JOIN embedline.model_version serving USING (use_case, feature)"
    " JOIN embedline.ledger s ON s.model_version = serving.id AND s.key = l.key"
    " WHERE own.id = l.model_version AND serving.state = 'active'"
    "  AND serving.id <> own.id AND s.have_hash IS NOT NULL)"
)


def left_of(
    store: Connection, version: ModelVersion, run_id: int | None = None
) -> Left:
    """What was queued after the run's sync (without a run: nothing) is another run's to
    do, and what belongs to a paused backfill is nobody's for now; but no version may
    take over that lacks what the serving one has."""
    row = store.execute(
        "SELECT count(*) FILTER (WHERE want_hash IS NOT NULL),"
        "  count(*) FILTER (WHERE pending AND dead_at IS NULL AND NOT deferred"
        f"    AND ({WANTED_NOW} OR {_SERVED})"
        "    AND queued_at <= coalesce((SELECT synced_at FROM embedline.run"
        "      WHERE id = %s), 'infinity')),"
        "  count(*) FILTER (WHERE pending AND dead_at IS NULL AND deferred"
        f"    AND ({WANTED_NOW} OR {_SERVED})),"
        "  count(dead_at)"
        " FROM embedline.ledger l WHERE model_version = %s",
        [run_id, version.id],
    ).fetchone()
    assert row is not None
    return Left(*row)


def is_within(use_case: UseCase, undone: int, left: Left) -> bool:
    allowed = use_case.thresholds
    share = undone / max(1, left.wanted)
    return undone <= allowed.undone_rows or share <= allowed.undone_share


def judge(use_case: UseCase, version: ModelVersion, left: Left) -> None:
    allowed = use_case.thresholds
    undone = left.pending + left.dead
    if not is_within(use_case, undone, left):
        raise ThresholdError(
            f"{use_case.name}: {undone} of {left.wanted} records are not stored "
            f"({left.pending} pending, {left.dead} dead) in model version "
            f"{version.version} ({version.state}), more than "
            f"thresholds.undone_rows={allowed.undone_rows} and "
            f"undone_share={allowed.undone_share}; "
            f"`embedline status {use_case.name}` shows the commonest errors"
        )


def judge_withheld(use_case: UseCase, numbers: dict[str, Any]) -> None:
    records, labels = numbers["deletes_withheld"], numbers["labels_withheld"]
    if records or labels:
        raise ThresholdError(
            f"{use_case.name}: {records} stored records and {labels} labels are gone "
            "from the source, more than source.delete_guard lets go unasked; "
            "if that is right, run once with --allow-deletes (in Airflow: the "
            "parameter allow_deletes)"
        )
