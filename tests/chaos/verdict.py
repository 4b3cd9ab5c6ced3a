"""What the store holds, beside what a fresh full run gives and beside the source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psycopg
from psycopg import sql

from embedding_tasks.connections import Connection
from tests.chaos.scene import NAME, Scene
from tests.chaos.writers import POISON

Rows = dict[tuple[str, int], tuple[tuple[Any, ...], np.ndarray]]

# Batches differ, so the last digits do.
TOLERANCE = 1e-4
# Every table of the store that holds something of a record.
TABLES = ("ledger", "record", "input", "prediction")


@dataclass
class Verdict:
    """Each list names what is wrong; `rows` is how many were looked at."""

    rows: int = 0
    missing: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    orphaned: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> dict[str, list[str]]:
        found = {
            name: getattr(self, name)
            for name in ("missing", "stale", "orphaned", "duplicated", "undone")
        }
        return {name: what for name, what in found.items() if what}


def judge(scene: Scene, store: str, fresh: str, source: str) -> Verdict:
    """Row by row: the view, the labels, every table of records, the queue."""
    verdict = Verdict()
    with (
        psycopg.connect(store) as found,
        psycopg.connect(fresh) as wanted,
        psycopg.connect(source) as origin,
    ):
        _compare(verdict, "view", _view(verdict, found), _view(verdict, wanted))
        _compare(verdict, "label", _labels(found), _labels(wanted))
        _compare_with_source(verdict, scene, found, origin)
        _find_orphans(verdict, scene, found, origin)
        _find_undone(verdict, scene, found, origin)
    return verdict


def _view(verdict: Verdict, store: Connection) -> Rows:
    rows: Rows = {}
    for key, unit, vector, probabilities, *facts in store.execute(
        sql.SQL(
            "SELECT v.key, v.unit, v.embedding::real[], p.probabilities, v.span,"
            " v.data, v.tags, v.prediction, v.label, v.event_time, v.environment"
            " FROM embeddings.{} v LEFT JOIN (embedline.prediction p"
            "  JOIN embedline.model_version m"
            "   ON m.id = p.model_version AND m.state = 'active')"
            "  ON p.key = v.key AND p.unit = v.unit"
        ).format(sql.Identifier(NAME))
    ):
        if (key, unit) in rows:
            verdict.duplicated.append(f"view {key}/{unit}")
        facts[2] = repr(facts[2])
        rows[key, unit] = tuple(facts), np.array([*vector, *(probabilities or [])])
    return rows


def _labels(store: Connection) -> Rows:
    return {
        (key, unit): (tuple(facts), np.zeros(0))
        for key, unit, *facts in store.execute(
            "SELECT key, unit, span, label, labeled_at FROM embedline.label"
        )
    }


def _compare(verdict: Verdict, what: str, found: Rows, wanted: Rows) -> None:
    verdict.rows += len(wanted)
    verdict.missing += _named(what, wanted.keys() - found.keys())
    verdict.orphaned += _named(what, found.keys() - wanted.keys())
    verdict.stale += _named(
        what,
        (
            place
            for place in found.keys() & wanted.keys()
            if found[place][0] != wanted[place][0]
            or not np.allclose(found[place][1], wanted[place][1], atol=TOLERANCE)
        ),
    )


def _named(what: str, places: Iterable[tuple[str, int]]) -> list[str]:
    return [f"{what} {key}/{unit}" for key, unit in sorted(places)]


def _compare_with_source(
    verdict: Verdict, scene: Scene, store: Connection, source: Connection
) -> None:
    """By plain SQL and not through the product's own reading of the source."""
    wanted = {
        key: text
        for key, text in _source(scene, source).items()
        if text is not None and POISON not in text
    }
    kept = dict(
        store.execute(
            "SELECT i.key, i.data FROM embedline.input i JOIN embedline.model_version m"
            " ON m.id = i.model_version AND m.state = 'active'"
        ).fetchall()
    )
    verdict.missing += [f"input {key}" for key in sorted(wanted.keys() - kept.keys())]
    verdict.orphaned += [f"input {key}" for key in sorted(kept.keys() - wanted.keys())]
    verdict.stale += [
        f"input {key}"
        for key in sorted(kept.keys() & wanted.keys())
        if kept[key] != wanted[key]
    ]


def _source(scene: Scene, source: Connection) -> dict[str, str | None]:
    columns = [*scene.key_kind.columns]
    key: sql.Composable = sql.SQL("{}::text").format(sql.Identifier(columns[0]))
    if len(columns) > 1:
        key = sql.SQL("jsonb_build_array({})::text").format(
            sql.SQL(", ").join(
                sql.SQL("{}::text").format(sql.Identifier(c)) for c in columns
            )
        )
    text = "array_to_string(words, ' ')" if scene.units == "words" else "body"
    return dict(
        source.execute(
            sql.SQL("SELECT {}, {} FROM records WHERE noise <> 7").format(
                key, sql.SQL(text)
            )
        ).fetchall()
    )


def _find_orphans(
    verdict: Verdict, scene: Scene, store: Connection, source: Connection
) -> None:
    """Tables of retired versions, too."""
    known = _source(scene, source).keys()
    vectors = store.execute("SELECT table_name FROM embedline.model_version").fetchall()
    for table in (*TABLES, *(name for (name,) in vectors)):
        keys = store.execute(
            sql.SQL("SELECT DISTINCT key FROM embedline.{}").format(
                sql.Identifier(table)
            )
        )
        orphans = {key for (key,) in keys} - known
        verdict.orphaned += [f"{table} {key}" for key in sorted(orphans)]


def _find_undone(
    verdict: Verdict, scene: Scene, store: Connection, source: Connection
) -> None:
    """Nothing waits or is held, and dead is what is poison, all of it."""
    for key, error in store.execute(
        "SELECT key, coalesce(error, lease_holder, 'waits') FROM embedline.ledger"
        " WHERE dead_at IS NULL AND (pending OR lease_token IS NOT NULL)"
    ):
        verdict.undone.append(f"{key}: {error}")
    poison = {
        key for key, text in _source(scene, source).items() if POISON in (text or "")
    }
    dead = {
        key
        for (key,) in store.execute(
            "SELECT key FROM embedline.ledger WHERE dead_at IS NOT NULL"
        )
    }
    verdict.undone += [f"{key}: dead, and why?" for key in sorted(dead - poison)]
    verdict.undone += [f"{key}: alive, and why?" for key in sorted(poison - dead)]
