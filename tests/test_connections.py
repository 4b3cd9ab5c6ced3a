from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from embedding_tasks import connections
from embedding_tasks.connections import Connection
from embedding_tasks.errors import ConfigError, DatabaseAway
from embedding_tasks.store.connection import reach
from embedding_tasks.use_case import Source


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (
            "postgres://me:p%40ss@db.example:6543/app?sslmode=require&other=x",
            {
                "user": "me",
                "password": "p@ss",
                "host": "db.example",
                "port": "6543",
                "dbname": "app",
                "sslmode": "require",
            },
        ),
        (
            # as Airflow writes an extra with anything in it but texts
            "postgres://db/app?__extra__=%7B%22sslmode%22%3A+%22verify-full%22%2C+"
            "%22keepalives_idle%22%3A+30%7D",
            {
                "host": "db",
                "dbname": "app",
                "sslmode": "verify-full",
                "keepalives_idle": "30",
            },
        ),
        (
            "postgres://me@[::1]:5433/app",
            {"user": "me", "host": "::1", "port": "5433", "dbname": "app"},
        ),
        (
            "postgres://me@%2Fvar%2Frun%2Fpostgresql/app",
            {"user": "me", "host": "/var/run/postgresql", "dbname": "app"},
        ),
        (
            '{"conn_type": "postgres", "host": "/a b", "login": "me", "schema": "app",'
            ' "extra": {"sslmode": "disable", "iam": true}}',
            {"user": "me", "host": "/a b", "dbname": "app", "sslmode": "disable"},
        ),
        (
            # several hosts, for whatever reads the field alone and for us
            '{"conn_type": "postgres", "host": "one", "schema": "app", "extra":'
            ' {"host": "one,two", "target_session_attrs": "read-write"}}',
            {"host": "one,two", "dbname": "app", "target_session_attrs": "read-write"},
        ),
    ],
)
def test_airflows_forms_of_a_connection_are_understood(
    value: str, parts: dict[str, str]
) -> None:
    assert conninfo_to_dict(connections.from_airflow(value)) == parts


def test_a_connection_comes_from_the_environment_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDLINE_HOME", str(tmp_path))
    saved = {"crm": {"host": "from-file"}, "erp": {"host": "from-file"}}
    (tmp_path / "connections.json").write_text(json.dumps(saved))
    monkeypatch.setenv("AIRFLOW_CONN_CRM", "postgres://from-environment/app")
    assert "from-environment" in connections.lookup("crm")
    assert "from-file" in connections.lookup("erp")


def test_a_connection_nobody_knows_says_where_to_define_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDLINE_HOME", str(tmp_path))
    source = Source(connection="crm", table="t", key="id", input="x")
    with pytest.raises(ConfigError, match="AIRFLOW_CONN_CRM"):
        connections.for_source(source)


def test_a_dsn_takes_variables_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dsn = "host=db password=${SECRET}"
    source = Source(dsn=dsn, table="t", key="id", input="x")
    with pytest.raises(ConfigError, match="'SECRET' is not set"):
        connections.for_source(source)
    monkeypatch.setenv("SECRET", "s3")
    parts = conninfo_to_dict(connections.for_source(source))
    assert parts == {"host": "db", "password": "s3"}


@pytest.mark.parametrize(
    "secret", ["two words", "pa@ss", "pa/ss", "SECRET%zz", "x' host=evil"]
)
@pytest.mark.parametrize(
    "dsn", ["host=db password=${SECRET}", "postgresql://me:${SECRET}@db/app"]
)
def test_whatever_a_variable_holds_is_one_value(
    monkeypatch: pytest.MonkeyPatch, dsn: str, secret: str
) -> None:
    monkeypatch.setenv("SECRET", secret)
    source = Source(dsn=dsn, table="t", key="id", input="x")
    parts = conninfo_to_dict(connections.for_source(source))
    assert (parts["host"], parts["password"]) == ("db", secret)


@pytest.mark.parametrize(
    "value",
    [
        "host=db user=me password=hunter2 dbname=app",
        '{"host": "db", "password": "hunter2"',
        "mysql://me:hunter2@db/app",
        '{"conn_type": "mysql", "password": "hunter2"}',
        '{"conn_type": "postgres", "password": "hunter2", "extra": "{"}',
        "hunter2",
        "postgres://me:hunter2@db1:1,db2:2/app",
    ],
)
def test_what_is_no_connection_is_named_by_its_place_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_CRM", value)
    with pytest.raises(ConfigError, match="AIRFLOW_CONN_CRM: ") as caught:
        connections.lookup("crm")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "{", '{"crm": 3}'])
def test_a_file_that_holds_no_connections_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("EMBEDLINE_HOME", str(tmp_path))
    (tmp_path / "connections.json").write_text(text)
    with pytest.raises(ConfigError, match=r"connections\.json"):
        connections.lookup("crm")


@pytest.mark.parametrize("dsn", ["hunter2", "postgres+psycopg2://me:hunter2@db/x"])
def test_a_store_that_is_no_connection_string_is_refused_and_not_repeated(
    dsn: str,
) -> None:
    with pytest.raises(ConfigError, match="store database's connection") as caught:
        connections.connect(dsn, role="store")
    assert "hunter2" not in str(caught.value)


def test_a_connection_string_becomes_what_libpqs_programs_read() -> None:
    dsn = "host=db port=5433 user=me password=hunter2 dbname=app sslmode=require"
    assert connections.as_environment(dsn) == {
        "PGHOST": "db",
        "PGPORT": "5433",
        "PGUSER": "me",
        "PGPASSWORD": "hunter2",
        "PGDATABASE": "app",
        "PGSSLMODE": "require",
    }


def test_options_of_the_connection_string_and_the_environment_are_kept(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", "-cstatement_timeout=7s -csearch_path=x")
    mine = make_conninfo(server, options="-cstatement_timeout=5s -csearch_path=x")
    for dsn, timeout in ((server, "7s"), (mine, "5s")):
        with reach(dsn) as store:
            row = store.execute(
                "SELECT current_setting('statement_timeout'),"
                " current_setting('search_path')"
            ).fetchone()
            assert row == (timeout, "pg_catalog,pg_temp")


def test_a_server_that_is_away_is_transient(tmp_path: Path) -> None:
    with pytest.raises(DatabaseAway, match="cannot connect to the source database"):
        connections.connect(f"host={tmp_path}", role="source")


def test_a_database_that_does_not_exist_is_terminal(server: str) -> None:
    conninfo = psycopg.conninfo.make_conninfo(server, dbname="no_such_database")
    with pytest.raises(ConfigError, match="no_such_database"):
        connections.connect(conninfo, role="store")


def test_a_password_is_never_described() -> None:
    described = connections.describe("host=db user=me password=hunter2 dbname=app")
    assert described == "app at db"


def test_a_statement_that_goes_too_far_is_no_trouble_of_a_server(
    store: Connection, db: Connection
) -> None:
    db.execute("CREATE TABLE keys (key text PRIMARY KEY)")
    with (
        pytest.raises(psycopg.errors.ProgramLimitExceeded),
        connections.blame(source=store, store=db),
    ):
        db.execute(
            "INSERT INTO keys SELECT string_agg(sha512(i::text::bytea)::text, '')"
            " FROM generate_series(1, 60) i"
        )


def test_trouble_is_blamed_on_the_side_that_has_it(
    store: Connection, db: Connection
) -> None:
    store.autocommit = False
    store.execute("SET LOCAL statement_timeout = 1")
    with (
        pytest.raises(DatabaseAway, match="trouble in the store database"),
        connections.blame(source=db, store=store),
    ):
        store.execute("SELECT pg_sleep(1)")


def test_a_lost_connection_is_blamed_on_its_side(
    store: Connection, db: Connection
) -> None:
    pid = db.info.backend_pid
    store.execute("SELECT pg_terminate_backend(%s)", [pid])
    with (
        pytest.raises(DatabaseAway, match="lost the source database"),
        connections.blame(source=db, store=store),
    ):
        db.execute("SELECT pg_sleep(1)")
