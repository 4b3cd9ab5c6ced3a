"""Real Postgres with pgvector, real models. Fixtures by area are in `fix_*.py`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

pytest_plugins = (
    "tests.fix_cli",
    "tests.fix_postgres",
    "tests.fix_roles",
    "tests.fix_models",
    "tests.fix_project",
    "tests.fix_indexes",
    "tests.fix_servers",
)

# Beyond, the longest file is all that is waited for.
MOST_PROCESSES = 8

if "PYTEST_XDIST_WORKER" in os.environ:
    # before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # the size of a terminal that readline has left in its environment
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--test-dsn",
        help="a Postgres with pgvector and the right to create databases, "
        "in place of the embedded one",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Some tests change what a whole server does: each process has its own, or there
    is one process."""
    if config.getoption("--test-dsn"):
        return 0
    linux = sys.platform == "linux"
    cores = len(os.sched_getaffinity(0)) if linux else os.cpu_count() or 1
    return min(MOST_PROCESSES, cores)


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests without a project of their own find out is kept nowhere else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDLINE_HOME", str(tmp_path_factory.mktemp("home")))
        yield
