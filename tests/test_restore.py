"""A store that was dumped and put back elsewhere goes on, and embeds nothing anew."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

import embedding_tasks
from embedding_tasks import runs, status
from embedding_tasks.connections import Connection, as_environment, connect
from embedding_tasks.local.postgres import binary
from embedding_tasks.store import migrate, versions
from tests.fix_project import Project, end_state, vector_versions
from tests.test_run import run_and_die

Restore = Callable[..., str]
DUMP = ("-Fc", "-n", "embedline", "-n", "embeddings")


def dump(dsn: str, *options: str) -> bytes:
    return subprocess.run(
        [binary("pg_dump"), *DUMP, *options],
        capture_output=True,
        env=as_environment(dsn),
        check=True,
    ).stdout


@pytest.fixture
def restore(
    make_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> Restore:
    """Puts a dump into a new database, which then is the store; returns its
    connection string."""

    def put_back(
        dumped: bytes, *options: str, user: str | None = None, schema: str = "public"
    ) -> str:
        copy = make_database()
        with psycopg.connect(copy, autocommit=True) as admin:
            name = sql.Identifier(schema)
            admin.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(name))
            admin.execute(sql.SQL("CREATE EXTENSION vector SCHEMA {}").format(name))
            if user:
                _allow(admin, user, schema)
        copy = make_conninfo(copy, user=user) if user else copy
        restored = subprocess.run(
            [binary("pg_restore"), "--exit-on-error", *options, "-d", copy],
            input=dumped,
            capture_output=True,
        )
        assert restored.returncode == 0, restored.stderr
        monkeypatch.setenv("EMBEDLINE_STORE_DSN", copy)
        return copy

    return put_back


def _allow(admin: Connection, user: str, schema: str) -> None:
    admin.execute(
        sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(
            sql.Identifier(admin.info.dbname), sql.Identifier(user)
        )
    )


@pytest.fixture
def filled(full_use_case: Project) -> Project:
    full_use_case.run()
    return full_use_case


@pytest.fixture
def role(server: str, store_dsn: str) -> str:
    """One with no rights but to log in."""
    name = f"plain_{psycopg.conninfo.conninfo_to_dict(store_dsn)['dbname']}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    return name


def test_a_restored_store_goes_on_where_the_dumped_one_was(
    filled: Project,
    store: Connection,
    store_dsn: str,
    db: Connection,
    restore: Restore,
) -> None:
    store.execute(
        "CREATE INDEX ON embedline.vector_messages_v1"
        " USING hnsw (embedding vector_cosine_ops)"
    )
    nearest = "SELECT * FROM embeddings.neighbors('messages', '4', 3)"
    before, found = end_state(store), store.execute(nearest).fetchall()
    vectors = embedding_tasks.read_arrow("messages", store=store).sort_by("key")
    dumped = dump(store_dsn)
    db.execute("UPDATE messages SET body = 'changed since' WHERE id = 3")
    db.execute("DELETE FROM messages WHERE id = 5")
    filled.run()  # the dumped store has moved on, too
    with connect(restore(dumped), role="store") as copy:
        migrate.require_current(copy)
        end_state(copy).assert_same(before)
        assert (
            embedding_tasks.read_arrow("messages", store=copy)
            .sort_by("key")
            .equals(vectors)
        )
        assert copy.execute(nearest).fetchall() == found
        assert copy.execute("SELECT state FROM embedline.status").fetchall() == [
            ("active",)
        ]
        rows = vector_versions(copy)
        counts = filled.run()
        assert (counts["embedded"], counts["deleted"]) == (1, 1)
        assert len(rows - vector_versions(copy)) == 2
        assert filled.run()["embedded"] == 0
        end_state(copy).assert_same(end_state(store))
        (index,) = copy.execute(
            "SELECT indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            " JOIN pg_am a ON a.oid = c.relam WHERE amname = 'hnsw'"
        ).fetchall()
        assert index == (True,)
        # and a new version is built and served as in any store
        filled.use_case(pooling="max")
        assert filled.run()["embedded"] == 119
        assert [v.version for v in versions.live_by_name(copy, "messages")] == [2]


def test_a_store_dumped_in_the_middle_of_a_run_is_healed_by_the_next(
    full_use_case: Project, store: Connection, store_dsn: str, restore: Restore
) -> None:
    run_and_die("embedding_tasks.pipeline.isolate", 5, "after")
    # on its way to another store, its runs stay under way for ever
    with closing(connect(restore(dump(store_dsn)), role="store")) as copy:
        leased = copy.execute(
            "SELECT count(*) FROM embedline.ledger WHERE lease_token IS NOT NULL"
        ).fetchone()
        assert leased is not None
        assert leased[0] > 0
        stored = copy.execute(
            "SELECT count(*) FROM embedline.vector_messages_v1"
        ).fetchone()
        assert stored is not None
        assert 0 < stored[0] < 120
        copy.execute("UPDATE embedline.run SET seen_at = now() - interval '25 hours'")
        counts = full_use_case.run()
        assert counts["embedded"] == 120 - stored[0]
        assert copy.execute(
            "SELECT count(lease_token) FROM embedline.ledger"
        ).fetchone() == (0,)
        full_use_case.run()  # by now no lease of the dead run holds
        states = copy.execute(
            "SELECT external_id, state, error FROM embedline.run ORDER BY id"
        ).fetchall()
        assert states[0][:2] == ("killed", "failed")
        assert "no sign of life" in states[0][2]
        assert [state for _, state, _ in states[1:]] == ["success", "success"]
        (row,) = status.of(copy, "messages")
        assert (row["coverage"], row["pending"], row["leased"]) == (1, 0, 0)


def test_a_run_that_lives_is_not_taken_for_abandoned(
    filled: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However old it is, and whatever it waits for: it holds no lease."""
    store.execute(
        "INSERT INTO embedline.run (use_case, external_id, kind, started_at, seen_at)"
        " SELECT u.id, r.name, 'cli', now() - interval '2 days', now() - r.age"
        " FROM embedline.use_case u, (VALUES ('waits', interval '2 days'),"
        " ('queued', '20 hours'), ('gone', '2 days')) AS r (name, age)"
    )
    monkeypatch.setattr(runs, "_BEAT_SECONDS", 0.05)
    with runs.recorded(store, filled.request(external_id="waits"), "train"):
        store.execute(
            "UPDATE embedline.run SET seen_at = now() - interval '2 days'"
            " WHERE external_id IN ('waits', 'gone')"
        )
        seen = "SELECT seen_at > now() - interval '1 minute' FROM embedline.run"
        seen += " WHERE external_id = 'waits'"
        deadline = time.monotonic() + 10
        while store.execute(seen).fetchone() != (True,):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        filled.run()
        states = dict(store.execute("SELECT external_id, state FROM embedline.run"))
    assert states["waits"] == states["queued"] == "running"
    assert states["gone"] == "failed"


def test_a_store_moves_to_an_owner_with_no_rights_but_his_own(
    filled: Project, store_dsn: str, db: Connection, restore: Restore, role: str
) -> None:
    dumped = dump(store_dsn)
    copy = restore(dumped, "--no-owner", "--no-privileges", user=role)
    db.execute("UPDATE messages SET body = 'changed since' WHERE id = 3")
    assert filled.run()["embedded"] == 1
    filled.use_case(storage={"type": "halfvec"})
    assert filled.run()["embedded"] == 120
    with connect(copy, role="store") as moved:
        assert moved.info.user == role
        assert len(embedding_tasks.read("messages", store=moved)) == 120
        assert moved.execute(
            "SELECT count(*) FROM embeddings.neighbors('messages', '4', 3)"
        ).fetchone() == (3,)


def test_rights_of_roles_come_along(
    filled: Project, store: Connection, store_dsn: str, restore: Restore, role: str
) -> None:
    store.execute(
        sql.SQL(
            "GRANT USAGE ON SCHEMA embeddings, embedline TO {0};"
            "GRANT SELECT ON ALL TABLES IN SCHEMA embeddings, embedline TO {0}"
        ).format(sql.Identifier(role))
    )
    copy = restore(dump(store_dsn))
    with connect(make_conninfo(copy, user=role), role="store") as reader:
        assert len(embedding_tasks.read("messages", store=reader)) == 120
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute("DELETE FROM embedline.vector_messages_v1")


def test_pgvector_may_live_in_a_schema_of_its_own(
    full_use_case: Project,
    make_database: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    restore: Restore,
) -> None:
    first = make_database()
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", first)
    with psycopg.connect(first, autocommit=True) as admin:
        admin.execute("CREATE SCHEMA ext; CREATE EXTENSION vector SCHEMA ext")
        migrate.apply(admin)
    full_use_case.run()
    with connect(restore(dump(first), schema="ext"), role="store") as copy:
        assert full_use_case.run()["embedded"] == 0
        assert len(embedding_tasks.read("messages", store=copy)) == 120
        assert copy.execute(
            "SELECT count(*) FROM embeddings.neighbors('messages', '4', 3)"
        ).fetchone() == (3,)


def test_vectors_of_retired_versions_can_be_left_behind(
    filled: Project, store_dsn: str, db: Connection, restore: Restore
) -> None:
    filled.use_case(pooling="max")
    filled.run()
    dumped = dump(store_dsn, "--exclude-table", "embedline.vector_messages_v1")
    with connect(restore(dumped), role="store") as copy:
        assert filled.run()["embedded"] == 0
        number = versions.use_case_id(copy, "messages")
        kept: list[Any] = [
            (row["version"], row["state"], row["vectors"])
            for row in versions.history(copy, number)
        ]
        assert kept == [(1, "retired", None), (2, "active", 120)]
        # the recipe of the one that stayed behind comes back: it is built anew
        filled.use_case(pooling="cls")
        assert filled.run()["embedded"] == 120
        served = embedding_tasks.read("messages", store=copy)
        assert len(served) == 120
