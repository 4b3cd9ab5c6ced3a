"""Strategy `outbox`: triggers in the source tell of changes, and nothing is missed."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from embedding_tasks import check, forgetting, promotion, run
from embedding_tasks.connections import Connection, as_environment, connect
from embedding_tasks.errors import SourceError, TransientError
from embedding_tasks.local.postgres import binary
from embedding_tasks.source import installation
from embedding_tasks.source.installation import Reader
from embedding_tasks.store import versions
from embedding_tasks.use_case import Window
from tests.fix_cli import Command
from tests.fix_project import Project, keys, row_versions, sync

Write = Callable[..., None]
OUTBOX = "embedline_outbox.messages"


def install(
    project: Project, inputs: tuple[str, ...] = (), reader: str | None = None
) -> None:
    with connect(project.raw["source"]["dsn"], role="source") as source:
        as_role = Reader.of(source)
        if reader is not None:
            as_role = replace(as_role, role=reader)
        script = installation.install(source, project.use_case(), as_role, inputs)
        installation.run(source, script)


# What the extension is at heart; not every server has it.
CITEXT = """
CREATE TYPE citext;
CREATE FUNCTION citextin(cstring) RETURNS citext LANGUAGE internal IMMUTABLE STRICT
    AS 'textin';
CREATE FUNCTION citextout(citext) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT
    AS 'textout';
CREATE TYPE citext (INPUT = citextin, OUTPUT = citextout, LIKE = text);
CREATE FUNCTION citext_eq(citext, citext) RETURNS boolean LANGUAGE sql IMMUTABLE
    AS 'SELECT lower($1::text) = lower($2::text)';
CREATE OPERATOR = (LEFTARG = citext, RIGHTARG = citext, FUNCTION = citext_eq);
"""


def queued(db: Connection) -> list[str]:
    return [op for (op,) in db.execute(f"SELECT op FROM {OUTBOX} ORDER BY seq")]


@pytest.fixture
def boxed(project: Project, db: Connection, write_messages: Write) -> Project:
    """Twenty messages, all stored, and triggers that tell of changes."""
    project.use_case(source={"strategy": "outbox"})
    install(project)
    write_messages(range(20))
    sync(project)
    return project


def test_an_unchanged_table_reads_and_writes_nothing(
    boxed: Project, store: Connection
) -> None:
    boxed.run()
    before = row_versions(store)
    assert sync(boxed) == {}
    assert row_versions(store) == before


def test_inserts_updates_and_deletes_are_found_without_reading_all_keys(
    boxed: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    write_messages(range(20, 23))
    db.execute("UPDATE messages SET body = 'other' WHERE id IN (3, 4)")
    db.execute("DELETE FROM messages WHERE id = 9")
    # nobody is told of this one, so only a scan of all keys would find it
    db.execute("SET session_replication_role = replica")
    db.execute("ALTER TABLE messages DISABLE TRIGGER embedline_messages_delete")
    db.execute("DELETE FROM messages WHERE id = 10")
    db.execute("ALTER TABLE messages ENABLE ALWAYS TRIGGER embedline_messages_delete")
    assert sync(boxed) == {"read": 5, "new": 3, "changed": 2, "deleted": 1}
    assert "9" not in keys(store)
    assert "10" in keys(store)
    store.execute(
        "UPDATE embedline.source_cursor SET audited_at = audited_at - interval '8 days'"
    )
    counts = sync(boxed)
    assert counts["deleted"] == 1
    assert "10" not in keys(store)


def test_an_update_of_what_no_sync_takes_queues_nothing(
    boxed: Project, db: Connection
) -> None:
    before = queued(db)
    db.execute("UPDATE messages SET author = 'somebody else'")
    db.execute("UPDATE messages SET body = body")
    assert queued(db) == before
    db.execute("UPDATE messages SET body = 'x' WHERE id = 3")
    assert queued(db) == [*before, "update"]


def test_an_update_of_the_key_is_a_delete_and_an_insert(
    boxed: Project, db: Connection, store: Connection
) -> None:
    db.execute("UPDATE messages SET id = 100 WHERE id = 3")
    assert sync(boxed) == {"read": 1, "new": 1, "deleted": 1}
    assert "3" not in keys(store)
    assert "100" in keys(store)


def test_a_truncate_makes_it_read_all_keys(
    boxed: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    boxed.use_case(source={"delete_guard": {"rows": 1000}})
    db.execute("TRUNCATE messages")
    write_messages(range(5, 8), text="again {}")
    assert sync(boxed) == {"read": 3, "changed": 3, "deleted": 17}
    assert keys(store) == {"5", "6", "7"}


def test_deletions_that_were_withheld_are_looked_for_again(
    boxed: Project, db: Connection
) -> None:
    boxed.use_case(source={"delete_guard": {"share": 0.2, "rows": 3}})
    db.execute("DELETE FROM messages WHERE id < 10")
    assert sync(boxed) == {"deletes_withheld": 10}
    assert sync(boxed) == {"deletes_withheld": 10}
    assert sync(boxed, allow_deletes=True) == {"deleted": 10}


@pytest.mark.parametrize("savepoint", [False, True])
def test_what_is_rolled_back_queues_nothing(
    boxed: Project, db: Connection, savepoint: bool
) -> None:
    before = queued(db)
    with db.transaction():
        with db.transaction(force_rollback=True):
            db.execute("UPDATE messages SET body = 'x' WHERE id = 3")
        if savepoint:
            db.execute("UPDATE messages SET body = 'y' WHERE id = 4")
        else:
            raise psycopg.Rollback
    assert queued(db) == [*before, *["update"] * savepoint]
    assert sync(boxed) == ({"read": 1, "changed": 1} if savepoint else {})


@pytest.mark.parametrize("savepoint", [False, True])
def test_a_row_committed_late_is_not_missed(
    boxed: Project,
    source_dsn: str,
    store: Connection,
    write_messages: Write,
    savepoint: bool,
) -> None:
    with psycopg.connect(source_dsn) as slow:
        slow.execute("SELECT pg_current_xact_id()")
        if savepoint:
            slow.execute("SAVEPOINT here")
        slow.execute("INSERT INTO messages (id, body) VALUES (100, 'x')")
        slow.execute("DELETE FROM messages WHERE id = 7")
        if savepoint:
            slow.execute("RELEASE SAVEPOINT here")
        write_messages(range(20, 25))
        assert sync(boxed) == {"read": 5, "new": 5}
        slow.commit()
    counts = sync(boxed)
    assert (counts["new"], counts["deleted"]) == (1, 1)
    assert "100" in keys(store)
    assert "7" not in keys(store)


def test_a_prepared_transaction_is_not_missed(
    boxed: Project, db: Connection, write_messages: Write, store: Connection
) -> None:
    row = db.execute("SHOW max_prepared_transactions").fetchone()
    if row == ("0",):
        pytest.skip("the server has max_prepared_transactions = 0")
    db.execute("BEGIN")
    db.execute("INSERT INTO messages (id, body) VALUES (100, 'x')")
    db.execute("PREPARE TRANSACTION 'slow'")
    sync(boxed)
    write_messages(range(20, 23))
    sync(boxed)
    db.execute("COMMIT PREPARED 'slow'")
    sync(boxed)
    assert "100" in keys(store)


@pytest.mark.parametrize(
    ("type_", "before", "after"),
    [
        ("json", '{"a": 1}', '{"a":1}'),
        ("citext", "word", "Word"),
        ("numeric", "1.5", "1.50"),
        ("point", "(1,2)", "(1,3)"),
        ("text[]", "{a,b}", "{a,B}"),
    ],
)
def test_values_are_compared_bit_by_bit(
    project: Project, db: Connection, type_: str, before: str, after: str
) -> None:
    if type_ == "citext":
        db.execute(CITEXT)
    db.execute(f"ALTER TABLE messages ADD extra {type_}")
    project.use_case(source={"strategy": "outbox", "input": ["body", "extra"]})
    install(project)
    db.execute("INSERT INTO messages VALUES (1, 'x', 'y', now(), %s)", [before])
    sync(project)
    db.execute("UPDATE messages SET extra = %s", [before])
    assert sync(project) == {}
    db.execute("UPDATE messages SET extra = %s", [after])
    assert sync(project) == {"read": 1, "changed": 1}


@pytest.mark.parametrize(
    "where",
    [
        "author LIKE '%1%' -- hers",
        "messages::text LIKE '%author 1%'",
        "id IN (SELECT m.id FROM messages m WHERE m.author LIKE '%1%')",
    ],
)
def test_columns_of_the_filter_are_watched(
    project: Project,
    db: Connection,
    store: Connection,
    write_messages: Write,
    where: str,
) -> None:
    project.use_case(source={"strategy": "outbox", "where": where})
    install(project)
    write_messages(range(9))
    assert sync(project)["new"] == 3
    db.execute("UPDATE messages SET author = 'author 1' WHERE id = 0")
    db.execute("UPDATE messages SET author = 'nobody' WHERE id = 1")
    assert sync(project) == {"read": 1, "new": 1, "deleted": 1}


def test_another_filter_is_refused_until_it_is_watched(
    boxed: Project, db: Connection
) -> None:
    boxed.use_case(source={"where": "author <> 'author 1'"})
    with pytest.raises(SourceError, match=r"source\.where is another"):
        sync(boxed)
    install(boxed)
    assert sync(boxed) == {"read": 13, "deleted": 7}


KEYS = {
    "bigint": ("id bigint PRIMARY KEY", ["(1)", "(9223372036854775807)"]),
    "text": ("id text PRIMARY KEY", ["('')", "(' a ''b'' \"c\" \\ {d,e} NULL')"]),
    "char": ("id char(10) PRIMARY KEY", ["('a')", "('b ')"]),
    "uuid": (
        "id uuid PRIMARY KEY",
        ["('00000000-0000-0000-0000-000000000001')", "(gen_random_uuid())"],
    ),
    "domain": ("id word PRIMARY KEY", ["('a')", "('b')"]),
    "names of the outbox itself": (
        "seq int, xid text, op uuid, PRIMARY KEY (seq, xid, op)",
        ["(1, 'x', gen_random_uuid())", "(1, 'y\"', gen_random_uuid())"],
    ),
    "collated": ('id text COLLATE "C" PRIMARY KEY', ["('a')", "('B')"]),
}


@pytest.mark.parametrize("what", KEYS)
def test_keys_of_many_types(
    project: Project, db: Connection, store: Connection, what: str
) -> None:
    columns, values = KEYS[what]
    db.execute("CREATE DOMAIN word AS text NOT NULL CHECK (value <> '')")
    db.execute(f"CREATE TABLE keyed (body text, {columns})")
    names = [c.split()[0] for c in columns.split(", PRIMARY")[0].split(", ")]
    project.use_case(
        source={
            "strategy": "outbox",
            "table": "keyed",
            "key": names,
            "event_time": None,
            "delete_guard": {"rows": 100},
        }
    )
    install(project)
    assert sync(project) == {}
    for value in values:
        row = f"ROW('x', {value[1:-1]})::keyed"
        db.execute(f"INSERT INTO keyed SELECT ({row}).*")
    assert sync(project) == {"read": 2, "new": 2}
    db.execute("UPDATE keyed SET body = 'y'")
    assert sync(project) == {"read": 2, "changed": 2}
    db.execute("DELETE FROM keyed WHERE ctid IN (SELECT ctid FROM keyed LIMIT 1)")
    assert sync(project) == {"deleted": 1}
    db.execute("TRUNCATE keyed")
    assert sync(project) == {"deleted": 1}


def test_a_key_that_is_equal_but_reads_otherwise_is_another_record(
    project: Project, db: Connection, store: Connection
) -> None:
    db.execute("CREATE TABLE keyed (id numeric PRIMARY KEY, body text)")
    project.use_case(
        source={"strategy": "outbox", "table": "keyed", "event_time": None}
    )
    install(project)
    db.execute("INSERT INTO keyed VALUES (1.5, 'x')")
    sync(project)
    db.execute("UPDATE keyed SET id = 1.50")
    assert sync(project) == {"read": 1, "new": 1, "deleted": 1}
    assert keys(store) == {"1.50"}


@pytest.fixture
def parted(project: Project, db: Connection) -> Project:
    db.execute(
        "CREATE TABLE parted (id int, part int, body text, PRIMARY KEY (id, part))"
        " PARTITION BY LIST (part);"
        "CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);"
        "CREATE TABLE parted_2 PARTITION OF parted FOR VALUES IN (2)"
        " PARTITION BY RANGE (id);"
        "CREATE TABLE parted_2a PARTITION OF parted_2 FOR VALUES FROM (0) TO (100);"
        "INSERT INTO parted SELECT i, 1 + mod(i, 2), 'x' FROM generate_series(0, 9) i"
    )
    project.use_case(
        source={
            "strategy": "outbox",
            "table": "parted",
            "key": "id",
            "event_time": None,
        }
    )
    install(project)
    sync(project)
    return project


def test_partitions_are_followed(
    parted: Project, db: Connection, store: Connection
) -> None:
    db.execute("UPDATE parted SET part = 2 WHERE id = 0")  # moves
    assert sync(parted) == {"read": 1}
    db.execute("UPDATE parted SET body = 'y' WHERE id IN (2, 3)")
    db.execute("DELETE FROM parted_2a WHERE id = 5")
    assert sync(parted) == {"read": 2, "changed": 2, "deleted": 1}
    db.execute("TRUNCATE parted_1")
    assert sync(parted) == {"deleted": 4}
    db.execute("TRUNCATE parted_2")
    assert sync(parted) == {"deleted": 5}


def test_a_partition_added_later_is_followed_and_told_of(
    parted: Project,
    db: Connection,
    store: Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    db.execute("CREATE TABLE parted_3 PARTITION OF parted FOR VALUES IN (3)")
    db.execute("INSERT INTO parted VALUES (30, 3, 'x'), (31, 3, 'x')")
    assert sync(parted)["new"] == 2
    assert "no trigger sees a TRUNCATE of parted_3" in caplog.text
    db.execute("TRUNCATE parted_3")
    db.execute("INSERT INTO parted VALUES (30, 3, 'y')")
    assert sync(parted) == {"read": 1, "changed": 1, "deleted": 1}
    install(parted)
    caplog.clear()
    sync(parted)
    assert "TRUNCATE" not in caplog.text


def test_children_of_a_table_are_followed(
    project: Project, db: Connection, write_messages: Write
) -> None:
    db.execute("CREATE TABLE old_messages () INHERITS (messages)")
    project.use_case(source={"strategy": "outbox"})
    install(project)
    write_messages(range(3))
    db.execute("INSERT INTO old_messages (id, body) VALUES (7, 'x'), (8, 'x')")
    assert sync(project)["new"] == 5
    db.execute("UPDATE messages SET body = 'y' WHERE id IN (1, 7)")
    db.execute("DELETE FROM messages WHERE id = 8")
    assert sync(project) == {"read": 2, "changed": 2, "deleted": 1}
    db.execute("CREATE TABLE new_messages () INHERITS (messages)")
    with pytest.raises(SourceError, match="new_messages lacks the trigger"):
        sync(project)


def test_rows_that_arrive_by_replication_are_seen(
    boxed: Project, db: Connection, write_messages: Write
) -> None:
    db.execute("SET session_replication_role = replica")
    write_messages(range(20, 22))
    db.execute("UPDATE messages SET body = 'x' WHERE id = 3")
    db.execute("DELETE FROM messages WHERE id = 4")
    assert sync(boxed) == {"read": 3, "new": 2, "changed": 1, "deleted": 1}


def test_a_use_case_that_takes_more_must_be_installed_again(
    boxed: Project, db: Connection, store: Connection
) -> None:
    boxed.use_case(source={"tags": ["author"]})
    with pytest.raises(SourceError, match="does not watch: author; run") as caught:
        sync(boxed)
    assert "embedline outbox install messages" in str(caught.value)
    install(boxed)
    assert sync(boxed) == {"read": 20}
    db.execute("UPDATE messages SET author = 'x' WHERE id = 3")
    assert sync(boxed) == {"read": 1}


def test_what_live_versions_are_made_of_is_watched(
    boxed: Project, db: Connection, store: Connection
) -> None:
    """The file names another column by now, and the serving version is still made of
    the old one."""
    db.execute("UPDATE messages SET author = 'somebody'")
    boxed.use_case(source={"input": "author"})
    with pytest.raises(SourceError, match="does not watch: author"):
        sync(boxed)
    install(boxed)
    with pytest.raises(SourceError, match="does not watch: body"):
        sync(boxed)
    install(boxed, inputs=("body", "gone"))
    assert sync(boxed)["read"] == 20


def test_a_version_to_go_back_to_has_its_columns_watched(
    embedline: Command, project: Project, db: Connection, write_messages: Write
) -> None:
    """The outbox was made when another version served already."""
    write_messages(range(5))
    project.run()
    project.use_case(source={"input": "author"})
    project.run()
    embedline("outbox", "install", "messages", "--yes")
    project.use_case(source={"strategy": "outbox"})
    project.run()
    db.execute("UPDATE messages SET body = 'other' WHERE id = 3")
    back = promotion.rollback(project.request())
    assert (back.vectors, back.to_embed) == (4, 1)


def test_a_table_whose_keys_are_unique_by_habit_alone_is_followed(
    project: Project, db: Connection, write_messages: Write
) -> None:
    db.execute("ALTER TABLE messages DROP CONSTRAINT messages_pkey")
    project.use_case(source={"strategy": "outbox", "key_scan": "every_run"})
    install(project)
    write_messages(range(20))
    sync(project)
    write_messages(range(20, 22))
    db.execute("UPDATE messages SET body = 'x' WHERE id = 3")
    db.execute("DELETE FROM messages WHERE id = 4")
    assert sync(project) == {"read": 3, "new": 2, "changed": 1, "deleted": 1}


BROKEN = {
    "no table": (f"DROP TABLE {OUTBOX}", "no table embedline_outbox.messages"),
    "no function": (f"DROP FUNCTION {OUTBOX} CASCADE", "no function embedline_outbox"),
    "no trigger": (
        "DROP TRIGGER embedline_messages_update ON messages",
        "public.messages lacks the trigger embedline_messages_update",
    ),
    "not always": (
        "ALTER TABLE messages ENABLE TRIGGER ALL",
        "public.messages lacks the trigger embedline_messages_insert, or it is not",
    ),
    "no TRUNCATE": (
        "DROP TRIGGER embedline_messages_truncate ON messages",
        "lacks the trigger embedline_messages_truncate",
    ),
    "another's": (f"COMMENT ON TABLE {OUTBOX} IS 'mine'", "by another version"),
}


def write_all(db: Connection, key: str) -> None:
    db.execute(f"INSERT INTO messages ({key}, body) VALUES (30, 'x'), (31, 'x')")
    db.execute(f"UPDATE messages SET body = 'y' WHERE {key} = 3")
    db.execute(f"UPDATE messages SET {key} = 40 WHERE {key} = 4")
    db.execute(f"DELETE FROM messages WHERE {key} = 5")


def test_a_key_column_that_is_renamed_breaks_no_write(
    boxed: Project, db: Connection, embedline: Command
) -> None:
    db.execute("ALTER TABLE messages RENAME id TO number")
    write_all(db, "number")
    db.execute("TRUNCATE messages")
    with pytest.raises(SourceError, match="'id'"):
        sync(boxed)
    boxed.use_case(source={"key": "number"})
    says = r"not whole: its key is \(id\); run `embedline outbox install messages`"
    with pytest.raises(SourceError, match=says):
        sync(boxed)
    found = {f.what: f for f in check.use_case(boxed.use_case(), with_model=False)}
    assert re.search(says, found["source"].problem or "")
    assert re.search(says, embedline("outbox", "show", "messages").replace("\n", " "))
    install(boxed)
    db.execute("INSERT INTO messages (number, body) VALUES (3, 'z'), (50, 'z')")
    sync(boxed)
    assert "not whole" not in embedline("outbox", "show", "messages")


def test_a_name_that_was_another_s_for_a_while_hides_nothing(
    boxed: Project, db: Connection, store: Connection
) -> None:
    """Back under its old name, the outbox is whole; what it missed it knows of."""
    db.execute("ALTER TABLE messages RENAME id TO number")
    write_all(db, "number")
    db.execute("ALTER TABLE messages RENAME number TO id")
    db.execute("UPDATE messages SET body = 'z' WHERE id = 7")
    sync(boxed)
    boxed.run()
    assert keys(store) == {*map(str, {*range(20), 30, 31, 40} - {4, 5})}
    found = dict(store.execute("SELECT key, data FROM embeddings.messages"))
    assert (found["3"], found["7"]) == ("y", "z")


def test_an_outbox_that_is_dropped_breaks_no_write(
    boxed: Project, db: Connection
) -> None:
    db.execute(f"DROP TABLE {OUTBOX}")
    with db.transaction():
        write_all(db, "id")
    db.execute("TRUNCATE messages")


def test_a_transaction_that_renames_back_and_forth_writes_on(
    parted: Project, db: Connection
) -> None:
    with db.transaction():
        db.execute("INSERT INTO parted VALUES (30, 1, 'x'), (31, 2, 'x')")
        db.execute("ALTER TABLE parted RENAME id TO number")
        db.execute("INSERT INTO parted VALUES (32, 1, 'x'), (33, 2, 'x')")
        db.execute("ALTER TABLE parted RENAME number TO id")
        db.execute("INSERT INTO parted VALUES (34, 1, 'x')")
    assert sync(parted)["new"] == 5


@pytest.mark.parametrize("what", BROKEN)
def test_an_outbox_that_is_not_whole_is_refused_by_what_it_lacks(
    boxed: Project, db: Connection, store: Connection, what: str
) -> None:
    change, says = BROKEN[what]
    db.execute(change)
    before = row_versions(store)
    with pytest.raises(SourceError) as caught:
        sync(boxed)
    assert says in str(caught.value)
    assert "run `embedline outbox install messages`" in str(caught.value)
    found = {f.what: f for f in check.use_case(boxed.use_case(), with_model=False)}
    assert found["source"].problem == str(caught.value)
    assert row_versions(store) == before
    install(boxed)
    assert sync(boxed) == {"read": 20}


def test_only_tables_can_have_an_outbox(project: Project, db: Connection) -> None:
    db.execute("CREATE VIEW shouted AS SELECT id, upper(body) AS body FROM messages")
    project.use_case(
        source={"strategy": "outbox", "table": "shouted", "event_time": None}
    )
    with pytest.raises(SourceError, match="shouted is no base or partitioned table"):
        install(project)
    with pytest.raises(SourceError, match="shouted is no base or partitioned table"):
        sync(project)


def test_changing_between_strategies_loses_nothing(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    def change(number: int) -> None:
        write_messages(range(100 + number, 101 + number))
        db.execute("DELETE FROM messages WHERE id = %s", [number])
        db.execute("UPDATE messages SET body = %s WHERE id = 20", [f"body {number}"])

    write_messages(range(30))
    sync(project)
    for number, strategy in enumerate(("outbox", "snapshot", "outbox", "scan")):
        change(number)
        if number == 0:
            install(project)
        project.use_case(source={"strategy": strategy})
        counts = sync(project)
        assert (counts["new"], counts["changed"], counts["deleted"]) == (1, 1, 1)
    ids = {str(id_) for (id_,) in db.execute("SELECT id FROM messages")}
    assert keys(store) == ids


def test_a_record_that_is_deleted_while_a_worker_holds_it_leaves_no_vector(
    boxed: Project, db: Connection, store: Connection
) -> None:
    boxed.use_case(batch={"claim": 4})
    request = boxed.request()
    run.sync_stage(request)
    deleted: list[int] = []

    def delete(drained: Any) -> None:
        if not deleted:
            deleted.append(1)
            db.execute("DELETE FROM messages WHERE id IN (0, 19)")
            assert sync(boxed) == {"deleted": 2}

    run.embed_stage(request, 0, delete)
    boxed.run()
    assert deleted
    assert keys(store) == keys(store, "embeddings.messages")
    assert not {"0", "19"} & keys(store)


def test_a_window_asks_nothing_of_the_outbox(boxed: Project, db: Connection) -> None:
    db.execute(f"DROP TABLE {OUTBOX}")
    db.execute("ALTER TABLE messages DISABLE TRIGGER ALL")
    db.execute("UPDATE messages SET body = 'x' WHERE id = 3")
    window = Window.parse("2026-01-01", "2026-01-02")
    assert sync(boxed, window=window) == {"read": 20, "changed": 1}


def days_pass(store: Connection, days: float) -> None:
    store.execute(
        "UPDATE embedline.source_cursor SET"
        " prune_at = prune_at - make_interval(hours => %(hours)s),"
        " synced_at = synced_at - make_interval(hours => %(hours)s)",
        {"hours": int(days * 24)},
    )


def test_what_all_stores_have_seen_leaves_the_outbox(
    boxed: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    assert len(queued(db)) == 20
    days_pass(store, 2)
    write_messages(range(20, 22))
    sync(boxed)
    assert len(queued(db)) == 22  # not four days yet
    days_pass(store, 2.5)
    sync(boxed)
    assert len(queued(db)) == 2  # what came since the horizon that was kept
    days_pass(store, 2.5)
    sync(boxed)
    days_pass(store, 2.5)
    sync(boxed)
    assert queued(db) == []


def test_a_store_that_has_not_looked_for_long_reads_everything(
    boxed: Project, db: Connection, store: Connection
) -> None:
    db.execute("UPDATE messages SET body = 'x' WHERE id = 3")
    db.execute("DELETE FROM messages WHERE id = 4")
    db.execute(f"DELETE FROM {OUTBOX}")  # another store has pruned it
    days_pass(store, 3.1)
    assert sync(boxed) == {"read": 19, "changed": 1, "deleted": 1}
    assert sync(boxed) == {}


def test_a_store_that_comes_seldom_prunes_all_the_same(
    boxed: Project, db: Connection, store: Connection
) -> None:
    for _ in range(2):
        days_pass(store, 7)
        sync(boxed)
    assert queued(db) == []


def test_an_outbox_that_cannot_be_pruned_stops_no_sync(
    boxed: Project,
    db: Connection,
    store: Connection,
    caplog: pytest.LogCaptureFixture,
    reader: str,
) -> None:
    install(boxed, reader=reader)
    sync(boxed)
    db.execute(
        sql.SQL("REVOKE DELETE ON {} FROM {}").format(
            sql.Identifier("embedline_outbox", "messages"), sql.Identifier(reader)
        )
    )
    days_pass(store, 4.5)
    boxed.use_case(
        source={"dsn": make_conninfo(boxed.raw["source"]["dsn"], user=reader)}
    )
    db.execute("UPDATE messages SET body = 'x' WHERE id = 3")
    assert sync(boxed)["changed"] == 1
    assert "outbox not pruned use_case=messages" in caplog.text
    assert len(queued(db)) == 1


@pytest.fixture
def reader(project: Project, db: Connection) -> Iterator[str]:
    """A role that may read the table, and no more."""
    role = f"reader of {db.info.dbname}"
    name = sql.Identifier(role)
    db.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
    db.execute(sql.SQL("GRANT SELECT ON messages TO {}").format(name))
    yield role
    db.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(name))
    db.execute(sql.SQL("DROP ROLE {}").format(name))


def objects(db: Connection) -> list[Any]:
    """All there is in the source."""
    return db.execute(
        "SELECT 'relation', oid::regclass::text, relacl::text FROM pg_class"
        "  WHERE relnamespace NOT IN ('pg_catalog'::regnamespace,"
        "   'pg_toast'::regnamespace, 'information_schema'::regnamespace)"
        " UNION ALL SELECT 'trigger', tgname, tgrelid::regclass::text FROM pg_trigger"
        " UNION ALL SELECT 'function', proname, NULL FROM pg_proc WHERE oid >= 16384"
        " UNION ALL SELECT 'schema', nspname, NULL FROM pg_namespace"
        "  WHERE nspname NOT LIKE 'pg\\_t%' ORDER BY 1, 2, 3"
    ).fetchall()


def test_what_is_shown_is_what_is_run_and_nothing_is_left_behind(
    embedline: Command,
    project: Project,
    db: Connection,
    source_dsn: str,
    write_messages: Write,
) -> None:
    before = objects(db)
    shown = embedline("outbox", "show", "messages")
    assert objects(db) == before
    assert shown in embedline("outbox", "install", "messages", "--yes")
    installed = objects(db)
    assert "removed" in embedline("outbox", "remove", "messages", "--yes")
    assert objects(db) == before
    by_hand = subprocess.run(
        [str(binary("psql")), "-X", "-v", "ON_ERROR_STOP=1"],
        input=shown,
        text=True,
        capture_output=True,
        env=as_environment(source_dsn),
    )
    assert by_hand.returncode == 0, by_hand.stderr
    assert objects(db) == installed
    again = embedline("outbox", "install", "messages", "--yes")
    assert "it is used once use_cases/messages.yaml says strategy: outbox" in again
    assert objects(db) == installed
    project.use_case(source={"strategy": "outbox"})
    write_messages(range(3))
    assert sync(project)["new"] == 3
    db.execute("DROP TABLE messages")
    assert "removed" in embedline("outbox", "remove", "messages", "--yes")
    assert "nothing to remove" in embedline("outbox", "remove", "messages", "--yes")


def test_it_asks_and_a_no_changes_nothing(
    embedline: Command,
    project: Project,
    db: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = objects(db)
    monkeypatch.setattr("typer.confirm", lambda question: False)
    assert "CREATE TRIGGER" in embedline("outbox", "install", "messages", code=1)
    assert objects(db) == before


def test_another_role_may_install_it_for_the_one_that_reads(
    embedline: Command,
    project: Project,
    db: Connection,
    store: Connection,
    source_dsn: str,
    write_messages: Write,
    reader: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OWNER", as_connection(source_dsn))
    project.use_case(
        source={"strategy": "outbox", "dsn": make_conninfo(source_dsn, user=reader)}
    )
    refused = embedline("outbox", "install", "messages", "--yes", code=1)
    assert "the source refuses, and nothing has changed" in refused
    embedline("outbox", "install", "messages", "--connection", "owner", "--yes")
    write_messages(range(5))
    assert sync(project)["new"] == 5
    db.execute("DELETE FROM messages WHERE id = 3")
    assert sync(project) == {"deleted": 1}
    for _ in range(2):
        days_pass(store, 4.5)
        sync(project)
    assert queued(db) == []
    embedline("outbox", "remove", "messages", "--connection", "owner", "--yes")


def test_whoever_owns_the_table_may_install_and_writers_need_no_right(
    project: Project, db: Connection, source_dsn: str, reader: str
) -> None:
    """Nobody here is a superuser."""
    db.execute(
        sql.SQL(
            "ALTER TABLE messages OWNER TO {0}; GRANT CREATE ON DATABASE {1} TO {0}"
        ).format(sql.Identifier(reader), sql.Identifier(db.info.dbname))
    )
    writer = f"writer of {db.info.dbname}"
    role = sql.Identifier(writer)
    db.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
    db.execute(
        sql.SQL(
            "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON messages TO {}"
        ).format(role)
    )
    dsn = make_conninfo(source_dsn, user=reader)
    project.use_case(source={"strategy": "outbox", "dsn": dsn})
    try:
        install(project)
        with psycopg.connect(source_dsn, user=writer, autocommit=True) as writes:
            writes.execute("INSERT INTO messages (id, body) VALUES (1, 'x'), (2, 'x')")
            assert sync(project) == {"read": 2, "new": 2}
            writes.execute("UPDATE messages SET body = 'y' WHERE id = 1")
            writes.execute("DELETE FROM messages WHERE id = 2")
            assert sync(project) == {"read": 1, "changed": 1, "deleted": 1}
            writes.execute("TRUNCATE messages")
            assert sync(project) == {"deleted": 1}
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                writes.execute(f"SELECT * FROM {OUTBOX}")
    finally:
        db.execute("ALTER TABLE messages OWNER TO CURRENT_USER")
        db.execute(sql.SQL("DROP OWNED BY {}").format(role))
        db.execute(sql.SQL("DROP ROLE {}").format(role))


def test_a_filter_that_cannot_be_looked_into_is_told_by_name(
    embedline: Command,
    project: Project,
    db: Connection,
    source_dsn: str,
    reader: str,
) -> None:
    db.execute(
        sql.SQL("REVOKE TEMP ON DATABASE {} FROM PUBLIC").format(
            sql.Identifier(db.info.dbname)
        )
    )
    project.use_case(
        source={
            "strategy": "outbox",
            "where": "author <> ''",
            "dsn": make_conninfo(source_dsn, user=reader),
        }
    )
    refused = embedline("outbox", "show", "messages", code=1)
    assert "error: source.where: which columns it refers to" in refused
    assert "--connection" in refused


def test_columns_of_predictions_labels_and_the_rest_are_watched(
    project: Project, db: Connection
) -> None:
    columns = ("env", "link", "tag", "label", "prediction", "score", "body", "sent_at")
    db.execute(
        "ALTER TABLE messages ADD env text, ADD link text, ADD tag text,"
        " ADD label text, ADD prediction text, ADD score float8"
    )
    project.use_case(
        source={
            "strategy": "outbox",
            "environment": {"column": "env"},
            "link": "link",
            "tags": ["tag"],
        },
        label={"column": "label"},
        prediction={"column": "prediction", "score": "score"},
    )
    install(project)
    db.execute("INSERT INTO messages (id, body) VALUES (1, 'x')")
    for column in columns:
        value = {"score": "0.5", "sent_at": "now()"}.get(column, "'y'")
        db.execute(f"UPDATE messages SET {column} = {value}")
    assert queued(db) == ["insert", *["update"] * len(columns)]


def as_connection(dsn: str) -> str:
    parts = conninfo_to_dict(dsn)
    named = {
        "host": "host",
        "user": "login",
        "dbname": "schema",
        "password": "password",
    }
    found = {name: str(parts[k]) for k, name in named.items() if k in parts}
    if "port" in parts:
        found["port"] = str(parts["port"])
    return json.dumps({"conn_type": "postgres", **found})


def test_a_busy_table_is_not_waited_for(
    boxed: Project,
    db: Connection,
    source_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(installation, "LOCK_TIMEOUT", "100ms")
    before = objects(db)
    with psycopg.connect(source_dsn) as busy:
        busy.execute("UPDATE messages SET body = 'x' WHERE id = 1")
        with pytest.raises(TransientError, match="try again when it has ended"):
            install(boxed)
    assert objects(db) == before


def test_a_dump_of_the_source_can_be_restored(
    boxed: Project, db: Connection, source_dsn: str, make_database: Callable[..., str]
) -> None:
    """Triggers that pg_dump prints in a way nobody can read would cost a backup."""
    if db.info.server_version < 170000:
        pytest.skip("this pg_restore sets transaction_timeout, of PostgreSQL 17")
    copy = make_database()
    dump = subprocess.run(
        [str(binary("pg_dump")), "-Fc"],
        capture_output=True,
        env=as_environment(source_dsn),
    )
    assert dump.returncode == 0, dump.stderr
    restored = subprocess.run(
        [str(binary("pg_restore")), "--exit-on-error", "-d", copy],
        input=dump.stdout,
        capture_output=True,
    )
    assert restored.returncode == 0, restored.stderr
    with psycopg.connect(copy, autocommit=True) as other:
        boxed.use_case(source={"dsn": copy})
        assert sync(boxed) == {"read": 20}
        other.execute("UPDATE messages SET body = 'x' WHERE id = 3")
        assert sync(boxed)["changed"] == 1


def test_writers_at_once_with_the_installation_are_all_seen(
    project: Project, db: Connection, source_dsn: str, store: Connection
) -> None:
    project.use_case(source={"strategy": "outbox"})
    stop = threading.Event()

    def write() -> None:
        with psycopg.connect(source_dsn, autocommit=True) as writer:
            number = 0
            while not stop.is_set():
                number += 1
                writer.execute(
                    "INSERT INTO messages (id, body) VALUES (%s, 'x')", [number]
                )

    thread = threading.Thread(target=write)
    thread.start()
    try:
        install(project)
        sync(project)
        sync(project)
    finally:
        stop.set()
        thread.join()
    sync(project)
    assert keys(store) == {str(i) for (i,) in db.execute("SELECT id FROM messages")}


def test_a_forgotten_record_comes_back_though_no_trigger_tells_of_it(
    project: Project, store: Connection, write_messages: Write
) -> None:
    project.use_case(source={"strategy": "outbox"})
    write_messages(range(10))
    install(project)
    project.run()
    number = versions.use_case_id(store, "messages")
    forgetting.forget(store, number, "3")
    project.run()
    assert "3" not in keys(store)
    forgetting.undo(store, number, "3")
    assert project.run()["embedded"] == 1
