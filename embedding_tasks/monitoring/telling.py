"""An alarm in words: what, since when, how sure, and the SQL that shows the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring.results import Alarm
from embedding_tasks.use_case import ONE_FEATURE
from embedding_tasks.use_case.monitoring import BY_PREDICTION


def tell(store: Connection, alarm: Alarm) -> str:
    of_whom = f" of {alarm.slice}" if alarm.slice else ""
    on = "" if alarm.cleared is None else f", ended by {alarm.cleared}"
    lines = [
        f"{alarm.use_case} (model version {alarm.model_version}): "
        f"{_what(alarm)}{of_whom}",
        f"since {alarm.since}, an alarm since {alarm.raised}, last seen "
        f"{alarm.last_seen}{on}{_sure(alarm)}",
    ]
    if alarm.acknowledged_at:
        remark = f": {alarm.remark}" if alarm.remark else ""
        lines.append(f"acknowledged by {alarm.acknowledged_by}{remark}")
    lines.append(rows_of(store, alarm))
    return "\n".join(lines)


def _what(alarm: Alarm) -> str:
    if alarm.value is None:
        return alarm.metric
    if say := _SAY.get(alarm.metric):
        return say(alarm)
    told = f"{alarm.metric.replace('_', ' ')} is {alarm.value:.3g}"
    if alarm.excess is None or alarm.excess == alarm.value:
        return told
    return f"{told}, {alarm.excess:.3g} worse than usual"


def _centroid(alarm: Alarm) -> str:
    classes = alarm.detail.get("classes", {})
    told = f"the vectors have moved by {alarm.value:.2f} standard deviations"
    share = max(classes.items(), key=lambda c: c[1]["share"], default=None)
    if share is None or len(classes) < 2:
        return told
    name, part = share
    return f"{told}, {part['share']:.0%} of it in what is predicted {name!r}"


def _mix(alarm: Alarm) -> str:
    changes: Mapping[str, float] = alarm.detail.get("classes", {})
    moved = sorted(changes.items(), key=lambda c: -abs(c[1]))[:3]
    told = ", ".join(f"{name!r} {change:+.1%}" for name, change in moved)
    return f"{alarm.value:.1%} of the predictions are of other classes: {told}"


def _novelty(alarm: Alarm) -> str:
    groups = alarm.detail.get("clusters", [])
    words = [", ".join(group["words"][:5]) for group in groups if group.get("words")]
    told = f"{alarm.value:.1%} of the rows are of a kind that the baseline lacks"
    return f"{told}: {'; '.join(words[:3])}" if words else told


def _outliers(alarm: Alarm) -> str:
    return f"{alarm.value:.1%} of the rows lie farther out than the baseline's do"


def _spread(alarm: Alarm) -> str:
    return f"what the baseline's main axes leave over has changed by {alarm.value:.1%}"


def _concept(alarm: Alarm) -> str:
    return (
        f"the model is right {alarm.value:.1%} less often than its scores say: what is "
        "true of such records may have changed"
    )


_SAY: Mapping[str, Callable[[Alarm], str]] = {
    "centroid": _centroid,
    "mix": _mix,
    "novelty": _novelty,
    "outliers": _outliers,
    "spread": _spread,
    "concept_drift": _concept,
}
# Metrics that flag rows, and as what.
_FLAGGED = {"novelty": "novel", "outliers": "outlier"}


def _sure(alarm: Alarm) -> str:
    told = ""
    if alarm.low is not None and alarm.high is not None:
        told = f"; 95 % interval {alarm.low:.3g} to {alarm.high:.3g}"
    if alarm.adjusted is not None:
        told += f", p = {alarm.adjusted:.2g}"
    return told


def rows_of(store: Connection, alarm: Alarm) -> str:
    """A statement that shows the alarm's rows, to be run as it is."""
    if alarm.metric in _FLAGGED:
        return _flagged(store, alarm)
    view = alarm.use_case
    if alarm.feature != ONE_FEATURE:
        view = f"{alarm.use_case}__{alarm.feature}"
    conditions = [
        sql.SQL("coalesce(event_time, embedded_at) >= {}").format(
            sql.Literal(f"{alarm.since}Z")
        ),
        sql.SQL("coalesce(event_time, embedded_at) < {}").format(
            sql.Literal(f"{alarm.last_seen + timedelta(days=1)}Z")
        ),
        *_of_slice(alarm.slice),
    ]
    return (
        sql.SQL("SELECT key, data, prediction, label FROM {} WHERE {};")
        .format(sql.Identifier("embeddings", view), sql.SQL(" AND ").join(conditions))
        .as_string(store)
    )


def _flagged(store: Connection, alarm: Alarm) -> str:
    return (
        sql.SQL(
            "SELECT rank, key, cluster, data, prediction, label FROM embedline.review"
            " WHERE use_case = {} AND feature = {} AND kind = {}"
            " AND day BETWEEN {} AND {} ORDER BY rank;"
        )
        .format(
            sql.Literal(alarm.use_case),
            sql.Literal(alarm.feature),
            sql.Literal(_FLAGGED[alarm.metric]),
            sql.Literal(str(alarm.since)),
            sql.Literal(str(alarm.last_seen)),
        )
        .as_string(store)
    )


def _of_slice(slice_: str) -> list[sql.Composed]:
    if not slice_:
        return []
    name, _, value = slice_.partition("=")
    of: Any = sql.SQL("prediction")
    if name != BY_PREDICTION:
        of = sql.SQL("tags ->> {}").format(sql.Literal(name))
    return [sql.SQL("{} = {}").format(of, sql.Literal(value))]
