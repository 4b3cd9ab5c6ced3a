"""Monitoring in pandas: what was found, and drift between any two frames.

from embedding_tasks.monitoring import frames

frames.history("tweets")                       # as embedline.monitor_history
frames.drift(embedding_tasks.read("tweets", filter={"environment": "training"}),
             embedding_tasks.read("tweets", filter={"environment": "production"}))
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from psycopg import sql
from psycopg.rows import dict_row

from embedding_tasks.connections import Connection
from embedding_tasks.errors import ConfigError
from embedding_tasks.monitoring.sums import centroid, mix
from embedding_tasks.monitoring.sums.moments import Moments
from embedding_tasks.monitoring.sums.rollup import BUCKETS
from embedding_tasks.store.connection import open_store

Ints = npt.NDArray[np.int64]


def history(use_case: str, *, store: Connection | None = None) -> pd.DataFrame:
    """Every metric, slice and window that was measured: columns as in
    `embedline.monitor_history`."""
    return _view("monitor_history", use_case, store)


def alarms(use_case: str, *, store: Connection | None = None) -> pd.DataFrame:
    """Every alarm there was: columns as in `embedline.monitor_alarms`."""
    return _view("monitor_alarms", use_case, store)


def drift(
    baseline: pd.DataFrame, window: pd.DataFrame, *, seed: int = 0
) -> pd.DataFrame:
    """`centroid` and `mix` of one frame against another, each with `value`, `low`,
    `high`, `p_value` and more. Frames are as `embedding_tasks.read` gives them: of
    `embedding`; of `key`, by whose hash rows are dealt to what p-values permute;
    and, where they have it, of `prediction`, without which all rows are of one class.
    Raises `ConfigError` for a column that is missing, and where a frame has no row."""
    names = _classes(baseline, window)
    before, after = (_moments(frame, names) for frame in (baseline, window))
    if before.means.shape[1] != after.means.shape[1]:
        raise ConfigError("embedding: the two frames' vectors have other dimensions")
    found: list[dict[str, Any]] = []
    if (shift := centroid.shift(before, after, seed=seed)) is not None:
        found.append(_row("centroid", shift.effect, asdict(shift)))
    counts = [
        dict(zip(names, np.bincount(m.classes, m.counts, len(names)), strict=True))
        for m in (before, after)
    ]
    if (change := mix.change(counts[0], counts[1], seed=seed)) is not None:
        found.append(_row("mix", change.effect, asdict(change)))
    return pd.DataFrame(found)


def _row(metric: str, value: float, found: dict[str, Any]) -> dict[str, Any]:
    main = {name: found.pop(name) for name in ("low", "high", "p_value")}
    del found["effect"]
    return {"metric": metric, "value": value, **main, "detail": found}


def _classes(*frames: pd.DataFrame) -> list[str]:
    for frame in frames:
        for name in ("key", "embedding"):
            if name not in frame:
                raise ConfigError(f"a frame lacks the column {name!r}")
        if frame.empty:
            raise ConfigError("a frame has no row: nothing can be compared")
    return sorted({name for frame in frames for name in _predictions(frame)})


def _predictions(frame: pd.DataFrame) -> pd.Series:
    if "prediction" not in frame:
        return pd.Series("", index=frame.index)
    return frame["prediction"].fillna("").astype(str)


def _moments(frame: pd.DataFrame, names: list[str]) -> Moments:
    keys = frame["key"].astype(str).to_numpy(object)
    buckets = pd.util.hash_array(keys) % np.uint64(BUCKETS)
    return Moments.of_vectors(
        np.stack(frame["embedding"].to_list()),
        classes=np.searchsorted(names, _predictions(frame)),
        days=np.zeros(len(frame), np.int64),
        buckets=buckets.astype(np.int64),
    )


def _view(view: str, use_case: str, store: Connection | None) -> pd.DataFrame:
    opened = nullcontext(store) if store is not None else open_store()
    with opened as connection, connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            sql.SQL("SELECT * FROM {} WHERE use_case = %s").format(
                sql.Identifier("embedline", view)
            ),
            [use_case],
        ).fetchall()
        names = [column.name for column in cursor.description or ()]
    return pd.DataFrame(rows, columns=names)
