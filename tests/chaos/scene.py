"""One seed's world: what the table looks like, and how the use case reads it."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from psycopg import sql

from embedding_tasks.connections import Connection

NAME = "records"
KEY_SPACE = 80

Key = tuple[Any, ...]


@dataclass(frozen=True)
class KeyKind:
    columns: dict[str, str]
    value: Callable[[int], Key]


KEYS = {
    "bigint": KeyKind({"id": "bigint"}, lambda n: (n,)),
    "uuid": KeyKind({"id": "uuid"}, lambda n: (uuid.UUID(int=n),)),
    "text": KeyKind({"id": "text"}, lambda n: (f"k {n} 'ö\"",)),
    "composite": KeyKind(
        {"tenant": "text", "id": "int"}, lambda n: (f"tenant {n % 3}", n)
    ),
}


@dataclass(frozen=True)
class Scene:
    """`units`: what has a vector, whole records or their words. `backdates`: the
    application stamps rows with times gone by, which the strategy `timestamp` finds in
    an audit only."""

    seed: int
    strategy: str
    key: str
    units: str
    labels: str
    partitioned: bool
    backdates: bool
    truncates: bool

    @property
    def key_kind(self) -> KeyKind:
        return KEYS[self.key]

    @property
    def key_columns(self) -> sql.Composed:
        return sql.SQL(", ").join(map(sql.Identifier, self.key_kind.columns))

    @property
    def needs_audit(self) -> bool:
        """What is stamped with a time gone by, `timestamp` is not told of."""
        return self.strategy == "timestamp" and self.backdates

    @property
    def input(self) -> str:
        return "words" if self.units == "words" else "body"

    @property
    def label(self) -> str:
        return "tags" if self.units == "words" else "verdict"

    def __str__(self) -> str:
        parts = [self.strategy, f"{self.key} key", self.units, f"label {self.labels}"]
        flags = ("partitioned", "backdates", "truncates")
        return ", ".join([*parts, *(flag for flag in flags if getattr(self, flag))])


RECIPES: dict[str, tuple[Any, Any]] = {
    "records": ("cls", "mean"),
    "words": ({"words": "first"}, {"words": "mean"}),
}
STRATEGIES = ("snapshot", "timestamp", "outbox", "scan")


def of_seed(seed: int, **fixed: Any) -> Scene:
    """Twelve seeds in a row meet every strategy three times, each time with other
    keys."""
    rng = random.Random(seed)
    strategy = STRATEGIES[seed % 4]
    scene = Scene(
        seed=seed,
        strategy=strategy,
        key=[*KEYS][(seed // 4 + seed) % 4],
        units="words" if seed % 3 == 0 else "records",
        labels=rng.choice(("column", "table")),
        partitioned=rng.random() < 0.4,
        backdates=strategy != "timestamp" or rng.random() < 0.3,
        truncates=rng.random() < 0.3,
    )
    return replace(scene, **fixed)


def create(scene: Scene, source: Connection) -> None:
    columns = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(type_))
        for name, type_ in scene.key_kind.columns.items()
    )
    source.execute(
        sql.SQL(
            "CREATE TABLE records ({}, body text, words text[], tags text[],"
            " verdict text, noise int NOT NULL DEFAULT 0,"
            " updated_at timestamptz NOT NULL DEFAULT now(),"
            " event_time timestamptz NOT NULL DEFAULT now(), PRIMARY KEY ({})){}"
        ).format(
            columns,
            scene.key_columns,
            sql.SQL(" PARTITION BY HASH (id)" if scene.partitioned else ""),
        )
    )
    for part in range(3 if scene.partitioned else 0):
        source.execute(
            sql.SQL(
                "CREATE TABLE {} PARTITION OF records"
                " FOR VALUES WITH (MODULUS 3, REMAINDER {})"
            ).format(sql.Identifier(f"records_{part}"), sql.Literal(part))
        )
    source.execute(
        sql.SQL(
            "CREATE TABLE verdicts ({}, verdict text, tags text[], at timestamptz,"
            " PRIMARY KEY ({}))"
        ).format(columns, scene.key_columns)
    )


def write_use_case(
    scene: Scene, folder: Path, source: str, models: Path, recipe: int = 0
) -> None:
    """The use case's file, by one of two recipes. Nothing ever is too much: what is
    undone at the end is for the verdict to judge."""
    label: dict[str, Any] = {"column": scene.label}
    if scene.labels == "table":
        key = [*scene.key_kind.columns]
        label = {"table": "verdicts", "key": key, "label": scene.label, "time": "at"}
    described = {
        "name": NAME,
        "source": {
            "dsn": source,
            "table": "records",
            "key": [*scene.key_kind.columns],
            "input": scene.input,
            "where": "noise % 10 <> 7",
            "event_time": "event_time",
            "tags": ["noise"],
            "strategy": scene.strategy,
            "delete_guard": {"share": 1},
        },
        "encoder": {"model": str(models / scene.units), "device": "cpu"},
        "pooling": RECIPES[scene.units][recipe],
        "prediction": "head",
        "label": label,
        "batch": {"claim": 8, "lease_seconds": 5, "rows_per_worker": 10},
        "retry": {"max_attempts": 3, "backoff_seconds": 0},
        "thresholds": {"undone_share": 1},
    }
    if scene.strategy == "timestamp":
        described["source"] |= {"updated_at": "updated_at", "slack_seconds": 0.5}
    path = folder / "use_cases" / f"{NAME}.yaml"
    path.parent.mkdir(exist_ok=True)
    # whole or not at all: others read it
    draft = path.with_suffix(".new")
    draft.write_text(yaml.safe_dump(described))
    draft.replace(path)
