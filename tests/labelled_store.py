"""A store of given vectors, labels, texts and probabilities, made without a model; and
real ones: handwritten digits, their pixels as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from psycopg.types.json import Jsonb

from embedding_tasks.connections import Connection
from embedding_tasks.demo import corpora
from embedding_tasks.store import versions
from embedding_tasks.store.versions import ModelVersion

SPEC = {
    "encoder": {"type": "text"},
    "input": ["body"],
    "separator": " ",
    "template": None,
    "pooling": "mean",
}


@cache
def digits() -> tuple[np.ndarray, list[str]]:
    """(2000, 196): a quarter of the pixels' resolution, and what they show."""
    pixels, shown = corpora.digits()
    chosen = np.random.default_rng(0).permutation(len(shown))[:2000]
    images = pixels.to_numpy(np.float32)[chosen].reshape(-1, 14, 2, 14, 2)
    vectors = images.mean(axis=(2, 4)).reshape(-1, 196) / 255
    return vectors, [str(digit) for digit in shown.iloc[chosen]]


def flipped(
    labels: Sequence[str], share: float, seed: int = 0
) -> tuple[list[str], np.ndarray]:
    """Such a share of the labels made another one, and which ones."""
    classes, own = np.unique(labels, return_inverse=True)
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(own)) < share
    others = (own + rng.integers(1, len(classes), len(own))) % len(classes)
    return [str(label) for label in classes[np.where(wrong, others, own)]], wrong


def make(
    store: Connection,
    vectors: np.ndarray,
    labels: Sequence[str | None],
    *,
    texts: Sequence[str] | None = None,
    classes: list[str] | None = None,
    probabilities: np.ndarray | None = None,
    distance: str = "cosine",
) -> ModelVersion:
    """A use case `things`; keys are the rows' numbers with leading zeros."""
    keys = [key_of(number) for number in range(len(vectors))]
    with store.transaction():
        version = _version(store, vectors.shape[1], classes, distance)
        add(store, version, keys, vectors)
        ids = version.use_case, version.id
        _copy(
            store,
            "embedline.label (use_case, key, label)",
            [(ids[0], k, y) for k, y in zip(keys, labels, strict=True) if y],
        )
        if texts is not None:
            rows = [(ids[1], k, text) for k, text in zip(keys, texts, strict=True)]
            _copy(store, "embedline.input (model_version, key, data)", rows)
        if probabilities is not None:
            given = zip(keys, probabilities.tolist(), strict=True)
            _copy(
                store,
                "embedline.prediction (use_case, key, model_version, probabilities)",
                [(ids[0], key, ids[1], row) for key, row in given],
            )
    store.execute("ANALYZE")
    return version


def key_of(number: int) -> str:
    return f"{number:06}"


def add(
    store: Connection, version: ModelVersion, keys: Sequence[str], vectors: np.ndarray
) -> None:
    hashes = [_hash(vector) for vector in vectors]
    _copy(
        store,
        f"embedline.{version.table_name} (key, embedding, input_hash, run_id)",
        [
            (key, str(vector.tolist()), digest, 1)
            for key, vector, digest in zip(keys, vectors, hashes, strict=True)
        ],
    )
    _copy(
        store,
        "embedline.ledger (model_version, key, want_hash, have_hash)",
        [(version.id, key, d, d) for key, d in zip(keys, hashes, strict=True)],
    )
    _copy(
        store,
        "embedline.record (use_case, key, event_time)",
        [(version.use_case, key, "2026-03-01 12:00Z") for key in keys],
    )


def _hash(vector: np.ndarray) -> bytes:
    return vector.astype(np.float64).tobytes()[:32]


def _version(
    store: Connection, dims: int, classes: list[str] | None, distance: str
) -> ModelVersion:
    store.execute("INSERT INTO embedline.use_case (name) VALUES ('things')")
    store.execute(
        "INSERT INTO embedline.model_version (use_case, version, fingerprint, spec,"
        " dims, storage, distance, classes, table_name, state) SELECT id, 1, 'f', %s,"
        " %s, 'vector', %s, %s, 'vector_things_v1', 'active' FROM embedline.use_case",
        [Jsonb(SPEC), dims, distance, classes],
    )
    store.execute(
        "SELECT embedline.create_vector_table(m) FROM embedline.model_version m"
    )
    store.execute("SELECT embedline.refresh_views(id, false) FROM embedline.use_case")
    return versions.active(store, "things")


def _copy(store: Connection, target: str, rows: Sequence[tuple[object, ...]]) -> None:
    with store.cursor().copy(f"COPY {target} FROM STDIN") as copy:  # type: ignore[arg-type]
        for row in rows:
            copy.write_row(row)
