"""A store whose days are known: vectors of three classes, from the first day on, of
which some have drifted."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, timedelta

import numpy as np
import psycopg
from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.use_case import UseCase
from tests import search_store
from tests.search_store import CLASSES, Row

NAME = "things"
FIRST = date(2026, 3, 1)
DIMS = 16


@dataclass
class Days:
    """`add` writes one more day, or more rows of one there is."""

    store: Connection
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))
    written: int = 0

    def __post_init__(self) -> None:
        self.table = search_store.describe(self.store, NAME, DIMS, "vector", "cosine")
        self.centres = 2 * self.rng.normal(size=(len(CLASSES), DIMS))

    def add(
        self,
        day: int,
        rows: int = 300,
        *,
        moved: float = 0.0,
        mix: tuple[float, ...] = (0.5, 0.3, 0.2),
        environment: str = "production",
        language: str = "en",
    ) -> None:
        """`moved`: by how many of a class' standard deviations."""
        classes = self.rng.choice(len(CLASSES), rows, p=mix)
        vectors = self.centres[classes] + self.rng.normal(size=(rows, DIMS))
        vectors[:, 0] += moved * np.sqrt(DIMS)
        made = [
            Row(
                *(f"k{self.written + number}", CLASSES[own], 0.5, None, environment),
                *(day * 1440 + number % 1440, {"language": language}, "a text"),
            )
            for number, own in enumerate(classes)
        ]
        self.written += rows
        with self.store.transaction():
            search_store.fill(self.store, NAME, self.table, made, vectors)
            self.store.execute(
                sql.SQL(
                    "INSERT INTO embedline.ledger (model_version, key, want_hash,"
                    " have_hash) SELECT m.id, v.key, v.input_hash, v.input_hash"
                    " FROM {} v, embedline.model_version m ON CONFLICT DO NOTHING"
                ).format(sql.Identifier("embedline", self.table))
            )

    def remove(self, day: int, rows: int) -> None:
        """The first ones of it."""
        gone = self.store.execute(
            "SELECT key FROM embeddings.things WHERE (event_time AT TIME ZONE 'UTC')"
            "::date = %s ORDER BY key LIMIT %s",
            [self.day(day), rows],
        ).fetchall()
        self.store.execute(
            sql.SQL("DELETE FROM {} WHERE key = ANY (%s)").format(
                sql.Identifier("embedline", self.table)
            ),
            [[key for (key,) in gone]],
        )

    @staticmethod
    def day(number: int) -> date:
        return FIRST + timedelta(days=number)


def use_case(**monitoring: object) -> UseCase:
    return UseCase.model_validate(
        {
            "name": NAME,
            "source": {
                "dsn": psycopg.conninfo.make_conninfo(dbname="nowhere"),
                **{"table": "things", "key": "id", "input": "text"},
                "tags": ["language"],
            },
            "encoder": {"model": "none"},
            "monitoring": {
                "baseline": {"since": FIRST, "until": Days.day(6)},
                **monitoring,
            },
        }
    )
