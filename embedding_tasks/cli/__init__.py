"""The `embedline` command: the same functions as the DAGs, without Airflow."""

from embedding_tasks.cli import asking, backfill, forget, running, setting_up
from embedding_tasks.cli.app import app, main

__all__ = ["app", "asking", "backfill", "forget", "main", "running", "setting_up"]
