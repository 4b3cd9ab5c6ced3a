"""What the source says of records beside their input: predictions and labels.

They come late, change often and touch no vector; but which parts of a record have one
may depend on its label, where words or entities do.
"""

from __future__ import annotations

import logging
from typing import Any, LiteralString

from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.target import Target
from embedding_tasks.use_case import (
    Column,
    DeleteGuard,
    LabelTable,
    PredictionColumn,
    UseCase,
)

log = logging.getLogger(__name__)


def write(target: Target, use_case: UseCase, *, full: bool) -> int:
    """Predictions, and labels as `compare_labels` and `find_withdrawn` found them;
    `full`: all records are known, so predictions of others can go. Returns of how many
    records a label came or changed."""
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
    target.execute(
        "DELETE FROM embedline.label l USING withdrawn_label w"
        " WHERE l.use_case = %(use_case)s AND l.key = w.key"
    )
    return _write_labels(target)


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


def compare_labels(target: Target, use_case: UseCase) -> None:
    """What the store does not yet say of labels that were read, in `label_delta`: rows
    to come, and rows to go (`label` null)."""
    if isinstance(use_case.label, Column):
        target.execute(
            "CREATE TEMP TABLE incoming_label ON COMMIT DROP AS"
            " SELECT key, label, NULL::timestamptz AS labeled_at FROM incoming"
        )
    if target.value("SELECT to_regclass('pg_temp.incoming_label') IS NULL"):
        target.execute(
            "CREATE TEMP TABLE label_delta (key text, unit int, span int4range,"
            " label text, labeled_at timestamptz, is_new boolean) ON COMMIT DROP"
        )
        return
    unit = use_case.first_feature.unit
    target.execute(
        "CREATE TEMP TABLE label_delta ON COMMIT DROP AS"
        " WITH given AS ("
        "  SELECT i.key, r.unit, r.span, r.label, i.labeled_at FROM incoming_label i"
        "  CROSS JOIN LATERAL ("
        "   SELECT 0 AS unit, NULL::int4range AS span, i.label WHERE NOT %(parts)s"
        "   UNION ALL SELECT * FROM embedline.label_rows("
        "    CASE WHEN %(parts)s THEN embedline.jsonb_or_null(i.label) END,"
        "    %(entities)s)) r"
        "  WHERE r.label IS NOT NULL),"
        " known AS (SELECT l.* FROM embedline.label l JOIN incoming_label i USING (key)"
        "  WHERE l.use_case = %(use_case)s)"
        " SELECT key, unit, g.span, g.label, g.labeled_at,"
        "  k.key IS NULL OR g.span IS DISTINCT FROM k.span AS is_new"
        " FROM given g FULL JOIN known k USING (key, unit)"
        " WHERE (g.span, g.label, g.labeled_at)"
        "  IS DISTINCT FROM (k.span, k.label, k.labeled_at)",
        parts=unit in ("word", "entity"),
        entities=unit == "entity",
    )


def _write_labels(target: Target) -> int:
    target.execute(
        "DELETE FROM embedline.label l USING label_delta d"
        " WHERE l.use_case = %(use_case)s AND l.key = d.key AND l.unit = d.unit"
        " AND d.label IS NULL"
    )
    target.execute(
        "INSERT INTO embedline.label AS l"
        " (use_case, key, unit, span, label, labeled_at)"
        " SELECT %(use_case)s, key, unit, span, label, labeled_at FROM label_delta"
        " WHERE label IS NOT NULL ORDER BY key, unit"
        " ON CONFLICT (use_case, key, unit) DO UPDATE SET label = EXCLUDED.label,"
        "  span = EXCLUDED.span, labeled_at = EXCLUDED.labeled_at,"
        "  arrived_at = CASE WHEN l.label = EXCLUDED.label THEN l.arrived_at"
        "    ELSE now() END"
    )
    return int(target.value("SELECT count(DISTINCT key) FROM label_delta"))


def keep_labelled(target: Target) -> None:
    """Where parts of a record have vectors because they are labelled: parts that are
    so now and have none are made, with their record, by a worker; parts that were are
    let go here. A worker that holds such a record has read its old labels: it loses
    its lease."""
    changed = "SELECT key FROM label_delta UNION SELECT key FROM withdrawn_label"
    for version in target.keep_labelled:
        ids = {"version": version.id}
        target.execute(
            sql.SQL(
                "UPDATE embedline.ledger l SET have_hash = CASE WHEN {lacks}"
                "   THEN NULL ELSE have_hash END, lease_token = NULL,"
                "  lease_holder = NULL, lease_until = NULL,"
                "  backfill = CASE WHEN NOT {lacks} THEN backfill END,"
                "  queued_at = CASE WHEN l.pending THEN l.queued_at ELSE now() END"
                " WHERE l.model_version = %(version)s AND l.want_hash IS NOT NULL"
                f"  AND l.key IN ({changed}) AND (l.pending OR {{lacks}})"
            ).format(lacks=_lacks_labelled(version)),
            **ids,
        )
        gone = sql.SQL(
            f"v.key IN ({changed}) AND NOT {{}} AND NOT EXISTS ("
            "  SELECT FROM embedline.prediction p WHERE p.use_case = %(use_case)s"
            "   AND p.key = v.key AND p.unit = v.unit AND p.model_version = %(version)s"
            "   AND p.prediction <> 'O')"
        ).format(_is_labelled(version))
        target.execute(
            sql.SQL(
                "WITH gone AS (DELETE FROM {} v WHERE {} RETURNING v.key, v.unit)"
                " DELETE FROM embedline.prediction p USING gone g"
                " WHERE p.use_case = %(use_case)s AND p.key = g.key AND p.unit = g.unit"
                "  AND p.model_version = %(version)s"
            ).format(version.table, gone),
            **ids,
        )


def _is_labelled(version: ModelVersion) -> sql.Composable:
    """Of a vector `v`."""
    same = (
        "l.span = v.span"
        if version.unit == "entity"
        else ("(l.span && v.span OR l.span IS NULL AND l.unit = v.unit)")
    )
    return sql.SQL(
        "EXISTS (SELECT FROM embedline.label l WHERE l.use_case = %(use_case)s"
        f" AND l.key = v.key AND l.unit >= 0 AND {same})"
    )


def _lacks_labelled(version: ModelVersion) -> sql.Composable:
    """Of a ledger row `l`: is any newly labelled part of its record without a vector?
    The words of a span are all there when their numbers have no gap and they reach
    from its beginning to its end."""
    if version.unit == "entity":
        covered = "SELECT FROM {} v WHERE v.key = t.key AND v.span = t.span"
    else:
        covered = (
            "SELECT FROM {} v WHERE v.key = t.key"
            " AND (v.span && t.span OR t.span IS NULL AND v.unit = t.unit)"
            " HAVING count(*) > 0 AND (t.span IS NULL"
            "  OR max(v.unit) - min(v.unit) + 1 = count(*)"
            "   AND min(lower(v.span)) <= lower(t.span)"
            "   AND max(upper(v.span)) >= upper(t.span))"
        )
    return sql.SQL(
        "EXISTS (SELECT FROM label_delta t WHERE t.key = l.key AND t.unit >= 0"
        f" AND t.label IS NOT NULL AND t.is_new AND NOT EXISTS ({covered}))"
    ).format(version.table)


def labelled(
    store: Connection, use_case: int, keys: list[str]
) -> dict[str, dict[str, Any]]:
    """By key, what a `Sentence` is told of the label of its record."""
    found: dict[str, dict[str, Any]] = {}
    for key, words, starts, stops in store.execute(
        "SELECT key, array_agg(unit) FILTER (WHERE span IS NULL),"
        "  array_agg(lower(span) ORDER BY unit) FILTER (WHERE span IS NOT NULL),"
        "  array_agg(upper(span) ORDER BY unit) FILTER (WHERE span IS NOT NULL)"
        " FROM embedline.label WHERE use_case = %s AND key = ANY (%s) AND unit >= 0"
        " GROUP BY key",
        [use_case, keys],
    ):
        found[key] = {
            "labelled_words": frozenset(words or ()),
            "labelled_spans": tuple(zip(starts or (), stops or (), strict=True)),
        }
    return found


def find_withdrawn(
    target: Target,
    use_case: UseCase,
    *,
    full: bool,
    withheld: bool,
    partial: bool,
    allow_deletes: bool,
) -> tuple[int, int]:
    """Records whose label is gone, in `withdrawn_label`; `full`: all records have been
    read; `withheld`: those that are gone are kept; `partial`: only some were asked for.
    Returns how many they are, and how many labels of a table the guard keeps."""
    target.execute(
        'CREATE TEMP TABLE withdrawn_label (key text COLLATE "C") ON COMMIT DROP'
    )
    match use_case.label:
        case LabelTable() if not partial:
            found = _withdraw(
                target, "NOT EXISTS (SELECT FROM seen_label s WHERE s.key = l.key)"
            )
            return _guarded(target, use_case.source.delete_guard, found, allow_deletes)
        case Column() if full and not withheld:
            unseen = "NOT EXISTS (SELECT FROM seen s WHERE s.key = l.key)"
            return _withdraw(target, unseen), 0
        case None if full:
            return _withdraw(target, "true"), 0
        case _:
            return 0, 0


def _withdraw(target: Target, condition: LiteralString) -> int:
    return target.execute(
        "INSERT INTO withdrawn_label SELECT DISTINCT key FROM embedline.label l"
        f" WHERE l.use_case = %(use_case)s AND {condition}"
    )


def _guarded(
    target: Target, guard: DeleteGuard, found: int, allow_deletes: bool
) -> tuple[int, int]:
    known = target.value(
        "SELECT count(DISTINCT key) FROM embedline.label WHERE use_case = %(use_case)s"
    )
    if allow_deletes or not guard.forbids(found, known):
        return found, 0
    log.warning("labels withheld rows=%d", found)
    target.execute("TRUNCATE withdrawn_label")
    return 0, found
