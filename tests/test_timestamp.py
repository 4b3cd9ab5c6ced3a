"""Strategy `timestamp`: rows by a time that writers set, and nothing missed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from embedding_tasks import check, device_lock, digests, status
from embedding_tasks.connections import Connection, connect
from embedding_tasks.errors import ConfigError, SourceError
from tests.fix_project import Project, keys, row_versions, sync

Write = Callable[..., None]


@pytest.fixture
def dated(project: Project, db: Connection) -> Project:
    """Messages with an `updated_at` that follows whoever writes."""
    db.execute(
        "ALTER TABLE messages ADD updated_at timestamptz DEFAULT now();"
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN NEW.updated_at = now(); RETURN NEW; END';"
        "CREATE TRIGGER touch BEFORE UPDATE OF body ON messages"
        " FOR EACH ROW EXECUTE FUNCTION touch()"
    )
    project.use_case(
        source={
            "strategy": "timestamp",
            "updated_at": "updated_at",
            "slack_seconds": 0,
        }
    )
    return project


def test_an_unchanged_table_reads_and_writes_nothing(
    dated: Project, store: Connection, write_messages: Write
) -> None:
    write_messages(range(20))
    dated.run()
    before = row_versions(store)
    assert sync(dated) == {}
    assert row_versions(store) == before


def test_new_changed_and_gone_rows_are_found(
    dated: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    write_messages(range(50))
    dated.run()
    write_messages(range(50, 53))
    db.execute("UPDATE messages SET body = 'other' WHERE id IN (3, 4)")
    db.execute("DELETE FROM messages WHERE id = 9")
    assert sync(dated) == {"read": 5, "new": 3, "changed": 2, "deleted": 1}


def test_slack_reads_recent_rows_again_and_embeds_none(
    dated: Project, write_messages: Write
) -> None:
    dated.use_case(source={"slack_seconds": 3600})
    write_messages(range(5))
    dated.run()
    assert sync(dated) == {"read": 5}


def test_a_lock_of_ours_in_the_source_s_own_database_has_nothing_read_again(
    dated: Project, source_dsn: str, write_messages: Write
) -> None:
    """As where store and source are one database."""
    with device_lock.hold(
        partial(connect, source_dsn, role="store"), {0: "GPU-a"}, lambda: False
    ) as held:
        assert held is not None
        write_messages(range(20))
        dated.run()
        assert sync(dated) == {}
        held.look()
        assert sync(dated) == {}


@pytest.mark.parametrize("activity", ["on", "off"])
@pytest.mark.parametrize("savepoint", [False, True])
def test_a_row_committed_late_is_not_missed(
    dated: Project,
    source_dsn: str,
    store: Connection,
    write_messages: Write,
    savepoint: bool,
    activity: str,
) -> None:
    """A session that does not show its activity is open since it is there."""
    options = f"-c track_activities={activity}"
    with psycopg.connect(source_dsn, options=options) as slow:
        slow.execute("SELECT 1")
        write_messages(range(5))
        assert sync(dated)["new"] == 5
        # its now() is by far the earliest, and it had written nothing yet
        if savepoint:
            slow.execute("SAVEPOINT here")
        slow.execute("INSERT INTO messages (id, body) VALUES (100, 'x')")
        slow.execute("UPDATE messages SET body = 'late' WHERE id = 3")
        if savepoint:
            slow.execute("RELEASE SAVEPOINT here")
        write_messages(range(5, 7))
        assert sync(dated)["new"] == 2
        slow.commit()
    counts = sync(dated)
    assert (counts["new"], counts["changed"]) == (1, 1)
    assert "100" in keys(store)


def test_rows_of_the_very_same_time_come_together(
    dated: Project, db: Connection, store: Connection
) -> None:
    insert = (
        "INSERT INTO messages (id, body, updated_at)"
        " SELECT i, 'x', %s FROM generate_series(%s::int, %s::int) i"
    )
    db.execute(insert, ["2026-01-01T00:00Z", 0, 99])
    assert sync(dated)["new"] == 100
    row = store.execute("SELECT bound FROM embedline.source_cursor").fetchone()
    assert row is not None
    db.execute(insert, [row[0], 100, 199])  # all exactly at the bound
    assert sync(dated) == {"read": 100, "new": 100}


@pytest.mark.parametrize("already", [False, True])
def test_a_prepared_transaction_is_not_missed(
    dated: Project,
    db: Connection,
    store: Connection,
    write_messages: Write,
    already: bool,
) -> None:
    row = db.execute("SHOW max_prepared_transactions").fetchone()
    if row == ("0",):
        pytest.skip("the server has max_prepared_transactions = 0")
    write_messages(range(3))
    if already:
        sync(dated)
    db.execute("BEGIN")
    db.execute("INSERT INTO messages (id, body) VALUES (100, 'x')")
    db.execute("UPDATE messages SET body = 'late' WHERE id = 1")
    db.execute("PREPARE TRANSACTION 'slow'")
    sync(dated)
    write_messages(range(3, 5))
    sync(dated)
    db.execute("COMMIT PREPARED 'slow'")
    counts = sync(dated)
    assert (counts["new"], counts["changed"]) == (1, 1)
    assert "100" in keys(store)
    assert sync(dated) == {}


def test_a_row_that_does_not_say_when_is_read_each_time(
    dated: Project, db: Connection, write_messages: Write
) -> None:
    write_messages(range(3))
    sync(dated)
    db.execute("INSERT INTO messages (id, body, updated_at) VALUES (9, 'x', NULL)")
    assert sync(dated) == {"read": 1, "new": 1}
    assert sync(dated) == {"read": 1}


def audits_are_due(store: Connection) -> None:
    store.execute(
        "UPDATE embedline.source_cursor SET audited_at = audited_at - interval '25 h'"
    )


def test_a_backdated_row_is_found_by_the_audit_and_not_before(
    dated: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    write_messages(range(10))
    dated.run()
    db.execute("ALTER TABLE messages DISABLE TRIGGER touch")
    db.execute("UPDATE messages SET body = 'unsaid' WHERE id IN (3, 4)")
    assert sync(dated) == {}
    audits_are_due(store)
    assert sync(dated) == {"read": 2, "changed": 2}
    assert sync(dated) == {}


def test_an_audit_on_demand_reads_every_row(
    dated: Project, db: Connection, write_messages: Write
) -> None:
    write_messages(range(10))
    dated.run()
    db.execute("ALTER TABLE messages DISABLE TRIGGER touch")
    db.execute("UPDATE messages SET body = 'unsaid' WHERE id = 3")
    assert sync(dated, audit=True) == {"read": 10, "changed": 1}


def test_a_record_found_changed_by_a_worker_is_read_by_the_next_sync(
    dated: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    write_messages(range(5))
    sync(dated)
    db.execute("ALTER TABLE messages DISABLE TRIGGER touch")
    db.execute("UPDATE messages SET body = 'unsaid' WHERE id = 3")
    dated.use_case(source={"key_scan": "audit"})
    dated.run()  # whose own sync has been told nothing; its worker finds out
    counts = dated.run()
    assert (counts["changed"], counts["embedded"]) == (1, 1)


def test_a_record_of_a_view_found_changed_by_a_worker_is_found_once(
    dated: Project,
    db: Connection,
    write_messages: Write,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(digests, "BUCKETS", 1)
    db.execute("CREATE VIEW seen_from_afar AS SELECT * FROM messages")
    dated.use_case(source={"table": "seen_from_afar"})
    write_messages(range(5))
    sync(dated)
    db.execute("ALTER TABLE messages DISABLE TRIGGER touch")
    db.execute("UPDATE messages SET body = 'unsaid' WHERE id = 3")
    dated.run()  # whose own sync has been told nothing; its worker finds out
    db.execute("DELETE FROM messages WHERE id = 4")  # so all keys are read
    counts = dated.run()
    assert (counts["changed"], counts["embedded"], counts["deleted"]) == (1, 1, 1)


def test_keys_can_be_left_to_the_audit(
    dated: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    dated.use_case(source={"key_scan": "audit"})
    write_messages(range(10))
    dated.run()
    db.execute("DELETE FROM messages WHERE id = 3")
    write_messages(range(10, 12))
    assert sync(dated) == {"read": 2, "new": 2}
    audits_are_due(store)
    counts = sync(dated)
    assert counts["deleted"] == 1
    assert "3" not in keys(store)


def test_deletions_withheld_at_an_audit_are_looked_for_again(
    dated: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    guard = {"share": 0.2, "rows": 5}
    dated.use_case(source={"key_scan": "audit", "delete_guard": guard})
    write_messages(range(30))
    sync(dated)
    db.execute("DELETE FROM messages WHERE id < 10")
    audits_are_due(store)
    assert sync(dated)["deletes_withheld"] == 10
    assert sync(dated)["deletes_withheld"] == 10
    assert sync(dated, allow_deletes=True) == {"deleted": 10}


@pytest.mark.parametrize("kind", ["view", "query"])
def test_views_and_queries_are_read_by_timestamp(
    dated: Project,
    db: Connection,
    store: Connection,
    write_messages: Write,
    kind: str,
) -> None:
    query = "SELECT id, upper(body) AS body, updated_at FROM messages"
    db.execute(f"CREATE VIEW shouted AS {query}")
    where = {"table": "shouted"} if kind == "view" else {"table": None, "query": query}
    dated.use_case(source={**where, "event_time": None})
    write_messages(range(10))
    dated.run()
    assert sync(dated) == {}
    db.execute("UPDATE messages SET body = 'other' WHERE id = 3")
    db.execute("DELETE FROM messages WHERE id = 4")
    assert sync(dated) == {"read": 1, "changed": 1, "deleted": 1}
    audits_are_due(store)
    assert sync(dated) == {"read": 9}


def test_a_time_that_was_rounded_down_is_not_missed(
    dated: Project, db: Connection, write_messages: Write
) -> None:
    db.execute("ALTER TABLE messages ALTER updated_at TYPE timestamptz(0)")
    db.execute("ALTER TABLE messages DISABLE TRIGGER touch")
    write_messages(range(3))
    sync(dated)
    db.execute(
        "UPDATE messages SET body = 'x', updated_at = date_trunc('second', now())"
        " WHERE id = 1"
    )
    assert sync(dated)["changed"] == 1


def test_explain_says_what_waits_for_the_audit(
    dated: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    use_case = dated.use_case(source={"key_scan": "audit"})
    write_messages(range(5))
    dated.run()
    db.execute("DELETE FROM messages WHERE id = 3")
    db.execute("UPDATE messages SET body = 'x' WHERE id = 4")
    gone, changed = (status.explain(store, use_case, key)["verdict"] for key in "34")
    assert gone.endswith("the next audit removes it")
    assert changed.endswith("or, if source.updated_at was not set, the next audit")


@pytest.fixture
def plain_role(dated: Project, db: Connection) -> Iterator[str]:
    """The use case reads as a role that may select, and no more."""
    role = f"plain_{db.info.dbname}"
    name = sql.Identifier(role)
    db.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
    db.execute(
        sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}").format(name)
    )
    dated.use_case(source={"dsn": make_conninfo(dated.raw["source"]["dsn"], user=role)})
    yield role
    db.execute(sql.SQL("DROP OWNED BY {}").format(name))
    db.execute(sql.SQL("DROP ROLE {}").format(name))


def test_a_role_that_cannot_see_other_sessions_is_told_what_it_needs(
    dated: Project, db: Connection, plain_role: str, write_messages: Write
) -> None:
    write_messages(range(3))
    with pytest.raises(SourceError, match="lacks the privilege") as caught:
        sync(dated)
    found = {f.what: f for f in check.use_case(dated.use_case(), with_model=False)}
    assert found["source"].problem == str(caught.value)
    grant = str(caught.value).split("ask an administrator for: ")[1]
    assert grant == f'GRANT pg_read_all_stats TO "{plain_role}"'
    db.execute(grant)
    assert sync(dated)["new"] == 3


@pytest.mark.parametrize("type_", ["timestamp", "date", "text"])
def test_a_column_that_does_not_name_a_moment_is_refused(
    dated: Project, db: Connection, write_messages: Write, type_: str
) -> None:
    db.execute(f"ALTER TABLE messages ADD changed {type_}")
    dated.use_case(source={"updated_at": "changed"})
    with pytest.raises(SourceError, match="valid: timestamp with time zone; without"):
        sync(dated)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"strategy": "timestamp"}, "needs `updated_at`"),
        ({"updated_at": "sent_at"}, "belongs to strategy 'timestamp'"),
        ({"slack_seconds": 3}, "belongs to strategy 'timestamp'"),
        ({"key_scan": "audit"}, "needs `audit_days`"),
        ({"key_scan": "audit", "strategy": "scan"}, "leave it out"),
        ({"audit_days": 0}, "greater than 0"),
        (
            {"strategy": "outbox", "table": None, "query": "SELECT 1"},
            "needs a `table`",
        ),
    ],
)
def test_fields_that_do_not_fit_the_strategy_are_refused(
    project: Project, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        project.use_case(source=changes)
