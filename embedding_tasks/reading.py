"""Read a use case's rows into pandas or Arrow: one binary COPY, never text.

    import embedding_tasks

    frame = embedding_tasks.read("tweets", filter={"misclassified": True})
    matrix = numpy.stack(frame["embedding"])

A reading is one statement and so of one snapshot, and of one model version: a promotion
waits for its end. Ctrl-C and an iterator that is closed early cancel it on the server.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

from psycopg import sql

from embedding_tasks.connections import Connection, blame
from embedding_tasks.filters import Filter
from embedding_tasks.selection import Selection, select
from embedding_tasks.store import decode
from embedding_tasks.store.connection import open_store
from embedding_tasks.store.decode import Cells

if TYPE_CHECKING:
    import pandas
    import pyarrow

ROWS = 10_000
# What is decoded at once, where nobody asks for chunks: it stays in the processor's
# cache (measured: 500 to 1,000 rows of 384 dimensions are 1.2 to 2 times as fast as
# 10,000).
ROWS_PER_BLOCK = 1000
Progress = Callable[[int], None]
"""Takes how many rows have been read."""


def read(
    use_case: str,
    filter: Filter | None = None,
    columns: Sequence[str] | None = None,
    *,
    feature: str | None = None,
    model_version: int | None = None,
    store: Connection | None = None,
    progress: Progress | None = None,
) -> pandas.DataFrame:
    """All rows of the use case's view, or of the feature or model version named.
    `filter` is as in `filters.condition`. An embedding is a float32 array (halfvec:
    float16), a span a tuple of its start and stop, tags are a mapping; `attrs` says
    which model version made the vectors.

    Raises `SearchError`, which lists what is valid, `DatabaseAway`, or `StoreError`
    where the store is not as this version needs it."""
    from embedding_tasks import frames

    with selected(store, use_case, filter, columns, feature, model_version) as (
        held,
        chosen,
    ):
        blocks = list(read_blocks(held, chosen, progress=progress))
        return frames.to_pandas(chosen, blocks)


def read_chunks(
    use_case: str,
    filter: Filter | None = None,
    columns: Sequence[str] | None = None,
    *,
    feature: str | None = None,
    model_version: int | None = None,
    rows: int = ROWS,
    store: Connection | None = None,
) -> Iterator[pandas.DataFrame]:
    """As `read`, at most so many rows at a time: no more than that is in memory."""
    from embedding_tasks import frames

    with selected(store, use_case, filter, columns, feature, model_version) as (
        held,
        chosen,
    ):
        for block in read_blocks(held, chosen, rows):
            yield frames.to_pandas(chosen, [block])


def read_arrow(
    use_case: str,
    filter: Filter | None = None,
    columns: Sequence[str] | None = None,
    *,
    feature: str | None = None,
    model_version: int | None = None,
    store: Connection | None = None,
    progress: Progress | None = None,
) -> pyarrow.Table:
    """As `read`. Embeddings are a fixed-size list of float (halfvec: halffloat), tags
    JSON text, spans a struct of start and stop; the schema's metadata has where the
    rows come from, as JSON under `embedline`. Needs the extra `arrow`."""
    from embedding_tasks import frames

    with selected(store, use_case, filter, columns, feature, model_version) as (
        held,
        chosen,
    ):
        blocks = list(read_blocks(held, chosen, progress=progress))
        return frames.to_table(chosen, blocks)


def read_batches(
    use_case: str,
    filter: Filter | None = None,
    columns: Sequence[str] | None = None,
    *,
    feature: str | None = None,
    model_version: int | None = None,
    rows: int = ROWS,
    store: Connection | None = None,
) -> Iterator[pyarrow.RecordBatch]:
    """As `read_arrow`, at most so many rows at a time."""
    from embedding_tasks import frames

    with selected(store, use_case, filter, columns, feature, model_version) as (
        held,
        chosen,
    ):
        schema = frames.schema(chosen)
        for block in read_blocks(held, chosen, rows):
            yield frames.to_batch(chosen, block, schema)


def read_blocks(
    store: Connection,
    chosen: Selection,
    rows: int = ROWS_PER_BLOCK,
    *,
    ordered: bool = False,
    after: Sequence[Any] | None = None,
    progress: Progress | None = None,
) -> Generator[list[Cells], None, None]:
    """The columns of so many rows at a time, as they came. To be called in the
    transaction of the selection."""
    done = 0
    statement = chosen.copy(ordered=ordered, after=after)
    with blame(store=store), store.cursor() as cursor, cursor.copy(statement) as copy:
        for block in decode.blocks(copy, rows):
            done += len(block)
            yield decode.cells(block, len(chosen.columns))
            if progress is not None:
                progress(done)


@contextmanager
def selected(
    store: Connection | None,
    use_case: str,
    filter: Filter | None,
    columns: Sequence[str] | None,
    feature: str | None,
    model_version: int | None,
) -> Iterator[tuple[Connection, Selection]]:
    with ExitStack() as stack:
        held = store or stack.enter_context(closing(open_store()))
        stack.enter_context(blame(store=held))
        stack.enter_context(held.transaction())
        held.execute(sql.SQL("SET LOCAL client_encoding = 'UTF8'"))
        yield (
            held,
            select(
                held,
                use_case,
                filter=filter,
                columns=columns,
                feature=feature,
                model_version=model_version,
            ),
        )
