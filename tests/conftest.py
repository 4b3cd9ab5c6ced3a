"""Real Postgres with pgvector, real models. Fixtures by area are in `fix_*.py`."""

from __future__ import annotations

import pytest

pytest_plugins = (
    "tests.fix_cli",
    "tests.fix_postgres",
    "tests.fix_roles",
    "tests.fix_models",
    "tests.fix_project",
    "tests.fix_indexes",
    "tests.fix_outcomes",
    "tests.fix_servers",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--test-dsn",
        help="a Postgres with pgvector and the right to create databases, "
        "in place of the embedded one",
    )
