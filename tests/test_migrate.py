from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from psycopg import sql

from embedding_tasks.connections import Connection, connect
from embedding_tasks.errors import StoreError
from embedding_tasks.store import migrate
from tests import search_store
from tests.test_search_reader import CALLS, call


def test_a_second_init_changes_nothing(store: Connection) -> None:
    before = store.execute("SELECT * FROM embedline.migration ORDER BY 1").fetchall()
    assert migrate.apply(store) == []
    after = store.execute("SELECT * FROM embedline.migration ORDER BY 1").fetchall()
    assert before == after
    migrate.require_current(store)


def test_many_inits_at_once_apply_each_file_once(
    make_database: Callable[..., str],
) -> None:
    dsn = make_database()

    def init(_: int) -> list[str]:
        with connect(dsn, role="store") as store:
            return migrate.apply(store)

    with ThreadPoolExecutor(6) as pool:
        applied = [name for names in pool.map(init, range(6)) for name in names]
    files = migrate._files(migrate.FOLDER)
    assert sorted(applied) == sorted(name for name, _ in files)


def test_a_store_that_was_never_initialised_is_refused(
    make_database: Callable[..., str],
) -> None:
    with (
        connect(make_database(), role="store") as store,
        pytest.raises(StoreError, match="embedline init"),
    ):
        migrate.require_current(store)


def test_a_store_of_a_newer_version_is_refused(store: Connection) -> None:
    store.execute(
        "INSERT INTO embedline.migration VALUES ('migrations/9999_future.sql', 'x')"
    )
    with pytest.raises(StoreError, match="9999_future"):
        migrate.apply(store)


def test_an_edited_migration_is_refused_and_an_edited_view_applied(
    store: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = migrate.FOLDER

    def edit(name: str) -> None:
        folder = tmp_path / Path(name).stem
        shutil.copytree(ours, folder)
        with (folder / name).open("a") as file:
            file.write("\n-- a remark\n")
        monkeypatch.setattr(migrate, "FOLDER", folder)

    edit("views/status.sql")
    assert migrate.apply(store) == ["views/status.sql"]
    edit("migrations/0001_machine_room.sql")
    with pytest.raises(StoreError, match="was changed after it was applied"):
        migrate.apply(store)


def test_a_failed_init_leaves_nothing_behind(
    make_database: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_a.sql").write_text("CREATE TABLE embedline.a ();")
    (tmp_path / "migrations" / "0002_b.sql").write_text("SELECT 1 / 0;")
    monkeypatch.setattr(migrate, "FOLDER", tmp_path)
    with connect(make_database(), role="store") as store:
        with pytest.raises(Exception, match="division by zero"):
            migrate.apply(store)
        row = store.execute("SELECT to_regclass('embedline.a')").fetchone()
        assert row == (None,)


def look_in(store: Connection, schema: str) -> None:
    store.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(schema)))


@pytest.mark.parametrize("storage", ["vector", "halfvec"])
def test_pgvector_may_live_in_any_schema_and_move(
    make_database: Callable[..., str], storage: str
) -> None:
    schema = """its $1 "100%" pgvector.x \\ 'pgvector'"""
    with connect(make_database(), role="store") as store:
        name = sql.Identifier(schema)
        store.execute(sql.SQL("CREATE SCHEMA {}").format(name))
        store.execute(sql.SQL("CREATE EXTENSION vector SCHEMA {}").format(name))
        assert "migrations/0001_machine_room.sql" in migrate.apply(store)
        look_in(store, schema)
        made = search_store.make(store, count=60, storage=storage)
        search_store.add_index(store, made, storage)
        for question in CALLS:
            assert call(store, question, made), question

        store.execute("ALTER EXTENSION vector SET SCHEMA public")
        with pytest.raises(StoreError, match="run `embedline init`"):
            migrate.require_current(store)
        assert "functions/search.sql" in migrate.apply(store)
        look_in(store, "public")
        for question in CALLS:
            assert call(store, question, made), question
        search_store.make(store, "others", count=10)


def test_a_schema_that_would_end_the_text_of_a_function_is_refused(
    make_database: Callable[..., str],
) -> None:
    with connect(make_database(), role="store") as store:
        store.execute('CREATE SCHEMA "a$$b"; CREATE EXTENSION vector SCHEMA "a$$b"')
        with pytest.raises(StoreError, match=r"may not be called 'a\$\$b'"):
            migrate.apply(store)


@pytest.fixture
def first_release(make_database: Callable[..., str]) -> Iterator[Connection]:
    """A store as the first release made it, but for its functions and views."""
    first, *_ = migrate._files(migrate.FOLDER)
    assert first[0] == "migrations/0001_machine_room.sql"
    with connect(make_database(), role="store") as store:
        with store.transaction():
            migrate._prepare(store)
            migrate._run(store, *first, "public", None)
        yield store


def test_a_store_of_the_first_release_goes_on(first_release: Connection) -> None:
    store = first_release
    store.execute("INSERT INTO embedline.use_case (name) VALUES ('old')")
    store.execute(
        "INSERT INTO embedline.model_version (use_case, version, fingerprint, spec,"
        "  dims, storage, distance, table_name, state)"
        " SELECT id, 1, 'f', '{\"encoder\": {\"model\": \"m\"}}', 3, 'vector',"
        "  'cosine', 'vector_old_v1', 'active' FROM embedline.use_case"
    )
    store.execute("CREATE TABLE embedline.vector_old_v1 (key text)")
    store.execute(
        "INSERT INTO embedline.source_cursor (use_case, relation, definition, server,"
        "  horizon, full_at)"
        " SELECT id, 'records', '{}', 's', '7', '2026-01-01' FROM embedline.use_case"
    )
    assert "migrations/0002_recipes.sql" in migrate.apply(store)
    row = store.execute(
        "SELECT spec, feature, unit FROM embedline.model_version"
    ).fetchone()
    spec = {"encoder": {"model": "m", "type": "text"}, "template": None}
    assert row == (spec, "embedding", "record")
    store.execute("SELECT box FROM embedline.vector_old_v1")
    cursor = store.execute(
        "SELECT horizon::text, audited_at = '2026-01-01', bound, audit_horizon"
        " FROM embedline.source_cursor"
    ).fetchone()
    assert cursor == ("7", True, None, None)


def test_what_depends_on_a_function_that_is_made_anew_is_named(
    first_release: Connection,
) -> None:
    first_release.execute(
        "CREATE FUNCTION embeddings.nearest(text, vector, int) RETURNS int"
        " LANGUAGE sql AS 'SELECT 1';"
        "CREATE VIEW mine AS SELECT embeddings.nearest('x', '[1]', 1)"
    )
    with pytest.raises(StoreError, match=r"view public\.mine depends on function"):
        migrate.apply(first_release)
