"""Embeddings of Postgres records, kept exactly in step in pgvector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedding_tasks.querying import QueryModel
    from embedding_tasks.reading import read, read_arrow, read_batches, read_chunks

__version__ = "0.1.0"
__all__ = ["QueryModel", "read", "read_arrow", "read_batches", "read_chunks"]


def __getattr__(name: str) -> Any:
    """Loaded when asked for: the scheduler imports this package every few seconds."""
    if name in __all__:
        from embedding_tasks import querying, reading

        return getattr(querying if name == "QueryModel" else reading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
