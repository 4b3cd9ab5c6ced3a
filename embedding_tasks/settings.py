"""Where a project keeps its things. Everything here can be set by environment."""

from __future__ import annotations

import os
from pathlib import Path

from embedding_tasks.errors import ConfigError

STORE_DSN = "EMBEDLINE_STORE_DSN"
STORE_CONNECTION = "embedline_store"
# Past a pooler, and with the rights of the store's owner: for building indexes.
DIRECT_DSN = "EMBEDLINE_STORE_DIRECT_DSN"
DIRECT_CONNECTION = "embedline_store_direct"
# The most that one build of an index may take, e.g. 2GB.
INDEX_MEMORY = "EMBEDLINE_INDEX_MEMORY"


def project() -> Path:
    """The folder with `use_cases/`: $EMBEDLINE_PROJECT, the working directory or
    the nearest parent that has one, else the checkout this package runs from."""
    if named := os.environ.get("EMBEDLINE_PROJECT"):
        folder = Path(named).expanduser().resolve()
        if not folder.is_dir():
            raise ConfigError(f"EMBEDLINE_PROJECT: there is no folder {named!r}")
        return folder
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "use_cases").is_dir():
            return folder
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "use_cases").is_dir() else here


def use_cases() -> Path:
    named = os.environ.get("EMBEDLINE_USE_CASES")
    return Path(named).expanduser().resolve() if named else project() / "use_cases"


def home() -> Path:
    """State of this machine: embedded Postgres, demo models, Airflow home."""
    named = os.environ.get("EMBEDLINE_HOME")
    return Path(named).expanduser().resolve() if named else project() / ".embedline"
