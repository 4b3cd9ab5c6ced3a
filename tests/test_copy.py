from __future__ import annotations

import numpy as np
import pytest

from embedding_tasks.connections import Connection
from embedding_tasks.store import copy


@pytest.mark.parametrize("storage", ["vector", "halfvec"])
@pytest.mark.parametrize("rows", [0, 1, copy.ROWS_PER_BLOCK, 3000])
def test_what_is_copied_is_what_is_read(
    store: Connection, storage: str, rows: int
) -> None:
    dims = 7
    random = np.random.default_rng(0)
    vectors = random.normal(size=(rows, dims)).astype(np.float32)
    keys = [f"ключ {i} \t\\N\n" for i in range(rows)]
    hashes = [i.to_bytes(32, "big") for i in range(rows)]
    units = np.arange(rows, dtype=np.int32)
    store.execute(
        "CREATE TEMP TABLE t (key text, unit int, input_hash bytea,"
        f" embedding {storage}({dims}), run_id bigint)"
    )
    with store.cursor().copy("COPY t FROM STDIN (FORMAT binary)") as out:
        for block in copy.encode(keys, units, hashes, vectors, storage, run_id=2**40):
            out.write(block)
    read = store.execute("SELECT * FROM t ORDER BY unit").fetchall()
    assert [row[0] for row in read] == keys
    assert [row[1] for row in read] == units.tolist()
    assert [row[2] for row in read] == hashes
    assert {row[4] for row in read} <= {2**40}
    back = np.array([[float(x) for x in row[3][1:-1].split(",")] for row in read])
    exact = vectors if storage == "vector" else vectors.astype(np.float16)
    # text shows float4 in full, and halves with fewer digits
    tolerance = 0 if storage == "vector" else 1e-3
    if rows:
        assert np.abs(back.astype(np.float32) - exact).max() <= tolerance


def test_rows_the_store_must_not_take_are_found() -> None:
    vectors = np.ones((6, 3), np.float32)
    vectors[1, 2] = np.nan
    vectors[2, 0] = np.inf
    vectors[3] = 0
    vectors[4, 1] = 70_000
    vectors[5] = 1e-9  # zero, once it is a half
    bad = [False, True, True, True, False, False]
    assert copy.unfit(vectors, "vector").tolist() == bad
    bad = [False, True, True, True, True, True]
    assert copy.unfit(vectors, "halfvec").tolist() == bad
