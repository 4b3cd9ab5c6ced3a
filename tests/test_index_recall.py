"""How well an index finds is measured against exact searches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.store import recall
from tests.fix_indexes import fill, live, maintain, records
from tests.fix_project import Project

Write = Callable[..., None]


def test_recall_is_that_of_a_search_by_hand(
    project: Project, store: Connection, write_messages: Write
) -> None:
    """A poor index, of which recall must be measurably lost, and the same by numpy."""
    write_messages(range(1))
    project.run()
    fill(store, 6000)
    poor = {"min_rows": 1, "m": 2, "ef_construction": 4}
    maintain(project, storage={"index": poor})
    version = live(store)[0]
    measured = records(store)[-1][2]
    assert measured < 0.95
    rows = store.execute(
        sql.SQL("SELECT key, embedding::real[] FROM {}").format(version.table)
    ).fetchall()
    names = [key for key, _ in rows]
    vectors = np.array([vector for _, vector in rows])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    shares = []
    store.execute("SET enable_seqscan = off")
    for place in range(0, 6000, 20):
        true = np.argsort(-(vectors @ vectors[place]))[1:11]
        found = store.execute(
            sql.SQL(
                "SELECT key FROM {0} ORDER BY embedding <=> (SELECT embedding FROM {0}"
                " WHERE key = %s) LIMIT 11"
            ).format(version.table),
            [names[place]],
        ).fetchall()
        shares.append(len({names[i] for i in true} & {k for (k,) in found}) / 10)
    assert measured == pytest.approx(np.mean(shares), abs=0.05)


def test_that_a_vector_finds_itself_is_no_recall(
    indexed: Project, store: Connection
) -> None:
    maintain(indexed)
    version = live(store)[0]
    sample = [("7", 0), ("8", 0)]
    for settings in (recall._EXACT, recall._BY_INDEX):
        with store.transaction():
            found = recall._distances(store, version, sample, settings)
        assert [len(distances) for distances in found] == [10, 10]
        assert min(map(min, found)) > 1e-5


def test_of_equally_near_neighbours_either_is_right(
    indexed: Project, store: Connection
) -> None:
    version = live(store)[0]
    store.execute(
        sql.SQL(
            "UPDATE {0} SET embedding = (SELECT embedding FROM {0} LIMIT 1)"
        ).format(version.table)
    )
    maintain(indexed)
    assert recall.measure(store, version, 60) == recall.Recall(1.0, 10, 40, 60)
