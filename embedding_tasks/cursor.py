"""The cursor that the store keeps of a relation: how far the last look reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg.types.json import Jsonb

from embedding_tasks.source.reading import Cursor, Reading
from embedding_tasks.source.snapshot import Position
from embedding_tasks.target import Target


def load(target: Target, relation: str) -> Cursor | None:
    rows = target.rows(
        "SELECT definition, server, horizon::text::bigint, bound,"
        "  audit_horizon::text::bigint,"
        "  extract(epoch FROM now() - synced_at)::float8 / 86400,"
        "  extract(epoch FROM now() - audited_at)::float8 / 86400"
        " FROM embedline.source_cursor"
        " WHERE use_case = %(use_case)s AND relation = %(relation)s",
        relation=relation,
    )
    return Cursor(*rows[0]) if rows else None


def save(
    target: Target,
    relation: str,
    definition: Mapping[str, Any],
    position: Position,
    reading: Reading,
    held_back: Mapping[str, Any] | None,
) -> None:
    target.execute(
        "INSERT INTO embedline.source_cursor AS c"
        " (use_case, relation, definition, server, horizon, bound, audit_horizon,"
        "  prune_horizon, prune_at, held_back)"
        " VALUES (%(use_case)s, %(relation)s, %(definition)s, %(server)s,"
        "  %(horizon)s::text::xid8, %(bound)s, %(horizon)s::text::xid8,"
        "  %(horizon)s::text::xid8, now(), %(held_back)s)"
        " ON CONFLICT (use_case, relation) DO UPDATE SET"
        "  definition = EXCLUDED.definition, horizon = EXCLUDED.horizon,"
        "  server = EXCLUDED.server, bound = EXCLUDED.bound, synced_at = now(),"
        "  held_back = EXCLUDED.held_back,"
        "  audited_at = CASE WHEN %(audit)s THEN now() ELSE c.audited_at END,"
        "  audit_horizon = CASE WHEN %(audit)s THEN EXCLUDED.audit_horizon"
        "    ELSE c.audit_horizon END,"
        "  prune_horizon = CASE WHEN %(afresh)s THEN EXCLUDED.prune_horizon"
        "    ELSE c.prune_horizon END,"
        "  prune_at = CASE WHEN %(afresh)s THEN now() ELSE c.prune_at END",
        relation=relation,
        definition=Jsonb(definition),
        server=position.server,
        horizon=position.horizon,
        bound=reading.bound,
        held_back=Jsonb(held_back) if held_back else None,
        audit=reading.audit,
        afresh=reading.afresh,
    )
