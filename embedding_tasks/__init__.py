"""Embeddings of Postgres records, kept exactly in step in pgvector."""

__version__ = "0.1.0"
