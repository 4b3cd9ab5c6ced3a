"""LangChain's PGVectorStore over the view of a use case, as it is:

    python examples/langchain_pgvector.py tweets "delayed flight"

It is told which column is which; texts to search by go through the use case's own
model. Records are written by Embedline only: the view takes no INSERT.
"""

from __future__ import annotations

import sys

from langchain_core.embeddings import Embeddings
from langchain_postgres import PGEngine, PGVectorStore
from store_url import store_url

from embedding_tasks import QueryModel


class OwnModel(Embeddings):
    def __init__(self, model: QueryModel) -> None:
        self.model = model

    def embed_query(self, text: str) -> list[float]:
        return self.model.embed(text).tolist()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise NotImplementedError("Embedline embeds the records")


def main(use_case: str, text: str, k: str = "5") -> None:
    model = QueryModel(use_case)
    store = PGVectorStore.create_sync(
        PGEngine.from_connection_string(store_url()),
        embedding_service=OwnModel(model),
        schema_name="embeddings",
        table_name=use_case,
        id_column="key",
        content_column="data",
        embedding_column="embedding",
        metadata_columns=["prediction", "score", "label", "model_version"],
        metadata_json_column="tags",
    )
    # the vectors of another model are no neighbours
    same_model = {"model_version": {"$eq": model.model_version}}
    found = store.similarity_search_with_score(text, k=int(k), filter=same_model)
    for document, distance in found:
        label = document.metadata["label"]
        print(document.id, f"{distance:.4f}", label, document.page_content, sep="\t")


if __name__ == "__main__":
    main(*sys.argv[1:])
