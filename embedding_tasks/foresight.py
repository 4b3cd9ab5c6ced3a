"""What a run would cost, by what runs have cost so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

from embedding_tasks import ledger
from embedding_tasks.connections import Connection
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.use_case import UseCase

# The last runs that embedded anything say how fast it goes by now.
_RUNS = 5


def waiting(store: Connection, use_case: UseCase, live: Sequence[ModelVersion]) -> int:
    """Records to embed, once for each version that lacks them."""
    seconds = use_case.batch.lease_seconds
    left = [ledger.outstanding(store, version, seconds) for version in live]
    return sum(version.claimable + version.leased for version in left)


def workers(use_case: UseCase, rows: int) -> int:
    """How many a queue of so many records is worth: none when it is empty."""
    batch = use_case.batch
    return min(batch.max_workers, math.ceil(rows / batch.rows_per_worker))


def rate(store: Connection, use_case_id: int) -> float | None:
    """Records embedded per second and worker; None where nothing has been measured."""
    row = store.execute(
        "SELECT sum(embedded) / sum(embed_seconds) FROM ("
        " SELECT embedded, embed_seconds FROM embedline.run"
        " WHERE use_case = %s AND embedded > 0 AND embed_seconds > 0"
        " ORDER BY id DESC LIMIT %s) AS latest",
        [use_case_id, _RUNS],
    ).fetchone()
    return row[0] if row else None


def foreseen(
    store: Connection, use_case_id: int, use_case: UseCase, live: Sequence[ModelVersion]
) -> dict[str, int | float]:
    """`to_embed` records; where there are any, the `workers` a run of the DAG takes for
    them, and where a rate is known, `records_per_second` of one worker and the
    `expected_seconds` of all."""
    to_embed = waiting(store, use_case, live)
    building = [v.version for v in live if v.state == "building"]
    counts: dict[str, int | float] = {
        "to_embed": to_embed,
        "builds_version": building[0] if building else 0,
    }
    if to_embed:
        counts["workers"] = workers(use_case, to_embed)
        if measured := rate(store, use_case_id):
            counts["records_per_second"] = measured
            counts["expected_seconds"] = to_embed / measured / counts["workers"]
    return counts
