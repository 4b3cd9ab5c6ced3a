"""The examples, each run as a reader would run it, against a store that a run made."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from embedding_tasks import search
from embedding_tasks.connections import Connection
from tests.fix_project import Project

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="session")
def own_environment() -> Path:
    """A Python that has what the examples need, before what is installed here: made
    once, beside this environment's packages."""
    requirements = EXAMPLES / "requirements.txt"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    folder = Path(sys.prefix) / "examples" / digest
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        inner = sysconfig.get_path("purelib", vars={"base": str(folder)})
        outer = sysconfig.get_path("purelib")
        (Path(inner) / "outer.pth").write_text(f"{outer}\n")
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "-r", str(requirements)],
            check=True,
        )
        (folder / "complete").touch()
    return python


@pytest.fixture
def filled(full_use_case: Project) -> Project:
    full_use_case.run()
    return full_use_case


Example = Callable[..., list[list[str]]]


def example(python: Path | str, name: str, *words: str) -> list[list[str]]:
    """The lines it prints, each in its fields."""
    done = subprocess.run(
        [str(python), "-W", "ignore", str(EXAMPLES / name), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def assert_as_ours(store: Connection, found: list[list[str]]) -> None:
    """As `embedline search` finds them; what is equally far in any order."""
    ours = search.by_text(store, "messages", "message number 7", 5)
    assert [float(row[1]) for row in found] == pytest.approx(
        [row["distance"] for row in ours], abs=2e-4
    )
    assert found[0][0] == ours[0]["key"] == "7"
    assert found[0][3] == ours[0]["data"] == "message number 7"


def test_sqlalchemy_and_pgvector_search_the_view(
    filled: Project, store: Connection
) -> None:
    pytest.importorskip("sqlalchemy")
    name = "sqlalchemy_pgvector.py"
    found = example(sys.executable, name, "messages", "message number 7")
    assert_as_ours(store, found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["langchain_pgvector.py", "llama_index_pgvector.py"])
def test_their_stores_search_our_view(
    filled: Project, store: Connection, own_environment: Path, name: str
) -> None:
    found = example(own_environment, name, "messages", "message number 7")
    assert_as_ours(store, found)


@pytest.mark.slow
def test_the_thin_view_does_not_hold_up_another_version(
    filled: Project, store: Connection, own_environment: Path
) -> None:
    asked = ("llama_index_pgvector.py", "messages", "message number 7")
    example(own_environment, *asked)
    filled.use_case(pooling="max")
    filled.run()
    assert_as_ours(store, example(own_environment, *asked))
    with pytest.raises(psycopg.errors.DependentObjectsStillExist):
        store.execute("DROP VIEW embeddings.messages")


def test_mistakes_are_read_into_pandas(filled: Project) -> None:
    lines = example(sys.executable, "pandas_mistakes.py", "messages")
    assert lines[-1][0].startswith("the most typical of 40 mistakes: ")


def test_every_example_is_run_here() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")} - {"store_url.py"}
    told = Path(__file__).read_text()
    assert all(name in told for name in scripts)
