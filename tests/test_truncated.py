"""Which inputs were longer than the model takes is kept, record by record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring.quality import review
from embedding_tasks.store import versions
from tests.fix_models import poison
from tests.fix_project import Project

Write = Callable[..., None]
# Sixteen tokens, with the two special ones.
JUST_FITS = "word " * 14


def body(db: Connection, key: int, text: str) -> None:
    db.execute("UPDATE messages SET body = %s WHERE id = %s", [text, key])


@pytest.fixture
def some_long(project: Project, db: Connection, write_messages: Write) -> Project:
    """Of thirty messages 3 and 20 are cut; 20 is the longer one."""
    project.use_case(encoder={"max_length": 16}, batch={"claim": 8})
    write_messages(range(30))
    body(db, 3, JUST_FITS + "more")
    body(db, 7, JUST_FITS)
    body(db, 20, JUST_FITS * 3)
    return project


def kept(store: Connection) -> dict[str, Any]:
    rows = store.execute(
        "SELECT i.key, i.truncated FROM embedline.input i"
        " JOIN embedline.model_version m ON m.id = i.model_version"
        " WHERE m.state = 'active'"
    )
    return dict(rows.fetchall())


def cut(store: Connection) -> set[str]:
    return {key for key, truncated in kept(store).items() if truncated}


def last_run(store: Connection) -> int:
    row = store.execute(
        "SELECT truncated FROM embedline.run ORDER BY id DESC LIMIT 1"
    ).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize(("data", "rows"), [("all", 30), (5, 30), ("none", 2)])
def test_a_record_says_whether_it_was_cut_until_it_is_short_enough(
    some_long: Project, db: Connection, store: Connection, data: str | int, rows: int
) -> None:
    some_long.use_case(storage={"data": data})
    some_long.run()
    assert (cut(store), last_run(store)) == ({"3", "20"}, 2)
    assert len(kept(store)) == rows
    assert None not in kept(store).values()
    body(db, 3, "short")
    body(db, 4, JUST_FITS * 2)
    body(db, 20, JUST_FITS * 5)
    some_long.run()
    assert (cut(store), last_run(store)) == ({"4", "20"}, 2)
    assert len(kept(store)) == rows
    body(db, 4, "short")
    db.execute("DELETE FROM messages WHERE id = 20")
    some_long.run()
    assert (cut(store), last_run(store)) == (set(), 0)


def test_to_keep_more_or_less_of_the_inputs_forgets_none_that_was_cut(
    some_long: Project, store: Connection
) -> None:
    some_long.run()
    for data in (4, "none", "all"):
        some_long.use_case(storage={"data": data})
        assert some_long.run()["embedded"] == 0
        assert cut(store) == {"3", "20"}


def test_a_fresh_table_knows_what_was_cut_of_what_it_copies(
    some_long: Project, db: Connection, store: Connection
) -> None:
    some_long.run()
    db.execute("UPDATE messages SET body = body || ' x' WHERE id < 7")
    counts = some_long.run(fresh=True)
    assert (counts["copied"], counts["embedded"]) == (23, 7)
    assert cut(store) == {"3", "20"}


def test_a_record_that_cannot_be_encoded_shifts_no_other(
    some_long: Project, store: Connection, db: Connection, monkeypatch: Any
) -> None:
    body(db, 2, "poison " * 50)
    some_long.use_case(retry={"max_attempts": 1}, thresholds={"undone_rows": 1})
    poison(monkeypatch, "poison")
    assert some_long.run()["embedded"] == 29
    assert (cut(store), last_run(store)) == ({"3", "20"}, 2)


def test_they_are_listed_the_longest_first(
    some_long: Project, db: Connection, store: Connection
) -> None:
    def listed() -> list[Any]:
        review.refresh(store, versions.active(store, "messages"))
        return store.execute(
            "SELECT key, score, (detail ->> 'max_length')::int FROM embedline.review"
            " WHERE kind = 'truncated' ORDER BY rank"
        ).fetchall()

    some_long.run()
    length = len(JUST_FITS)
    assert listed() == [("20", 3 * length, 16), ("3", length + 4, 16)]
    some_long.use_case(storage={"data": "none"})
    some_long.run()
    assert listed() == [("20", 1, 16), ("3", 1, 16)]
    body(db, 3, "short")
    some_long.run()
    assert listed() == [("20", 1, 16)]
