"""Nothing missed, nothing stale, nothing orphaned: the ledger against the source."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from embedding_tasks import run, status
from embedding_tasks.connections import Connection
from embedding_tasks.errors import ConfigError, SourceError, ThresholdError
from embedding_tasks.source import extract, snapshot
from embedding_tasks.use_case import Window
from tests.fix_postgres import start_server
from tests.fix_project import Project, keys, row_versions, sync

Write = Callable[..., None]


def test_a_first_sync_wants_every_record(
    project: Project, store: Connection, write_messages: Write
) -> None:
    write_messages(range(20))
    assert sync(project) == {"read": 20, "new": 20}
    assert keys(store) == {str(i) for i in range(20)}


def test_a_sync_of_unchanged_data_reads_and_writes_nothing(
    project: Project, store: Connection, write_messages: Write
) -> None:
    write_messages(range(20))
    project.run()
    before = row_versions(store)
    assert sync(project) == {}
    assert row_versions(store) == before


def test_only_what_changed_in_the_input_is_wanted_again(
    project: Project, db: Connection, write_messages: Write
) -> None:
    write_messages(range(200))
    project.run()
    db.execute("UPDATE messages SET body = 'other' WHERE id IN (3, 4)")
    db.execute("UPDATE messages SET author = 'somebody' WHERE id IN (5, 6, 7)")
    write_messages(range(200, 203))
    db.execute("DELETE FROM messages WHERE id = 9")
    counts = sync(project)
    assert counts == {"read": 8, "new": 3, "changed": 2, "deleted": 1}


def test_a_change_taken_back_before_it_was_embedded_is_no_change(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    write_messages(range(5))
    project.run()
    db.execute("UPDATE messages SET body = 'other' WHERE id = 3")
    assert sync(project) == {"read": 1, "changed": 1}
    db.execute("UPDATE messages SET body = 'message number 3' WHERE id = 3")
    assert sync(project) == {"read": 1, "changed": 1}
    assert project.run()["embedded"] == 0
    assert status.of(store)[0]["stored"] == 5


def test_a_deleted_record_leaves_every_table(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    project.use_case(prediction="head", label={"column": "author"})
    write_messages(range(5))
    project.run()
    db.execute("DELETE FROM messages WHERE id = 3")
    project.run()
    tables = (
        *("ledger", "record", "input", "prediction", "label"),
        "vector_messages_v1",
    )
    for table in tables:
        assert keys(store, f"embedline.{table}") == {"0", "1", "2", "4"}, table


@pytest.mark.parametrize("savepoint", [False, True])
def test_a_row_committed_late_is_not_missed(
    project: Project,
    db: Connection,
    source_dsn: str,
    store: Connection,
    write_messages: Write,
    savepoint: bool,
) -> None:
    with psycopg.connect(source_dsn) as slow:
        slow.execute("SELECT pg_current_xact_id()")
        if savepoint:
            slow.execute("SAVEPOINT here")
        slow.execute(
            "INSERT INTO messages (id, body, sent_at) VALUES (100, 'x', '2020-01-01')"
        )
        if savepoint:
            slow.execute("RELEASE SAVEPOINT here")
        write_messages(range(5))
        assert sync(project) == {"read": 5, "new": 5}
        slow.commit()
    # 1 new, the others over-read: written after the slow transaction began
    assert sync(project)["new"] == 1
    assert "100" in keys(store)


def test_a_prepared_transaction_is_not_missed(
    project: Project, db: Connection, write_messages: Write, store: Connection
) -> None:
    row = db.execute("SHOW max_prepared_transactions").fetchone()
    if row == ("0",):
        pytest.skip("the server has max_prepared_transactions = 0")
    db.execute("BEGIN")
    db.execute("INSERT INTO messages (id, body) VALUES (100, 'x')")
    db.execute("PREPARE TRANSACTION 'slow'")
    sync(project)
    write_messages(range(3))
    sync(project)
    db.execute("COMMIT PREPARED 'slow'")
    sync(project)
    assert "100" in keys(store)


def test_a_null_input_is_skipped_and_its_old_vector_leaves(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    write_messages(range(3))
    db.execute("INSERT INTO messages (id, body) VALUES (10, NULL), (11, '')")
    project.run()
    numbers = status.of(store)[0]
    assert (numbers["wanted"], numbers["stored"], numbers["skipped"]) == (4, 4, 1)
    db.execute("UPDATE messages SET body = NULL WHERE id = 1")
    sync(project)
    assert keys(store, "embeddings.messages") == {"0", "2", "11"}
    assert keys(store, "embedline.input") == {"0", "2", "11"}
    db.execute("UPDATE messages SET body = 'back' WHERE id = 1")
    project.run()
    assert "1" in keys(store, "embeddings.messages")


def test_null_and_empty_and_shifted_columns_are_different_inputs(
    project: Project, db: Connection
) -> None:
    project.use_case(source={"input": ["body", "author"]})
    db.execute("INSERT INTO messages (id, body, author) VALUES (1, 'a', NULL)")
    project.run()
    for change in ("author = ''", "body = NULL, author = 'a'", "author = 'a '"):
        db.execute(f"UPDATE messages SET {change}")
        assert sync(project) == {"read": 1, "changed": 1}, change


def test_a_row_without_a_key_is_left_out_and_counted(
    project: Project, db: Connection, store: Connection
) -> None:
    db.execute("CREATE TABLE loose (id text, body text)")
    db.execute("INSERT INTO loose VALUES ('a', 'x'), (NULL, 'y'), (NULL, 'z')")
    project.use_case(source={"table": "loose", "event_time": None})
    assert sync(project) == {"read": 1, "new": 1, "unusable_keys": 2}
    assert sync(project) == {"unusable_keys": 2}


def test_a_key_too_long_to_be_kept_costs_its_own_row(
    project: Project, db: Connection, store: Connection
) -> None:
    db.execute("CREATE TABLE named (id text PRIMARY KEY, body text)")
    db.execute("INSERT INTO named VALUES ('a', 'x'), (repeat('k', 2001), 'y')")
    project.use_case(source={"table": "named", "event_time": None})
    assert sync(project) == {"read": 1, "new": 1, "unusable_keys": 1}
    assert sync(project) == {"unusable_keys": 1}


def test_a_key_that_occurs_twice_is_refused_by_name(
    project: Project, db: Connection, store: Connection
) -> None:
    db.execute("CREATE TABLE loose (id text, body text)")
    db.execute("INSERT INTO loose VALUES ('a', 'x'), ('a', 'y'), ('b', 'z')")
    project.use_case(source={"table": "loose", "event_time": None})
    with pytest.raises(SourceError, match=r"'a' \(2 rows\)"):
        sync(project)
    assert keys(store) == set()
    row = store.execute("SELECT state, error FROM embedline.run").fetchone()
    assert row is not None
    assert row[0] == "failed"
    assert "'a' (2 rows)" in row[1]


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ("a int, b text", ["1, 'x'", "1, 'y\"'", "2, 'x, y'", "3, 'é\\n'"]),
        ("a uuid, b date", ["gen_random_uuid(), '2026-01-01'"] * 3),
        ("a numeric, b boolean", ["1.50, true", "1.5001, false"]),
    ],
)
def test_keys_of_several_columns_and_types(
    project: Project, db: Connection, store: Connection, columns: str, values: list[str]
) -> None:
    db.execute(f"CREATE TABLE pairs ({columns}, body text, PRIMARY KEY (a, b))")
    for number, value in enumerate(values):
        db.execute(f"INSERT INTO pairs VALUES ({value}, 'text {number}')")
    project.use_case(source={"table": "pairs", "key": ["a", "b"], "event_time": None})
    assert project.run()["stored"] == len(values)
    db.execute("UPDATE pairs SET body = body || '!'")
    assert project.run()["embedded"] == len(values)
    row = store.execute(
        "SELECT count(DISTINCT data), bool_and(data LIKE 'text _!')"
        " FROM embeddings.messages"
    ).fetchone()
    assert row == (len(values), True)


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        ("bigint", ["-1", "0", "9223372036854775807"]),
        ("int", ["1", "2", "3"]),
        ("text", ["a", "", " a 'b' \"c\" \\ {d,e} NULL"]),
        ("varchar(20)", ["a", "ä", "null"]),
        ("uuid", [f"00000000-0000-0000-0000-{i:012}" for i in range(3)]),
        ("char(10)", ["a", "b ", "cc"]),
        ("word", ["a", "b", "c"]),
        (
            "timestamptz",
            ["2026-01-01 00:00+02", "2026-01-01 00:00:00.000001Z", "-infinity"],
        ),
    ],
)
def test_single_keys_of_many_types(
    project: Project, db: Connection, store: Connection, type_: str, values: list[str]
) -> None:
    db.execute("CREATE DOMAIN word AS text CHECK (value <> '')")
    db.execute(f"CREATE TABLE single (id {type_} PRIMARY KEY, body text)")
    for value in values:
        db.execute(f"INSERT INTO single VALUES (%s::text::{type_}, 'x')", [value])
    project.use_case(source={"table": "single", "event_time": None})
    assert project.run()["stored"] == 3
    db.execute("DELETE FROM single WHERE ctid IN (SELECT ctid FROM single LIMIT 1)")
    project.run()
    assert len(keys(store)) == 2


def test_partitions_are_followed_and_an_old_table_attached_is_seen(
    project: Project, db: Connection, store: Connection
) -> None:
    db.execute(
        "CREATE TABLE parted (id int PRIMARY KEY, body text) PARTITION BY RANGE (id);"
        "CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE older (id int PRIMARY KEY, body text);"
        "INSERT INTO older SELECT i, 'old' FROM generate_series(10, 14) i;"
        "INSERT INTO parted SELECT i, 'new' FROM generate_series(0, 4) i"
    )
    project.use_case(source={"table": "parted", "event_time": None})
    assert sync(project) == {"read": 5, "new": 5}
    assert sync(project) == {}
    db.execute("ALTER TABLE parted ATTACH PARTITION older FOR VALUES FROM (10) TO (20)")
    assert sync(project)["new"] == 5
    db.execute("UPDATE parted SET body = 'x' WHERE id IN (1, 12)")
    assert sync(project)["changed"] == 2


def test_a_table_swapped_for_an_older_one_is_read_whole(
    project: Project, db: Connection, write_messages: Write
) -> None:
    db.execute("CREATE TABLE prepared (LIKE messages INCLUDING ALL)")
    db.execute(
        "INSERT INTO prepared (id, body)"
        " SELECT i, 'prepared' FROM generate_series(0, 4) i"
    )
    write_messages(range(5))
    sync(project)
    db.execute("ALTER TABLE messages RENAME TO messages_old")
    db.execute("ALTER TABLE prepared RENAME TO messages")
    assert sync(project)["changed"] == 5


def test_a_child_that_repeats_its_parents_key_is_refused_by_name(
    project: Project, db: Connection, write_messages: Write
) -> None:
    write_messages(range(3))
    db.execute("CREATE TABLE old_messages () INHERITS (messages)")
    db.execute("INSERT INTO old_messages SELECT * FROM messages WHERE id = 2")
    with pytest.raises(SourceError, match=r"'2' \(2 rows\)"):
        sync(project)


def test_a_key_of_an_array_is_refused_by_name(project: Project, db: Connection) -> None:
    db.execute("CREATE TABLE paths (id int[] PRIMARY KEY, body text)")
    project.use_case(source={"table": "paths", "event_time": None})
    with pytest.raises(SourceError, match=r"'id' is of type 'integer\[\]'"):
        sync(project)


REWORDED = {
    "a label of an enum": (
        "CREATE TYPE mood AS ENUM ('calm', 'wild');"
        "ALTER TABLE messages ADD mood mood DEFAULT 'calm'",
        "mood",
        "ALTER TYPE mood RENAME VALUE 'calm' TO 'serene'",
    ),
    "a generated column": (
        "ALTER TABLE messages ADD loud text GENERATED ALWAYS AS (upper(body)) VIRTUAL",
        "loud",
        "ALTER TABLE messages ALTER loud SET EXPRESSION AS (body || '!')",
    ),
}


@pytest.mark.parametrize("what", REWORDED)
def test_what_reads_otherwise_without_a_new_row_version_is_seen(
    project: Project, db: Connection, write_messages: Write, what: str
) -> None:
    if "VIRTUAL" in REWORDED[what][0] and db.info.server_version < 180000:
        pytest.skip("virtual columns came with PostgreSQL 18")
    before, column, change = REWORDED[what]
    db.execute(before)
    project.use_case(source={"input": column})
    write_messages(range(5))
    project.run()
    assert sync(project) == {}
    db.execute(change)
    assert sync(project) == {"read": 5, "changed": 5}


def test_a_server_put_back_from_a_backup_is_read_whole(
    project: Project, tmp_path: Path, store: Connection
) -> None:
    """The copy has the same identifier, and ids of its own past our horizon."""
    home = tmp_path / "production"
    with start_server(home) as conninfo, psycopg.connect(conninfo) as db:
        db.execute("CREATE TABLE messages (id bigint PRIMARY KEY, body text)")
        db.execute(
            "INSERT INTO messages SELECT i, 'as it was' FROM generate_series(1, 5) i"
        )
    copy_with_owners(home / "postgres", tmp_path / "backup")
    with start_server(home) as conninfo, psycopg.connect(conninfo) as db:
        project.use_case(source={"dsn": conninfo, "event_time": None})
        db.execute("UPDATE messages SET body = 'lost' WHERE id = 2")
        db.commit()
        project.run()
    shutil.rmtree(home / "postgres")
    copy_with_owners(tmp_path / "backup", home / "postgres")
    with (
        start_server(home) as conninfo,
        psycopg.connect(conninfo, autocommit=True) as db,
    ):
        for _ in range(50):
            db.execute("SELECT pg_current_xact_id()")
        # where its path is long, its socket lies elsewhere at each start
        project.use_case(source={"dsn": conninfo})
        assert sync(project) == {"read": 5, "changed": 1}


def copy_with_owners(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", source, target], check=True)


def test_a_value_that_cannot_be_taken_costs_itself_and_not_the_sync(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    db.execute("ALTER TABLE messages ADD p numeric, ADD extra json")
    project.use_case(
        source={"tags": ["extra"]}, prediction={"column": "author", "score": "p"}
    )
    write_messages(range(4))
    db.execute("UPDATE messages SET p = 1e400 WHERE id = 0")
    db.execute("UPDATE messages SET p = 'NaN' WHERE id = 1")
    db.execute("UPDATE messages SET p = 0.5, sent_at = 'infinity' WHERE id = 2")
    db.execute("""UPDATE messages SET extra = '{"a": "b\\u0000c"}' WHERE id = 3""")
    project.run()
    rows = store.execute(
        "SELECT score, event_time IS NULL, tags FROM embeddings.messages ORDER BY key"
    ).fetchall()
    nothing = {"extra": None}
    assert rows == [
        (None, False, nothing),
        (None, False, nothing),
        (0.5, True, nothing),
        (None, False, {"extra": {"a": "bc"}}),
    ]


@pytest.mark.parametrize("kind", ["view", "materialized view", "query"])
def test_what_has_no_row_versions_is_scanned(
    project: Project,
    db: Connection,
    store: Connection,
    write_messages: Write,
    kind: str,
) -> None:
    query = "SELECT m.id, upper(m.body) AS body FROM messages m -- a remark"
    if kind == "query":
        project.use_case(source={"query": query, "table": None, "event_time": None})
    else:
        db.execute(f"CREATE {kind} shouted AS {query}")
        project.use_case(source={"table": "shouted", "event_time": None})
    write_messages(range(10))
    if kind == "materialized view":
        db.execute("REFRESH MATERIALIZED VIEW shouted")
    assert project.run()["stored"] == 10
    db.execute("UPDATE messages SET body = 'other' WHERE id = 3")
    db.execute("DELETE FROM messages WHERE id = 4")
    if kind == "materialized view":
        db.execute("REFRESH MATERIALIZED VIEW shouted")
    counts = sync(project)
    assert counts == {"read": 9, "changed": 1, "deleted": 1}
    before = row_versions(store)
    sync(project)
    assert row_versions(store) == before


def test_a_filter_lets_rows_in_and_out(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    project.use_case(source={"where": "author LIKE '%1%' -- only hers"})
    write_messages(range(9))
    assert sync(project)["new"] == 3
    db.execute("UPDATE messages SET author = 'author 1' WHERE id = 0")
    db.execute("UPDATE messages SET author = 'nobody' WHERE id = 1")
    assert sync(project) == {"read": 1, "new": 1, "deleted": 1}


def test_a_filter_that_looks_elsewhere_lets_old_rows_in(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    db.execute("CREATE TABLE approved (id bigint)")
    project.use_case(source={"where": "id IN (SELECT id FROM approved)"})
    write_messages(range(5))
    assert sync(project) == {}
    db.execute("INSERT INTO approved VALUES (2), (3)")
    assert sync(project) == {"read": 2, "new": 2}


def test_a_changed_description_is_applied_to_every_row(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    write_messages(range(6))
    project.run()
    project.use_case(source={"tags": ["author"], "link": "author"})
    assert sync(project) == {"read": 6}
    rows = store.execute("SELECT link, tags FROM embeddings.messages ORDER BY key")
    assert rows.fetchall()[1] == ("author 1", {"author": "author 1"})


def test_what_is_kept_of_the_input_follows_the_file_without_embedding_anew(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    def data() -> Any:
        return store.execute(
            "SELECT data FROM embeddings.messages WHERE key = '1'"
        ).fetchone()

    write_messages(range(3))
    project.run()
    assert data() == ("message number 1",)
    # a change that has not been embedded must not show beside the old vector
    db.execute("UPDATE messages SET body = 'new' WHERE id = 1")
    project.use_case(storage={"data": 7})
    sync(project)
    assert data() == ("message number 1",)
    db.execute("UPDATE messages SET body = 'message number 1' WHERE id = 1")
    for keep, kept in ((4, "mess"), ("none", None), ("all", "message number 1")):
        project.use_case(storage={"data": keep})
        assert project.run()["embedded"] == 0
        assert data() == (kept,)


def test_deletions_beyond_the_guard_are_withheld_until_allowed(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    project.use_case(source={"delete_guard": {"share": 0.2, "rows": 5}})
    write_messages(range(30))
    project.run()
    db.execute("DELETE FROM messages WHERE id < 10")
    write_messages(range(30, 32))
    with pytest.raises(ThresholdError, match="10 stored records and 0 labels are gone"):
        project.run()
    assert len(keys(store, "embeddings.messages")) == 32  # new ones carry on
    assert status.of(store)[0]["deletes_withheld"] == 10
    counts = project.run(allow_deletes=True)
    assert counts["deleted"] == 10
    assert len(keys(store, "embeddings.messages")) == 22
    assert status.of(store)[0]["deletes_withheld"] == 0


def test_a_window_is_not_judged_by_deletions_it_does_not_look_for(
    project: Project, db: Connection, write_messages: Write
) -> None:
    project.use_case(source={"delete_guard": {"rows": 5}})
    write_messages(range(30))
    project.run()
    db.execute("DELETE FROM messages WHERE id < 10")
    with pytest.raises(ThresholdError):
        project.run()
    assert project.run(window=Window(since=datetime(2026, 1, 1, tzinfo=UTC)))


def test_records_before_the_start_come_by_backfill_and_are_then_followed(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    project.use_case(source={"start": datetime(2026, 1, 1, 1, tzinfo=UTC)})
    write_messages(range(100))  # one a minute: sixty of them too early
    assert sync(project)["new"] == 40
    assert sync(project) == {}
    window = Window(
        since=datetime(2026, 1, 1, 0, 10, tzinfo=UTC),
        until=datetime(2026, 1, 1, 0, 20, tzinfo=UTC),
    )
    assert sync(project, window=window) == {"read": 10, "new": 10}
    db.execute("UPDATE messages SET body = 'x' WHERE id IN (5, 15, 50)")
    assert sync(project) == {"read": 1, "changed": 1}
    db.execute("DELETE FROM messages WHERE id IN (6, 16)")
    assert sync(project) == {"deleted": 1}


def test_a_window_enqueues_at_low_priority_and_never_moves_the_cursor(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    write_messages(range(10))
    project.run()
    cursor = "SELECT horizon::text, synced_at, audited_at FROM embedline.source_cursor"
    before = store.execute(cursor).fetchall()
    db.execute("UPDATE messages SET body = 'x' WHERE id IN (2, 8)")
    db.execute("DELETE FROM messages WHERE id = 3")
    window = Window(since=None, until=datetime(2026, 1, 1, 0, 5, tzinfo=UTC))
    assert sync(project, window=window) == {"read": 4, "changed": 1}
    assert store.execute(cursor).fetchall() == before
    assert "3" in keys(store)
    row = store.execute(
        "SELECT key, priority FROM embedline.ledger WHERE pending"
    ).fetchall()
    assert row == [("2", 10)]
    # the next full sync still sees all of it, and raises its priority
    assert sync(project) == {"read": 2, "changed": 1, "deleted": 1}


def test_reembed_makes_the_vectors_of_a_window_anew(
    project: Project, store: Connection, write_messages: Write
) -> None:
    write_messages(range(10))
    project.run()
    store.execute(
        "UPDATE embedline.vector_messages_v1 v SET embedding = w.embedding"
        " FROM embedline.vector_messages_v1 w WHERE v.key IN ('2', '8') AND w.key = '5'"
    )
    window = Window(since=None, until=datetime(2026, 1, 1, 0, 5, tzinfo=UTC))
    assert project.run(window=window, reembed=True)["embedded"] == 5
    same = (
        "SELECT a.embedding = b.embedding FROM embedline.vector_messages_v1 a,"
        " embedline.vector_messages_v1 b WHERE a.key = %s AND b.key = '5'"
    )
    assert store.execute(same, ["2"]).fetchone() == (False,)
    assert store.execute(same, ["8"]).fetchone() == (True,)
    assert project.run(reembed=True)["embedded"] == 10
    assert store.execute(same, ["8"]).fetchone() == (False,)


def test_a_dry_run_counts_and_changes_nothing(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    write_messages(range(10))
    counts = run.run(project.request(dry_run=True))
    assert counts["new"] == 10
    for table in ("use_case", "run", "ledger", "record", "model_version"):
        row = store.execute(f"SELECT count(*) FROM embedline.{table}").fetchone()
        assert row == (0,), table
    project.run()
    db.execute("DELETE FROM messages WHERE id = 1")
    assert run.run(project.request(dry_run=True))["deleted"] == 1
    assert "1" in keys(store, "embeddings.messages")


def test_a_window_without_an_event_time_is_refused(project: Project) -> None:
    project.use_case(source={"event_time": None})
    with pytest.raises(ConfigError, match=r"names no source\.event_time"):
        project.request(window=Window(since=datetime(2026, 1, 1, tzinfo=UTC)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"table": "mesages"}, "source.table: no table 'mesages'"),
        ({"input": "bodi"}, "source.input: no column 'bodi': did you mean 'body'?"),
        ({"key": "uid"}, "source.key: no column 'uid'"),
        ({"event_time": "body"}, "column 'body' is of type 'text'; valid: timestamp"),
        ({"where": "nonsense = 1"}, 'column "nonsense" does not exist'),
        ({"where": "1 / (id - 3) > 0"}, "messages: division by zero"),
        ({"where": "true; DROP TABLE messages"}, "syntax error at or near"),
        ({"table": None, "query": "SELECT nothing"}, "source.query: column"),
        ({"table": None, "query": "SELECT 1; DROP TABLE messages"}, "source.query:"),
        ({"tags": ["body", "oops"]}, "source.tags: no column 'oops'"),
        ({"environment": {"column": "env"}}, "source.environment.column: no column"),
    ],
)
def test_what_the_source_lacks_is_named_and_nothing_is_changed(
    project: Project,
    db: Connection,
    store: Connection,
    write_messages: Write,
    changes: dict[str, Any],
    says: str,
) -> None:
    write_messages(range(5))
    project.use_case(source=changes)
    with pytest.raises(SourceError) as caught:
        sync(project)
    assert says in str(caught.value)
    assert keys(store) == set()
    assert db.execute("SELECT count(*) FROM messages").fetchone() == (5,)


def test_the_source_is_read_only_whatever_a_use_case_says(
    project: Project, db: Connection, write_messages: Write
) -> None:
    db.execute(
        "CREATE FUNCTION wipe() RETURNS boolean LANGUAGE sql"
        " AS 'DELETE FROM messages; SELECT true'"
    )
    write_messages(range(5))
    project.use_case(source={"where": "wipe()"})
    with pytest.raises(SourceError, match="read-only transaction"):
        sync(project)
    assert db.execute("SELECT count(*) FROM messages").fetchone() == (5,)


def test_a_lost_ledger_row_is_found_again(
    project: Project, store: Connection, write_messages: Write
) -> None:
    write_messages(range(10))
    project.run()
    store.execute("DELETE FROM embedline.ledger WHERE key = '4'")
    assert sync(project) == {"read": 1, "new": 1}


@pytest.mark.parametrize(
    "change",
    [
        "horizon = '99999999999'::xid8",
        "server = '7 since 2026-01-01'",
        "definition = '{\"data\": null}'",
    ],
)
def test_a_cursor_that_does_not_fit_the_source_makes_it_read_whole(
    project: Project, store: Connection, write_messages: Write, change: str
) -> None:
    write_messages(range(10))
    project.run()
    store.execute(f"UPDATE embedline.source_cursor SET {change}")
    assert sync(project) == {"read": 10}
    assert sync(project) == {}


def test_old_transaction_ids_are_compared_in_a_circle(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    """A horizon far ahead in the 32-bit circle still lets younger ids through."""
    write_messages(range(3))
    with snapshot.take(project.raw["source"]["dsn"]) as connection:
        taken = extract.records(connection, project.use_case())

        def seen(horizon: int) -> int:
            count = sql.SQL("SELECT count(*) FROM ({}) AS r").format(
                taken.changed_since(horizon)
            )
            row = connection.execute(count).fetchone()
            assert row is not None
            return int(row[0])

        now = snapshot.position(connection).horizon
        assert seen(now) == 0
        assert seen(now - 100) == 3
        assert seen(2**32 + now) == 0  # the next epoch, same place
        assert seen(2**32 - 5) == 3  # just before the wrap: ours come after it


def test_a_record_may_have_more_columns_than_a_function_takes(
    project: Project, db: Connection, store: Connection
) -> None:
    names = [f"c{n}" for n in range(120)]
    columns = ", ".join(f"{name} int" for name in names)
    db.execute(f"CREATE TABLE wide (id int PRIMARY KEY, {columns})")
    db.execute("INSERT INTO wide (id, c0, c119) VALUES (1, 5, 6), (2, NULL, NULL)")
    project.use_case(source={"table": "wide", "input": names, "event_time": None})
    project.run()
    data = "SELECT data FROM embeddings.messages"
    assert store.execute(data).fetchall() == [("5\n6",)]
    for kept in ("none", "all"):
        project.use_case(storage={"data": kept})
        project.run()
    assert store.execute(data).fetchall() == [("5\n6",)]
