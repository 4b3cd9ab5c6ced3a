"""What of labels and inputs somebody should look at: found anew as a whole, since a
label that arrives changes what its neighbors are suspected of.

    from embedding_tasks.monitoring.quality import review

    found = review.refresh(store, version)      # into embedline.flag
    measured = review.measure(store, version, window)
"""

from __future__ import annotations

import logging
from collections import Counter

from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring import flags, rows
from embedding_tasks.monitoring.measured import Measured, Window
from embedding_tasks.monitoring.quality import data_quality, label_quality
from embedding_tasks.store.versions import ModelVersion

log = logging.getLogger(__name__)

KINDS = ("label", "conflict", "empty", "unknown_words", "truncated")


def refresh(
    store: Connection, version: ModelVersion, k: int = label_quality.NEIGHBORS
) -> dict[str, int]:
    """How many flags of each kind there are now, those included that somebody has
    dismissed. `k` neighbors vote on a label. Raises `StoreError` where there are too
    many labelled vectors to compare without an index; then nothing is changed."""
    found = [
        *label_quality.find(store, version, k),
        *data_quality.find(store, version),
    ]
    flags.replace(store, version, KINDS, found)
    counts = Counter(flag.kind for flag in found)
    log.info("reviewed version=%d flags=%s", version.version, dict(counts))
    return {kind: counts[kind] for kind in KINDS}


def measure(store: Connection, version: ModelVersion, window: Window) -> list[Measured]:
    """Shares of these days, as of the latest `refresh`: `label` and `conflict` of the
    labelled vectors, `empty` of all, without what was dismissed; `unknown_words` where
    the encoder knows words; `truncated`. None of them alarms by itself."""
    vectors, labelled = _counted(store, version, window)
    flagged = _flagged(store, version, window)
    unknown = data_quality.unknown_words(store, version, window)
    return [
        data_quality.share("label", window, flagged["label"], labelled),
        data_quality.share("conflict", window, flagged["conflict"], labelled),
        data_quality.share("empty", window, flagged["empty"], vectors),
        *([unknown] if unknown else []),
        data_quality.truncated(store, version, window),
    ]


def _counted(
    store: Connection, version: ModelVersion, window: Window
) -> tuple[int, int]:
    row = store.execute(
        sql.SQL(
            "WITH labelled AS MATERIALIZED (SELECT l.key, l.unit"
            "  FROM embedline.model_version m, embedline.labelled(m) l"
            "  WHERE m.id = %(version)s)"
            " SELECT count(*), count(l.key){rows}"
            " LEFT JOIN labelled l ON l.key = v.key AND l.unit = v.unit"
            " WHERE d.day BETWEEN %(since)s AND %(until)s"
        ).format(rows=rows.joined(version)),
        {**rows.ids(version), "since": window.since, "until": window.until},
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def _flagged(store: Connection, version: ModelVersion, window: Window) -> Counter[str]:
    found = store.execute(
        "SELECT r.kind, count(*) FROM embedline.review r JOIN embedline.use_case u"
        " ON u.name = r.use_case WHERE u.id = %s AND r.model_version = %s"
        " AND r.day BETWEEN %s AND %s GROUP BY 1",
        [version.use_case, version.version, window.since, window.until],
    )
    return Counter(dict(found.fetchall()))
