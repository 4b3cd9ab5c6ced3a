"""A project folder with a use case over a small table of messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from psycopg import sql

from embedding_tasks import run, use_case
from embedding_tasks.connections import Connection
from embedding_tasks.run import Request
from embedding_tasks.use_case import UseCase, Window

MESSAGES = """
CREATE TABLE messages (
    id      bigint PRIMARY KEY,
    body    text,
    author  text,
    sent_at timestamptz NOT NULL DEFAULT now()
);
"""

_runs = count()


def deep_merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(value, dict) and isinstance(old, dict)
        merged[key] = deep_merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


@dataclass
class Project:
    """`messages` is both the use case's name and its table's."""

    folder: Path
    raw: dict[str, Any]

    def use_case(self, **changes: Any) -> UseCase:
        """The use case with these fields changed, as its file now says."""
        self.raw = deep_merge(self.raw, changes)
        path = self.folder / "use_cases" / f"{self.raw['name']}.yaml"
        path.write_text(yaml.safe_dump(self.raw))
        return use_case.load(path)

    def request(self, *, window: Window | None = None, **options: Any) -> Request:
        options.setdefault("external_id", f"run_{next(_runs)}")
        options.setdefault("backfill", window)
        return Request(
            use_case=use_case.find(self.raw["name"]),
            kind="cli",
            **options,
        )

    def run(self, **options: Any) -> dict[str, Any]:
        return run.run(self.request(**options))


@pytest.fixture
def project(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    store_dsn: str,
    source_dsn: str,
    db: Connection,
    tiny: Path,
) -> Project:
    (tmp_path / "use_cases").mkdir()
    monkeypatch.setenv("EMBEDLINE_PROJECT", str(tmp_path))
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", store_dsn)
    monkeypatch.delenv("EMBEDLINE_HOME", raising=False)
    db.execute(MESSAGES)
    made = Project(
        tmp_path,
        {
            "name": "messages",
            "source": {
                "dsn": source_dsn,
                "table": "messages",
                "key": "id",
                "input": "body",
                "event_time": "sent_at",
            },
            "encoder": {"model": str(tiny), "device": "cpu"},
            "retry": {"backoff_seconds": 0},
        },
    )
    made.use_case()
    return made


@pytest.fixture
def write_messages(db: Connection) -> Callable[..., None]:
    """Insert messages with these ids, one minute apart from 2026-01-01 on."""

    def write(ids: range, text: str = "message number {}") -> None:
        with db.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO messages (id, body, author, sent_at) VALUES (%s, %s, %s,"
                " '2026-01-01T00:00Z'::timestamptz + %s * interval '1 minute')",
                [(i, text.format(i), f"author {i % 3}", i) for i in ids],
            )

    return write


@pytest.fixture
def full_use_case(
    project: Project, db: Connection, write_messages: Callable[..., None]
) -> Project:
    """Predictions, labels, tags; 120 records, written in batches of 16."""
    db.execute("CREATE TABLE verdicts (id bigint PRIMARY KEY, v text)")
    project.use_case(
        prediction="head",
        label={"table": "verdicts", "key": "id", "label": "v"},
        source={"tags": ["author"]},
        batch={"claim": 16, "lease_seconds": 5},
    )
    write_messages(range(120))
    db.execute("INSERT INTO verdicts SELECT id, 'v' FROM messages WHERE id % 3 = 0")
    return project


def keys(store: Connection, table: str = "embedline.ledger") -> set[str]:
    return {key for (key,) in store.execute(f"SELECT key FROM {table}")}


def sync(project: Project, **options: Any) -> dict[str, int]:
    counts = run.sync_stage(project.request(**options))
    return {name: n for name, n in counts.items() if n}


def row_versions(store: Connection, like: str = "%") -> set[tuple[str, ...]]:
    """Every row version of every table of records: a row that is written, if only with
    what it said before, is another version."""
    tables = store.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'embedline'::regnamespace"
        " AND relkind = 'r' AND (relname LIKE 'vector_%%' OR relname IN"
        " ('ledger', 'record', 'input', 'prediction', 'label', 'model_version'))"
        " AND relname LIKE %s",
        [like],
    ).fetchall()
    return {
        (table, *version)
        for (table,) in tables
        for version in store.execute(
            sql.SQL("SELECT ctid::text, xmin::text FROM embedline.{}").format(
                sql.Identifier(table)
            )
        )
    }


def vector_versions(store: Connection) -> set[tuple[str, ...]]:
    return row_versions(store, "vector_%")


@dataclass(frozen=True)
class EndState:
    """All a use case has in the store, by key and unit, but for when it came and by
    which run. Floats apart: they may differ in their last digits with the batch."""

    facts: dict[str, tuple[Any, ...]]
    floats: dict[str, np.ndarray]

    def assert_same(self, other: EndState) -> None:
        assert self.facts == other.facts
        assert self.floats.keys() == other.floats.keys()
        for key, values in self.floats.items():
            np.testing.assert_allclose(values, other.floats[key], atol=1e-5)


def end_state(store: Connection) -> EndState:
    facts: dict[str, tuple[Any, ...]] = {}
    floats: dict[str, np.ndarray] = {}

    def add(table: str, columns: str, order: str = "key") -> None:
        for key, *row in store.execute(
            f"SELECT key, {columns} FROM embedline.{table} ORDER BY {order}"
        ):
            numbers = [n for value in row if isinstance(value, list) for n in value]
            name = f"{table}/{key}/{len(facts)}"
            facts[name] = tuple(v for v in row if not isinstance(v, list))
            floats[name] = np.array(numbers)

    add("vector_messages_v1", "unit, input_hash, embedding::real[]", "key, unit")
    add("prediction", "unit, prediction, ARRAY[score]::real[] || probabilities")
    add("record", "event_time, environment, link, tags")
    add("input", "data, truncated")
    add("label", "label, labeled_at")
    add("ledger", "want_hash, have_hash, pending, dead_at, attempts, lease_token")
    return EndState(facts, floats)
