"""What the source says of records beside their input: predictions and labels.

They come late, change often and never touch a vector.
"""

from __future__ import annotations

import logging

from psycopg import sql

from embedding_tasks.staging import Target
from embedding_tasks.use_case import (
    Column,
    DeleteGuard,
    LabelTable,
    PredictionColumn,
    UseCase,
)

log = logging.getLogger(__name__)


def write_of_columns(
    target: Target, use_case: UseCase, *, full: bool, withheld: bool
) -> int:
    """Predictions and labels that are columns of the records themselves; `full`: all
    of them are known, so those of other records can go, unless these records are
    `withheld`. Returns how many labels changed."""
    if isinstance(use_case.prediction, PredictionColumn):
        _write_predictions(target)
    elif full:
        target.execute(
            "DELETE FROM embedline.prediction"
            " WHERE use_case = %(use_case)s AND model_version = 0"
        )
    if not isinstance(use_case.label, LabelTable):
        # should there be one again, all of it is to be read
        target.execute(
            "DELETE FROM embedline.source_cursor"
            " WHERE use_case = %(use_case)s AND relation = 'labels'"
        )
    if isinstance(use_case.label, Column):
        target.execute(
            "CREATE TEMP TABLE incoming_label ON COMMIT DROP AS"
            " SELECT key, label, NULL::timestamptz AS labeled_at FROM incoming"
        )
        changed = write_labels(target)
        if full and not withheld:
            changed += _withdraw_labels(target, "seen")
        return changed
    if use_case.label is None and full:
        return target.execute(
            "DELETE FROM embedline.label WHERE use_case = %(use_case)s"
        )
    return 0


def _write_predictions(target: Target) -> None:
    target.execute(
        "CREATE TEMP TABLE prediction_delta ON COMMIT DROP AS"
        " SELECT i.key, i.prediction, i.score FROM incoming i"
        " LEFT JOIN embedline.prediction p ON p.use_case = %(use_case)s"
        "   AND p.key = i.key AND p.unit = 0 AND p.model_version = 0"
        " WHERE (p.prediction, p.score) IS DISTINCT FROM (i.prediction, i.score)"
    )
    target.execute(
        "DELETE FROM embedline.prediction p USING prediction_delta d"
        " WHERE p.use_case = %(use_case)s AND p.key = d.key AND p.model_version = 0"
        " AND d.prediction IS NULL"
    )
    target.execute(
        "INSERT INTO embedline.prediction (use_case, key, prediction, score)"
        " SELECT %(use_case)s, key, prediction, score FROM prediction_delta"
        " WHERE prediction IS NOT NULL ORDER BY key"
        " ON CONFLICT (use_case, key, unit, model_version) DO UPDATE SET"
        "  prediction = EXCLUDED.prediction, score = EXCLUDED.score,"
        "  predicted_at = now()"
    )


def write_labels(target: Target) -> int:
    target.execute(
        "CREATE TEMP TABLE label_delta ON COMMIT DROP AS"
        " SELECT i.key, i.label, i.labeled_at FROM incoming_label i"
        " LEFT JOIN embedline.label l"
        "   ON l.use_case = %(use_case)s AND l.key = i.key AND l.unit = 0"
        " WHERE (l.label, l.labeled_at) IS DISTINCT FROM (i.label, i.labeled_at)"
        "  AND NOT (l.key IS NULL AND i.label IS NULL)"
    )
    target.execute(
        "DELETE FROM embedline.label l USING label_delta d"
        " WHERE l.use_case = %(use_case)s AND l.key = d.key AND d.label IS NULL"
    )
    target.execute(
        "INSERT INTO embedline.label AS l (use_case, key, label, labeled_at)"
        " SELECT %(use_case)s, key, label, labeled_at FROM label_delta"
        " WHERE label IS NOT NULL ORDER BY key"
        " ON CONFLICT (use_case, key, unit) DO UPDATE SET label = EXCLUDED.label,"
        "  labeled_at = EXCLUDED.labeled_at,"
        "  arrived_at = CASE WHEN l.label = EXCLUDED.label THEN l.arrived_at"
        "    ELSE now() END"
    )
    return int(target.value("SELECT count(*) FROM label_delta"))


def withdraw_guarded(
    target: Target, guard: DeleteGuard, allow_deletes: bool
) -> tuple[int, int]:
    """Labels withdrawn, and labels the guard keeps."""
    known, gone = target.rows(
        "SELECT count(*), count(*) FILTER (WHERE NOT EXISTS ("
        "  SELECT FROM seen_label s WHERE s.key = l.key))"
        " FROM embedline.label l WHERE l.use_case = %(use_case)s"
    )[0]
    if not allow_deletes and guard.forbids(gone, known):
        log.warning("labels withheld rows=%d", gone)
        return 0, gone
    return _withdraw_labels(target, "seen_label"), 0


def _withdraw_labels(target: Target, seen: str) -> int:
    return target.execute(
        sql.SQL(
            "DELETE FROM embedline.label l WHERE l.use_case = %(use_case)s"
            " AND NOT EXISTS (SELECT FROM {} s WHERE s.key = l.key)"
        ).format(sql.Identifier(seen))
    )
