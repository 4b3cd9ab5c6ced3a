"""What a sync does to the records of a store beside their ledger, in its own
transaction: those that are emptied, written, kept otherwise than before, or gone."""

from __future__ import annotations

from psycopg import sql

from embedding_tasks.store import versions
from embedding_tasks.store.write import write_data
from embedding_tasks.target import Target
from embedding_tasks.use_case import Column, UseCase


def drop_emptied(target: Target) -> None:
    """Inputs that have become null have nothing to show for."""
    for version in target.versions:
        target.execute(
            sql.SQL(
                "DELETE FROM {} v USING delta d WHERE v.key = d.key"
                " AND d.model_version = %(version)s AND d.hash IS NULL"
            ).format(version.table),
            version=version.id,
        )
    target.execute(
        "DELETE FROM embedline.prediction p USING delta d"
        " WHERE p.use_case = %(use_case)s AND p.key = d.key"
        " AND p.model_version = d.model_version AND d.hash IS NULL"
    )
    target.execute(
        "DELETE FROM embedline.input i USING delta d"
        " WHERE i.model_version = d.model_version AND i.key = d.key AND d.hash IS NULL"
    )


def write(target: Target) -> None:
    target.execute(
        "CREATE TEMP TABLE record_delta ON COMMIT DROP AS"
        " SELECT i.* FROM incoming i LEFT JOIN embedline.record r"
        "   ON r.use_case = %(use_case)s AND r.key = i.key"
        " WHERE r.key IS NULL OR (r.event_time, r.environment, r.link, r.tags,"
        "   r.tenant) IS DISTINCT FROM"
        "   (i.event_time, i.environment, i.link, i.tags, i.tenant)"
    )
    target.execute(
        "INSERT INTO embedline.record"
        " (use_case, key, event_time, environment, link, tags, tenant)"
        " SELECT %(use_case)s, key, event_time, environment, link, tags, tenant"
        " FROM record_delta ORDER BY key"
        " ON CONFLICT (use_case, key) DO UPDATE SET event_time = EXCLUDED.event_time,"
        "  environment = EXCLUDED.environment, link = EXCLUDED.link,"
        "  tags = EXCLUDED.tags, tenant = EXCLUDED.tenant"
    )


def refresh_data(target: Target) -> None:
    """The use case now keeps another part of the input than it did."""
    # Only where the vector is of the input that is read now.
    target.execute(
        "CREATE TEMP TABLE kept ON COMMIT DROP AS"
        " SELECT v.id AS model_version, i.key, i.data[v.place] AS data,"
        "  o.unknown_words, o.truncated"
        " FROM unnest(%(versions)s::int[]) WITH ORDINALITY AS v (id, place)"
        " CROSS JOIN incoming i JOIN embedline.ledger l"
        "   ON l.model_version = v.id AND l.key = i.key"
        "  AND l.have_hash = i.hashes[v.place]"
        " LEFT JOIN embedline.input o ON o.model_version = v.id AND o.key = i.key",
    )
    for version in target.versions:
        target.execute(
            "CREATE TEMP TABLE kept_of_version ON COMMIT DROP AS"
            " SELECT key, data, unknown_words, truncated FROM kept"
            " WHERE model_version = %(id)s",
            id=version.id,
        )
        write_data(
            target.store,
            version.id,
            "SELECT key, data, unknown_words, truncated FROM kept_of_version",
        )
        target.execute("DROP TABLE kept_of_version")


def delete_vanished(target: Target, use_case: UseCase) -> int:
    """Records in the temporary table `vanished`. The ledger first: it stops workers
    that hold these records. Then, in statements that begin later and so see what those
    workers had just written, everything else, in the tables of retired versions too."""
    target.execute(
        "DELETE FROM embedline.ledger l USING vanished d"
        " WHERE l.model_version = ANY (%(versions)s) AND l.key = d.key"
    )
    for table in versions.all_tables(target.store, target.use_case):
        target.execute(
            sql.SQL("DELETE FROM {} v USING vanished d WHERE v.key = d.key").format(
                table
            )
        )
    target.execute(
        "DELETE FROM embedline.input i USING vanished d, embedline.model_version m"
        " WHERE m.use_case = %(use_case)s AND i.model_version = m.id"
        " AND i.key = d.key"
    )
    target.execute(
        "DELETE FROM embedline.prediction p USING vanished d"
        " WHERE p.use_case = %(use_case)s AND p.key = d.key"
    )
    if isinstance(use_case.label, Column):
        target.execute(
            "DELETE FROM embedline.label l USING vanished d"
            " WHERE l.use_case = %(use_case)s AND l.key = d.key"
        )
    return target.execute(
        "DELETE FROM embedline.record r USING vanished d"
        " WHERE r.use_case = %(use_case)s AND r.key = d.key"
    )
