"""Similarity search from Python: a text through the use case's own model, or a key."""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg
from pgvector import Vector
from psycopg.rows import dict_row

from embedding_tasks import encoders
from embedding_tasks.connections import Connection
from embedding_tasks.encoders import Encoder
from embedding_tasks.errors import SearchError
from embedding_tasks.store import versions
from embedding_tasks.store.versions import ModelVersion


def encoder_of(version: ModelVersion, device: str = "auto") -> Encoder:
    return encoders.load(version, device=device, batch_tokens=4096)


def by_text(
    store: Connection,
    use_case: str,
    text: str,
    k: int = 10,
    *,
    encoder: Encoder | None = None,
) -> list[dict[str, Any]]:
    """The k records nearest to a text, embedded as the use case's records are. Pass an
    `encoder` (of `encoder_of`) to search more than once. Raises `SearchError` for an
    unknown use case, `ModelError` when its model files have changed."""
    version = versions.active(store, use_case)
    encoded = (encoder or encoder_of(version)).encode([text])
    return _nearest(
        store,
        "SELECT * FROM embeddings.nearest(%s, %s::text::vector, %s)",
        [use_case, Vector(encoded.vectors[0]).to_text(), k],
    )


def by_key(
    store: Connection, use_case: str, key: str, k: int = 10
) -> list[dict[str, Any]]:
    """The k records nearest to one that is stored."""
    versions.active(store, use_case)
    return _nearest(
        store, "SELECT * FROM embeddings.neighbors(%s, %s, %s)", [use_case, key, k]
    )


def _nearest(
    store: Connection, statement: LiteralString, parameters: list[Any]
) -> list[dict[str, Any]]:
    try:
        with store.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(statement, parameters).fetchall()
    except (
        psycopg.errors.NoDataFound,
        psycopg.errors.UndefinedObject,
        psycopg.errors.InvalidParameterValue,
    ) as error:
        hint = error.diag.message_hint
        primary = error.diag.message_primary
        raise SearchError(f"{primary}; {hint}" if hint else str(primary)) from error
