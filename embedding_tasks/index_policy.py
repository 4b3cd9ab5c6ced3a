"""What a vector table needs, decided by what it is now; nothing is done here.

Exact scans below `storage.index.min_rows`, an index above, built when the load is over.
One that serves is never dropped for a load, and only goes when another is there, or
the file says that there shall be none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from embedding_tasks.store import index
from embedding_tasks.store.index import Existing
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.use_case import UseCase

Work = Literal["none", "build", "reindex", "vacuum", "measure", "drop"]

# So much of a table may still be to come: that little can go through the index.
DRAINED_SHARE = 0.05
# Of more dead rows an index is built anew before the vacuum. Of 38,158 rows a vacuum
# alone took as long as both together at 1 % of dead rows, and 3.5 times as long at 5 %,
# where recall had gone from .985 to .970 (benchmarks/index_build.py).
_DEAD_SHARE = 0.05
# An index so many times as large, for its rows, as when it was built.
_SWOLLEN = 1.5
_LEAST_DEAD = 1000


@dataclass(frozen=True)
class Table:
    """A model version's table as it is now. `pending` and `waited_hours` are of the
    backlog that somebody is to embed; `bytes_per_row` is the index's at its build."""

    rows: int
    dead: int
    pending: int
    waited_hours: float
    indexes: Sequence[Existing] = ()
    measured: frozenset[str] = frozenset()
    bytes_per_row: float | None = None

    @property
    def dead_share(self) -> float:
        return self.dead / max(1, self.rows + self.dead)


@dataclass(frozen=True)
class Step:
    """One thing to do, or `none`, and why."""

    use_case: str
    feature: str
    version: int
    work: Work
    why: str
    index: str | None = None


@dataclass(frozen=True)
class Subject:
    case: UseCase
    version: ModelVersion

    def step(self, work: Work, why: str, index: str | None = None) -> Step:
        name, version = self.case.name, self.version
        return Step(name, version.feature, version.version, work, why, index)


def decide(subject: Subject, table: Table) -> list[Step]:
    """What is to be done, in this order, at least a `none` that says why."""
    version, policy = subject.version, subject.case.storage.index
    steps = [
        subject.step("drop", "a build was broken off", left.name)
        for left in table.indexes
        if index.is_leftover(left, version)
    ]
    if version.state == "building":
        why = "it is being built, and gets its index before it serves"
        return [*steps, subject.step("none", why)]
    if policy.type == "none":
        return [*steps, *_without(subject, table)]
    if told := index.obstacle(version.dims, version.storage):
        return [*steps, *_tended(subject, table, None, told)]
    serving = serving_index(subject, table)
    if serving is None:
        return [*steps, *_to_build(subject, table)]
    return [*steps, *_replaced(subject, table, serving)]


def serving_index(subject: Subject, table: Table) -> Existing | None:
    """The one that answers: as the file describes it, else somebody's own, else ours
    of other parameters."""
    wanted = index.name_of(subject.version, subject.case.storage.index)
    valid = [i for i in table.indexes if i.serves(subject.version)]
    valid.sort(key=lambda i: (i.name != wanted, i.is_ours(subject.version)))
    return valid[0] if valid else None


def _without(subject: Subject, table: Table) -> list[Step]:
    why = "storage.index.type is none"
    ours = [i for i in table.indexes if i.is_valid and i.is_ours(subject.version)]
    if ours:
        return [subject.step("drop", why, i.name) for i in ours]
    return _tended(subject, table, None, why)


def _to_build(subject: Subject, table: Table) -> list[Step]:
    policy, rows = subject.case.storage.index, table.rows
    if rows < policy.min_rows:
        why = (
            f"{rows:,} vectors are searched exactly; an index from {policy.min_rows:,}"
        )
        return _tended(subject, table, None, f"{why} (storage.index.min_rows)")
    is_loading = table.pending > DRAINED_SHARE * (rows + table.pending)
    if is_loading and table.waited_hours < policy.max_wait_hours:
        why = (
            f"{table.pending:,} records wait to be embedded beside {rows:,} vectors: "
            "the index comes when they are done, or in "
            f"{policy.max_wait_hours - table.waited_hours:.0f} h"
        )
        return [subject.step("none", why)]
    why = f"{rows:,} vectors, at least {policy.min_rows:,}, and no index"
    if is_loading:
        why += f"; {table.pending:,} have waited for {table.waited_hours:.0f} h"
    wanted = index.name_of(subject.version, policy)
    return [subject.step("build", why, wanted), *_stale(subject, table, wanted)]


def _stale(subject: Subject, table: Table, *kept: str) -> list[Step]:
    """Ours that no search uses any more, of another distance, or of parameters that
    the file no longer has."""
    return [
        subject.step("drop", "another index takes its place", i.name)
        for i in table.indexes
        if i.is_valid and i.is_ours(subject.version) and i.name not in kept
    ]


def _replaced(subject: Subject, table: Table, serving: Existing) -> list[Step]:
    version = subject.version
    wanted = index.name_of(version, subject.case.storage.index)
    if serving.is_ours(version) and serving.name != wanted:
        why = f"the file asks for other parameters than {serving.name} has"
        build = subject.step("build", why, wanted)
        return [build, *_stale(subject, table, wanted)]
    stale = _stale(subject, table, serving.name)
    return [*stale, *_tended(subject, table, serving, f"{serving.name} serves")]


def _tended(
    subject: Subject, table: Table, serving: Existing | None, why: str
) -> list[Step]:
    dead = f"{table.dead_share:.0%} of the rows are dead"
    is_dirty = table.dead_share > _DEAD_SHARE and table.dead >= _LEAST_DEAD
    if serving is None:
        return [subject.step("vacuum", dead) if is_dirty else subject.step("none", why)]
    swollen = serving.bytes / max(1, table.rows) / (table.bytes_per_row or float("inf"))
    if is_dirty:
        return [subject.step("reindex", f"{dead}; then a vacuum", serving.name)]
    if swollen > _SWOLLEN:
        why = f"it is {swollen:.1f} times as large as when it was built, for its rows"
        return [subject.step("reindex", why, serving.name)]
    if serving.name not in table.measured:
        return [subject.step("measure", "its recall is not known", serving.name)]
    return [subject.step("none", f"{why}, {table.dead_share:.1%} of the rows are dead")]
