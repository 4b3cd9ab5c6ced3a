"""Only keys whose buckets differ are read, and none that differs is passed over."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from embedding_tasks import digests, staging
from embedding_tasks.connections import Connection
from embedding_tasks.errors import SourceError
from tests.fix_project import Project, keys, sync

Write = Callable[..., None]


@pytest.fixture
def keys_read(monkeypatch: pytest.MonkeyPatch, store: Connection) -> list[int]:
    """How many keys each sync has read one by one."""
    counts: list[int] = []
    check = staging._check_keys

    def counted(target: staging.Target, *args: object) -> int:
        if "seen" in args:
            counts.append(target.value("SELECT count(*) FROM seen"))
        return check(target, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(staging, "_check_keys", counted)
    return counts


def test_no_key_is_read_where_all_are_the_same(
    project: Project, write_messages: Write, keys_read: list[int]
) -> None:
    write_messages(range(500))
    sync(project)
    sync(project)
    assert keys_read == [500, 0]


def test_what_comes_and_goes_is_found_by_its_bucket(
    project: Project,
    db: Connection,
    store: Connection,
    write_messages: Write,
    keys_read: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(digests, "BUCKETS", 64)
    write_messages(range(1000))
    sync(project)
    db.execute("DELETE FROM messages WHERE id = 17")
    write_messages(range(1000, 1001))
    store.execute("DELETE FROM embedline.ledger WHERE key = '33'")  # as by a restore
    assert sync(project) == {"read": 2, "new": 2, "deleted": 1}
    assert keys(store) == {str(i) for i in range(1001)} - {"17"}
    assert 0 < keys_read[1] < 200


def test_a_record_the_ledger_alone_knows_is_looked_for(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    write_messages(range(20))
    project.run()
    store.execute("DELETE FROM embedline.record WHERE key = '3'")
    db.execute("DELETE FROM messages WHERE id = 3")
    sync(project)
    assert "3" not in keys(store, "embeddings.messages")


@pytest.mark.parametrize("bytes_", [1999, 2000, 2001])
def test_a_key_too_long_is_in_no_bucket(
    project: Project, db: Connection, bytes_: int
) -> None:
    db.execute("CREATE TABLE named (id text PRIMARY KEY, body text)")
    db.execute("INSERT INTO named VALUES ('a', 'x'), (repeat('ä', 999), 'y')")
    db.execute("INSERT INTO named VALUES (repeat('k', %s), 'z')", [bytes_])
    project.use_case(source={"table": "named", "event_time": None})
    unusable = {"unusable_keys": 1} if bytes_ > 2000 else {}
    assert sync(project)["new"] == 3 - len(unusable)
    assert sync(project) == unusable


def test_keys_of_several_columns_and_other_collations_agree_on_both_sides(
    project: Project, db: Connection, keys_read: list[int]
) -> None:
    db.execute(
        'CREATE TABLE pairs (a text COLLATE "und-x-icu", b int, body text,'
        " PRIMARY KEY (a, b))"
        if db.execute("SELECT FROM pg_collation WHERE collname = 'und-x-icu'").rowcount
        else "CREATE TABLE pairs (a text, b int, body text, PRIMARY KEY (a, b))"
    )
    db.execute("INSERT INTO pairs VALUES ('ä\"', 1, 'x'), ('A', 1, 'y'), ('a', 1, 'z')")
    project.use_case(source={"table": "pairs", "key": ["a", "b"], "event_time": None})
    sync(project)
    assert sync(project) == {}
    assert keys_read == [3, 0]


def test_a_server_that_cannot_digest_gives_all_its_keys(
    project: Project,
    db: Connection,
    write_messages: Write,
    keys_read: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(digests, "_OLDEST_SERVER", db.info.server_version + 1)
    write_messages(range(50))
    sync(project)
    db.execute("DELETE FROM messages WHERE id = 17")
    assert sync(project) == {"deleted": 1}
    assert keys_read == [50, 49]


def test_a_key_that_occurs_twice_in_the_place_of_another_is_refused(
    project: Project, db: Connection, write_messages: Write
) -> None:
    db.execute("ALTER TABLE messages DROP CONSTRAINT messages_pkey")
    write_messages(range(50))
    sync(project)
    assert sync(project) == {}
    db.execute("UPDATE messages SET id = 3 WHERE id = 4")
    with pytest.raises(SourceError, match=r"'3' \(2 rows\)"):
        sync(project)
