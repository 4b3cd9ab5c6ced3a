"""One DAG for every file in use_cases/: sync -> plan -> embed (mapped) -> publish, and
before them train, where an encoder learns from the use case's own rows.

Wiring only: what the tasks do is in `embedding_tasks.run`. Between tasks pass counts,
never text and never vectors. A file that is not valid breaks its own DAG, which says
why in each of its runs, and no other.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import (
    DAG,
    Asset,
    Param,
    get_current_context,
    get_parsing_context,
    task,
)
from airflow.sdk.exceptions import AirflowSkipException

from embedding_tasks import use_case
from embedding_tasks.errors import ConfigError
from embedding_tasks.use_case import UseCase, Window, scope_of
from embedding_tasks.use_case.feature import Trained
from embedline_airflow import RETRIES, START, connection, timetable

if TYPE_CHECKING:
    from embedding_tasks.run import Request

# A worker with a GPU listens to a queue of its own (Celery); others ignore it.
QUEUE = os.environ.get("EMBEDLINE_EMBED_QUEUE", "default")

PARAMS = {
    "since": Param(
        None,
        type=["null", "string"],
        format="date-time",
        title="Event time from",
        description="With `until`: only enqueue records of this window. "
        "Empty: everything that is new, changed or gone.",
    ),
    "until": Param(
        None,
        type=["null", "string"],
        format="date-time",
        title="Event time before",
    ),
    "keys": Param(
        None,
        type=["null", "array"],
        items={"type": "string"},
        title="Keys",
        description="Only enqueue the records with these keys; one of several columns "
        "as a JSON list.",
    ),
    "everything": Param(
        False,
        type="boolean",
        title="Every record of the source, those before its start included",
    ),
    "reembed": Param(
        False,
        type="boolean",
        title="Make the vectors anew, changed or not",
    ),
    "fresh": Param(
        False,
        type="boolean",
        title="Into a fresh table, which takes over when it is complete",
        description="For a large re-embed: of everything, or of all that is new, "
        "changed or gone. What need not be embedded is copied; a dry run says how long "
        "either way takes.",
    ),
    "audit": Param(
        False,
        type="boolean",
        title="Read every row of the source again",
        description="Whatever the strategy of finding what changed would read.",
    ),
    "dry_run": Param(
        False,
        type="boolean",
        title="Count what would be done, and do nothing",
    ),
    "allow_deletes": Param(
        False,
        type="boolean",
        title="Let the delete guard pass, this once",
    ),
}

RETRAIN = {
    "retrain": Param(
        False,
        type="boolean",
        title="Train the encoder again, on the rows of today",
        description="Its vectors are made beside the serving ones, as a new model "
        "version.",
    ),
}


def build(path: Path) -> DAG:
    try:
        return _embed(use_case.load(path), path)
    except Exception as error:  # whatever it is, it is this file's alone
        reason = str(error) if isinstance(error, ConfigError) else repr(error)
        return _refused(path, reason)


def _embed(case: UseCase, path: Path) -> DAG:
    learns = any(isinstance(f.encoder, Trained) for f in case.all_features.values())
    asset = Asset(f"{case.name}_embeddings", uri=f"embedline://{case.name}/embeddings")
    with DAG(
        f"embed_{case.name}",
        description=case.description or f"Embeddings of {case.name}",
        doc_md=_doc(case, path),
        schedule=timetable(case.schedule),
        start_date=START,
        catchup=False,
        max_active_runs=1,
        params=PARAMS | (RETRAIN if learns else {}),
        default_args=RETRIES,
        tags=["embedline"],
    ) as dag:

        @task(pool="gpu", queue=QUEUE, execution_timeout=timedelta(hours=24))
        def train() -> dict[str, int]:
            """Train what learns from the rows and has not yet, or was asked to again"""
            from embedding_tasks.run import train_stage

            retrain = bool(get_current_context()["params"]["retrain"])
            return train_stage(_request(path), retrain=retrain)

        @task
        def sync() -> dict[str, int | float]:
            """Enqueue what the source has and the store has not; delete what is gone"""
            from embedding_tasks.run import sync_stage

            return sync_stage(_request(path))

        @task
        def plan() -> list[int]:
            """How many workers the queue is worth"""
            from embedding_tasks.run import plan_stage

            return list(range(plan_stage(_request(path))))

        @task(
            pool="gpu",
            queue=QUEUE,
            execution_timeout=timedelta(hours=12),
            map_index_template="worker {{ task.op_kwargs['worker'] }}",
        )
        def embed(worker: int) -> dict[str, Any]:
            """Lease, read, embed, write, until the queue is empty"""
            from embedding_tasks.run import embed_stage

            return embed_stage(_request(path), worker)

        @task(outlets=[asset], trigger_rule="none_failed")
        def publish() -> dict[str, Any]:
            """Judge the run, and tell those who wait for its embeddings"""
            from embedding_tasks.run import publish_stage

            request = _request(path)
            if request.dry_run:
                raise AirflowSkipException("a dry run publishes nothing")
            counts = publish_stage(request)
            event = get_current_context()["outlet_events"][asset]
            event.extra = {"run": request.external_id, **counts}
            return counts

        workers = plan()
        synced = sync()
        if learns:
            train() >> synced
        synced >> workers
        embed.expand(worker=workers) >> publish()
    return dag


def _refused(path: Path, reason: str) -> DAG:
    """Stands in for a use case whose file is not valid, so that it fails where people
    look, while every other use case carries on."""
    with DAG(
        f"embed_{re.sub(r'[^A-Za-z0-9_.-]', '_', path.stem)}",
        description=f"{path.name} is not valid",
        doc_md=f"**{path.name} is not valid**\n\n```\n{reason}\n```",
        schedule=timetable("@daily"),
        start_date=START,
        catchup=False,
        max_active_runs=1,
        tags=["embedline", "invalid"],
    ) as dag:

        @task
        def refused() -> None:
            raise ConfigError(reason)

        refused()
    return dag


def _request(path: Path) -> Request:
    """What this run was asked for: by its parameters, else, for a backfill, by its
    data interval, else everything that is pending."""
    from embedding_tasks.run import Request

    context = get_current_context()
    run, params = context["dag_run"], context["params"]
    kind = getattr(run.run_type, "value", run.run_type)  # an enum, whose str says more
    names = ("since", "until", "keys", "everything")
    scope = scope_of(**{name: params[name] for name in names})
    if scope is None and kind == "backfill":
        scope = Window.parse(run.data_interval_start, run.data_interval_end)
    cleared = getattr(run, "clear_number", 0)
    return Request(
        use_case=use_case.load(path),
        external_id=f"{run.run_id}~{cleared}" if cleared else run.run_id,
        kind=kind if kind in ("scheduled", "backfill") else "manual",  # type: ignore[arg-type]
        backfill=scope,
        reembed=params["reembed"],
        fresh=params["fresh"],
        audit=params["audit"],
        allow_deletes=params["allow_deletes"],
        dry_run=params["dry_run"],
        resolve=connection,
    )


def _doc(case: UseCase, path: Path) -> str:
    source = case.source.table or "a query"
    features = "\n".join(
        f"- `{name}`: {feature.encoder.type} encoder "
        f"`{getattr(feature.encoder, 'model', 'trained on its rows')}`, "
        f"pooling `{feature.pools}`"
        for name, feature in case.all_features.items()
    )
    return f"""{case.description}

Keeps the embeddings of **{source}** in step, in `embeddings.{case.name}`; described in
`{path.name}`.

{features}

| run | what it does |
|---|---|
| scheduled, or triggered without parameters | everything new, changed or gone |
| triggered with `audit` | the same, by reading every row of the source again |
| triggered with `since` / `until` | the records of that window, at low priority |
| triggered with `keys` | the records with these keys, at low priority |
| triggered with `everything` | every record of the source, at low priority |
| backfill | the records of each interval, at low priority; asks for `event_time` |

`reembed` makes vectors anew that are there already; `fresh` fills a table beside the
one that serves, which takes its place when it is complete. Nothing is ever embedded
twice for being asked for twice, and no run but a full one moves the mark it reads from.
"""


def _dags() -> dict[str, DAG]:
    """Every DAG when the folder is parsed, and only its own in a task."""
    wanted = get_parsing_context().dag_id
    built = (build(p) for p in use_case.files())
    return {d.dag_id: d for d in built if wanted in (None, d.dag_id)}


globals().update(_dags())
