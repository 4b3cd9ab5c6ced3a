"""A row of the source that cannot be read costs itself alone, in a sync and after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from embedding_tasks import run, status
from embedding_tasks.connections import Connection
from embedding_tasks.errors import SourceError
from embedding_tasks.use_case import Everything, Keys
from tests.fix_project import Project, keys, row_versions, sync

Write = Callable[..., None]


@pytest.fixture
def casting(project: Project, db: Connection, write_messages: Write) -> Project:
    """A view that casts: of a body that is no number it can give nothing."""
    db.execute(
        "CREATE VIEW numbers AS SELECT id, body::int AS n, sent_at FROM messages"
    )
    project.use_case(
        source={"table": "numbers", "input": "n"},
        retry={"max_attempts": 1},
        thresholds={"undone_share": 1},
    )
    write_messages(range(30), "{}")
    return project


def break_rows(db: Connection, *ids: int) -> None:
    db.execute("UPDATE messages SET body = 'none' WHERE id = ANY (%s)", [list(ids)])


def dead(store: Connection) -> dict[str, str]:
    rows = store.execute(
        "SELECT key, error FROM embedline.ledger WHERE dead_at IS NOT NULL"
    )
    return dict(rows.fetchall())


def test_rows_that_cannot_be_read_are_set_aside_and_the_others_embedded(
    casting: Project, db: Connection, store: Connection
) -> None:
    break_rows(db, 3, 17)
    counts = casting.run()
    assert (counts["embedded"], counts["unreadable"], counts["stored"]) == (28, 2, 28)
    says = 'SourceError: invalid input syntax for type integer: "none"'
    assert dead(store) == {"3": says, "17": says}
    verdict = status.explain(store, casting.use_case(), "3")["verdict"]
    assert verdict == f"cannot be read from the source: {says}"
    before = row_versions(store)
    casting.run()
    assert row_versions(store) == before


def test_an_outdated_vector_leaves_and_a_mended_row_comes_back(
    casting: Project, db: Connection, store: Connection
) -> None:
    casting.run()
    break_rows(db, 3)
    assert casting.run()["unreadable"] == 1
    assert "3" not in keys(store, "embeddings.messages")
    assert "3" in keys(store)  # it is no deletion
    db.execute("UPDATE messages SET body = '3' WHERE id = 3")
    assert casting.run()["embedded"] == 1
    assert dead(store) == {}


def test_a_table_is_read_apart_where_a_tag_is_no_json_that_jsonb_takes(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    """Only what has changed is read, and of that one row cannot be."""
    db.execute("ALTER TABLE messages ADD extra json")
    project.use_case(source={"tags": ["extra"]}, thresholds={"undone_share": 1})
    write_messages(range(20))
    project.run()
    db.execute("""UPDATE messages SET extra = '{"a": "\\ud800"}' WHERE id = 3""")
    db.execute("UPDATE messages SET body = 'other' WHERE id = 4")
    counts = project.run()
    assert (counts["embedded"], counts["unreadable"]) == (1, 1)
    db.execute("""UPDATE messages SET extra = '{"a": "\\ud800"}' WHERE id = 5""")
    assert project.run()["unreadable"] == 1  # the only one that has changed
    assert {*dead(store)} == {"3", "5"}


@pytest.mark.parametrize(
    "scope", [Everything(), Keys(keys=("2", "3", "4"))], ids=["everything", "keys"]
)
def test_a_backfill_reads_apart_too(
    casting: Project, db: Connection, store: Connection, scope: Any
) -> None:
    break_rows(db, 3)
    counts = sync(casting, backfill=scope)
    assert counts["unreadable"] == 1
    assert "not_found" not in counts
    assert "3" in dead(store)


def test_a_row_before_the_start_that_cannot_be_read_is_not_asked_for(
    casting: Project, db: Connection, store: Connection
) -> None:
    casting.use_case(source={"start": "2026-01-01T00:10:00Z"})
    break_rows(db, 3, 17)
    sync(casting)
    assert {*dead(store)} == {"17"}


def test_a_row_that_broke_after_the_sync_is_charged_by_the_worker(
    casting: Project, db: Connection, store: Connection
) -> None:
    request = casting.request()
    run.sync_stage(request)
    break_rows(db, 3)
    counts = run.embed_stage(request, 0)
    assert (counts["embedded"], counts["failed"], counts["dead"]) == (29, 1, 1)
    assert "invalid input syntax" in dead(store)["3"]


def test_what_a_worker_could_not_read_comes_back_as_it_was(
    casting: Project, db: Connection, store: Connection
) -> None:
    casting.run()
    db.execute("UPDATE messages SET body = '99' WHERE id = 3")
    sync(casting)
    break_rows(db, 3)
    assert run.embed_stage(casting.request(), 0)["dead"] == 1
    db.execute("UPDATE messages SET body = '99' WHERE id = 3")
    assert casting.run()["embedded"] == 1
    assert dead(store) == {}


def test_the_last_record_of_a_queue_is_charged_where_others_can_be_read(
    casting: Project, db: Connection, store: Connection
) -> None:
    casting.run()
    db.execute("UPDATE messages SET body = '99' WHERE id = 3")
    request = casting.request()
    run.sync_stage(request)
    break_rows(db, 3)
    assert run.embed_stage(request, 0)["dead"] == 1


@pytest.mark.parametrize("stage", ["sync", "embed"])
def test_where_nothing_can_be_read_no_record_is_to_blame(
    casting: Project, db: Connection, store: Connection, stage: str
) -> None:
    request = casting.request()
    if stage == "embed":
        run.sync_stage(request)
    break_rows(db, *range(30))
    with pytest.raises(SourceError, match="invalid input syntax"):
        run.sync_stage(request) if stage == "sync" else run.embed_stage(request, 0)
    assert dead(store) == {}


def test_a_bad_row_beside_another_is_still_told_apart(
    casting: Project, db: Connection, store: Connection
) -> None:
    """What is looked at to see that others can be read may be bad itself."""
    db.execute("DELETE FROM messages WHERE id > 5")
    break_rows(db, 0, 1, 2, 3)
    casting.run()
    db.execute("UPDATE messages SET body = '5000' WHERE id = 4")
    request = casting.request()
    run.sync_stage(request)
    break_rows(db, 4)
    assert run.embed_stage(request, 0)["dead"] == 1
    assert {*dead(store)} == {"0", "1", "2", "3", "4"}


def test_bad_rows_that_lie_together_hide_no_good_ones(
    casting: Project, db: Connection, store: Connection
) -> None:
    """A read that finds nothing but a bad row looks at others, all over the table."""
    dated = {"strategy": "timestamp", "updated_at": "sent_at", "slack_seconds": 0}
    casting.use_case(source=dated)
    db.execute("UPDATE messages SET body = 'none' WHERE id >= 5")
    db.execute("UPDATE messages SET body = '0' WHERE id < 5")  # last in the table
    assert sync(casting) == {"read": 5, "new": 5, "unreadable": 25}
    db.execute("INSERT INTO messages (id, body) VALUES (40, 'none')")
    assert sync(casting) == {"unreadable": 1}
    assert "40" in dead(store)


def test_a_row_before_the_start_is_not_asked_for_where_not_all_keys_are_read(
    casting: Project, db: Connection, store: Connection
) -> None:
    db.execute("ALTER TABLE messages ADD changed_at timestamptz DEFAULT now()")
    db.execute(
        "CREATE VIEW dated AS SELECT n.*, changed_at"
        " FROM numbers n JOIN messages USING (id)"
    )
    casting.use_case(
        source={
            **{"table": "dated", "strategy": "timestamp", "updated_at": "changed_at"},
            **{"key_scan": "audit", "start": "2026-01-01T00:10:00Z"},
        }
    )
    assert sync(casting) == {"read": 20, "new": 20}
    break_rows(db, 3, 17)
    db.execute("UPDATE messages SET changed_at = now()")
    assert sync(casting)["unreadable"] == 1
    assert dead(store).keys() == {"17"}


def test_a_bad_row_with_a_key_too_long_costs_itself(
    project: Project, db: Connection, store: Connection
) -> None:
    db.execute("CREATE TABLE named (id text, body text)")
    db.execute("CREATE VIEW numbers AS SELECT id, body::int AS n FROM named")
    db.execute(
        "INSERT INTO named VALUES ('a', '1'), ((SELECT string_agg("
        "sha256(n::text::bytea)::text, '') FROM generate_series(1, 500) n), 'x')"
    )
    source = {"table": "numbers", "input": "n", "event_time": None}
    project.use_case(source=source)
    assert sync(project) == {"read": 1, "new": 1, "unusable_keys": 1}
