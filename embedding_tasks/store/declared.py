"""From what a use case's file describes to the model versions of the store."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from psycopg import sql
from psycopg.types.json import Jsonb

from embedding_tasks.connections import Connection
from embedding_tasks.store import retired, versions
from embedding_tasks.store.versions import ModelVersion, Recipe
from embedding_tasks.use_case import UseCase

log = logging.getLogger(__name__)


def ensure(
    store: Connection,
    use_case_id: int,
    use_case: UseCase,
    recipes: Mapping[str, Recipe],
    *,
    whole: bool,
) -> list[ModelVersion]:
    """The live versions, with one for each recipe among them. The first version of a
    feature serves at once; a later one is built beside it, starting from the serving
    version's ledger, and from its own table where it served before. A feature without
    a recipe keeps the versions it has. `whole`: the sync to come looks at every record,
    and not at a window. Call with the use case open."""
    features = [*use_case.all_features]
    unit = use_case.first_feature.unit
    labelled_unit = "record" if unit == "object" else unit
    store.execute(
        "UPDATE embedline.use_case SET features = %(features)s,"
        "  labelled_unit = %(unit)s, tenanted = %(tenanted)s"
        " WHERE id = %(id)s AND (features, labelled_unit, tenanted)"
        "  <> (%(features)s, %(unit)s, %(tenanted)s)",
        {
            "id": use_case_id,
            "features": features,
            "unit": labelled_unit,
            "tenanted": use_case.source.tenant is not None,
        },
    )
    live = versions.live(store, use_case_id)
    for undeclared in (v for v in live if v.feature not in features):
        versions.retire(store, undeclared)
    for feature, recipe in recipes.items():
        own = [v for v in live if v.feature == feature]
        wanted = _Wanted(use_case_id, use_case, feature, recipe, whole)
        _ensure_feature(store, wanted, own)
    distance = use_case.storage.distance
    store.execute(
        "UPDATE embedline.model_version SET distance = %s"
        " WHERE use_case = %s AND state <> 'retired' AND distance <> %s",
        [distance, use_case_id, distance],
    )
    return versions.live(store, use_case_id)


@dataclass(frozen=True)
class _Wanted:
    """What a feature's vectors are to be."""

    use_case_id: int
    use_case: UseCase
    feature: str
    recipe: Recipe
    whole: bool


def _ensure_feature(
    store: Connection, wanted: _Wanted, live: Sequence[ModelVersion]
) -> None:
    recipe = wanted.recipe
    serving = next((v for v in live if v.serves), None)
    match = next((v for v in live if v.fingerprint == recipe.fingerprint), None)
    if match is None and serving and _is_rolled_back(store, wanted):
        log.warning(
            "kept use_case=%s feature=%s version=%d: the version its file describes "
            "was rolled back; change the file, or `embedline rollback %s --undo`",
            *(wanted.use_case.name, wanted.feature, serving.version),
            wanted.use_case.name,
        )
        return
    retired.forgive(store, wanted.use_case_id, wanted.feature)
    twins = [v.id for v in live if v.fingerprint == recipe.fingerprint]
    if match is None or match.serves:
        # A version still being built for a recipe that is no longer wanted
        for stale in (v for v in live if not v.serves and v.id not in twins):
            versions.retire(store, stale)
    match = match or _made_before(store, wanted, serving)
    if match is None:
        return
    # the same vectors of the same files, which may have moved
    store.execute(
        "UPDATE embedline.model_version SET spec = %s"
        " WHERE id = ANY (%s) AND spec <> %s",
        [Jsonb(recipe.spec), [match.id, *twins], Jsonb(recipe.spec)],
    )


def _is_rolled_back(store: Connection, wanted: _Wanted) -> bool:
    marked = retired.rolled_back(store, wanted.use_case_id, wanted.feature)
    return any(v.fingerprint == wanted.recipe.fingerprint for v in marked)


def _made_before(
    store: Connection, wanted: _Wanted, serving: ModelVersion | None
) -> ModelVersion | None:
    """A retired version of this recipe, taken up again, else a new one. None where the
    retired one must wait for a sync that looks at every record: till then nothing
    vouches for its vectors."""
    found = retired.of_fingerprint(
        store, wanted.use_case_id, wanted.feature, wanted.recipe.fingerprint
    )
    vouched = wanted.whole or (found and serving and serving.has_inputs_of(found))
    if found and serving and not vouched:
        return None
    if not (found and vouched):
        return _create(store, wanted, serving)
    state: Literal["building", "active"] = "building" if serving else "active"
    revived = retired.take_up(store, found, serving, wanted.use_case, state)
    log.info(
        "revived model version use_case=%s version=%d state=%s fingerprint=%s",
        *(wanted.use_case.name, revived.version, revived.state),
        revived.fingerprint[:12],
    )
    return revived


def _create(
    store: Connection, wanted: _Wanted, serving: ModelVersion | None
) -> ModelVersion:
    use_case, recipe = wanted.use_case_id, wanted.recipe
    name, storage = wanted.use_case.name, wanted.use_case.storage
    number = versions.next_number(store, use_case)
    created = versions.fetch(
        store,
        sql.SQL(
            "INSERT INTO embedline.model_version (use_case, feature, unit, version,"
            " fingerprint, spec, dims, storage, distance, classes, table_name, state,"
            " activated_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s,"
            " CASE WHEN %s THEN now() END) RETURNING {}"
        ).format(versions.COLUMNS),
        [
            use_case,
            wanted.feature,
            recipe.unit,
            number,
            recipe.fingerprint,
            Jsonb(recipe.spec),
            recipe.dims,
            storage.type,
            storage.distance,
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
    if serving is None or not serving.has_inputs_of(created):
        # other columns have other hashes: every row must be read for them
        versions.read_everything(store, use_case)
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
