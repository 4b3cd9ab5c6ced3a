"""Inputs that a model can make little of.

What the inputs say is known as far as `storage.data` keeps them; which of them were cut
at the model's maximum length, whatever it keeps.
"""

from __future__ import annotations

import math

from psycopg import sql
from scipy.stats import binomtest

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring import rows
from embedding_tasks.monitoring.flags import Flag
from embedding_tasks.monitoring.measured import Measured, Window
from embedding_tasks.store.versions import ModelVersion

# From this share of unknown words on, a vector is of half of its text or less.
UNKNOWN = 0.5
# Of a normal distribution 95 % lies within so many standard deviations.
_NORMAL = 1.96


def find(store: Connection, version: ModelVersion) -> list[Flag]:
    """Flags of the kinds `empty`, `unknown_words` and `truncated`."""
    return [
        *_empty(store, version),
        *_unknown(store, version),
        *_truncated(store, version),
    ]


def _empty(store: Connection, version: ModelVersion) -> list[Flag]:
    """Without a letter, a digit or any other sign that is no space."""
    if version.form.kind == "image":
        return []
    found = store.execute(
        sql.SQL(
            "SELECT v.key, v.unit FROM embedline.input i JOIN {} v USING (key)"
            " WHERE i.model_version = %s AND i.data !~ '[^[:space:]]'"
        ).format(version.table),
        [version.id],
    )
    return [Flag(key, unit, "empty", 1.0) for key, unit in found]


def _unknown(store: Connection, version: ModelVersion) -> list[Flag]:
    found = store.execute(
        sql.SQL(
            "SELECT v.key, v.unit, i.unknown_words::float8"
            " FROM embedline.input i JOIN {} v USING (key)"
            " WHERE i.model_version = %s AND i.unknown_words >= %s"
        ).format(version.table),
        [version.id, UNKNOWN],
    )
    return [Flag(key, unit, "unknown_words", share) for key, unit, share in found]


def _truncated(store: Connection, version: ModelVersion) -> list[Flag]:
    """The longer, the less of it is in its vector."""
    found = store.execute(
        sql.SQL(
            "SELECT v.key, v.unit, coalesce(length(i.data), 1)::float8"
            " FROM embedline.input i JOIN {} v USING (key)"
            " WHERE i.model_version = %s AND i.truncated"
        ).format(version.table),
        [version.id],
    )
    limit = version.spec["encoder"].get("max_length")
    detail = {"max_length": limit} if limit else {}
    return [
        Flag(key, unit, "truncated", characters, detail=detail)
        for key, unit, characters in found
    ]


def truncated(store: Connection, version: ModelVersion, window: Window) -> Measured:
    """Share of the records embedded on these days, for any version of the use case,
    that were longer than their model takes."""
    row = store.execute(
        "SELECT coalesce(sum(embedded), 0)::bigint, coalesce(sum(truncated), 0)::bigint"
        " FROM embedline.run WHERE use_case = %s"
        " AND (started_at AT TIME ZONE 'UTC')::date BETWEEN %s AND %s",
        [version.use_case, window.since, window.until],
    ).fetchone()
    assert row is not None
    embedded, cut = row
    return share("truncated", window, cut, embedded)


def unknown_words(
    store: Connection, version: ModelVersion, window: Window
) -> Measured | None:
    """Mean share of the words that the encoder has no vector for, over the vectors of
    these days; None where it is not of a kind that knows words."""
    if version.form.kind != "words":
        return None
    row = store.execute(
        sql.SQL(
            "SELECT count(i.unknown_words), avg(i.unknown_words::float8),"
            " coalesce(stddev(i.unknown_words::float8), 0) {rows}"
            " JOIN embedline.input i ON i.model_version = %(version)s AND i.key = v.key"
            " WHERE d.day BETWEEN %(since)s AND %(until)s"
        ).format(rows=rows.joined(version)),
        {**rows.ids(version), "since": window.since, "until": window.until},
    ).fetchone()
    assert row is not None
    count, mean, deviation = row
    if not count:
        return Measured("unknown_words", "", window, 0)
    off = _NORMAL * deviation / math.sqrt(count)
    low, high = max(mean - off, 0), min(mean + off, 1)
    return Measured("unknown_words", "", window, count, mean, low, high)


def share(metric: str, window: Window, count: int, of: int) -> Measured:
    """`count` of so many rows, with Wilson's interval."""
    if not of:
        return Measured(metric, "", window, 0)
    interval = binomtest(count, of).proportion_ci(method="wilson")
    return Measured(metric, "", window, of, count / of, interval.low, interval.high)
