"""Use cases and their model versions: building -> ready -> active -> retired.

A fingerprint names everything that shapes a vector. Vectors of one fingerprint live
in one table; another fingerprint is another version, filled beside the serving one, and
so is a fresh table of the same fingerprint, where one is asked for (`fresh`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import class_row, dict_row

from embedding_tasks.connections import Connection, take_time
from embedding_tasks.errors import (
    SearchError,
    StoreError,
    TransientError,
    valid_choices,
)
from embedding_tasks.inputs import Form

log = logging.getLogger(__name__)

# A view in use is asked for so often, with a pause (seconds) for those behind us.
VIEW_ATTEMPTS = 30
VIEW_PAUSE = 1.0

COLUMNS = sql.SQL(
    "id, use_case, feature, unit, version, fingerprint, spec, dims, storage, distance,"
    " classes, table_name, state, filled_by"
)


@dataclass(frozen=True)
class Recipe:
    """How vectors are made: what the fingerprint is taken over, and their shape."""

    fingerprint: str
    spec: dict[str, Any]
    unit: str
    dims: int
    classes: list[str] | None


@dataclass(frozen=True)
class ModelVersion:
    """`unit` is what one of its vectors stands for: record, word, entity, object;
    `filled_by` the run that asked for it in place of one of the same recipe."""

    id: int
    use_case: int
    feature: str
    unit: str
    version: int
    fingerprint: str
    spec: dict[str, Any]
    dims: int
    storage: str
    distance: str
    classes: list[str] | None
    table_name: str
    state: str
    filled_by: int | None = None

    @property
    def table(self) -> sql.Identifier:
        return sql.Identifier("embedline", self.table_name)

    @property
    def serves(self) -> bool:
        return self.state == "active"

    @property
    def form(self) -> Form:
        """How its inputs are made of the columns of a record."""
        return Form.of(self.spec)

    def has_inputs_of(self, other: ModelVersion) -> bool:
        """Both are made of the same columns, so that a record has one hash in both."""
        return bool(self.spec["input"] == other.spec["input"])

    def keeps_labelled(self, labelled_unit: str) -> bool:
        """Which of a record's parts have a vector depends on its label, too, where
        labels are of such parts."""
        if self.unit != labelled_unit:
            return False
        pooling = self.spec["pooling"]
        classified = isinstance(pooling, dict) and pooling.get("keep") == "classified"
        return self.unit == "entity" or classified


def open_use_case(store: Connection, name: str) -> int:
    """The use case's id, made on first sight. Takes its lock until the transaction
    ends: one sync, registration or promotion at a time."""
    use_case = register(store, name)
    lock(store, use_case)
    return use_case


def register(store: Connection, name: str) -> int:
    store.execute(
        "INSERT INTO embedline.use_case (name) VALUES (%s) ON CONFLICT DO NOTHING",
        [name],
    )
    row = store.execute(
        "SELECT id FROM embedline.use_case WHERE name = %s", [name]
    ).fetchone()
    assert row is not None
    return int(row[0])


def lock(store: Connection, use_case: int) -> None:
    take_time(store)
    store.execute(
        "SELECT pg_advisory_xact_lock(hashtext('embedline.use_case'), %s)", [use_case]
    )


def use_case_id(store: Connection, name: str) -> int:
    row = store.execute(
        "SELECT id FROM embedline.use_case WHERE name = %s", [name]
    ).fetchone()
    if row is None:
        names = [n for (n,) in store.execute("SELECT name FROM embedline.use_case")]
        known = valid_choices(name, names) if names else f"{name!r}: nothing has run"
        raise SearchError(f"the store has no use case {known}")
    return int(row[0])


def live(store: Connection, use_case: int) -> list[ModelVersion]:
    """The versions that follow the source: those that serve first, and among them that
    of the first feature."""
    statement = sql.SQL(
        "SELECT {} FROM embedline.model_version m"
        " WHERE use_case = %s AND state <> 'retired'"
        " ORDER BY state <> 'active', (SELECT array_position(u.features, m.feature)"
        "  FROM embedline.use_case u WHERE u.id = m.use_case), version"
    ).format(COLUMNS)
    return fetch(store, statement, [use_case])


def live_by_name(store: Connection, name: str) -> list[ModelVersion]:
    """None where the store does not know the use case."""
    row = store.execute(
        "SELECT id FROM embedline.use_case WHERE name = %s", [name]
    ).fetchone()
    return live(store, row[0]) if row else []


def active(store: Connection, name: str, feature: str | None = None) -> ModelVersion:
    """The serving version of a feature, the first one unless it is named."""
    serving = [v for v in live(store, use_case_id(store, name)) if v.serves]
    if not serving:
        raise SearchError(f"use case {name!r} has no vectors yet; run it first")
    if feature is None:
        return serving[0]
    found = {version.feature: version for version in serving}
    if feature not in found:
        raise SearchError(
            f"use case {name!r} has no feature {valid_choices(feature, list(found))}"
        )
    return found[feature]


def numbered(
    store: Connection, use_case: str, number: int, feature: str | None = None
) -> ModelVersion:
    """One that still has its vectors. Raises `SearchError`, which lists those."""
    statement = sql.SQL(
        "SELECT {} FROM embedline.model_version WHERE use_case = %s"
        " AND to_regclass(format('embedline.%%I', table_name)) IS NOT NULL"
        " ORDER BY version"
    ).format(COLUMNS)
    there = fetch(store, statement, [use_case_id(store, use_case)])
    for version in there:
        if version.version == number and feature in (None, version.feature):
            return version
    told = ", ".join(f"{v.version} ({v.feature}, {v.state})" for v in there)
    asked = f"{number!r}" if feature is None else f"{number!r} of {feature!r}"
    raise SearchError(
        f"use case {use_case!r} has no vectors of model version {asked}; "
        f"valid: {told or 'none yet: run it first'}"
    )


def refresh_views(
    store: Connection, use_case: int, prediction_from_source: bool
) -> None:
    """Makes the views of the serving versions; for the rest of the transaction whoever
    asks one that has changed waits. Raises `TransientError` where somebody has held one
    all the while: to wait for him in a single stretch would have all others wait."""
    for _ in range(VIEW_ATTEMPTS):
        try:
            with store.transaction():
                _set_lock_timeout(store, "1s")
                _refresh_views(store, use_case, prediction_from_source)
                _set_lock_timeout(store, "0")
        except psycopg.errors.LockNotAvailable:
            time.sleep(VIEW_PAUSE)
        else:
            return
    raise TransientError(
        "a view of the use case must be made anew, but a query or an open transaction "
        "holds it; pg_stat_activity names it, and the next run tries again"
    )


def _set_lock_timeout(store: Connection, limit: str) -> None:
    store.execute("SELECT set_config('lock_timeout', %s, true)", [limit])


def _refresh_views(
    store: Connection, use_case: int, prediction_from_source: bool
) -> None:
    try:
        store.execute(
            "SELECT embedline.refresh_views(%s, %s)", [use_case, prediction_from_source]
        )
    except psycopg.errors.DependentObjectsStillExist as error:
        raise StoreError(
            "the use case's view must be made anew, since its vectors are of another "
            f"size or type, but {error.diag.message_detail}; drop what depends on it "
            "and make it again afterwards"
        ) from error


def mark_ready(store: Connection, version: ModelVersion) -> None:
    store.execute(
        "UPDATE embedline.model_version SET state = 'ready', ready_at = now()"
        " WHERE id = %s AND state = 'building'",
        [version.id],
    )


def promote(
    store: Connection,
    use_case: int,
    ready: list[ModelVersion],
    *,
    prediction_from_source: bool,
) -> list[ModelVersion]:
    """Make these versions the serving ones, and their views, in one transaction."""
    with store.transaction():
        lock(store, use_case)
        versions = live(store, use_case)
        if not ready:
            states = ", ".join(f"{v.version}: {v.state}" for v in versions)
            raise StoreError(f"no version is ready to be promoted (versions: {states})")
        features = {v.feature for v in ready}
        for serving in (v for v in versions if v.serves and v.feature in features):
            retire(store, serving)
        store.execute(
            "UPDATE embedline.model_version"
            " SET state = 'active', activated_at = now() WHERE id = ANY (%s)",
            [[v.id for v in ready]],
        )
        refresh_views(store, use_case, prediction_from_source)
    for version in ready:
        log.info("promoted use_case=%d version=%d", use_case, version.version)
    return ready


def retire(store: Connection, version: ModelVersion) -> None:
    """Its table stays, for a rollback; it no longer follows the source. What it has
    stands in the table's own input hashes, so its ledger can go."""
    # In key order, as workers lock it.
    store.execute(
        "SELECT count(*) FROM (SELECT FROM embedline.ledger WHERE model_version = %s"
        " ORDER BY key FOR UPDATE) AS locked",
        [version.id],
    )
    store.execute(
        "UPDATE embedline.model_version m SET state = 'retired', retired_at = now(),"
        " kept = (SELECT definition -> 'data' -> 0 FROM embedline.source_cursor c"
        "  WHERE c.use_case = m.use_case AND relation = 'records') WHERE id = %s",
        [version.id],
    )
    store.execute("DELETE FROM embedline.ledger WHERE model_version = %s", [version.id])


def next_number(store: Connection, use_case: int) -> int:
    row = store.execute(
        "SELECT coalesce(max(version), 0) + 1 FROM embedline.model_version"
        " WHERE use_case = %s",
        [use_case],
    ).fetchone()
    assert row is not None
    return int(row[0])


def read_everything(store: Connection, use_case: int) -> None:
    """Has the next sync read every row of the source."""
    store.execute(
        "UPDATE embedline.source_cursor SET server = ''"
        " WHERE use_case = %s AND relation = 'records'",
        [use_case],
    )


def count(store: Connection, version: ModelVersion) -> int:
    """Its vectors."""
    return _count(store, version.table)


def history(store: Connection, use_case: int) -> list[dict[str, Any]]:
    """All versions there ever were. `vectors` is None where the table is gone."""
    with store.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            "SELECT feature, version, state, fingerprint, dims, created_at AS made,"
            "  activated_at AS activated, retired_at AS retired,"
            "  rolled_back_at AS rolled_back, dropped_at AS dropped, table_name,"
            "  to_regclass(format('embedline.%%I', table_name)) IS NOT NULL AS vectors"
            " FROM embedline.model_version WHERE use_case = %s ORDER BY version",
            [use_case],
        ).fetchall()
    for row in rows:
        table = sql.Identifier("embedline", row.pop("table_name"))
        row["vectors"] = _count(store, table) if row["vectors"] else None
    return rows


def _count(store: Connection, table: sql.Identifier) -> int:
    row = store.execute(sql.SQL("SELECT count(*) FROM {}").format(table)).fetchone()
    assert row is not None
    return int(row[0])


def all_tables(store: Connection, use_case: int) -> list[sql.Identifier]:
    """Those there are: a retired version's may have been dropped by hand."""
    names = all_table_names(store, use_case)
    return [sql.Identifier("embedline", name) for name in names]


def all_table_names(store: Connection, use_case: int) -> list[str]:
    rows = store.execute(
        "SELECT m.table_name FROM embedline.model_version m JOIN pg_class c"
        "   ON c.relname = m.table_name AND c.relnamespace = 'embedline'::regnamespace"
        " WHERE m.use_case = %s",
        [use_case],
    )
    return [name for (name,) in rows]


def fetch(
    store: Connection,
    statement: sql.Composed,
    parameters: Sequence[Any] | Mapping[str, Any],
) -> list[ModelVersion]:
    with store.cursor(row_factory=class_row(ModelVersion)) as cursor:
        return cursor.execute(statement, parameters).fetchall()
