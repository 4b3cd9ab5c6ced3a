"""Questions asked of a use case by several threads while its versions change, and
every answer checked against the vectors that each version is known to have."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psycopg
from pgvector import Vector
from psycopg import sql

from embedding_tasks import search
from embedding_tasks.connections import Connection, connect
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.store import versions
from embedding_tasks.store.versions import ModelVersion

TOLERANCE = 1e-4
# of one question, each with the version that served by then
REPEATS = 20


@dataclass(frozen=True)
class Known:
    """What one version has: a vector (n, dims) and a text for every key."""

    keys: list[str]
    vectors: np.ndarray
    texts: list[str]

    def nearest(self, query: np.ndarray) -> dict[str, float]:
        """Cosine distances by key, the smallest first."""
        lengths = np.linalg.norm(self.vectors, axis=1) * np.linalg.norm(query)
        distances = 1 - self.vectors @ query / lengths
        order = np.argsort(distances, kind="stable")
        return {self.keys[i]: float(distances[i]) for i in order}


def known(store: Connection, use_case: str) -> dict[int, Known]:
    """Of every version that has a table."""
    found = {}
    for row in versions.history(store, versions.use_case_id(store, use_case)):
        table = sql.Identifier("embedline", f"vector_{use_case}_v{row['version']}")
        rows = store.execute(
            sql.SQL(
                "SELECT v.key, v.embedding::real[], i.data FROM {} v"
                " JOIN embedline.input i USING (key)"
                " JOIN embedline.model_version m ON m.id = i.model_version"
                " AND m.table_name = %s ORDER BY v.key"
            ).format(table),
            [f"vector_{use_case}_v{row['version']}"],
        ).fetchall()
        keys, vectors, texts = zip(*rows, strict=True)
        made = np.array(vectors, dtype=np.float32)
        found[row["version"]] = Known([*keys], made, [*texts])
    return found


@dataclass
class Answers:
    """`refused` questions were answered when repeated with the version that served."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failed: list[str] = field(default_factory=list)
    mixed: int = 0
    empty: int = 0
    refused: int = 0

    @property
    def count(self) -> int:
        return sum(map(len, self.seconds.values()))


@dataclass
class Load:
    """`rate` is of one thread, in questions per second."""

    conninfo: str
    use_case: str
    known: dict[int, Known]
    threads: int = 4
    rate: float = 20.0
    k: int = 10
    seed: int = 7
    answers: Answers = field(default_factory=Answers)
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _running: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._running = [
            threading.Thread(target=self._work, args=(self.seed + n,))
            for n in range(self.threads)
        ]
        for thread in self._running:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._running:
            thread.join()

    def _work(self, seed: int) -> None:
        asker = Asker(self, random.Random(seed))
        with connect(self.conninfo, role="store") as store:
            due = time.monotonic()
            while not self._stop.is_set():
                kind, ask = asker.choose()
                began = time.monotonic()
                try:
                    rows, fits = ask(store)
                except (psycopg.Error, search.SearchError) as error:
                    with self._lock:
                        self.answers.failed.append(f"{kind}: {error}")
                else:
                    self._note(kind, time.monotonic() - began, rows, fits)
                due += 1 / self.rate
                time.sleep(max(0.0, due - time.monotonic()))

    def _note(self, kind: str, seconds: float, rows: int, fits: bool) -> None:
        with self._lock:
            self.answers.seconds[kind].append(seconds)
            self.answers.empty += rows == 0
            self.answers.mixed += not fits

    def note_refusal(self) -> None:
        with self._lock:
            self.answers.refused += 1


Answer = tuple[int, bool]
"""How many rows, and whether they are all of one version, k, and right."""


@dataclass
class Asker:
    """One thread's questions. `believed` is the version it takes for the serving one:
    it learns better when it is refused."""

    load: Load
    random: random.Random
    believed: int = 1

    def choose(self) -> tuple[str, Callable[[Connection], Answer]]:
        asks = [self.nearest, self.neighbors, self.view, self.text]
        ask = self.random.choice(asks)
        return ask.__name__, ask

    def nearest(self, store: Connection) -> Answer:
        for _ in range(REPEATS):
            have = self.load.known[self.believed]
            query = have.vectors[self.random.randrange(len(have.keys))]
            try:
                rows = store.execute(
                    "SELECT key, distance FROM embeddings.nearest("
                    "%s, %s::text::vector, %s, model_version => %s)",
                    [
                        *(self.load.use_case, Vector(query).to_text()),
                        *(self.load.k, self.believed),
                    ],
                ).fetchall()
            except psycopg.errors.ObjectNotInPrerequisiteState:
                self.load.note_refusal()
                self.believed = versions.active(store, self.load.use_case).version
            else:
                return len(rows), self._fits(self.believed, query, rows)
        raise search.SearchError("refused again and again")

    def neighbors(self, store: Connection) -> Answer:
        key = self._key()
        rows = store.execute(
            "SELECT key, distance FROM embeddings.neighbors(%s, %s, %s)",
            [self.load.use_case, key, self.load.k],
        ).fetchall()
        return len(rows), self._fits_one(key, rows, itself=False)

    def view(self, store: Connection) -> Answer:
        key = self._key()
        view = sql.Identifier("embeddings", self.load.use_case)
        rows = store.execute(
            sql.SQL(
                "SELECT key, embedding <=> (SELECT embedding FROM {view}"
                " WHERE key = %s), model_version FROM {view} ORDER BY 2 LIMIT %s"
            ).format(view=view),
            [key, self.load.k],
        ).fetchall()
        served = {version for *_, version in rows}
        found = [(key, distance) for key, distance, _ in rows]
        if len(served) != 1:
            return len(rows), False
        query = self._vector(served.copy().pop(), key)
        return len(rows), self._fits(served.pop(), query, found)

    def text(self, store: Connection) -> Answer:
        key, asked = self._key(), []

        def encoder_for(version: ModelVersion) -> Any:
            asked.append(version.version)
            return _Looked(self._vector(version.version, key))

        found = search.by_text(
            store, self.load.use_case, key, self.load.k, encoder_for=encoder_for
        )
        rows = [(row["key"], row["distance"]) for row in found]
        query = self._vector(asked[-1], key)
        texts = dict(zip(*self._texts(asked[-1]), strict=True))
        right = all(row["data"] == texts[row["key"]] for row in found)
        return len(rows), right and self._fits(asked[-1], query, rows)

    def _key(self) -> str:
        return self.random.choice(self.load.known[self.believed].keys)

    def _texts(self, version: int) -> tuple[list[str], list[str]]:
        return self.load.known[version].keys, self.load.known[version].texts

    def _vector(self, version: int, key: str) -> np.ndarray:
        have = self.load.known[version]
        vector: np.ndarray = have.vectors[have.keys.index(key)]
        return vector

    def _fits(
        self, version: int, query: np.ndarray, rows: Sequence[tuple[str, float]]
    ) -> bool:
        """The k nearest of this version and no other, each at its distance."""
        return self._is_nearest(self.load.known[version].nearest(query), rows)

    def _fits_one(
        self, key: str, rows: Sequence[tuple[str, float]], *, itself: bool
    ) -> bool:
        for version, have in self.load.known.items():
            wanted = have.nearest(self._vector(version, key))
            if not itself:
                del wanted[key]
            if self._is_nearest(wanted, rows):
                return True
        return False

    def _is_nearest(
        self, wanted: dict[str, float], rows: Sequence[tuple[str, float]]
    ) -> bool:
        best = [*wanted.values()][: self.load.k]
        return len(rows) == self.load.k and all(
            abs(wanted[key] - distance) < TOLERANCE and abs(distance - at) < TOLERANCE
            for (key, distance), at in zip(rows, best, strict=True)
        )


@dataclass(frozen=True)
class _Looked:
    """An encoder that knows its one answer."""

    vector: np.ndarray
    shared = False

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        return Encoded.of_records(self.vector[None])

    def probe(self) -> Encoded:
        return self.encode([""])

    def surroundings(self) -> dict[str, str]:
        return {"device": "none"}
