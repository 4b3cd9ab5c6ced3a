"""Similarity search from Python: a text through the use case's own model, or a key."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, LiteralString

import psycopg
from pgvector import Vector
from psycopg.rows import dict_row
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from embedding_tasks import encoders
from embedding_tasks.connections import Connection, Resolve
from embedding_tasks.encoders import Encoder, Runtime
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.errors import SearchError
from embedding_tasks.inputs import Sentence
from embedding_tasks.store import versions
from embedding_tasks.store.connection import open_store
from embedding_tasks.store.versions import ModelVersion


class Switched(SearchError):
    """Another model version serves by now than the one the query is a vector of."""


def encoder_of(
    version: ModelVersion, device: str = "auto", resolve: Resolve | None = None
) -> Encoder:
    runtime = Runtime(
        device=device, resolve=resolve, open_store=partial(open_store, resolve)
    )
    return encoders.load(version, runtime)


# With the model of the version that serves by then.
@retry(
    retry=retry_if_exception_type(Switched), stop=stop_after_attempt(5), reraise=True
)
def by_text(
    store: Connection,
    use_case: str,
    text: str,
    k: int = 10,
    *,
    feature: str | None = None,
    encoder_for: Callable[[ModelVersion], Encoder] = encoder_of,
) -> list[dict[str, Any]]:
    """The k records nearest to a text, embedded as the use case's records are. To
    search more than once, give an `encoder_for` that keeps what `encoder_of` returns,
    by the version's id. Raises `SearchError` for an unknown use case or feature, or one
    that is not made of texts, `ModelError` when its model files have changed."""
    version = versions.active(store, use_case, feature)
    query = _query(version, text)
    vector = _vector(encoder_for(version).encode([query]), version, text)
    return _nearest(
        store,
        "SELECT * FROM embeddings.nearest(%s, %s, %s, %s, %s)",
        [
            *(use_case, Vector(vector).to_text(), k),
            *(version.feature, version.version),
        ],
    )


def _vector(encoded: Encoded, version: ModelVersion, text: str) -> Any:
    """Of the whole text: of its words the mean, of its entities the one it is."""
    vectors = encoded.vectors
    if version.unit == "entity" and encoded.spans is not None:
        vectors = vectors[(encoded.spans == (0, len(text))).all(axis=1)]
    if not len(vectors):
        raise SearchError(f"there is nothing to search by in {text!r}")
    return vectors.mean(axis=0) if version.unit == "word" else vectors[0]


def _query(version: ModelVersion, text: str) -> Any:
    """A text as the version's inputs are. Where words or entities have vectors, all of
    the text is the entity that is looked for."""
    kind = version.form.kind
    if kind in ("autoencoder", "gan"):
        raise SearchError(
            f"feature {version.feature!r} is made of a table's columns, not of a text; "
            "search by --key"
        )
    if version.unit not in ("word", "entity"):
        return text
    return Sentence(text, labelled_spans=((0, len(text)),))


def by_key(
    store: Connection,
    use_case: str,
    key: str,
    k: int = 10,
    *,
    feature: str | None = None,
    unit: int | None = None,
) -> list[dict[str, Any]]:
    """The k records nearest to one that is stored, or to one of its words, entities
    or objects."""
    versions.active(store, use_case, feature)
    return _nearest(
        store,
        "SELECT * FROM embeddings.neighbors(%s, %s, %s, %s, %s)",
        [use_case, key, k, unit, feature],
    )


def _nearest(
    store: Connection, statement: LiteralString, parameters: list[Any]
) -> list[dict[str, Any]]:
    try:
        with store.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(statement, parameters).fetchall()
    except psycopg.errors.ObjectNotInPrerequisiteState as error:
        raise Switched(_told(error)) from error
    except (
        psycopg.errors.NoDataFound,
        psycopg.errors.UndefinedObject,
        psycopg.errors.InvalidParameterValue,
    ) as error:
        raise SearchError(_told(error)) from error


def _told(error: psycopg.Error) -> str:
    primary, hint = error.diag.message_primary, error.diag.message_hint
    return f"{primary}; {hint}" if hint else str(primary)
