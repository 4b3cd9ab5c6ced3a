"""The DAG `maintain`: plan -> maintain, mapped over the use cases that need it.

Wiring only: what the tasks do is in `embedding_tasks.maintenance`.
"""

from __future__ import annotations

import os
from collections import Counter
from datetime import timedelta

from airflow.sdk import (
    DAG,
    Param,
    get_current_context,
    task,
)

from embedding_tasks import use_case
from embedding_tasks.errors import ConfigError
from embedline_airflow import RETRIES, START, connection, timetable

# A cron expression; empty: only when it is triggered.
SCHEDULE = os.environ.get("EMBEDLINE_MAINTAIN_SCHEDULE", "0 3 * * *")

DOC = """Keeps the vector tables fit, for every file in `use_cases/`:

- builds the HNSW index that is due, beside the readers, and measures its recall;
- rebuilds one of which much is dead or that has swollen, and vacuums its table;
- drops what a broken build left, and versions retired longer than `keep_retired_days`.

`plan` says in its log what is to be done and why, and what not and why not; with
`dry_run` nothing is done. The same as `embedline maintain`.
"""

with DAG(
    "maintain",
    description="Indexes of the vector tables: built, measured, kept fit",
    doc_md=DOC,
    schedule=timetable(SCHEDULE),
    start_date=START,
    catchup=False,
    max_active_runs=1,
    params={
        "dry_run": Param(
            False, type="boolean", title="Say what would be done, and do nothing"
        )
    },
    default_args=RETRIES,
    tags=["embedline"],
):

    @task
    def plan() -> list[str]:
        """The use cases of which something is to be done"""
        import logging

        from embedding_tasks import maintenance
        from embedding_tasks.store.connection import open_store

        with open_store(connection) as store:
            steps = maintenance.plan(store, _cases())
        for step in steps:
            logging.getLogger(__name__).info("%s", maintenance.told(step))
        due = sorted({step.use_case for step in steps if step.work != "none"})
        return [] if get_current_context()["params"]["dry_run"] else due

    @task(
        max_active_tis_per_dag=1,
        execution_timeout=timedelta(hours=24),
        map_index_template="{{ task.op_kwargs['name'] }}",
    )
    def maintain(name: str) -> dict[str, int]:
        """Build, rebuild, measure, vacuum, drop: what the plan says"""
        from embedding_tasks import maintenance
        from embedding_tasks.store.connection import open_store

        done = maintenance.maintain(
            lambda: open_store(connection, direct=True), [use_case.find(name)]
        )
        return dict(Counter(step.work for step in done))

    maintain.expand(name=plan())


def _cases() -> list[use_case.UseCase]:
    """Of a file that is not valid its own DAG says so, and the others are kept."""
    valid = []
    for path in use_case.files():
        try:
            valid.append(use_case.load(path))
        except ConfigError:
            continue
    return valid
