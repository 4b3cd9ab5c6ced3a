"""Labels and predictions: late, corrected, withdrawn, and never a vector's business."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from embedding_tasks.connections import Connection
from embedding_tasks.errors import ThresholdError
from tests.fix_project import Project, keys, sync, vector_versions

Write = Callable[..., None]


def test_labels_of_a_table_come_late_are_corrected_and_withdrawn(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    db.execute("CREATE TABLE verdicts (id bigint PRIMARY KEY, v text, at timestamptz)")
    project.use_case(
        label={"table": "verdicts", "key": "id", "label": "v", "time": "at"}
    )
    write_messages(range(10))
    project.run()
    before = vector_versions(store)

    def label(key: str) -> Any:
        row = store.execute(
            "SELECT label FROM embeddings.messages WHERE key = %s", [key]
        ).fetchone()
        assert row is not None
        return row[0]

    db.execute(
        "INSERT INTO verdicts VALUES (1, 'good', '2026-02-01'), (99, 'bad', NULL)"
    )
    assert sync(project) == {"labels": 2}
    assert label("1") == "good"
    db.execute("UPDATE verdicts SET v = 'bad' WHERE id = 1")
    assert sync(project) == {"labels": 1}
    assert label("1") == "bad"
    db.execute("DELETE FROM verdicts WHERE id = 1")
    assert sync(project) == {"labels": 1}
    assert label("1") is None
    write_messages(range(99, 100))  # its label was there first
    project.run()
    assert label("99") == "bad"
    assert len(vector_versions(store) - before) == 1


def test_labels_and_predictions_of_columns_never_touch_a_vector(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    db.execute("ALTER TABLE messages ADD verdict text, ADD guess text, ADD p real")
    project.use_case(
        label={"column": "verdict"}, prediction={"column": "guess", "score": "p"}
    )
    write_messages(range(10))
    db.execute("UPDATE messages SET guess = 'good', p = 0.5")
    project.run()
    before = vector_versions(store)
    db.execute("UPDATE messages SET verdict = 'bad', p = 0.75 WHERE id < 4")
    assert sync(project) == {"read": 4, "labels": 4}
    row = store.execute(
        "SELECT prediction, score, label FROM embeddings.messages WHERE key = '3'"
    ).fetchone()
    assert row == ("good", 0.75, "bad")
    db.execute("UPDATE messages SET verdict = NULL WHERE id < 2")
    assert sync(project) == {"read": 2, "labels": 2}
    assert vector_versions(store) == before


def test_a_use_case_that_drops_its_labels_forgets_them(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    project.use_case(label={"column": "author"})
    write_messages(range(5))
    project.run()
    project.use_case(label=None)
    assert sync(project)["labels"] == 5
    assert keys(store, "embedline.label") == set()


TABLE = {"table": "verdicts", "key": "id", "label": "v"}


@pytest.fixture
def verdicts(project: Project, db: Connection, write_messages: Write) -> Project:
    """Ten records, each with a label in a table of labels, and run once."""
    db.execute("CREATE TABLE verdicts (id bigint PRIMARY KEY, v text)")
    project.use_case(label=TABLE)
    write_messages(range(10))
    db.execute("INSERT INTO verdicts SELECT id, 'good' FROM messages")
    project.run()
    return project


def stored(store: Connection) -> list[str]:
    rows = store.execute("SELECT label FROM embedline.label ORDER BY key")
    return [label for (label,) in rows]


def test_labels_move_with_their_place(
    verdicts: Project, db: Connection, store: Connection
) -> None:
    """From a table to a column, back to the very same table, and to nowhere."""
    db.execute("INSERT INTO verdicts VALUES (99, 'of no record')")
    sync(verdicts)
    verdicts.raw["label"] = {"column": "author"}
    verdicts.use_case()
    sync(verdicts)
    assert set(stored(store)) == {"author 0", "author 1", "author 2"}
    verdicts.raw["label"] = TABLE
    verdicts.use_case()
    sync(verdicts)
    assert stored(store) == [*["good"] * 10, "of no record"]
    verdicts.use_case(label=None)
    sync(verdicts)
    assert stored(store) == []


def test_a_label_that_is_null_is_none_and_is_not_read_again(
    verdicts: Project, db: Connection, store: Connection
) -> None:
    db.execute("UPDATE verdicts SET v = NULL WHERE id < 3")
    assert sync(verdicts) == {"labels": 3}
    assert len(stored(store)) == 7
    assert sync(verdicts) == {}


def test_withdrawals_beyond_the_guard_are_withheld_until_allowed(
    verdicts: Project, db: Connection, store: Connection
) -> None:
    verdicts.use_case(source={"delete_guard": {"rows": 5}})
    db.execute("TRUNCATE verdicts")
    with pytest.raises(ThresholdError, match="0 stored records and 10 labels are gone"):
        verdicts.run()
    assert len(stored(store)) == 10
    verdicts.run(allow_deletes=True)
    assert stored(store) == []
    verdicts.run()


def test_labels_of_records_that_are_withheld_stay_with_them(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    guard = {"delete_guard": {"rows": 5}, "strategy": "scan"}
    project.use_case(source=guard, label={"column": "author"})
    write_messages(range(10))
    project.run()
    db.execute("DELETE FROM messages")
    with pytest.raises(ThresholdError, match="10 stored records and 0 labels are gone"):
        project.run()
    assert len(stored(store)) == 10
    project.run(allow_deletes=True)
    assert stored(store) == []


def test_a_use_case_forgets_its_labels_even_while_deletions_are_withheld(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    project.use_case(source={"delete_guard": {"rows": 5}}, label={"column": "author"})
    write_messages(range(20))
    project.run()
    db.execute("DELETE FROM messages WHERE id < 10")
    project.use_case(label=None)
    with pytest.raises(ThresholdError):
        project.run()
    assert stored(store) == []
