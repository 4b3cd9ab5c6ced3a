"""Plain SQLAlchemy and pgvector over the view of a use case:

    python examples/sqlalchemy_pgvector.py tweets "delayed flight"

The type of `embedding` is pgvector's; everything else SQLAlchemy finds out by itself.
"""

from __future__ import annotations

import sys

from pgvector.sqlalchemy import HALFVEC, Vector
from sqlalchemy import Column, MetaData, Table, create_engine, select
from store_url import store_url

from embedding_tasks import QueryModel


def main(use_case: str, text: str, k: str = "5") -> None:
    model = QueryModel(use_case)
    kind = Vector if model.storage == "vector" else HALFVEC
    engine = create_engine(store_url())
    records = Table(
        use_case,
        MetaData(schema="embeddings"),
        Column("embedding", kind(model.dims)),
        autoload_with=engine,
    )
    distance = records.c.embedding.cosine_distance(model.embed(text))
    question = (
        select(records.c.key, records.c.data, records.c.label, distance)
        # the vectors of another model are no neighbours
        .where(records.c.model_version == model.model_version)
        .order_by(distance)
        .limit(int(k))
    )
    with engine.connect() as connection:
        for key, data, label, far in connection.execute(question):
            print(key, f"{far:.4f}", label, data, sep="\t")


if __name__ == "__main__":
    main(*sys.argv[1:])
