"""Models trained on a use case's own rows, where every worker finds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from embedding_tasks.connections import Connection
from embedding_tasks.use_case import Feature, UseCase
from embedding_tasks.use_case.feature import Trained

# Raise it when the same rows and settings would give another model.
VERSION = 1

# Of an encoder's settings those that shape no training.
_SHAPELESS = ("device", "min_rows")


@dataclass(frozen=True)
class Model:
    """`losses` has one mapping per epoch, `epoch` is the one whose weights were kept,
    and `baseline` the validation loss of an autoencoder that knows but the mean."""

    rows: int
    epoch: int
    losses: Sequence[Mapping[str, float]]
    baseline: float | None
    seconds: float
    digest: str
    weights: bytes


def features(use_case: UseCase) -> dict[str, Trained]:
    """Those whose encoder is trained on the use case's own rows."""
    return {
        name: feature.encoder
        for name, feature in use_case.all_features.items()
        if isinstance(feature.encoder, Trained)
    }


def settings(feature: Feature) -> dict[str, Any]:
    """What a training depends on but its rows."""
    encoder = feature.encoder.model_dump(mode="json", exclude={*_SHAPELESS})
    if encoder["data"] == "table":
        del encoder["image_size"]
    return {**encoder, "input": [*feature.input], "training": VERSION}


def digests(store: Connection, use_case: UseCase) -> dict[str, str]:
    """Of `models`, by feature."""
    return {name: m["digest"] for name, m in models(store, use_case).items()}


def models(store: Connection, use_case: UseCase) -> dict[str, dict[str, Any]]:
    """By feature, what there is to say of the latest model of its present settings,
    where there is one."""
    with store.cursor(row_factory=dict_row) as cursor:
        found = {
            name: cursor.execute(
                "SELECT kind, rows, m.epoch, jsonb_array_length(losses) AS epochs,"
                "  (losses -> (epoch - 1) ->> 'training')::float8 AS training_loss,"
                "  (losses -> (epoch - 1) ->> 'validation')::float8 AS validation_loss,"
                "  baseline, seconds, digest, made_at"
                " FROM embedline.trained_model m JOIN embedline.use_case u"
                "   ON u.id = m.use_case"
                " WHERE u.name = %s AND m.feature = %s AND m.settings = %s"
                " ORDER BY m.id DESC LIMIT 1",
                [use_case.name, name, Jsonb(settings(use_case.all_features[name]))],
            ).fetchone()
            for name in features(use_case)
        }
    return {name: row for name, row in found.items() if row is not None}


def insert(
    store: Connection,
    use_case: int,
    name: str,
    feature: Feature,
    model: Model,
    run_id: int | None,
) -> None:
    encoder = feature.encoder
    assert isinstance(encoder, Trained)
    store.execute(
        "INSERT INTO embedline.trained_model (use_case, feature, kind, settings, seed,"
        " rows, columns, epoch, losses, baseline, seconds, digest, weights, run_id)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %b, %s)",
        [
            *(use_case, name, feature.encoder.type, Jsonb(settings(feature))),
            *(encoder.seed, model.rows, [*feature.input], model.epoch),
            *(Jsonb([*model.losses]), model.baseline, model.seconds),
            *(model.digest, model.weights, run_id),
        ],
    )


def weights(store: Connection, digest: str) -> bytes | None:
    cursor = store.cursor(binary=True)
    row = cursor.execute(
        "SELECT weights FROM embedline.trained_model WHERE digest = %s LIMIT 1",
        [digest],
    ).fetchone()
    return None if row is None else bytes(row[0])
