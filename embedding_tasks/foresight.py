"""What a run would cost, by what runs have cost so far."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from embedding_tasks import judgement, ledger, status
from embedding_tasks.connections import Connection
from embedding_tasks.index_policy import DRAINED_SHARE
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.use_case import UseCase

log = logging.getLogger(__name__)

# The last runs that embedded anything say how fast it goes by now.
_RUNS = 5
# A vector through a live index takes as long as building it with so many: 6 to 15 were
# measured, the most where several processes build (benchmarks/fresh_table.py).
_THROUGH_INDEX = 12


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
    `expected_seconds` of all; and the two of `ways`."""
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
            counts |= ways(store, use_case, live, measured)
    return counts


def ways(
    store: Connection, use_case: UseCase, live: Sequence[ModelVersion], rate: float
) -> dict[str, float]:
    """Where much of what serves through an index waits to be embedded, at `rate`
    records a second: `in_place_seconds`, row by row through the index, and
    `fresh_seconds`, into a fresh table, with its index. Nothing where little waits,
    there is no index, or nobody saw how long its build took."""
    in_place = fresh = 0.0
    for serving in (v for v in live if v.serves):
        beside = [v for v in live if v.feature == serving.feature and not v.serves]
        waits = waiting(store, use_case, beside or [serving])
        index = status.index_of(store, use_case.name, serving.feature, serving.version)
        building = index and index["build_seconds"]
        of_recipe = any(v.filled_by is None for v in beside)
        if of_recipe or not (waits and building):
            continue
        share = waits / max(1, judgement.left_of(store, serving).wanted)
        if share > DRAINED_SHARE:
            many = workers(use_case, waits)
            through_index = _THROUGH_INDEX * building * share
            in_place += max(waits / rate, through_index) / many
            fresh += waits / rate / many + building
    return {"in_place_seconds": in_place, "fresh_seconds": fresh} if fresh else {}


def advise(store: Connection, use_case: UseCase, live: Sequence[ModelVersion]) -> None:
    """Into the log, where a fresh table would be filled before the serving one is."""
    if not (live and all(v.serves for v in live)):
        return
    measured = rate(store, live[0].use_case)
    found = ways(store, use_case, live, measured) if measured else {}
    if found and found["fresh_seconds"] < found["in_place_seconds"]:
        log.warning(
            "%s: much is to be embedded through the index that serves, in about %.0f "
            "s; into a fresh table in about %.0f s, by the run's parameter `fresh`, or "
            "`embedline backfill start %s --fresh`",
            *(use_case.name, *found.values(), use_case.name),
        )
