"""Where everybody may create functions beside pgvector, as in PostgreSQL 14's `public`,
nothing that somebody plants there is run by others: not what fits better than
PostgreSQL's own, and not before an init, in it, or after."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import product
from pathlib import Path

import psycopg
import pytest

from embedding_tasks.connections import Connection
from embedding_tasks.store import migrate
from embedding_tasks.store.roles import Names
from tests.fix_cli import Command
from tests.fix_project import Project
from tests.search_store import Made, add_index, make
from tests.test_search_reader import CALLS, call, grant, reader

__all__ = ["reader"]

Login = Callable[..., str]

# Each fits a call better than PostgreSQL's own, which takes other types or any.
FUNCTIONS = {
    "format(text, text)": "text",
    "format(text, text, text)": "text",
    "cardinality(text[])": "int",
    "unnest(text[])": "SETOF text",
    "array_remove(text[], text)": "text[]",
    "array_to_string(text[], text)": "text",
    "concat_ws(text, text, text)": "text",
    "has_table_privilege(text, regclass, text)": "boolean",
    "has_table_privilege(name, regclass, text)": "boolean",
    "jsonb_build_object(text, text)": "jsonb",
    "jsonb_build_object(text, text[])": "jsonb",
    "to_regclass(varchar)": "regclass",
    "array_agg(text)": "text[]",
    "count(text)": "bigint",
}
NUMBERS = ("smallint", "int", "bigint", "real", "float8", "numeric")
OTHERS = {
    ("text[]", "||", "text[]"): "text[]",
    ("text[]", "||", "text"): "text[]",
    ("text[]", "=", "text[]"): "boolean",
    ("int4range", "&&", "int4range"): "boolean",
    ("varchar", "=", "text"): "boolean",
    ("text", "=", "varchar"): "boolean",
    ("text[]", "@>", "text[]"): "boolean",
    ("float8", "<=>", "vector"): "float8",
}
OPERATORS = OTHERS | {
    (left, operator, right): result
    for left, right in product(NUMBERS, NUMBERS)
    for operator, result in {
        **dict.fromkeys("+-*/", "float8"),
        **dict.fromkeys(("=", "<>", "<", "<=", ">", ">="), "boolean"),
    }.items()
}
BODY = "LANGUAGE plpgsql AS 'BEGIN RAISE ''planted, run by %'', current_user; END'"


def plant(somebody: Connection, schema: str = "public") -> None:
    """All of it, so far as PostgreSQL has not the same for the same types."""
    made = [
        f"CREATE FUNCTION {schema}.{signature} RETURNS {result} {BODY}"
        for signature, result in FUNCTIONS.items()
    ]
    for number, ((left, operator, right), result) in enumerate(OPERATORS.items()):
        name = f"{schema}.planted_{number}"
        made += [
            f"CREATE FUNCTION {name}({left}, {right}) RETURNS {result} {BODY}",
            f"CREATE OPERATOR {schema}.{operator}"
            f" (FUNCTION = {name}, LEFTARG = {left}, RIGHTARG = {right})",
        ]
    with somebody.transaction():
        somebody.execute("SET LOCAL search_path = pg_catalog, public")
        somebody.execute(";".join(made).encode())


@pytest.fixture
def made(store: Connection) -> Made:
    made = make(store, count=60)
    add_index(store, made)
    return made


def test_what_a_reader_plants_beside_pgvector_is_never_run_by_a_search(
    made: Made, store: Connection, reader: Connection
) -> None:
    grant(store, reader)
    store.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    plant(reader)
    reader.execute("SET search_path = pg_catalog")
    for question in CALLS:
        assert call(reader, question.replace("::vector", "::public.vector"), made)


def test_what_lies_there_before_an_init_is_part_of_nothing_the_store_has(
    make_database: Callable[..., str], login: Login, prefix: str
) -> None:
    """Views, policies, constraints and functions keep what they were made with."""
    dsn = make_database()
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("CREATE EXTENSION vector")
        admin.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
        with psycopg.connect(login(dsn, "somebody"), autocommit=True) as somebody:
            plant(somebody)
        migrate.apply(admin)
        used = admin.execute(
            "SELECT pg_describe_object(d.classid, d.objid, d.objsubid) FROM pg_depend d"
            " WHERE d.refclassid = 'pg_proc'::regclass AND d.classid <>"
            "  'pg_operator'::regclass AND d.refobjid IN (SELECT oid FROM pg_proc"
            "   WHERE proowner = to_regrole(%s)::oid)",
            [f"{prefix}_somebody"],
        ).fetchall()
        assert used == []


def test_no_function_looks_for_names_where_others_may_create(
    store: Connection,
) -> None:
    """Those of one expression are parsed when they are made."""
    found = store.execute(
        "SELECT p.oid::regprocedure::text FROM pg_proc p WHERE p.pronamespace IN"
        " ('embedline'::regnamespace, 'embeddings'::regnamespace)"
        " AND p.prosqlbody IS NULL AND 'search_path=pg_catalog, pg_temp'"
        "  <> ALL (coalesce(p.proconfig, '{}'))"
    ).fetchall()
    assert found == []


@pytest.fixture
def open_store(
    full_use_case: Project,
    embedline: Command,
    login: Login,
    prefix: str,
    store: Connection,
    store_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Project:
    """A project whose writer and owner have a store where somebody planted all that."""
    embedline("init", "--roles", "--prefix", prefix)
    store.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    with psycopg.connect(login(store_dsn, "somebody"), autocommit=True) as somebody:
        plant(somebody)
    names = Names.of(prefix)
    owner = login(store_dsn, "deployer", names.owner)
    monkeypatch.setenv("EMBEDLINE_STORE_DIRECT_DSN", owner)
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", login(store_dsn, "etl", names.writer))
    return full_use_case


def test_what_is_planted_is_never_run_by_a_writer_or_an_owner(
    open_store: Project,
    db: Connection,
    embedline: Command,
    tmp_path: Path,
    make_model: Callable[..., Path],
) -> None:
    open_store.use_case(storage={"index": {"min_rows": 50}})
    open_store.run()
    embedline("maintain")
    db.execute("UPDATE messages SET body = 'other' WHERE id < 9")
    db.execute("DELETE FROM messages WHERE id = 9")
    open_store.use_case(encoder={"model": str(make_model(hidden=48))})
    assert open_store.run()["embedded"] == 119 + 9
    embedline("rollback", "messages", "--yes")
    embedline("retry", "messages", "--dead")
    embedline("backfill", "start", "messages", "--everything", "--reembed")
    embedline("forget", "messages", "7", "--yes")
    assert open_store.run()["failed"] == 0
    assert "message" in embedline("search", "messages", "message number 4")
    assert "messages" in embedline("status")
    assert "wrote" in embedline("export", "messages", "--to", str(tmp_path / "out"))
    assert "fail" not in embedline("check")


def test_what_is_planted_is_never_run_by_an_init(
    open_store: Project,
    embedline: Command,
    store: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store.execute("DELETE FROM embedline.migration WHERE name !~ '^migrations'")
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", os.environ["EMBEDLINE_STORE_DIRECT_DSN"])
    assert "applied sql/views/status.sql" in embedline("init")
