"""Predictions and labels of a model that is as good as one likes, in the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest

from embedding_tasks.connections import Connection
from embedding_tasks.store import versions
from embedding_tasks.store.versions import ModelVersion
from tests.fix_project import Project

FIRST = date(2026, 2, 1)


@dataclass(frozen=True)
class Rows:
    """`probabilities` (rows, classes), `labels` (rows,) numbers of classes, `days`
    (rows,) from the first one on; `known`: the label is there."""

    classes: list[str]
    probabilities: np.ndarray
    labels: np.ndarray
    days: np.ndarray
    known: np.ndarray

    @classmethod
    def drawn(cls, classes: list[str], rows: int, days: int, seed: int) -> Rows:
        """Scores are the true probabilities, in parts of 1024, which a float4 has."""
        rng = np.random.default_rng(seed)
        logits = rng.normal(0, 2, (rows, len(classes)))
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        probabilities = np.floor(shares * 1024)
        probabilities[np.arange(rows), shares.argmax(axis=1)] += 1024 - (
            probabilities.sum(axis=1)
        )
        probabilities /= 1024
        above = probabilities.cumsum(axis=1) > rng.random((rows, 1))
        return cls(
            classes,
            probabilities,
            above.argmax(axis=1),
            rng.integers(0, days, rows),
            np.ones(rows, bool),
        )

    def of_days(self, first: int, last: int) -> Rows:
        chosen = (self.days >= first) & (self.days <= last)
        columns = self.probabilities, self.labels, self.days, self.known
        return Rows(self.classes, *(column[chosen] for column in columns))

    def with_labels(self, labels: np.ndarray) -> Rows:
        return replace(self, labels=labels)

    def labelled(self, known: np.ndarray) -> Rows:
        return replace(self, known=known)

    @property
    def predictions(self) -> np.ndarray:
        return self.probabilities.argmax(axis=1)

    @property
    def scores(self) -> np.ndarray:
        return self.probabilities.max(axis=1)

    @property
    def is_right(self) -> np.ndarray:
        return self.predictions == self.labels

    def names(self, numbers: np.ndarray) -> list[str]:
        return [self.classes[n] for n in numbers]


@dataclass(frozen=True)
class World:
    store: Connection
    version: ModelVersion

    def write(self, rows: Rows, tag: Callable[[int], str] = str) -> None:
        """Each with a tag `part`; its label given a day after it."""
        use_case, version = self.version.use_case, self.version.id
        start = datetime(FIRST.year, FIRST.month, FIRST.day, tzinfo=UTC)
        cursor = self.store.cursor()
        for table in ("label", "prediction", "record"):
            cursor.execute(f"DELETE FROM embedline.{table}".encode())
        times = [start + timedelta(days=int(day), hours=1) for day in rows.days]
        with cursor.copy(
            "COPY embedline.record (use_case, key, event_time, tags) FROM STDIN"
        ) as out:
            for n, time in enumerate(times):
                out.write_row((use_case, str(n), time, f'{{"part": "{tag(n)}"}}'))
        with cursor.copy(
            "COPY embedline.prediction (use_case, key, model_version, prediction,"
            " score, probabilities) FROM STDIN"
        ) as out:
            said = rows.names(rows.predictions)
            for n, (name, own) in enumerate(zip(said, rows.probabilities, strict=True)):
                score = float(own.max())
                out.write_row((use_case, str(n), version, name, score, own.tolist()))
        with cursor.copy(
            "COPY embedline.label (use_case, key, label, labeled_at) FROM STDIN"
        ) as out:
            for n in np.flatnonzero(rows.known):
                name = rows.classes[rows.labels[n]]
                later = times[n] + timedelta(days=1)
                out.write_row((use_case, str(n), name, later))
        cursor.execute(
            "ANALYZE embedline.record, embedline.prediction, embedline.label"
        )


@pytest.fixture
def world(
    project: Project, store: Connection, write_messages: Callable[..., None]
) -> World:
    """A model version of three classes."""
    project.use_case(prediction="head", label={"column": "author"})
    write_messages(range(3))
    project.run()
    return World(store, versions.live_by_name(store, "messages")[0])


@pytest.fixture
def three_classes() -> list[str]:
    return ["negative", "neutral", "positive"]
