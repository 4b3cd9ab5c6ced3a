"""The `embedline` command: the same functions as the DAGs, without Airflow."""

from embedding_tasks.cli import asking, outbox, running, setting_up, versioning
from embedding_tasks.cli.app import app, main

__all__ = ["app", "asking", "main", "outbox", "running", "setting_up", "versioning"]
