"""By which strategy changes of a relation are found.

`snapshot` asks for row versions whose xmin is not older than the previous look's
`pg_snapshot_xmin` (the horizon). A row version visible now and not then was written by
a transaction unfinished then, whose id is at or after that horizon; subtransactions
have later ids than their parents. So it can only over-read, and the hash takes the
excess away. `pg_visible_in_snapshot(xmin)` would be wrong: the list it consults omits
subtransactions and is empty on a standby.

`timestamp` and `outbox` say in their own modules why they miss nothing that follows
their rules. `scan` reads everything.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.errors import SourceError
from embedding_tasks.inputs import Form
from embedding_tasks.source import outbox, timestamp, watched
from embedding_tasks.source.extract import Extract
from embedding_tasks.source.outbox import Outbox
from embedding_tasks.source.relation import Relation
from embedding_tasks.use_case import Source, UseCase

log = logging.getLogger(__name__)

Name = Literal["snapshot", "timestamp", "outbox", "scan"]

# A `snapshot` and a `scan` are exact. A timestamp can be set to anything, and triggers
# be switched off; those will be found out.
_AUDIT_DAYS: Mapping[str, float] = {"timestamp": 1, "outbox": 7}


@dataclass(frozen=True)
class Strategy:
    """`audit_days`: how often everything is looked at again, None: never. `definition`
    is its part of what a cursor belongs to."""

    name: Name
    audit_days: float | None = None
    scans_keys: bool = True
    updated_at: UpdatedAt | None = None
    outbox: Outbox | None = None
    definition: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class UpdatedAt:
    column: sql.Composable
    rounding: float

    def since(self, bound: datetime) -> sql.Composable:
        """A row that does not say when it was written may have been at any time."""
        first = bound.astimezone(UTC) - timedelta(seconds=self.rounding)
        return sql.SQL("({0} >= {1}::timestamptz OR {0} IS NULL)").format(
            self.column, sql.Literal(first.isoformat())
        )


def of_records(
    connection: Connection, records: Extract, use_case: UseCase, forms: Sequence[Form]
) -> Strategy:
    """Raises `SourceError` where the source is not fit for the one that is asked for;
    `forms` are those of the live model versions."""
    source, relation = use_case.source, records.relation
    name = _name(relation, source)
    audit_days = source.audit_days or _AUDIT_DAYS.get(name)
    by_default = "audit" if name == "outbox" else "every_run"
    scans_keys = (source.key_scan or by_default) == "every_run"
    if name == "timestamp":
        assert source.updated_at is not None
        return Strategy(
            name,
            audit_days,
            scans_keys,
            updated_at=UpdatedAt(
                timestamp.column(relation, source.updated_at),
                timestamp.rounding(relation, source.updated_at),
            ),
            definition={"strategy": name, "updated_at": source.updated_at},
        )
    if name == "outbox":
        outbox.refuse_other_kinds(records)
        needed = watched.of_use_case(use_case).union(*(f.columns for f in forms))
        known = needed & relation.columns.keys()
        found = outbox.find(connection, records, use_case.name, sorted(known))
        if found.blind:
            log.warning(
                "no trigger sees a TRUNCATE of %s: all keys are read each time; "
                "run `embedline outbox install %s` again",
                *(", ".join(found.blind), use_case.name),
            )
        return Strategy(
            name,
            audit_days,
            scans_keys,
            outbox=found,
            definition={"strategy": name, "outbox": found.oid},
        )
    # As the first release wrote it: its cursors go on, and one of either strategy is
    # as good for the other.
    return Strategy(name, audit_days, scans_keys)


def of_labels(labels: Extract) -> Strategy:
    return Strategy("snapshot" if labels.relation.has_row_versions else "scan")


def _name(relation: Relation, source: Source) -> Name:
    if source.strategy == "snapshot" and not relation.has_row_versions:
        raise SourceError(
            f"source.strategy: {relation.name} has no row versions to compare, "
            "so 'snapshot' cannot read it; valid: 'scan', 'timestamp', 'auto'"
        )
    if source.strategy == "auto":
        return "snapshot" if relation.has_row_versions else "scan"
    return source.strategy
