"""Names and values of people enter a statement as identifiers and literals only."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

import embedding_tasks
from embedding_tasks.connections import Connection
from tests.fix_cli import Command
from tests.fix_project import Project

ROOT = Path(embedding_tasks.__file__).parent.parent
RUNS_SQL = {"execute", "executemany", "copy", "stream", "rows", "value", "SQL"}

# What is put into statements as it is and was looked at: texts of our own, which no
# argument of a public function reaches, and a number.
OUR_OWN = {
    "extract.py": {"horizon % 2 ** 32"},
    "facts.py": {"changed", "condition", "covered", "same"},
    "installation.py": {"row + '.{}'"},
    "ledger.py": {"change", "lock", "which"},
    "write.py": {"rows"},
}


def texts(tree: ast.AST) -> Iterator[tuple[int, ast.expr]]:
    """What is given as a statement, with the line it stands in."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in RUNS_SQL
            and node.args
        ):
            yield node.lineno, node.args[0]


def interpolated(text: ast.expr) -> Iterator[str]:
    """The expressions that a text is made of, but for constants."""
    for node in ast.walk(text):
        if isinstance(node, ast.FormattedValue):
            yield ast.unparse(node.value)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod | ast.Add):
            yield ast.unparse(node)
        if isinstance(node, ast.Call) and _is_of_text(node.func):
            yield ast.unparse(node)


def _is_of_text(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and function.attr in ("format", "join", "replace")
        and isinstance(function.value, ast.Constant)
    )


def found_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    every = {e for _, text in texts(tree) for e in interpolated(text)}
    return {e for e in every if not re.fullmatch(r"(\w+\.)?[A-Z_]+", e)}  # a constant


def test_no_value_is_formatted_into_a_statement() -> None:
    folders = ("embedding_tasks", "dags", "plugins")
    found = {
        path.name: names
        for folder in folders
        for path in sorted((ROOT / folder).glob("**/*.py"))
        if (names := found_in(path) - OUR_OWN.get(path.name, set()))
    }
    assert found == {}


def test_a_value_that_is_formatted_into_a_statement_is_found() -> None:
    for bad in (
        'c.execute(f"SELECT {name}")',
        'c.execute("SELECT " + name)',
        'c.execute("SELECT %s" % name)',
        'c.execute("SELECT {}".format(name))',
        'c.execute(sql.SQL(f"SELECT {name}"))',
        'c.copy(f"COPY {name} TO STDOUT")',
    ):
        tree = ast.parse(bad)
        assert [e for _, text in texts(tree) for e in interpolated(text)], bad


ODD = [
    'we"ird',
    "it's",
    "100%",
    "%s %(x)s",
    "{braces}",
    "with space",
    "дом 家 🏠",
    'a"; DROP TABLE "gone',
    "back\\slash",
    "--",
    "SELECT",
]


@pytest.mark.parametrize("odd", ODD)
def test_whatever_a_table_a_column_and_a_key_are_called_it_runs(
    project: Project,
    db: Connection,
    store: Connection,
    embedline: Command,
    prefix: str,
    source_dsn: str,
    odd: str,
) -> None:
    """A schema, a table, every column, keys, tags, labels and tenants of that name."""
    schema, name = sql.Identifier(odd), sql.Identifier(odd, f"{odd} 2")
    body, tag, key = (sql.Identifier(f"{odd}{n}") for n in ("_body", "_tag", "_key"))
    db.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
    db.execute(
        sql.SQL("CREATE TABLE {} ({} text PRIMARY KEY, {} text, {} text)").format(
            name, key, body, tag
        )
    )
    insert = sql.SQL("INSERT INTO {} VALUES ({}, {}, {})")
    for number in range(5):
        row = map(sql.Literal, (f"{odd} {number}", f"{odd} text {number}", odd))
        db.execute(insert.format(name, *row))
    project.raw["source"] |= {
        "table": f"{odd}.{odd} 2",
        "key": f"{odd}_key",
        "input": [f"{odd}_body"],
        "tags": [f"{odd}_tag"],
        "tenant": f"{odd}_tag",
        "link": f"{odd}_key",
    }
    del project.raw["source"]["event_time"]
    project.use_case(
        prediction={"column": f"{odd}_tag"}, label={"column": f"{odd}_tag"}
    )
    embedline("init", "--roles", "--prefix", prefix, "--source", source_dsn)
    assert project.run()["embedded"] == 5
    update = sql.SQL("UPDATE {} SET {} = 'x' WHERE {} = {}")
    db.execute(update.format(name, body, key, sql.Literal(f"{odd} 3")))
    delete = sql.SQL("DELETE FROM {} WHERE {} = {}")
    db.execute(delete.format(name, key, sql.Literal(f"{odd} 4")))
    again = project.run()
    assert (again["changed"], again["deleted"]) == (1, 1)
    rows = store.execute(
        "SELECT key, data, prediction, label, tags, link FROM embeddings.messages"
        " ORDER BY key LIMIT 1"
    ).fetchall()
    first = f"{odd} 0"
    tags = {f"{odd}_tag": odd}
    assert rows == [(first, f"{odd} text 0", odd, odd, tags, first)]
    near = store.execute(
        "SELECT count(*) FROM embeddings.neighbors('messages', %s, 3)", [first]
    ).fetchone()
    assert near == (3,)
    reader = f"{prefix}_reader"
    store.execute("SELECT embedline.grant_tenant(%s, %s)", [reader, odd])
    with store.transaction(force_rollback=True):
        store.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(reader)))
        seen = store.execute("SELECT count(*) FROM embeddings.messages").fetchone()
        assert seen == (4,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            store.execute("SELECT FROM embedline.record")
    assert first in embedline("explain", "messages", "--", first)
    embedline("forget", "messages", "--yes", "--", first)
    left = store.execute("SELECT count(*) FROM embedline.record").fetchone()
    assert left == (3,)
