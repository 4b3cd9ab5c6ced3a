"""Partitions, children, standbys, backups, subscribers: nothing is missed of any."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from embedding_tasks import check
from embedding_tasks.connections import Connection, as_environment, connect
from embedding_tasks.errors import SourceError
from embedding_tasks.local.postgres import binary
from embedding_tasks.source import installation
from embedding_tasks.source.installation import Reader
from embedding_tasks.use_case import UseCase
from tests.fix_postgres import start_server
from tests.fix_project import MESSAGES, Project, keys, sync

Write = Callable[..., None]
_numbers = count()


def install(use_case: UseCase, dsn: str) -> None:
    with connect(dsn, role="source") as source:
        script = installation.install(source, use_case, Reader.of(source))
        installation.run(source, script)


def ids(db: Connection, table: str = "messages") -> set[str]:
    return {str(id_) for (id_,) in db.execute(f"SELECT id FROM {table}")}


# Partitions and children


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
    project.use_case(source={"table": "parted", "key": "id", "event_time": None})
    sync(project)
    return project


def test_a_row_that_moves_to_another_partition_is_the_same_record(
    parted: Project, db: Connection, store: Connection
) -> None:
    db.execute("UPDATE parted SET part = 2 WHERE id = 0")
    assert sync(parted) == {"read": 1}
    db.execute("UPDATE parted SET part = 1, body = 'y' WHERE id IN (1, 3)")
    assert sync(parted) == {"read": 2, "changed": 2}
    assert keys(store) == ids(db, "parted")


def test_a_partition_that_is_detached_takes_its_records_with_it(
    parted: Project, db: Connection, store: Connection
) -> None:
    db.execute("ALTER TABLE parted DETACH PARTITION parted_1")
    assert sync(parted) == {"read": 5, "deleted": 5}
    db.execute("UPDATE parted_1 SET body = 'z'")
    db.execute("ALTER TABLE parted ATTACH PARTITION parted_1 FOR VALUES IN (1)")
    assert sync(parted)["new"] == 5
    db.execute("TRUNCATE parted_2a")
    assert sync(parted) == {"deleted": 5}
    assert keys(store) == ids(db, "parted")


def test_a_late_commit_in_a_partition_is_not_missed(
    parted: Project, db: Connection, source_dsn: str, store: Connection
) -> None:
    with psycopg.connect(source_dsn) as slow:
        slow.execute("INSERT INTO parted VALUES (50, 1, 'x')")
        slow.execute("UPDATE parted SET part = 1 WHERE id = 3")
        slow.execute("DELETE FROM parted WHERE id = 5")
        db.execute("INSERT INTO parted VALUES (60, 2, 'x')")
        assert sync(parted)["new"] == 1
        slow.commit()
    counts = sync(parted)
    assert (counts["new"], counts["deleted"]) == (1, 1)
    assert keys(store) == ids(db, "parted")


def test_children_of_a_table_are_followed(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    db.execute("CREATE TABLE old_messages () INHERITS (messages)")
    write_messages(range(5))
    db.execute("INSERT INTO old_messages (id, body) VALUES (10, 'x'), (11, 'x')")
    assert sync(project)["new"] == 7
    assert sync(project) == {}
    db.execute("UPDATE messages SET body = 'y' WHERE id IN (1, 10)")
    assert sync(project) == {"read": 2, "changed": 2}
    with db.transaction():  # moves
        db.execute("INSERT INTO old_messages SELECT * FROM messages WHERE id = 2")
        db.execute("DELETE FROM ONLY messages WHERE id = 2")
    assert sync(project) == {"read": 1}
    db.execute("ALTER TABLE old_messages NO INHERIT messages")
    assert sync(project)["deleted"] == 3
    db.execute("ALTER TABLE old_messages INHERIT messages")
    assert sync(project)["new"] == 3
    assert keys(store) == ids(db)


# Strategies and their cursors


def test_a_cursor_of_the_release_before_goes_on(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    """It has no strategy in its definition, and none of the columns that are new."""
    write_messages(range(10))
    sync(project)
    row = store.execute("SELECT definition FROM embedline.source_cursor").fetchone()
    assert row is not None
    assert row[0].keys() == {
        *("relation", "data", "source", "labelled", "label", "prediction"),
    }
    assert row[0]["source"].keys() == {
        *("table", "query", "key", "input", "where", "event_time"),
        *("environment", "link", "tags", "start"),
    }
    store.execute(
        "UPDATE embedline.source_cursor SET bound = NULL, audit_horizon = NULL,"
        " prune_horizon = NULL, prune_at = NULL"
    )
    write_messages(range(10, 12))
    assert sync(project) == {"read": 2, "new": 2}
    project.use_case(source={"strategy": "scan"})
    assert sync(project) == {"read": 12}
    project.use_case(source={"strategy": "snapshot", "audit_days": 1})
    assert sync(project) == {}
    store.execute(
        "UPDATE embedline.source_cursor SET audited_at = audited_at - interval '2 days'"
    )
    assert sync(project) == {}


def test_a_snapshot_may_leave_deletes_to_its_audits(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    project.use_case(source={"key_scan": "audit", "audit_days": 0.5})
    write_messages(range(10))
    sync(project)
    db.execute("DELETE FROM messages WHERE id = 3")
    db.execute("UPDATE messages SET body = 'x' WHERE id = 4")
    write_messages(range(10, 11))
    assert sync(project) == {"read": 2, "new": 1, "changed": 1}
    store.execute(
        "UPDATE embedline.source_cursor SET audited_at = audited_at - interval '13 h'"
    )
    assert sync(project) == {"read": 2, "deleted": 1}
    assert keys(store) == ids(db)


def test_a_record_deleted_before_it_was_embedded_waits_for_no_audit(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    project.use_case(source={"key_scan": "audit", "audit_days": 1})
    write_messages(range(5))
    sync(project)
    db.execute("DELETE FROM messages WHERE id = 3")
    project.run()  # a worker finds it gone
    assert sync(project) == {"deleted": 1}


# Servers


@dataclass(frozen=True)
class Pair:
    """A primary and its standby, which are streaming."""

    primary: str
    standby: str

    def write(self, statement: str) -> None:
        with psycopg.connect(self.primary, autocommit=True) as db:
            db.execute(statement)

    def catch_up(self) -> None:
        """Until the standby shows all that the primary has."""
        with (
            psycopg.connect(self.primary, autocommit=True) as db,
            psycopg.connect(self.standby, autocommit=True) as replica,
        ):
            row = db.execute("SELECT pg_current_wal_lsn()::text").fetchone()
            assert row is not None
            for _ in range(600):
                seen = replica.execute(
                    "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", row
                ).fetchone()
                if seen == (True,):
                    return
                time.sleep(0.05)
        raise AssertionError("the standby does not follow")


@pytest.fixture(scope="module")
def primary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("primary")
    with (
        start_server(home) as conninfo,
        psycopg.connect(conninfo, autocommit=True) as db,
    ):
        db.execute("ALTER SYSTEM SET wal_level = logical")
        db.execute("ALTER SYSTEM SET max_prepared_transactions = 10")
        db.execute("ALTER SYSTEM SET fsync = off")
    with start_server(home) as conninfo:
        yield conninfo


def copy_of(primary: str, home: Path, *options: str) -> None:
    """A base backup in the place where `start_server` looks."""
    folder = home / "postgres"
    done = subprocess.run(
        [binary("pg_basebackup"), "-D", folder, "-c", "fast", "-d", primary, *options],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for left_over in (".handle_pids.json", *map(str, folder.glob(".s.PGSQL.*"))):
        (folder / left_over).unlink(missing_ok=True)
    with psycopg.connect(primary, autocommit=True) as db:
        row = db.execute("SHOW data_directory").fetchone()
    assert row is not None
    # the embedded server runs as a user of its own where tests are run by root
    subprocess.run(["chown", "-R", "--reference", row[0], folder], check=True)
    folder.chmod(0o700)


@pytest.fixture(scope="module")
def standby(primary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("standby")
    copy_of(primary, home, "-R")
    with start_server(home) as conninfo:
        yield conninfo


@pytest.fixture
def pair(primary: str, standby: str) -> Iterator[Pair]:
    """A fresh database on both."""
    name = f"db_{next(_numbers)}"
    identifier = sql.Identifier(name)
    with psycopg.connect(primary, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
    made = Pair(
        make_conninfo(primary, dbname=name), make_conninfo(standby, dbname=name)
    )
    made.write(MESSAGES)
    made.write(
        "INSERT INTO messages (id, body) SELECT i, 'x' FROM generate_series(0, 19) i"
    )
    Pair(primary, standby).catch_up()
    yield made
    with psycopg.connect(primary, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


@pytest.fixture
def followed(project: Project, pair: Pair) -> Project:
    """Source on the standby, store on another server altogether."""
    project.use_case(source={"dsn": pair.standby})
    return project


@pytest.mark.parametrize("strategy", ["snapshot", "outbox"])
def test_a_standby_shows_what_was_committed_late(
    followed: Project, pair: Pair, store: Connection, strategy: str
) -> None:
    use_case = followed.use_case(source={"strategy": strategy})
    if strategy == "outbox":
        install(use_case, pair.primary)
        pair.catch_up()
    assert sync(followed) == {"read": 20, "new": 20}
    with psycopg.connect(pair.primary) as slow:
        slow.execute("SELECT pg_current_xact_id()")
        slow.execute("SAVEPOINT one")
        slow.execute("INSERT INTO messages (id, body) VALUES (100, 'late')")
        slow.execute("SAVEPOINT two")
        slow.execute("UPDATE messages SET body = 'late' WHERE id = 3")
        slow.execute("RELEASE SAVEPOINT two")
        slow.execute("DELETE FROM messages WHERE id = 4")
        pair.write("INSERT INTO messages (id, body) VALUES (20, 'x')")
        pair.catch_up()
        assert sync(followed)["new"] == 1
        pair.write("INSERT INTO messages (id, body) VALUES (21, 'x')")
        pair.catch_up()
        assert sync(followed)["new"] == 1
        slow.commit()
    pair.catch_up()
    counts = sync(followed)
    assert (counts["new"], counts["changed"], counts["deleted"]) == (1, 1, 1)
    pair.write("CHECKPOINT")
    pair.catch_up()
    sync(followed)
    with psycopg.connect(pair.primary) as db:
        assert keys(store) == ids(db)


@pytest.mark.parametrize("strategy", ["snapshot", "outbox"])
def test_a_standby_shows_what_was_prepared(
    followed: Project, pair: Pair, store: Connection, strategy: str
) -> None:
    use_case = followed.use_case(source={"strategy": strategy})
    if strategy == "outbox":
        install(use_case, pair.primary)
        pair.catch_up()
    name = f"slow {strategy}"
    with psycopg.connect(pair.primary, autocommit=True) as db:
        db.execute("BEGIN")
        db.execute("INSERT INTO messages (id, body) VALUES (100, 'late')")
        db.execute(sql.SQL("PREPARE TRANSACTION {}").format(sql.Literal(name)))
        pair.catch_up()
        assert sync(followed)["new"] == 20
        pair.write("INSERT INTO messages (id, body) VALUES (20, 'x')")
        pair.catch_up()
        assert sync(followed)["new"] == 1
        db.execute(sql.SQL("COMMIT PREPARED {}").format(sql.Literal(name)))
    pair.catch_up()
    assert sync(followed)["new"] == 1
    assert "100" in keys(store)


def test_a_standby_cannot_be_pruned_and_is_read_all_the_same(
    followed: Project,
    pair: Pair,
    store: Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    install(followed.use_case(source={"strategy": "outbox"}), pair.primary)
    pair.write("UPDATE messages SET body = 'y' WHERE id = 2")
    pair.catch_up()
    sync(followed)
    store.execute(
        "UPDATE embedline.source_cursor SET prune_at = prune_at - interval '5 days'"
    )
    pair.write("UPDATE messages SET body = 'y' WHERE id = 3")
    pair.catch_up()
    assert sync(followed) == {"read": 1, "changed": 1}
    assert "outbox not pruned" in caplog.text


def test_a_standby_is_refused_to_strategy_timestamp(
    followed: Project, pair: Pair
) -> None:
    followed.use_case(source={"strategy": "timestamp", "updated_at": "sent_at"})
    with pytest.raises(SourceError, match="this is a standby") as caught:
        sync(followed)
    assert "valid here: 'snapshot', 'outbox', 'scan'" in str(caught.value)
    found = {f.what: f for f in check.use_case(followed.use_case(), with_model=False)}
    assert found["source"].problem == str(caught.value)


STRATEGIES: dict[str, dict[str, Any]] = {
    "snapshot": {"strategy": "snapshot"},
    "timestamp": {"strategy": "timestamp", "updated_at": "sent_at", "slack_seconds": 0},
    "outbox": {"strategy": "outbox"},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_database_restored_from_a_dump_is_read_whole(
    project: Project,
    db: Connection,
    store: Connection,
    source_dsn: str,
    make_database: Callable[..., str],
    write_messages: Write,
    strategy: str,
) -> None:
    if db.info.server_version < 170000:
        pytest.skip("this pg_restore sets transaction_timeout, of PostgreSQL 17")
    use_case = project.use_case(source=STRATEGIES[strategy])
    if strategy == "outbox":
        install(use_case, source_dsn)
    write_messages(range(10))
    dump = subprocess.run(
        [binary("pg_dump"), "-Fc"],
        capture_output=True,
        env=as_environment(source_dsn),
        check=True,
    )
    db.execute("UPDATE messages SET body = 'lost' WHERE id = 3")
    db.execute("DELETE FROM messages WHERE id = 4")
    sync(project)
    copy = make_database()
    subprocess.run(
        [binary("pg_restore"), "--exit-on-error", "-d", copy],
        input=dump.stdout,
        check=True,
    )
    project.use_case(source={"dsn": copy})
    assert sync(project) == {"read": 10, "new": 1, "changed": 1}
    with psycopg.connect(copy, autocommit=True) as restored:
        restored.execute(
            "UPDATE messages SET body = 'after', sent_at = now() WHERE id = 5"
        )
        restored.execute("DELETE FROM messages WHERE id = 6")
        counts = sync(project)
        assert (counts["changed"], counts["deleted"]) == (1, 1)
        assert keys(store) == ids(restored)


@pytest.mark.parametrize("strategy", ["timestamp", "outbox"])
def test_a_server_restored_from_a_base_backup_is_read_whole(
    project: Project,
    pair: Pair,
    store: Connection,
    tmp_path: Path,
    strategy: str,
) -> None:
    use_case = project.use_case(source={"dsn": pair.primary, **STRATEGIES[strategy]})
    if strategy == "outbox":
        install(use_case, pair.primary)
    copy_of(pair.primary, tmp_path / "copy")
    pair.write("UPDATE messages SET body = 'lost', sent_at = now() WHERE id = 3")
    pair.write("DELETE FROM messages WHERE id = 4")
    sync(project)
    with start_server(tmp_path / "copy") as restored_server:
        with psycopg.connect(pair.primary) as db:
            dsn = make_conninfo(restored_server, dbname=db.info.dbname)
        project.use_case(source={"dsn": dsn})
        assert sync(project) == {"read": 20, "new": 1, "changed": 1}
        with psycopg.connect(dsn, autocommit=True) as restored:
            restored.execute(
                "UPDATE messages SET body = 'after', sent_at = now() WHERE id = 5"
            )
            assert sync(project)["changed"] == 1
            assert keys(store) == ids(restored)


def test_an_outbox_on_a_subscriber_tells_of_replicated_rows(
    project: Project, db: Connection, source_dsn: str, pair: Pair, store: Connection
) -> None:
    """Rows that logical replication applies fire ordinary triggers not at all."""
    install(project.use_case(source={"strategy": "outbox"}), source_dsn)
    slot = f"slot_{db.info.dbname}"
    pair.write("CREATE PUBLICATION published FOR TABLE messages")
    db.execute(
        sql.SQL(
            "CREATE SUBSCRIPTION followed CONNECTION {} PUBLICATION published"
            " WITH (slot_name = {})"
        ).format(sql.Literal(pair.primary), sql.Literal(slot))
    )
    try:
        until(db, "SELECT count(*) = 20 FROM messages")
        assert sync(project)["new"] == 20
        pair.write("UPDATE messages SET body = 'y' WHERE id IN (3, 4)")
        pair.write("DELETE FROM messages WHERE id = 5")
        pair.write("INSERT INTO messages (id, body) VALUES (100, 'x')")
        until(db, "SELECT count(*) = 1 FROM messages WHERE id = 100")
        assert sync(project) == {"read": 3, "new": 1, "changed": 2, "deleted": 1}
        pair.write("TRUNCATE messages")
        until(db, "SELECT count(*) = 0 FROM messages")
        assert sync(project, allow_deletes=True) == {"deleted": 20}
    finally:
        db.execute("DROP SUBSCRIPTION followed")


def until(db: Connection, condition: str) -> None:
    for _ in range(600):
        if db.execute(condition).fetchone() == (True,):  # type: ignore[arg-type]
            return
        time.sleep(0.05)
    raise AssertionError(condition)
