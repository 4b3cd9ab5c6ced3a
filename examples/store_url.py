"""The store's address as SQLAlchemy has it, found as everywhere in Embedline."""

from __future__ import annotations

from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL

from embedding_tasks.store import connection


def store_url(driver: str = "psycopg") -> URL:
    parts = conninfo_to_dict(connection.conninfo())
    taken = {"user": "username", "password": "password", "dbname": "database"}
    return URL.create(
        f"postgresql+{driver}",
        **{taken[name]: parts.pop(name) for name in taken if name in parts},
        query={name: str(value) for name, value in parts.items()},
    )
