"""LlamaIndex's PGVectorStore over a thin view of a use case:

    python examples/llama_index_pgvector.py tweets "delayed flight"

LlamaIndex cannot be told which column is which: it reads `data_<name>` with the columns
id, node_id, text, metadata_ and embedding. This view has them, made once by a role that
may create a schema; it copies nothing, and an index on the vectors serves through it.
"""

from __future__ import annotations

import sys

from llama_index.core.vector_stores import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.vector_stores.postgres import PGVectorStore
from psycopg import sql
from store_url import store_url

from embedding_tasks import QueryModel
from embedding_tasks.store.connection import open_store

SCHEMA = "llama_index"
VIEW = """
CREATE SCHEMA IF NOT EXISTS {schema};
CREATE OR REPLACE VIEW {schema}.{view} AS
SELECT hashtextextended(key, unit) AS id, key AS node_id, data AS text,
       coalesce(tags, '{{}}') || jsonb_build_object(
           'prediction', prediction, 'score', score, 'label', label,
           'event_time', event_time, 'model_version', model_version) AS metadata_,
       embedding
FROM embeddings.{use_case};
"""


def make_view(use_case: str) -> None:
    with open_store() as store:
        store.execute(
            sql.SQL(VIEW).format(
                schema=sql.Identifier(SCHEMA),
                view=sql.Identifier(f"data_{use_case}"),
                use_case=sql.Identifier(use_case),
            )
        )


def main(use_case: str, text: str, k: str = "5") -> None:
    make_view(use_case)
    model = QueryModel(use_case)
    store = PGVectorStore.from_params(
        connection_string=store_url("psycopg2"),
        async_connection_string=store_url("asyncpg"),
        schema_name=SCHEMA,
        table_name=use_case,
        embed_dim=model.dims,
        use_halfvec=model.storage == "halfvec",
        use_jsonb=True,
        perform_setup=False,
    )
    # the vectors of another model are no neighbours
    same_model = MetadataFilter(
        key="model_version", value=model.model_version, operator=FilterOperator.EQ
    )
    found = store.query(
        VectorStoreQuery(
            query_embedding=model.embed(text).tolist(),
            similarity_top_k=int(k),
            filters=MetadataFilters(filters=[same_model]),
        )
    )
    for node, similarity in zip(found.nodes, found.similarities, strict=True):
        distance, label = 1 - similarity, node.metadata["label"]
        print(node.node_id, f"{distance:.4f}", label, node.get_content(), sep="\t")


if __name__ == "__main__":
    main(*sys.argv[1:])
