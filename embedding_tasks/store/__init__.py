"""The store: Postgres with pgvector, embedded or yours."""
