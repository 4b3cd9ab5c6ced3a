"""Two versions of a model on the same rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from psycopg import sql
from scipy import stats

from embedding_tasks.connections import Connection
from embedding_tasks.errors import ConfigError
from embedding_tasks.monitoring.labels import counted
from embedding_tasks.monitoring.labels.figure import wilson
from embedding_tasks.monitoring.labels.outcomes import (
    PREDICTED,
    SELECTED,
    WANTED,
    Selection,
)
from embedding_tasks.store.versions import ModelVersion


@dataclass(frozen=True)
class Compared:
    """Of the `rows` that both have a prediction of and that have a label: how many are
    right by both, by one alone, by none. `difference` is the accuracy of `b` less that
    of `a`, [`low`, `high`] its 95 % interval; `p_value` of McNemar's exact test that
    both are as good."""

    rows: int
    both: int
    only_a: int
    only_b: int
    neither: int
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None


def compare(
    store: Connection, a: ModelVersion, b: ModelVersion, selection: Selection
) -> Compared:
    """Raises `ConfigError` where they are of two use cases, or of other parts of their
    records."""
    if (a.use_case, a.unit) != (b.use_case, b.unit):
        raise ConfigError(
            f"versions {a.version} and {b.version} have no rows in common: they are of "
            "two use cases, or one of whole records and one of parts"
        )
    found = store.execute(
        _PAIRS, {**counted.parameters(a), **selection.parameters, "other": b.id}
    ).fetchall()
    counts = {(right, as_well): rows for right, as_well, rows in found}
    both, only_a, only_b, neither = (
        counts.get(pair, 0)
        for pair in ((True, True), (True, False), (False, True), (False, False))
    )
    rows = both + only_a + only_b + neither
    parts = rows, both, only_a, only_b, neither
    return Compared(*parts, *_tested(rows, only_a, only_b))


def _tested(
    rows: int, only_a: int, only_b: int
) -> tuple[float, float, float, float] | tuple[None, None, None, None]:
    if not rows:
        return None, None, None, None
    difference = (only_b - only_a) / rows
    apart = only_a + only_b
    if not apart:
        reach = wilson(0, rows)[1]
        return difference, -reach, reach, 1.0
    error = np.sqrt(max(apart / rows - difference**2, 0.0) / rows)
    reach = float(stats.norm.ppf(0.975) * error)
    p_value = float(stats.binomtest(only_b, apart).pvalue)
    return difference, difference - reach, difference + reach, p_value


_PAIRS = sql.SQL(
    "SELECT p.prediction = l.label, o.prediction = l.label, count(*)"
    "{predicted} JOIN embedline.prediction o ON o.use_case = p.use_case"
    "  AND o.key = p.key AND o.unit = p.unit"
    "  AND o.model_version = CASE p.model_version WHEN 0 THEN 0 ELSE %(other)s END"
    "{wanted} AND o.prediction IS NOT NULL AND l.label IS NOT NULL{selected}"
    " GROUP BY 1, 2"
).format(
    predicted=PREDICTED,
    wanted=WANTED,
    selected=SELECTED.format(
        day=sql.SQL("d.day"), environment=sql.SQL("coalesce(r.environment, '')")
    ),
)
