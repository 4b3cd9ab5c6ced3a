"""Is a use case fit to run? Everything that can be known before the first run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from embedding_tasks import encoders
from embedding_tasks.connections import Connection, Resolve, blame, for_source
from embedding_tasks.encoders import Runtime, recipe
from embedding_tasks.errors import EmbedlineError, SourceError
from embedding_tasks.inputs import Form
from embedding_tasks.source import extract, snapshot, strategy, timestamp
from embedding_tasks.source.extract import Extract
from embedding_tasks.store import index, roles, trained, versions
from embedding_tasks.store.connection import open_store
from embedding_tasks.store.versions import ModelVersion, Recipe
from embedding_tasks.use_case import ONE_FEATURE, LabelTable, UseCase, load


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `problem` is None where all is well."""

    subject: str
    what: str
    detail: str
    problem: str | None = None


def files(paths: list[Path]) -> Iterator[tuple[Finding, UseCase | None]]:
    for path in paths:
        try:
            use_case = load(path)
        except EmbedlineError as error:
            yield Finding(path.stem, "file", str(path), str(error)), None
        else:
            yield Finding(path.stem, "file", str(path)), use_case


def use_case(
    use_case: UseCase, resolve: Resolve | None = None, *, with_model: bool = True
) -> Iterator[Finding]:
    """Connection, table, columns, keys, labels, then model and store. What depends on
    something that failed is not looked at."""
    name = use_case.name

    def look(what: str, action: Callable[[], str]) -> Finding:
        try:
            return Finding(name, what, action())
        except (EmbedlineError, psycopg.Error) as error:
            return Finding(name, what, "", str(error).strip())

    yield look("source", lambda: _source(use_case, resolve))
    made: dict[str, Recipe] = {}
    yield look("recipe", lambda: _recipe(use_case, made, resolve))
    if with_model:
        for feature in made:
            what = "model" if feature == ONE_FEATURE else f"model of {feature}"
            yield look(what, partial(_model, use_case, feature, made[feature], resolve))
    yield look("store", lambda: _store(use_case, made, resolve))


def _source(use_case: UseCase, resolve: Resolve | None) -> str:
    with snapshot.take(for_source(use_case.source, resolve)) as connection:
        features = use_case.all_features.values()
        forms = [Form.of(f.model_dump()) for f in features]
        records = extract.records(connection, use_case, forms=forms)
        rows = _readable(connection, records)
        found = strategy.of_records(connection, records, use_case, forms)
        if found.name == "timestamp":
            timestamp.require(connection)
        detail = [f"{records.relation.name}: {rows}, strategy {found.name}"]
        if isinstance(use_case.label, LabelTable):
            labels = extract.labels(connection, use_case, use_case.label)
            detail.append(f"{labels.relation.name}: {_readable(connection, labels)}")
    return "; ".join(detail)


def _readable(connection: Connection, taken: Extract) -> str:
    """Runs what a sync will run, and looks for keys that name no single row."""
    try:
        connection.execute(
            sql.SQL("SELECT * FROM ({}) AS r LIMIT 100").format(taken.everything())
        )
        row = connection.execute(
            sql.SQL(
                "SELECT count(*), count(key), count(DISTINCT key) FROM ({}) AS k (key,"
                " early)"
            ).format(taken.keys())
        ).fetchone()
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        raise SourceError(f"{taken.relation.name}: {str(error).strip()}") from error
    assert row is not None
    rows, with_key, distinct = row
    if distinct < with_key:
        raise SourceError(
            f"{taken.relation.name}: the key ({', '.join(taken.key_columns)}) is "
            f"not unique: {with_key} rows have {distinct} different keys"
        )
    nulls = f", {rows - with_key} without a key (left out)" if rows > with_key else ""
    return f"{rows} rows{nulls}"


def _recipe(use_case: UseCase, made: dict[str, Recipe], resolve: Resolve | None) -> str:
    known: dict[str, str] = {}
    if trained.features(use_case):
        with open_store(resolve) as store, blame(store=store):
            known = trained.digests(store, use_case)
    waiting = recipe.untrained(use_case, known)
    made |= recipe.all_of(use_case, resolve, trained=known, without=waiting)
    said = {name: "not trained yet: the first run trains it" for name in waiting}
    for name, found in made.items():
        obstacle = _obstacle(use_case, found)
        classes = f", classes {', '.join(found.classes)}" if found.classes else ""
        said[name] = (
            f"{found.dims} dimensions for each {found.unit}, fingerprint "
            f"{found.fingerprint[:12]}{classes}{obstacle}"
        )
    return "; ".join(
        f"{name}: {what}" if name != ONE_FEATURE else what
        for name, what in said.items()
    )


def _obstacle(use_case: UseCase, found: Recipe) -> str:
    if use_case.storage.index.type == "none":
        return ""
    told = index.obstacle(found.dims, use_case.storage.type)
    return f". No index: {told}" if told else ""


def _model(
    use_case: UseCase, feature: str, made: Recipe, resolve: Resolve | None
) -> str:
    """Loads the model and embeds something with it."""
    trial = ModelVersion(
        id=0,
        use_case=0,
        feature=feature,
        unit=made.unit,
        version=0,
        fingerprint=made.fingerprint,
        spec=made.spec,
        dims=made.dims,
        storage=use_case.storage.type,
        distance=use_case.storage.distance,
        classes=made.classes,
        table_name="",
        state="building",
    )
    runtime = Runtime(
        device=use_case.all_features[feature].device,
        tokens=use_case.batch.tokens,
        resolve=resolve,
        open_store=partial(open_store, resolve),
    )
    vectors = encoders.load(trial, runtime).probe().vectors
    return f"loads and gives {vectors.shape[1]} dimensions"


def _store(use_case: UseCase, made: dict[str, Recipe], resolve: Resolve | None) -> str:
    with open_store(resolve) as store, blame(store=store):
        live: list[Any] = []
        for name, use_case_id in store.execute(
            "SELECT name, id FROM embedline.use_case"
        ):
            if name == use_case.name:
                live = versions.live(store, use_case_id)
        danger = roles.danger(store)
    said = [danger] if danger else []
    if not live:
        return "; ".join(["reachable; nothing of this use case is stored yet", *said])
    said += [
        f"version {v.version} serves, {v.dims} dimensions" for v in live if v.serves
    ]
    fingerprints = {v.fingerprint for v in live}
    new = [r for r in made.values() if r.fingerprint not in fingerprints]
    said += [f"the next run builds a new one ({r.dims} dimensions)" for r in new]
    return "; ".join(said)
