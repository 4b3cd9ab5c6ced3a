"""Use cases and their model versions: building -> ready -> active -> retired.

A fingerprint names everything that shapes a vector. Vectors of one fingerprint live
in one table; another fingerprint is another version, filled beside the serving one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from embedding_tasks.connections import Connection
from embedding_tasks.errors import SearchError, StoreError, valid_choices
from embedding_tasks.inputs import Form

log = logging.getLogger(__name__)

_COLUMNS = sql.SQL(
    "id, use_case, feature, unit, version, fingerprint, spec, dims, storage, distance,"
    " classes, table_name, state"
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
    """`unit` is what one of its vectors stands for: record, word, entity, object."""

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
    ).format(_COLUMNS)
    return _fetch(store, statement, [use_case])


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


def ensure(
    store: Connection,
    use_case: int,
    name: str,
    recipes: Mapping[str, Recipe],
    *,
    storage: str,
    distance: str,
    prediction_from_source: bool,
) -> list[ModelVersion]:
    """The live versions, with one for each feature's recipe among them. The first
    version of a feature serves at once; a later one is built beside it, starting from
    the serving version's ledger. Call with the use case open."""
    first = next(iter(recipes.values()))
    labelled_unit = "record" if first.unit == "object" else first.unit
    store.execute(
        "UPDATE embedline.use_case"
        " SET features = %(features)s, labelled_unit = %(unit)s"
        " WHERE id = %(id)s AND (features, labelled_unit) <> (%(features)s, %(unit)s)",
        {"id": use_case, "features": [*recipes], "unit": labelled_unit},
    )
    versions = live(store, use_case)
    for undeclared in (v for v in versions if v.feature not in recipes):
        retire(store, undeclared)
    for feature, recipe in recipes.items():
        own = [v for v in versions if v.feature == feature]
        wanted = _Wanted(use_case, name, feature, recipe, storage, distance)
        _ensure_feature(store, wanted, own)
    store.execute(
        "UPDATE embedline.model_version SET distance = %s"
        " WHERE use_case = %s AND state <> 'retired' AND distance <> %s",
        [distance, use_case, distance],
    )
    _refresh_views(store, use_case, prediction_from_source)
    return live(store, use_case)


@dataclass(frozen=True)
class _Wanted:
    """What a feature's vectors are to be, in the use case called `name`."""

    use_case: int
    name: str
    feature: str
    recipe: Recipe
    storage: str
    distance: str


def _ensure_feature(
    store: Connection, wanted: _Wanted, versions: Sequence[ModelVersion]
) -> None:
    recipe = wanted.recipe
    match = [v for v in versions if v.fingerprint == recipe.fingerprint]
    if not match or match[0].serves:
        # A version still being built for a recipe that is no longer wanted
        for stale in (v for v in versions if not v.serves):
            retire(store, stale)
    if not match:
        match = [_create(store, wanted, versions)]
    # the same vectors of the same files, which may have moved
    store.execute(
        "UPDATE embedline.model_version SET spec = %s WHERE id = %s AND spec <> %s",
        [Jsonb(recipe.spec), match[0].id, Jsonb(recipe.spec)],
    )


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
    store: Connection, use_case: int, *, prediction_from_source: bool
) -> list[ModelVersion]:
    """Make every ready version a serving one, and its view, in one transaction."""
    with store.transaction():
        lock(store, use_case)
        versions = live(store, use_case)
        ready = [v for v in versions if v.state == "ready"]
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
        _refresh_views(store, use_case, prediction_from_source)
    for version in ready:
        log.info("promoted use_case=%d version=%d", use_case, version.version)
    return ready


def retire(store: Connection, version: ModelVersion) -> None:
    """Its table stays, for a rollback; it no longer follows the source. What it has
    stands in the table's own input hashes, so its ledger can go."""
    store.execute(
        "UPDATE embedline.model_version SET state = 'retired', retired_at = now()"
        " WHERE id = %s",
        [version.id],
    )
    store.execute("DELETE FROM embedline.ledger WHERE model_version = %s", [version.id])


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


def _create(
    store: Connection, wanted: _Wanted, versions: Sequence[ModelVersion]
) -> ModelVersion:
    use_case, name, recipe = wanted.use_case, wanted.name, wanted.recipe
    serving = next((v for v in versions if v.serves), None)
    number = _next_number(store, use_case)
    created = _fetch(
        store,
        sql.SQL(
            "INSERT INTO embedline.model_version (use_case, feature, unit, version,"
            " fingerprint, spec, dims, storage, distance, classes, table_name, state,"
            " activated_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s,"
            " CASE WHEN %s THEN now() END) RETURNING {}"
        ).format(_COLUMNS),
        [
            use_case,
            wanted.feature,
            recipe.unit,
            number,
            recipe.fingerprint,
            Jsonb(recipe.spec),
            recipe.dims,
            wanted.storage,
            wanted.distance,
            recipe.classes,
            f"vector_{name}_v{number}",
            "building" if serving else "active",
            serving is None,
        ],
    )[0]
    store.execute(
        "SELECT embedline.create_vector_table(m) FROM embedline.model_version m"
        " WHERE id = %s",
        [created.id],
    )
    if serving is None or serving.spec["input"] != recipe.spec["input"]:
        # other columns have other hashes: every row must be read for them
        store.execute(
            "UPDATE embedline.source_cursor SET server = ''"
            " WHERE use_case = %s AND relation = 'records'",
            [use_case],
        )
    if serving is not None:
        # What only a backfill asked for, and nobody has stored, stays that backfill's.
        store.execute(
            sql.SQL(
                "INSERT INTO embedline.ledger"
                " (model_version, key, want_hash, priority, backfill)"
                " SELECT %s, key, want_hash, 10, CASE WHEN have_hash IS NULL"
                "   AND NOT EXISTS (SELECT FROM {} v WHERE v.key = l.key)"
                "   THEN backfill END"
                " FROM embedline.ledger l WHERE model_version = %s ORDER BY key"
            ).format(serving.table),
            [created.id, serving.id],
        )
    log.info(
        "new model version use_case=%s version=%d state=%s fingerprint=%s",
        *(name, number, created.state, recipe.fingerprint[:12]),
    )
    return created


def _next_number(store: Connection, use_case: int) -> int:
    row = store.execute(
        "SELECT coalesce(max(version), 0) + 1 FROM embedline.model_version"
        " WHERE use_case = %s",
        [use_case],
    ).fetchone()
    assert row is not None
    return int(row[0])


def _fetch(
    store: Connection, statement: sql.Composed, parameters: Sequence[Any]
) -> list[ModelVersion]:
    with store.cursor(row_factory=class_row(ModelVersion)) as cursor:
        return cursor.execute(statement, parameters).fetchall()
