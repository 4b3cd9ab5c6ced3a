"""Searches among the parts of records: a filter is about the part, not its record."""

from __future__ import annotations

import numpy as np
import pytest

from embedding_tasks.connections import Connection
from tests.search_store import ask

TEXT = "Anna met Bob in Rome"
# unit, characters, prediction, score, label
PARTS = [
    (0, (0, 4), "person", 0.9, "person"),
    (1, (9, 12), "place", 0.6, "person"),
    (2, (16, 20), "place", 0.8, None),
]
COUNT = 40


@pytest.fixture
def entities(store: Connection) -> np.ndarray:
    """Records of three entities each; their vectors (records, 3, 8)."""
    vectors = np.random.default_rng(2).normal(size=(COUNT, 3, 8)).astype(np.float32)
    store.execute(
        "INSERT INTO embedline.use_case (name, labelled_unit)"
        " VALUES ('names', 'entity')"
    )
    store.execute(
        "INSERT INTO embedline.model_version (use_case, version, fingerprint, spec,"
        " dims, storage, distance, table_name, state, unit) SELECT id, 1, 'f', '{}', 8,"
        " 'vector', 'l2', 'vector_names_v1', 'active', 'entity' FROM embedline.use_case"
    )
    store.execute(
        "SELECT embedline.create_vector_table(m) FROM embedline.model_version m"
    )
    store.execute("SELECT embedline.refresh_views(id, false) FROM embedline.use_case")
    row = store.execute("SELECT use_case, id FROM embedline.model_version").fetchone()
    assert row is not None
    use_case, version = row
    with store.cursor() as cursor:
        for number in range(COUNT):
            key = f"k{number}"
            cursor.execute(
                "INSERT INTO embedline.input (model_version, key, data)"
                " VALUES (%s, %s, %s)",
                [version, key, TEXT],
            )
            cursor.execute(
                "INSERT INTO embedline.record (use_case, key, tags)"
                " VALUES (%s, %s, jsonb_build_object('even', %s::bool))",
                [use_case, key, number % 2 == 0],
            )
            for (unit, span, prediction, score, label), vector in zip(
                PARTS, vectors[number], strict=True
            ):
                cursor.execute(
                    "INSERT INTO embedline.vector_names_v1 (key, unit, span, embedding,"
                    " input_hash, run_id) VALUES (%s, %s, int4range(%s, %s),"
                    " %s::text::vector, '', 1)",
                    [key, unit, *span, str(vector.tolist())],
                )
                cursor.execute(
                    "INSERT INTO embedline.prediction (use_case, key, unit,"
                    " model_version, prediction, score)"
                    " VALUES (%s, %s, %s, %s, %s, %s)",
                    [use_case, key, unit, version, prediction, score],
                )
                if label:
                    cursor.execute(
                        "INSERT INTO embedline.label (use_case, key, unit, span, label)"
                        " VALUES (%s, %s, %s, int4range(%s, %s), %s)",
                        [use_case, key, unit, *span, label],
                    )
    return vectors


@pytest.mark.parametrize("indexed", [False, True])
def test_a_filter_is_about_the_part(
    store: Connection, entities: np.ndarray, indexed: bool
) -> None:
    if indexed:
        store.execute(
            "CREATE INDEX ON embedline.vector_names_v1"
            " USING hnsw (embedding vector_l2_ops)"
        )
    store.execute("ANALYZE")
    query = entities[3, 1]
    apart = np.linalg.norm(entities - query, axis=2)
    for filter, units in (
        ({"prediction": "person"}, {0}),
        ({"prediction": "place"}, {1, 2}),
        ({"label": "person"}, {0, 1}),
        ({"misclassified": True}, {1}),
        ({"labelled": False}, {2}),
        ({"score": [0.7, 1]}, {0, 2}),
        ({"tags": {"even": True}, "prediction": "person"}, {0}),
    ):
        found = ask(
            store, "nearest('names', %s::vector, 6, filter => %s)", query, filter
        )
        places = [
            (number, unit)
            for number in range(COUNT)
            for unit in units
            if number % 2 == 0 or "tags" not in filter
        ]
        places.sort(key=lambda place: apart[place])
        wanted = [(f"k{number}", unit) for number, unit in places[:6]]
        assert [(row["key"], row["unit"]) for row in found] == wanted, filter
        words = {0: "Anna", 1: "Bob", 2: "Rome"}
        assert [row["text"] for row in found] == [words[unit] for _, unit in wanted]
        assert {row["label"] for row in found} == {PARTS[u][4] for _, u in wanted}


def test_parts_are_references_duplicates_and_found_by_words(
    store: Connection, entities: np.ndarray
) -> None:
    found = ask(store, "neighbors('names', 'k3', 5, unit => 1)")
    apart = np.linalg.norm(entities - entities[3, 1], axis=2)
    apart[3, 1] = np.inf
    assert (found[0]["key"], found[0]["unit"]) == (
        f"k{apart.min(axis=1).argmin()}",
        int(apart.min(axis=0).argmin()),
    )
    found = ask(store, "nearest_to('names', '{k1,k2}', k => 200)")
    assert len(found) == 3 * (COUNT - 2)
    store.execute(
        "UPDATE embedline.vector_names_v1 SET embedding = (SELECT embedding FROM"
        " embedline.vector_names_v1 WHERE key = 'k5' AND unit = 0)"
        " WHERE key = 'k5' AND unit = 2"
    )
    (pair,) = ask(store, "duplicates('names', 0)")
    assert (pair["key"], pair["unit"], pair["other_unit"]) == ("k5", 0, 2)
    found = ask(store, "hybrid('names', 'rome', %s::vector, 200)", entities[0, 0])
    assert len(found) == 3 * COUNT
    assert len(ask(store, "mmr('names', %s::vector, 7)", entities[0, 0])) == 7
    assert len(ask(store, "medoid('names', 4)")) == 4
