"""Four roles, each with the least right its work takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

import embedding_tasks
from embedding_tasks.connections import Connection
from embedding_tasks.errors import ConfigError, SearchError, StoreError
from embedding_tasks.monitoring.labels import outcomes
from embedding_tasks.store import migrate, roles, versions
from embedding_tasks.store.roles import Names
from tests import search_store
from tests.fix_cli import Command
from tests.fix_project import Project, end_state

Login = Callable[..., str]


@pytest.fixture
def names(project: Project, embedline: Command, prefix: str) -> Names:
    """The roles of the project's store."""
    embedline("init", "--roles", "--prefix", prefix)
    return Names.of(prefix)


def ask(dsn: str, statement: str, *parameters: object) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []


def test_a_whole_use_case_runs_as_the_writer(
    full_use_case: Project,
    names: Names,
    login: Login,
    store: Connection,
    store_dsn: str,
    db: Connection,
    monkeypatch: pytest.MonkeyPatch,
    make_model: Callable[..., object],
) -> None:
    """First load, changes, all of it into a fresh table, a new version of other
    dimensions, its promotion, a rollback and the drop of a retired version."""
    full_use_case.run()
    expected = end_state(store)
    store.execute("TRUNCATE embedline.use_case CASCADE")
    store.execute("DROP VIEW embeddings.messages")
    store.execute("DROP TABLE embedline.vector_messages_v1")

    monkeypatch.setenv("EMBEDLINE_STORE_DSN", login(store_dsn, "etl", names.writer))
    full_use_case.run()
    end_state(store).assert_same(expected)
    db.execute("DELETE FROM messages WHERE id < 10")
    db.execute("UPDATE messages SET body = 'other' WHERE id = 20")
    assert full_use_case.run()["deleted"] == 10
    assert full_use_case.run(fresh=True, reembed=True)["embedded"] == 110
    full_use_case.use_case(
        encoder={"model": str(make_model(hidden=48))}, keep_retired_days=0
    )
    full_use_case.run()
    assert ask(store_dsn, "SELECT DISTINCT model_version FROM embeddings.messages") == [
        (3,)
    ]
    full_use_case.run()
    assert ask(store_dsn, "SELECT to_regclass('embedline.vector_messages_v1')") == [
        (None,)
    ]
    owners = ask(
        store_dsn,
        "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class"
        " WHERE relnamespace IN ('embedline'::regnamespace, 'embeddings'::regnamespace)"
        " AND relkind IN ('r', 'v')",
    )
    assert owners == [(names.owner,)]


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE embedline.mine ()",
        "CREATE VIEW embeddings.mine AS SELECT 1",
        "DROP TABLE embedline.vector_messages_v1",
        "DROP VIEW embeddings.messages",
        "UPDATE embedline.view SET definition = 'SELECT 1'",
        "INSERT INTO embedline.tenant_reader (role, tenant) VALUES ('x', 'y')",
        "SELECT embedline.grant_tenant(current_user, 'acme')",
        "UPDATE embedline.role SET name = current_user",
        "DELETE FROM embedline.migration",
        "ALTER TABLE embedline.run DISABLE ROW LEVEL SECURITY",
        "SELECT embedline.set_view(1, 'messages', 'SELECT 1', '')",
        "CREATE FUNCTION embedline.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    ],
)
def test_a_writer_may_write_and_no_more(
    full_use_case: Project,
    names: Names,
    login: Login,
    store_dsn: str,
    statement: str,
) -> None:
    full_use_case.run()
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        ask(login(store_dsn, "etl", names.writer), statement)


def test_what_a_writer_says_of_a_version_drops_no_other_table(
    full_use_case: Project, names: Names, login: Login, store_dsn: str
) -> None:
    full_use_case.run()
    writer = login(store_dsn, "etl", names.writer)
    forged = (
        "SELECT embedline.drop_vector_table(jsonb_populate_record("
        'm, \'{"table_name": "label"}\')) FROM embedline.model_version m'
    )
    with pytest.raises(psycopg.errors.DependentObjectsStillExist):  # its own
        ask(writer, forged)
    assert ask(store_dsn, "SELECT to_regclass('embedline.label') IS NULL") == [(False,)]
    ask(writer, "UPDATE embedline.model_version SET table_name = 'label'")
    with pytest.raises(psycopg.errors.InvalidName, match="no name of a table"):
        ask(
            writer,
            "SELECT embedline.drop_vector_table(m) FROM embedline.model_version m",
        )


def test_a_table_of_the_machine_room_is_no_table_of_vectors(
    names: Names, login: Login, store: Connection, store_dsn: str
) -> None:
    search_store.make(store, count=10)
    store.execute("DROP VIEW embedline.index_status")  # which would hold it
    writer = login(store_dsn, "etl", names.writer)
    ask(writer, "UPDATE embedline.model_version SET table_name = 'vector_index'")
    drop = "SELECT embedline.drop_vector_table(m) FROM embedline.model_version m"
    with pytest.raises(psycopg.errors.InvalidName, match="no name of a table"):
        ask(writer, drop)


def test_what_a_writer_calls_a_feature_is_never_run(
    names: Names, login: Login, store: Connection, store_dsn: str
) -> None:
    """It is in the text of a view, which a search of words runs as the owner."""
    made = search_store.make(store, count=10)
    feature = (
        "f\nUNION ALL SELECT"
        " embedline.set_view(1, $$forged$$, $$SELECT 1$$, $$$$)::text, 0,"
        " NULL::int4range, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1,"
        " NULL, NULL, NULL --"
    )
    with psycopg.connect(
        login(store_dsn, "etl", names.writer), autocommit=True
    ) as writer:
        for line_end in ("\n", "\r"):
            name = feature.replace("\n", line_end)
            writer.execute(
                "UPDATE embedline.use_case SET features = %s, labelled_unit = 'word'",
                [[name]],
            )
            writer.execute(
                "UPDATE embedline.model_version SET unit = 'word', feature = %s", [name]
            )
            writer.execute("SELECT embedline.refresh_views(1, false)")
            found = writer.execute(
                "SELECT * FROM embeddings.nearest('things', %s::vector, 3)",
                [str(made.vectors[0].tolist())],
            )
            assert len(found.fetchall()) == 3
    assert ask(store_dsn, "SELECT to_regclass('embeddings.forged')") == [(None,)]


def test_a_reader_asks_the_views_and_not_the_machine_room(
    full_use_case: Project,
    names: Names,
    login: Login,
    store: Connection,
    store_dsn: str,
) -> None:
    full_use_case.run()
    reader = login(store_dsn, "analyst", names.reader)
    assert ask(reader, "SELECT count(*), count(label) FROM embeddings.messages") == [
        (120, 40)
    ]
    for version in versions.live_by_name(store, "messages"):
        outcomes.refresh(store, version)
    counts = ("confusion", "label_coverage")
    for view in ("status", "class_probability", "run", *counts):
        assert ask(reader, f"SELECT count(*) > 0 FROM embedline.{view}") == [(True,)]
    for view in ("monitor", "monitor_history", "monitor_alarms"):
        assert ask(reader, f"SELECT count(*) FROM embedline.{view}") == [(0,)]
    hidden = ask(
        store_dsn,
        "SELECT relname FROM pg_class WHERE relnamespace = 'embedline'::regnamespace"
        " AND relkind IN ('r', 'v') AND relname NOT IN ('status', 'index_status',"
        " 'class_probability', 'confusion', 'label_coverage', 'run', 'my_tenant',"
        " 'use_case', 'model_version', 'migration', 'monitor', 'monitor_history',"
        " 'monitor_alarms', 'review', 'map')",
    )
    assert len(hidden) > 8
    for (table,) in hidden:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            ask(reader, f"SELECT FROM embedline.{table}")
    for statement in (
        "INSERT INTO embedline.run DEFAULT VALUES",
        "UPDATE embedline.model_version SET state = 'retired'",
        "CREATE TABLE embeddings.mine ()",
        "SELECT embedline.refresh_views(1, false)",
        "SELECT embedline.drop_vector_table(m) FROM embedline.model_version m",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            ask(reader, statement)


def test_an_index_is_built_by_the_owner_whoever_writes(
    full_use_case: Project,
    names: Names,
    login: Login,
    store_dsn: str,
    embedline: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", login(store_dsn, "etl", names.writer))
    full_use_case.use_case(storage={"index": {"min_rows": 100}})
    full_use_case.run()
    with pytest.raises(AssertionError, match="set EMBEDLINE_STORE_DIRECT_DSN"):
        embedline("maintain")
    owner = login(store_dsn, "deployer", names.owner)
    monkeypatch.setenv("EMBEDLINE_STORE_DIRECT_DSN", owner)
    embedline("maintain")
    found = "SELECT method, is_valid FROM embedline.index_status"
    assert ask(store_dsn, found) == [("hnsw", True)]


def test_a_view_of_a_version_to_come_is_a_readers_too(
    full_use_case: Project,
    names: Names,
    login: Login,
    store_dsn: str,
    make_model: Callable[..., object],
) -> None:
    reader = login(store_dsn, "analyst", names.reader)
    full_use_case.run()
    full_use_case.use_case(encoder={"model": str(make_model(hidden=48))})
    full_use_case.run()
    assert ask(reader, "SELECT DISTINCT model_version FROM embeddings.messages") == [
        (2,)
    ]


def test_a_reader_searches(
    full_use_case: Project,
    names: Names,
    login: Login,
    store_dsn: str,
    embedline: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full_use_case.run()
    reader = login(store_dsn, "analyst", names.reader)
    found = ask(reader, "SELECT * FROM embeddings.neighbors('messages', '7', 3)")
    assert len(found) == 3
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", reader)
    assert "message number" in embedline("search", "messages", "message number 4")
    assert "messages" in embedline("status")


def test_a_reader_reads_and_exports(
    full_use_case: Project,
    names: Names,
    login: Login,
    store_dsn: str,
    embedline: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    full_use_case.run()
    full_use_case.use_case(pooling="mean")
    full_use_case.run()
    serving = embedding_tasks.read("messages", columns=["key", "embedding"])
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", login(store_dsn, "r", names.reader))
    read = embedding_tasks.read("messages", columns=["key", "embedding"])
    assert len(read) == len(serving) > 0
    assert "wrote" in embedline("export", "messages", "--to", str(tmp_path / "out"))
    with pytest.raises(SearchError, match="another version by the writer's"):
        embedding_tasks.read("messages", model_version=1)


def test_what_a_role_may_not_do_is_said(
    full_use_case: Project,
    names: Names,
    login: Login,
    store_dsn: str,
    embedline: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", login(store_dsn, "r", names.reader))
    printed = embedline("run", "messages", code=1)
    assert 'denied for table use_case; docs/deploy.md, "Rights"' in printed


def test_others_may_do_nothing(
    full_use_case: Project, names: Names, login: Login, store_dsn: str
) -> None:
    full_use_case.run()
    stranger = login(store_dsn, "stranger")
    for statement in (
        "SELECT FROM embeddings.messages",
        "SELECT FROM embedline.status",
        "SELECT embeddings.neighbors('messages', '7')",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            ask(stranger, statement)


def test_making_roles_again_changes_nothing_and_an_upgrade_keeps_them(
    full_use_case: Project,
    names: Names,
    login: Login,
    store: Connection,
    store_dsn: str,
    embedline: Command,
    prefix: str,
) -> None:
    full_use_case.run()
    rights = (
        "SELECT relname, relacl::text FROM pg_class"
        " WHERE relnamespace = 'embedline'::regnamespace AND relkind IN ('r', 'v')"
        " UNION ALL SELECT proname, proacl::text FROM pg_proc"
        " WHERE pronamespace = 'embedline'::regnamespace ORDER BY 1, 2"
    )
    before = ask(store_dsn, rights)
    embedline("init", "--roles", "--prefix", prefix)
    assert ask(store_dsn, rights) == before

    # by somebody who is no superuser, and makes a view anew
    owner = login(store_dsn, "deployer", names.owner)
    store.execute("DROP VIEW embedline.class_probability")
    store.execute("DELETE FROM embedline.migration WHERE name LIKE 'views/%'")
    store.execute("DELETE FROM embedline.migration WHERE name LIKE 'functions/%'")
    with psycopg.connect(owner, autocommit=True) as connection:
        assert len(migrate.apply(connection)) > 3
    assert ask(store_dsn, rights) == before


def test_a_pooler_that_lets_names_be_looked_for_where_others_may_create_is_said(
    project: Project,
    embedline: Command,
    store: Connection,
    store_dsn: str,
    pooled: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As PostgreSQL 14 has it: a better match than PostgreSQL's own would be called."""
    store.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    assert "REVOKE" not in embedline("init")
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", pooled(store_dsn))
    assert 'REVOKE CREATE ON SCHEMA "public" FROM PUBLIC' in embedline("init")
    assert "REVOKE" in embedline("check", "--no-model")
    store.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    assert "REVOKE" not in embedline("init")


def test_another_prefix_takes_the_store_from_the_roles_that_had_it(
    full_use_case: Project,
    names: Names,
    login: Login,
    store_dsn: str,
    embedline: Command,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full_use_case.run()
    reader = login(store_dsn, "analyst", names.reader)
    writer = login(store_dsn, "etl", names.writer)
    owner = login(store_dsn, "deployer", names.owner)
    said = embedline("init", "--roles", "--prefix", f"{prefix}_new")
    for role in (names.owner, names.writer, names.reader):
        assert role in said
    count = "SELECT count(*) FROM embeddings.messages"
    search = "SELECT embeddings.neighbors('messages', '7')"
    for dsn in (reader, writer, owner):
        for statement in (count, search, "SELECT FROM embedline.status"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                ask(dsn, statement)
    new = Names.of(f"{prefix}_new")
    assert ask(login(store_dsn, "new_analyst", new.reader), count) == [(120,)]
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", login(store_dsn, "new_etl", new.writer))
    assert full_use_case.run()["failed"] == 0

    # and they are those of whoever names none
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", store_dsn)
    assert new.owner in embedline("init", "--roles")
    assert ask(store_dsn, "SELECT name FROM embedline.role WHERE kind = 'owner'") == [
        (new.owner,)
    ]


def test_a_dry_run_prints_what_would_be_run_and_runs_nothing(
    project: Project, embedline: Command, prefix: str, store: Connection
) -> None:
    said = embedline("init", "--roles", "--dry-run", "--prefix", prefix)
    assert f"CREATE ROLE {prefix}_owner NOLOGIN;" in said
    assert "GRANT USAGE ON SCHEMA" in said
    found = store.execute(
        "SELECT FROM pg_roles WHERE rolname LIKE %s", [f"{prefix}%"]
    ).rowcount
    assert found == 0
    # and they are what makes the roles
    for statement in said.strip().split(";\n"):
        store.execute(statement.rstrip(";").encode())
    assert roles.statements(store, Names.of(prefix))[0].startswith("REVOKE ALL")


def test_who_may_make_no_roles_is_given_the_sql_for_who_may(
    make_database: Callable[..., str],
    embedline: Command,
    login: Login,
    prefix: str,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database = make_database()
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("CREATE EXTENSION vector")
    plain = login(database, "app")
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", plain)
    with pytest.raises(AssertionError, match="ask its administrator for: GRANT CREATE"):
        embedline("init")
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(
            sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(
                sql.Identifier(admin.info.dbname), sql.Identifier(f"{prefix}_app")
            )
        )
    embedline("init")
    said = embedline("init", "--roles", "--prefix", prefix, code=1)
    assert "an administrator can, with the SQL above" in said
    assert (
        ask(server, "SELECT 1 FROM pg_roles WHERE rolname = %s", f"{prefix}_owner")
        == []
    )
    script = [line for line in said.splitlines() if line.endswith(";")]
    with psycopg.connect(database, autocommit=True) as admin:
        for statement in script:
            admin.execute(statement.encode())
    assert "up to date" in embedline("init")


def test_a_store_of_another_owner_is_not_upgraded_by_a_stranger(
    names: Names, login: Login, store_dsn: str, store: Connection
) -> None:
    store.execute("DELETE FROM embedline.migration WHERE name LIKE 'views/%'")
    stranger = login(store_dsn, "stranger", names.reader)
    with (
        psycopg.connect(stranger, autocommit=True) as connection,
        pytest.raises(StoreError, match=f"belongs to the role '{names.owner}'"),
    ):
        migrate.apply(connection)


@pytest.mark.parametrize("prefix_", ["Big", "pg_mine", "a b", 'x"y', ""])
def test_a_prefix_is_a_plain_name(prefix_: str) -> None:
    with pytest.raises(ConfigError, match="--prefix"):
        Names.of(prefix_)


# The source


@pytest.fixture
def source_reader(
    project: Project,
    embedline: Command,
    prefix: str,
    source_dsn: str,
    login: Login,
) -> Callable[[], str]:
    """Roles made for what the use case reads by now, and a login that has that one."""

    def make() -> str:
        embedline("init", "--roles", "--prefix", prefix, "--source", source_dsn)
        names = Names.of(prefix)
        made = login(source_dsn, "crm", names.source_reader)
        embedline("init", "--roles", "--prefix", prefix, "--source", source_dsn)
        return made

    return make


@pytest.mark.parametrize(
    "source",
    [
        {"where": "author <> (SELECT max(name) FROM blocked)"},
        {"strategy": "scan"},
        {"strategy": "timestamp", "updated_at": "sent_at"},
        {
            "table": None,
            "query": "SELECT m.id, m.body, m.sent_at FROM messages m JOIN authors"
            " ON name = author",
            "tags": [],
        },
    ],
)
def test_a_whole_use_case_is_read_as_the_source_reader(
    full_use_case: Project,
    source_reader: Callable[[], str],
    db: Connection,
    source: dict[str, object],
) -> None:
    db.execute("CREATE TABLE blocked (name text, why text)")
    db.execute("INSERT INTO blocked VALUES ('nobody')")
    db.execute("CREATE VIEW authors AS SELECT DISTINCT author AS name FROM messages")
    db.execute("ALTER TABLE messages ADD secret text DEFAULT 'hush'")
    full_use_case.use_case(source=source)
    reader = source_reader()
    full_use_case.use_case(source={"dsn": as_reader(reader)})
    assert full_use_case.run()["embedded"] == 120
    db.execute("UPDATE messages SET body = 'changed', sent_at = now() WHERE id = 3")
    assert full_use_case.run()["changed"] == 1
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        ask(reader, "SELECT secret FROM messages")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        ask(reader, "SELECT why FROM blocked")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        ask(reader, "CREATE TEMP TABLE t ()")


def as_reader(dsn: str) -> str:
    """A file may hold no password in the clear."""
    import os

    os.environ["READER_PASSWORD"] = conninfo_to_dict(dsn)["password"]
    return psycopg.conninfo.make_conninfo(dsn, password="${READER_PASSWORD}")


def test_a_source_that_no_use_case_reads_is_said(
    project: Project, embedline: Command, prefix: str, store_dsn: str
) -> None:
    with pytest.raises(AssertionError, match="no use case reads"):
        embedline("init", "--roles", "--prefix", prefix, "--source", store_dsn)
