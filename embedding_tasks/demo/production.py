"""The demo's source: a production database with three tables of real data."""

from __future__ import annotations

from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.demo import posts, scans
from embedding_tasks.store import migrate

DATABASE = "production"
TABLES = {"posts": posts.create, "scans": scans.create}


def create_further(source: Connection) -> dict[str, int]:
    """The tables beside the tweets that are not there yet, each whole or not at all.
    Returns the rows of those made now."""
    made = {}
    for table, create in TABLES.items():
        there = source.execute("SELECT to_regclass(%s)", [f"public.{table}"]).fetchone()
        if there == (None,):
            with source.transaction():
                statement = (migrate.FOLDER / "demo" / f"{table}.sql").read_text()
                source.execute(sql.SQL(statement))
                made[table] = create(source)
    return made
