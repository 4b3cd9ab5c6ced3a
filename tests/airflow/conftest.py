"""Real Airflow: real DAG runs on a metadata database of its own."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fix_project import Project

ROOT = Path(__file__).resolve().parent.parent.parent

# Airflow reads these when it is first imported.
HOME = tempfile.mkdtemp(prefix="embedline-airflow-")
os.environ.update(
    {
        "AIRFLOW_HOME": HOME,
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "True",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME}/airflow.db",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
    }
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.airflow)
            # other people's deprecations are not ours to fail on
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def metadata() -> Iterator[None]:
    from airflow.utils.db import initdb

    initdb()
    yield
    logging.shutdown()


@pytest.fixture
def load_dags(project: Project) -> Callable[[], Any]:
    """The DAGs as Airflow itself finds them in dags/."""

    def load() -> Any:
        from airflow.dag_processing.dagbag import DagBag

        return DagBag(ROOT / "dags")

    return load


@pytest.fixture
def run_dag(metadata: None, load_dags: Callable[[], Any]) -> Callable[..., Any]:
    """Run a DAG in this process and return the finished run."""

    def run(dag_id: str, **conf: Any) -> Any:
        bag = load_dags()
        assert not bag.import_errors
        return bag.dags[dag_id].test(run_conf=conf)

    return run
