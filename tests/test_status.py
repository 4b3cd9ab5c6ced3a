"""How a use case stands, to the record; and why each record stands where it does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from embedding_tasks import backfills, forgetting, ledger, run, status
from embedding_tasks.connections import Connection
from embedding_tasks.source import horizon
from embedding_tasks.store import versions
from embedding_tasks.use_case import Everything
from tests.fix_cli import Command
from tests.fix_models import poison
from tests.fix_project import Project, sync

Write = Callable[..., None]


def numbers(store: Connection) -> dict[str, Any]:
    return status.of(store)[0]


# The counts


def test_every_record_is_counted_once_wherever_it_stands(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    project.use_case(source={"start": "2026-01-01T00:10:00Z"})
    write_messages(range(40))
    db.execute("INSERT INTO messages (id, body) VALUES (50, NULL), (51, NULL)")
    project.run()
    run.sync_stage(project.request(backfill=Everything()))
    backfills.pause(store, "messages")
    db.execute("UPDATE messages SET body = 'other' WHERE id BETWEEN 20 AND 25")
    sync(project)
    version = versions.active(store, "messages")
    lease = ledger.claim(store, version, "me", 3, 60, uuid4())
    ledger.claim(store, version, "other", 1, 60, uuid4())
    dead, retried, _ = sorted(lease.hashes)
    retry = project.use_case().retry
    ledger.fail(
        store, lease, {dead: "no"}, retry.model_copy(update={"max_attempts": 1})
    )
    ledger.fail(store, lease, {retried: "no"}, retry)
    now = numbers(store)
    assert {name: now[name] for name in (*_COUNTS, "retrying", "leased")} == {
        **{"wanted": 40, "stored": 24, "pending": 5, "paused": 10, "dead": 1},
        **{"skipped": 2, "retrying": 1, "leased": 2},
    }
    assert now["wanted"] == sum(now[n] for n in ("stored", "pending", "paused", "dead"))
    assert now["coverage"] == 24 / 40
    assert now["oldest_pending_age"] is not None
    assert now["last_success"] is not None


_COUNTS = ("wanted", "stored", "pending", "paused", "dead", "skipped")


# What holds the horizon back


@contextmanager
def writing(dsn: str, application: str = "slow") -> Iterator[psycopg.Connection[Any]]:
    """Somebody else's transaction that has written, and not ended."""
    with psycopg.connect(dsn, application_name=application) as connection:
        connection.execute("INSERT INTO messages (id, body) VALUES (1000, 'x')")
        yield connection
        connection.rollback()


def test_nothing_holds_the_horizon_of_a_quiet_source(
    project: Project, store: Connection, write_messages: Write
) -> None:
    write_messages(range(5))
    sync(project)
    sync(project)
    assert numbers(store)["held_back"] is None


def test_status_says_who_holds_the_horizon_back(
    embedline: Command,
    project: Project,
    source_dsn: str,
    store: Connection,
    write_messages: Write,
) -> None:
    with writing(source_dsn) as slow:
        write_messages(range(5))
        sync(project)
        held = numbers(store)["held_back"]
        assert held["transactions"] > 0
        pid = slow.info.backend_pid
        assert (held["pid"], held["application"]) == (pid, "slow")
        assert held["state"] == "idle in transaction"
        assert held["since"]
        told = embedline("status", "messages")
        assert f"held back by process {pid}, user " in told
        assert "the next sync reads again what was written since" in told
        (row,) = json.loads(embedline("status", "--json"))
        assert row["held_back"] == held
    sync(project)
    assert numbers(store)["held_back"] is None
    assert "held back" not in embedline("status", "messages")


def test_a_role_that_may_see_little_says_what_it_can(
    project: Project,
    db: Connection,
    source_dsn: str,
    store: Connection,
    write_messages: Write,
) -> None:
    write_messages(range(5))
    role = f"reader_{db.info.dbname}"
    db.execute(f"CREATE ROLE {role} LOGIN; GRANT SELECT ON messages TO {role}")
    try:
        project.use_case(source={"dsn": make_conninfo(source_dsn, user=role)})
        with writing(source_dsn) as slow:
            sync(project)
            held = numbers(store)["held_back"]
            assert held["pid"] == slow.info.backend_pid
            assert held["user"] == slow.info.user
            assert "since" not in held
    finally:
        db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_prepared_transaction_that_holds_it_back_is_named(
    embedline: Command,
    project: Project,
    db: Connection,
    store: Connection,
    write_messages: Write,
) -> None:
    if db.execute("SHOW max_prepared_transactions").fetchone() == ("0",):
        pytest.skip("the server has max_prepared_transactions = 0")
    gid = f"left behind in {db.info.dbname}"
    db.execute("BEGIN")
    db.execute("INSERT INTO messages (id, body) VALUES (100, 'x')")
    db.execute(f"PREPARE TRANSACTION '{gid}'")
    try:
        write_messages(range(3))
        sync(project)
        held = numbers(store)["held_back"]
        assert (held["prepared"], held["user"]) == (gid, db.info.user)
        assert held["database"] == db.info.dbname
        told = embedline("status", "messages")
        assert f"held back by the prepared transaction '{gid}'" in told
    finally:
        db.execute(f"ROLLBACK PREPARED '{gid}'")


def test_a_source_that_is_scanned_has_no_horizon_to_hold_back(
    project: Project, source_dsn: str, store: Connection, write_messages: Write
) -> None:
    project.use_case(source={"strategy": "scan"})
    write_messages(range(3))
    with writing(source_dsn):
        sync(project)
    assert numbers(store)["held_back"] is None


def test_a_transaction_that_has_ended_meanwhile_leaves_its_number_alone(
    db: Connection, source_dsn: str
) -> None:
    db.execute("CREATE TABLE messages (id bigint, body text)")
    with psycopg.connect(source_dsn) as looking:
        looking.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with writing(source_dsn) as slow:
            db.execute("INSERT INTO messages VALUES (1, 'x')")
            row = looking.execute(
                "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
            ).fetchone()
            assert row is not None
            slow.rollback()
        held = horizon.held_back(looking, row[0])
    assert held is not None
    assert held.keys() == {"transactions"}


# Why one record stands where it does


@pytest.fixture
def explained(project: Project, store: Connection, write_messages: Write) -> Any:
    """Ten records, the first five before the start; returns a record's verdict."""
    project.use_case(source={"start": "2026-01-01T00:05:00Z"})
    write_messages(range(10))
    run.sync_stage(project.request())

    def explain(key: str) -> str:
        verdict: str = status.explain(store, project.use_case(), key)["verdict"]
        return verdict

    return explain


def one(store: Connection, change: str, key: str) -> None:
    store.execute(
        f"UPDATE embedline.ledger SET {change} WHERE key = %s",
        [key],
    )


def test_explain_knows_what_is_not_in_the_store(
    explained: Any, db: Connection, project: Project, store: Connection
) -> None:
    assert explained("99") == "not in the source, or kept out by source.where"
    assert explained("no number") == explained("99")
    assert explained("3").startswith("before source.start (2026-01-01)")
    db.execute("INSERT INTO messages (id, body) VALUES (11, 'x')")
    assert explained("11") == "in the source, and not yet seen by a sync"


def test_explain_knows_what_is_gone_or_withheld(
    explained: Any, db: Connection, project: Project, store: Connection
) -> None:
    db.execute("DELETE FROM messages WHERE id IN (6, 7, 8)")
    assert explained("7").endswith("the next sync removes it")
    project.use_case(source={"delete_guard": {"rows": 1}})
    sync(project)
    assert "the delete guard keeps it until a run with --allow-deletes" in explained(
        "7"
    )


def test_explain_knows_who_waits_and_behind_how_many(
    explained: Any, store: Connection
) -> None:
    assert explained("5") == "waiting to be embedded, behind 0 others"
    assert explained("9") == "waiting to be embedded, behind 4 others"
    one(store, "priority = 10", "5")
    assert explained("5") == "waiting to be embedded, behind 4 others"
    one(store, "attempts = 1, next_attempt_at = now() + interval '1 hour'", "9")
    assert explained("5") == "waiting to be embedded, behind 3 others"


def test_explain_knows_who_holds_a_record(explained: Any, store: Connection) -> None:
    version = versions.active(store, "messages")
    ledger.claim(store, version, "run_7/0", 1, 60, uuid4())
    assert explained("5") == "being embedded by run_7/0"
    one(store, "lease_until = now() - interval '1 second'", "5")
    assert explained("5").startswith("waiting to be embedded")


def test_explain_knows_what_was_put_off_or_failed_or_died(
    explained: Any, project: Project, store: Connection
) -> None:
    version = versions.active(store, "messages")
    lease = ledger.claim(store, version, "me", 5, 60, uuid4())
    ledger.defer(store, lease, ["5"], 60)
    retry = project.use_case(retry={"backoff_seconds": 3600}).retry
    ledger.fail(store, lease, {"6": "a mishap"}, retry)
    ledger.fail(
        store, lease, {"7": "fatal"}, retry.model_copy(update={"max_attempts": 1})
    )
    assert "the source had moved on when a worker looked" in explained("5")
    assert explained("6").startswith("to be tried again at 20")
    assert explained("6").endswith("after 1 attempts: a mishap")
    assert explained("7") == "dead after 1 attempts: fatal"


def test_explain_knows_what_is_done(
    explained: Any, db: Connection, project: Project
) -> None:
    db.execute("INSERT INTO messages (id, body) VALUES (20, NULL)")
    project.run()
    assert explained("20") == "its input is null: nothing to embed"
    assert explained("5") == "stored, and its vector is of its current input"
    db.execute("UPDATE messages SET body = 'x' WHERE id = 5")
    assert explained("5") == "changed since the last sync; the next one sees it"


def test_explain_knows_what_was_forgotten_or_paused(
    explained: Any, project: Project, store: Connection
) -> None:
    run.sync_stage(project.request(backfill=Everything()))
    (number,) = backfills.pause(store, "messages")
    assert explained("3") == (
        f"waits for backfill {number}, which is paused; "
        f"`embedline backfill resume messages {number}`"
    )
    forgetting.forget(store, versions.use_case_id(store, "messages"), "3")
    assert explained("3").startswith("forgotten on request at 20")


# Dead records, one by one


def test_single_dead_records_get_another_chance(
    embedline: Command,
    project: Project,
    store: Connection,
    write_messages: Write,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project.use_case(retry={"max_attempts": 1}, thresholds={"undone_share": 1})
    write_messages(range(9))
    with monkeypatch.context() as patch:
        poison(patch, "number 3", "number 5", "number 7")
        project.run()
    assert numbers(store)["dead"] == 3
    retry = ("retry", "messages", "--dead")
    assert "2 records" in embedline(*retry, "--key", "3", "--key", "5", "--key", "8")
    assert (numbers(store)["dead"], numbers(store)["pending"]) == (1, 2)
    assert project.run()["embedded"] == 2
