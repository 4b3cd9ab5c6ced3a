"""A use case of which an index is due, and what there is of indexes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from psycopg import sql

from embedding_tasks import maintenance
from embedding_tasks.connections import Connection
from embedding_tasks.store import index, versions
from embedding_tasks.store.connection import open_store
from embedding_tasks.store.versions import ModelVersion
from tests.fix_project import Project

Write = Callable[..., None]


@pytest.fixture
def indexed(project: Project, write_messages: Write) -> Project:
    """Sixty records, of which an index is due."""
    project.use_case(storage={"index": {"min_rows": 50}})
    write_messages(range(60))
    project.run()
    return project


def fill(store: Connection, rows: int, seed: int = 0) -> None:
    """Vectors that no ledger knows, beside those of the first version."""
    version = live(store)[0]
    vectors = np.random.default_rng(seed).normal(size=(rows, version.dims))
    statement = sql.SQL(
        "COPY {} (key, unit, input_hash, embedding, run_id) FROM STDIN"
    ).format(version.table)
    with store.cursor().copy(statement) as out:
        for number, vector in enumerate(vectors):
            told = f"[{','.join(f'{x:.4f}' for x in vector)}]"
            out.write_row((f"more {seed} {number}", 0, b"\0", told, 1))


def live(store: Connection) -> list[ModelVersion]:
    return versions.live_by_name(store, "messages")


def maintain(project: Project, **options: Any) -> list[str]:
    case = project.use_case(**options)
    return [step.work for step in maintenance.maintain(open_store, [case])]


def planned(project: Project, store: Connection) -> list[tuple[str, str]]:
    steps = maintenance.plan(store, [project.use_case()])
    return [(step.work, step.why) for step in steps]


def indexes(store: Connection, place: int = 0) -> dict[str, bool]:
    """Name and whether it is valid."""
    found = index.existing(store, live(store)[place])
    return {i.name: i.is_valid for i in found}


def records(store: Connection) -> list[tuple[Any, ...]]:
    return store.execute(
        "SELECT work, rows, recall FROM embedline.vector_index ORDER BY id"
    ).fetchall()
