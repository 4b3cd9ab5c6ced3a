"""Similarity search from Python: a text through the use case's own model, or a key.

A `filter` is what the SQL functions take (docs/sql.md, "Filters"), as a dictionary:
{"label": ["a", "b"], "misclassified": True, "event_time": [since, None]}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import date
from functools import partial
from typing import Any, LiteralString

import numpy as np
import numpy.typing as npt
import psycopg
from pgvector import Vector
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from embedding_tasks import encoders
from embedding_tasks.connections import Connection, Resolve
from embedding_tasks.encoders import Encoder, Runtime
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.errors import SearchError
from embedding_tasks.filters import Filter
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


EncoderFor = Callable[[ModelVersion], Encoder]

# With the model of the version that serves by then.
_overtaken = retry(
    retry=retry_if_exception_type(Switched), stop=stop_after_attempt(5), reraise=True
)


@_overtaken
def by_text(
    store: Connection,
    use_case: str,
    text: str,
    k: int = 10,
    *,
    feature: str | None = None,
    filter: Filter | None = None,
    ef_search: int | None = None,
    encoder_for: EncoderFor = encoder_of,
) -> list[dict[str, Any]]:
    """The k records nearest to a text, embedded as the use case's records are. To
    search more than once, give an `encoder_for` that keeps what `encoder_of` returns,
    by the version's id. Raises `SearchError` for an unknown use case or feature, one
    that is not made of texts, or a filter that says nothing sensible, `ModelError` when
    its model files have changed."""
    embedded = _embed(store, use_case, text, feature, encoder_for)
    return _ask(
        store,
        "nearest",
        **{**embedded, "k": k, "filter": filter, "ef_search": ef_search},
    )


@_overtaken
def hybrid(
    store: Connection,
    use_case: str,
    text: str,
    k: int = 10,
    *,
    language: str = "simple",
    feature: str | None = None,
    filter: Filter | None = None,
    encoder_for: EncoderFor = encoder_of,
) -> list[dict[str, Any]]:
    """The k best by the text's vector and by its words, which are read as a web search
    is; `language` is a text search configuration of the store. Raises as `by_text`."""
    embedded = _embed(store, use_case, text, feature, encoder_for)
    asked = {"k": k, "filter": filter, "query_text": text, "language": language}
    return _ask(store, "hybrid", **{**embedded, **asked})


@_overtaken
def explain(
    store: Connection,
    use_case: str,
    text: str,
    k: int = 10,
    *,
    feature: str | None = None,
    filter: Filter | None = None,
    ef_search: int | None = None,
    encoder_for: EncoderFor = encoder_of,
) -> dict[str, Any]:
    """How the store makes the search of `by_text`: exactly or by the index, and why."""
    embedded = _embed(store, use_case, text, feature, encoder_for)
    (row,) = _ask(
        store,
        "explain_nearest",
        **{**embedded, "k": k, "filter": filter, "ef_search": ef_search},
    )
    told: dict[str, Any] = row["explain_nearest"]
    return told


def _embed(
    store: Connection,
    use_case: str,
    text: str,
    feature: str | None,
    encoder_for: EncoderFor,
) -> dict[str, Any]:
    """Arguments of the functions that take a query vector."""
    version = versions.active(store, use_case, feature)
    return {
        "use_case": use_case,
        "query": Vector(vector_of(encoder_for(version), version, text)),
        "feature": version.feature,
        "model_version": version.version,
    }


def vector_of(
    encoder: Encoder, version: ModelVersion, text: str
) -> npt.NDArray[np.float32]:
    """A text's vector as `by_text` searches by it, (dims,)."""
    encoded = encoder.encode([_query(version, text)])
    return np.asarray(_vector(encoded, version, text), np.float32)


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
    filter: Filter | None = None,
    ef_search: int | None = None,
) -> list[dict[str, Any]]:
    """The k records nearest to one that is stored, or to one of its words, entities
    or objects."""
    versions.active(store, use_case, feature)
    return _ask(
        store,
        "neighbors",
        **{"use_case": use_case, "key": key, "k": k, "unit": unit, "feature": feature},
        **{"filter": filter, "ef_search": ef_search},
    )


def _ask(
    store: Connection, function: LiteralString, **given: Any
) -> list[dict[str, Any]]:
    statement = sql.SQL("SELECT * FROM {}({})").format(
        sql.Identifier("embeddings", function),
        sql.SQL(", ").join(
            sql.SQL("{} => {}").format(sql.Identifier(name), sql.Placeholder())
            for name in given
        ),
    )
    try:
        with store.cursor(row_factory=dict_row) as cursor:
            values = [_plain(value) for value in given.values()]
            return cursor.execute(statement, values).fetchall()
    except psycopg.errors.ObjectNotInPrerequisiteState as error:
        raise Switched(_told(error)) from error
    except (
        psycopg.errors.NoDataFound,
        psycopg.errors.UndefinedObject,
        psycopg.errors.InvalidParameterValue,
        psycopg.errors.InsufficientPrivilege,
    ) as error:
        raise SearchError(_told(error)) from error


def _plain(value: Any) -> Any:
    if isinstance(value, Vector):
        return value.to_text()  # no type is named: pgvector's schema may be anywhere
    return Jsonb(value, dumps=_dumps) if isinstance(value, Mapping) else value


def _dumps(value: Any) -> str:
    return json.dumps(value, default=_as_json)


def _as_json(value: Any) -> Any:
    if isinstance(value, date):  # a datetime is one, too
        return value.isoformat()
    raise SearchError(
        f"a filter cannot hold {value!r}; valid: what JSON can, and times"
    )


def _told(error: psycopg.Error) -> str:
    primary, hint = error.diag.message_primary, error.diag.message_hint
    return f"{primary}; {hint}" if hint else str(primary)
