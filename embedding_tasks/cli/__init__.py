"""The `embedline` command: the same functions as the DAGs, without Airflow."""

from embedding_tasks.cli import (
    asking,
    backfill,
    exporting,
    forget,
    maintaining,
    monitoring,
    outbox,
    running,
    searching,
    setting_up,
    versioning,
)
from embedding_tasks.cli.app import app, main

__all__ = [
    "app",
    "asking",
    "backfill",
    "exporting",
    "forget",
    "main",
    "maintaining",
    "monitoring",
    "outbox",
    "running",
    "searching",
    "setting_up",
    "versioning",
]
