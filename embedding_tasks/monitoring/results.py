"""What was measured, judged and raised, in the store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from itertools import groupby
from typing import Any, Literal

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from embedding_tasks.connections import Connection
from embedding_tasks.errors import StoreError
from embedding_tasks.monitoring import judging, locks
from embedding_tasks.monitoring.judging import Episode, Judged
from embedding_tasks.monitoring.measured import Measured, Window
from embedding_tasks.store.versions import ModelVersion

Kind = Literal["drift", "performance", "review"]


def digest(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def known_inputs(
    store: Connection, version: ModelVersion, kind: Kind
) -> dict[date, str]:
    """By the last day of each window that has been measured."""
    return dict(
        store.execute(
            "SELECT last_day, inputs FROM embedline.monitored"
            " WHERE model_version = %s AND kind = %s",
            [version.id, kind],
        ).fetchall()
    )


def save(
    store: Connection,
    version: ModelVersion,
    kind: Kind,
    window: Window,
    measured: Sequence[Measured],
    *,
    inputs: str,
    baseline: int | None,
) -> None:
    """In place of what was measured of this kind in this window, and judged together
    with the other kind's."""
    with store.transaction():
        locks.take(store, version, "measurement")
        _replace(store, version, kind, window, measured, baseline)
        note(store, version, kind, window.until, inputs)
        _judge(store, version, window.until)


def note(
    store: Connection, version: ModelVersion, kind: Kind, last_day: date, inputs: str
) -> None:
    """That it has been done, and on what."""
    store.execute(
        "INSERT INTO embedline.monitored (model_version, kind, last_day, inputs)"
        " VALUES (%s, %s, %s, %s) ON CONFLICT (model_version, kind, last_day)"
        " DO UPDATE SET inputs = EXCLUDED.inputs",
        [version.id, kind, last_day, inputs],
    )


def forget_windows(
    store: Connection, version: ModelVersion, kind: Kind, last_days: Iterable[date]
) -> None:
    """Those that are no longer windows; what the other kind's have left is judged
    alone."""
    days = [*last_days]
    with store.transaction():
        locks.take(store, version, "measurement")
        for table in ("monitored", "measurement"):
            store.execute(_FORGET[table], [version.id, kind, days])
        for day in days:
            _judge(store, version, day)


def raise_alarms(store: Connection, version: ModelVersion) -> None:
    """Those that follow from all that has been measured, in place of those there are;
    who was told of one that stays, and who acknowledged it, stays with it."""
    with store.transaction():
        locks.take(store, version, "measurement")
        found = [
            (metric, slice_, episode)
            for (metric, slice_), history in _histories(store, version).items()
            for episode in judging.episodes(history)
        ]
        store.execute(
            "DELETE FROM embedline.alarm WHERE model_version = %s"
            " AND (metric, slice, raised) NOT IN (SELECT * FROM unnest(%s::text[],"
            "  %s::text[], %s::date[]))",
            [version.id, *_columns(found)],
        )
        store.cursor().executemany(
            "INSERT INTO embedline.alarm (model_version, metric, slice, since, raised,"
            " last_seen, cleared) VALUES (%s, %s, %s, %s, %s, %s, %s)"
            " ON CONFLICT (model_version, metric, slice, raised) DO UPDATE"
            " SET since = EXCLUDED.since, last_seen = EXCLUDED.last_seen,"
            "  cleared = EXCLUDED.cleared",
            [
                (version.id, metric, slice_, e.since, e.raised, e.last_seen, e.cleared)
                for metric, slice_, e in found
            ],
        )


_FORGET: Mapping[str, Any] = {
    "monitored": "DELETE FROM embedline.monitored WHERE model_version = %s"
    " AND kind = %s AND last_day = ANY (%s)",
    "measurement": "DELETE FROM embedline.measurement WHERE model_version = %s"
    " AND kind = %s AND last_day = ANY (%s)",
}


def _replace(
    store: Connection,
    version: ModelVersion,
    kind: Kind,
    window: Window,
    measured: Sequence[Measured],
    baseline: int | None,
) -> None:
    store.execute(
        "DELETE FROM embedline.measurement WHERE model_version = %s AND kind = %s"
        " AND last_day = %s",
        [version.id, kind, window.until],
    )
    store.cursor().executemany(
        "INSERT INTO embedline.measurement (model_version, metric, slice, last_day,"
        " first_day, kind, baseline, rows, value, low, high, p_value, excess, least,"
        " noise, detail, state)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s,"
        "  'usual')",
        [
            (
                *(version.id, m.metric, m.slice, window.until, window.since, kind),
                *(baseline, m.rows, m.value, m.low, m.high, m.p_value),
                *(m.excess, m.least, m.noise, Jsonb(dict(m.detail))),
            )
            for m in measured
        ],
    )


def _judge(store: Connection, version: ModelVersion, last_day: date) -> None:
    """All that was measured in the window that ends with this day."""
    for judged in judging.judge(_of_window(store, version, last_day)):
        _save_judgement(store, version, judged)


def _of_window(
    store: Connection, version: ModelVersion, last_day: date
) -> list[Measured]:
    rows = store.execute(
        "SELECT metric, slice, first_day, last_day, rows, value, low, high, p_value,"
        " excess, least, noise FROM embedline.measurement"
        " WHERE model_version = %s AND last_day = %s ORDER BY metric, slice",
        [version.id, last_day],
    )
    return [
        Measured(metric, slice_, Window(since, until), *rest)
        for metric, slice_, since, until, *rest in rows
    ]


def _save_judgement(store: Connection, version: ModelVersion, judged: Judged) -> None:
    measured = judged.measured
    store.execute(
        "UPDATE embedline.measurement SET state = %s, adjusted = %s"
        " WHERE model_version = %s AND metric = %s AND slice = %s AND last_day = %s",
        [
            *(judged.state, judged.adjusted, version.id),
            *(measured.metric, measured.slice, measured.window.until),
        ],
    )


Histories = dict[tuple[str, str], list[tuple[Window, bool]]]


def _histories(store: Connection, version: ModelVersion) -> Histories:
    rows = store.execute(
        "SELECT metric, slice, first_day, last_day, state = 'beyond'"
        " FROM embedline.measurement WHERE model_version = %s"
        " AND state IN ('usual', 'beyond') ORDER BY metric, slice, last_day",
        [version.id],
    ).fetchall()
    return {
        name: [(Window(since, until), beyond) for *_, since, until, beyond in own]
        for name, own in groupby(rows, key=lambda row: (row[0], row[1]))
    }


def _columns(
    found: Sequence[tuple[str, str, Episode]],
) -> tuple[list[str], list[str], list[date]]:
    return (
        [metric for metric, _, _ in found],
        [slice_ for _, slice_, _ in found],
        [episode.raised for _, _, episode in found],
    )


@dataclass(frozen=True)
class Alarm:
    """As the view `embedline.monitor_alarms` has it."""

    id: int
    use_case: str
    feature: str
    model_version: int
    metric: str
    slice: str
    since: date
    raised: date
    last_seen: date
    cleared: date | None
    value: float | None
    low: float | None
    high: float | None
    adjusted: float | None
    excess: float | None
    detail: dict[str, Any]
    told_at: datetime | None
    acknowledged_at: datetime | None
    acknowledged_by: str | None
    remark: str | None


def alarms(store: Connection, use_case: str, *, every: bool = False) -> list[Alarm]:
    """Those that are on, or all there ever were."""
    with store.cursor(row_factory=class_row(Alarm)) as cursor:
        return cursor.execute(
            "SELECT a.id, a.use_case, a.feature, a.model_version, a.metric, a.slice,"
            " a.since, a.raised, a.last_seen, a.cleared, a.value, a.low, a.high,"
            " a.adjusted, a.excess, a.detail, a.told_at, a.acknowledged_at,"
            " a.acknowledged_by, a.remark FROM embedline.monitor_alarms a"
            " WHERE a.use_case = %s"
            " AND (a.cleared IS NULL OR %s) ORDER BY a.raised, a.id",
            [use_case, every],
        ).fetchall()


def mark_told(store: Connection, alarm: int) -> None:
    store.execute("UPDATE embedline.alarm SET told_at = now() WHERE id = %s", [alarm])


def acknowledge(store: Connection, alarm: int, by: str, remark: str) -> None:
    """Raises `StoreError` where there is none of this number that is on."""
    done = store.execute(
        "UPDATE embedline.alarm SET acknowledged_at = now(), acknowledged_by = %s,"
        " remark = nullif(%s, '') WHERE id = %s AND cleared IS NULL",
        [by, remark, alarm],
    )
    if not done.rowcount:
        raise StoreError(
            f"no alarm {alarm} is on; `embedline monitor USE_CASE` has their numbers"
        )
