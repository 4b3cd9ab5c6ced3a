"""Reading back into pandas and Arrow: the same values as SQL gives, by binary COPY."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
import pytest
from psycopg import sql
from psycopg.rows import dict_row

import embedding_tasks
from embedding_tasks import filters, frames, reading, selection
from embedding_tasks.connections import Connection, connect
from embedding_tasks.errors import DatabaseAway, SearchError
from embedding_tasks.selection import Column, Selection
from embedding_tasks.store import decode
from tests.fix_project import Project
from tests.test_features import articles  # noqa: F401  a fixture


def by_sql(store: Connection, relation: str = "embeddings.messages") -> dict[str, Any]:
    """By key, as psycopg has it, the embedding by its text."""
    with store.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(f"SELECT * FROM {relation}").fetchall()  # type: ignore[arg-type]
    for row in rows:
        for name in row:
            if name.endswith("embedding") and row[name] is not None:
                row[name] = np.fromstring(row[name].strip("[]"), np.float32, sep=",")
    return {row["key"]: row for row in rows}


@pytest.fixture
def filled(full_use_case: Project) -> Project:
    full_use_case.run()
    return full_use_case


def test_a_frame_has_what_sql_says(filled: Project, store: Connection) -> None:
    expected = by_sql(store)
    frame = embedding_tasks.read("messages")
    assert list(frame.columns) == list(next(iter(expected.values())))
    assert len(frame) == len(expected) == 120
    for row in frame.to_dict("records"):
        truth = expected[row["key"]]
        np.testing.assert_array_equal(row.pop("embedding"), truth["embedding"])
        assert row["event_time"] == truth["event_time"]
        for name in ("unit", "data", "tags", "prediction", "score", "model_version"):
            assert row[name] == truth[name], name
        for name in ("label", "span", "link", "environment"):
            assert row[name] == truth[name] or pd.isna(row[name]), name
            assert pd.isna(row[name]) == (truth[name] is None), name
    assert frame["embedding"][0].dtype == np.float32
    assert str(frame["event_time"].dtype) == "datetime64[us, UTC]"
    (made_by,) = frame.attrs["embedline"]["versions"]
    assert made_by["model_version"] == 1
    assert len(made_by["fingerprint"]) == 64


def test_a_table_has_what_sql_says(filled: Project, store: Connection) -> None:
    expected = by_sql(store)
    table = embedding_tasks.read_arrow("messages")
    table.validate(full=True)
    dims = len(expected["1"]["embedding"])
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), dims)
    assert b"fingerprint" in table.schema.metadata[b"embedline"]
    for row in table.to_pylist():
        truth = expected[row["key"]]
        np.testing.assert_array_equal(
            np.array(row["embedding"], np.float32), truth["embedding"]
        )
        for name in ("event_time", "embedded_at", "label", "prediction", "score"):
            assert row[name] == truth[name], name


def test_a_reading_in_chunks_is_all_of_it_and_of_one_snapshot(
    filled: Project, store: Connection, store_dsn: str
) -> None:
    chunks = embedding_tasks.read_chunks("messages", columns=["key"], rows=7)
    first = next(chunks)
    with connect(store_dsn, role="store") as other:
        other.execute("DELETE FROM embedline.vector_messages_v1")
    rest = list(chunks)
    assert max(map(len, [first, *rest])) == 7
    assert sorted(pd.concat([first, *rest])["key"]) == sorted(map(str, range(120)))
    assert list(embedding_tasks.read_batches("messages")) == []
    assert embedding_tasks.read("messages").empty


CONDITIONS: list[tuple[dict[str, Any], str]] = [
    ({"label": "v"}, "label = 'v'"),
    ({"label": None}, "label IS NULL"),
    ({"labelled": True}, "label IS NOT NULL"),
    ({"labelled": False}, "label IS NULL"),
    ({"key": ["1", "2", "99999"]}, "key IN ('1', '2')"),
    ({"key": "3"}, "key = '3'"),
    ({"key": 3}, "key = '3'"),
    ({"label": ["v", None]}, "true"),
    ({"key": None}, "false"),
    ({"key": []}, "false"),
    ({"misclassified": True}, "prediction <> label"),
    ({"misclassified": False}, "prediction = label"),
    ({"tags": {"author": "author 1"}}, "tags ->> 'author' = 'author 1'"),
    ({"score": [0.5, None]}, "score >= 0.5"),
    ({"score": [None, 0.5]}, "score <= 0.5"),
    ({"score": [None, None]}, "score IS NOT NULL"),
    ({"prediction": ["LABEL_0", "x'; --"]}, "prediction = 'LABEL_0'"),
    ({"environment": ["production"], "label": "v"}, "label = 'v'"),
    ({"environment": None}, "environment IS NULL"),
    (
        {"event_time": ["2026-01-01T00:30:00Z", "2026-01-01T01:00:00+00:00"]},
        "event_time >= '2026-01-01T00:30Z' AND event_time < '2026-01-01T01:00Z'",
    ),
    (
        {"event_time": [datetime(2026, 1, 1, 1, tzinfo=UTC), None]},
        "event_time >= '2026-01-01T01:00Z'",
    ),
    ({"event_time": ["2026-01-02", None]}, "event_time >= '2026-01-02T00:00Z'"),
    ({"event_time": [None, date(2026, 1, 1)]}, "event_time < '2026-01-01T00:00Z'"),
]


def test_a_filter_is_what_its_sql_says(filled: Project, store: Connection) -> None:
    for filter, condition in CONDITIONS:
        expected = by_sql(store, f"embeddings.messages WHERE {condition}")
        frame = embedding_tasks.read("messages", filter, ["key"], store=store)
        assert sorted(frame["key"]) == sorted(expected), filter


@pytest.mark.parametrize(
    ("filter", "told"),
    [
        ({"labl": "v"}, r"'labl': did you mean 'label'\? valid: key, prediction"),
        ({"label": {}}, "a value or a list of values"),
        ({"label": "a\0b"}, "NUL"),
        ({"label": "\ud800"}, "whole characters"),
        ({"label": ["a", ["b"]]}, "a value or a list of values"),
        ({"score": 0.5}, "two values"),
        ({"score": ["a", 1]}, "numbers or null"),
        ({"score": [True, 1]}, "numbers or null"),
        ({"event_time": ["yesterday", None]}, "2026-01-31"),
        ({"event_time": [3, None]}, "2026-01-31"),
        ({"misclassified": 1}, "true or false"),
        ({"tags": "author"}, "a mapping"),
        ({"tags": {"a": object()}}, "values that JSON has"),
        ({"tags": {"a": float("nan")}}, "values that JSON has"),
        ({"tags": {"a": "\0"}}, "NUL"),
        ({"environment": "production"}, "needs the column 'environment'"),
    ],
)
def test_a_filter_that_cannot_be_is_refused_with_what_is_valid(
    filter: dict[str, Any], told: str
) -> None:
    columns = ("key", "prediction", "label", "score", "tags", "event_time")
    with pytest.raises(SearchError, match=told):
        filters.condition(filter, columns)


def test_names_that_are_not_there_are_answered_with_those_that_are(
    filled: Project, store: Connection
) -> None:
    with pytest.raises(SearchError, match="did you mean 'messages'"):
        embedding_tasks.read("message", store=store)
    with pytest.raises(SearchError, match="no 'lable': did you mean 'label'"):
        embedding_tasks.read("messages", columns=["lable"], store=store)
    with pytest.raises(SearchError, match="no feature 'x'"):
        embedding_tasks.read("messages", feature="x", store=store)
    with pytest.raises(SearchError, match=r"version 7; valid: 1 \(embedding, active\)"):
        embedding_tasks.read("messages", model_version=7, store=store)
    with pytest.raises(SearchError, match="no list of names"):
        embedding_tasks.read("messages", columns="key", store=store)


def test_features_are_read_side_by_side_with_their_gaps(
    articles: Project,  # noqa: F811
    store: Connection,
) -> None:
    articles.run()
    name = articles.raw["name"]
    expected = by_sql(store, f"embeddings.{name}")
    frame = embedding_tasks.read(name, store=store)
    vectors = [c for c in frame.columns if c.endswith("_embedding")]
    assert len(vectors) == 2
    gaps = 0
    for row in frame.to_dict("records"):
        for column in vectors:
            truth = expected[row["key"]][column]
            if truth is None:
                gaps += 1
                assert row[column] is None
            else:
                np.testing.assert_array_equal(row[column], truth)
    assert gaps == 10
    table = embedding_tasks.read_arrow(name, store=store)
    table.validate(full=True)
    assert sum(table[column].null_count for column in vectors) == 10
    features = [v["feature"] for v in frame.attrs["embedline"]["versions"]]
    assert [f"{feature}_embedding" for feature in features] == vectors
    for feature in features:
        one = embedding_tasks.read(name, feature=feature, store=store)
        assert len(one) == frame[f"{feature}_embedding"].notna().sum()


def test_a_version_that_no_longer_serves_can_be_read(
    filled: Project, store: Connection
) -> None:
    before = embedding_tasks.read("messages", store=store).set_index("key")
    filled.use_case(pooling="max")
    filled.run()
    now = embedding_tasks.read("messages", store=store)
    assert set(now["model_version"]) == {2}
    old = embedding_tasks.read("messages", model_version=1, store=store).set_index(
        "key"
    )
    assert set(old["model_version"]) == {1}
    for key, vector in before["embedding"].items():
        np.testing.assert_array_equal(old["embedding"][key], vector)
    pd.testing.assert_series_equal(
        old["prediction"].sort_index(), before["prediction"].sort_index()
    )
    assert len(embedding_tasks.read("messages", model_version=2, store=store)) == 120


def test_a_version_that_no_longer_serves_reads_as_it_would_if_it_did(
    filled: Project, db: Connection, store: Connection
) -> None:
    """Predictions are the source's by now, though its own head's are still there."""
    filled.use_case(pooling="max", prediction={"column": "author"})
    filled.run()
    truth = {
        str(id): author for id, author in db.execute("SELECT id, author FROM messages")
    }
    for version in (1, 2):
        frame = embedding_tasks.read("messages", model_version=version, store=store)
        assert dict(zip(frame["key"], frame["prediction"], strict=True)) == truth


ROWS = [
    # text, jsonb, int4range, real[], float8, int4, bool, timestamptz, vector, halfvec
    ("plain", '{"a": [1, "ü"]}', "[3,9)", [1.5, -2.0], 0.25, -7, True),
    ("Grüße 🦊\n\t\\N", "{}", "[0,1)", [], float("inf"), 2**31 - 1, False),
    ("", None, None, None, None, None, None),
    (None, '"x"', "empty", [0.0] * 5, float("-inf"), -(2**31), True),
    ("NUL-free \x01", "null", "[5,)", [3.25], 5e-324, 0, False),
]
TIMES = [
    "2026-01-01 12:00:00.123456+00",
    "1969-12-31 23:59:59.999999+00",
    None,
    "infinity",
    "0044-03-15 12:00:00+00 BC",
]


@pytest.fixture
def types(store: Connection) -> Selection:
    store.execute(
        "CREATE TABLE of_types (t text, j jsonb, s int4range, b real[], f float8,"
        " i int4, y bool, at timestamptz, v vector(3), h halfvec(5), n numeric)"
    )
    vectors = ["[1,2,3]", "[0.1,-0.2,1e-30]", None, "[0,0,1]", "[5,6,7]"]
    halves = ["[1,2,3,4,5]", None, "[0.1,0.2,0.3,0.4,0.5]", "[6e-8,0,0,0,1]", None]
    with store.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO of_types VALUES ({'%s, ' * 10} 1.50)",
            [
                (*row, at, v, h)
                for row, at, v, h in zip(ROWS, TIMES, vectors, halves, strict=True)
            ],
        )
    relation = sql.Identifier("of_types")
    columns = selection._columns(store, relation)
    return Selection("none", [], columns, relation, sql.SQL("true"), columns[:1])


def test_every_type_comes_back_as_it_is(store: Connection, types: Selection) -> None:
    assert types.columns[8:] == [
        Column("v", "vector", 3),
        Column("h", "halfvec", 5),
        Column("n", "other", 0),
    ]
    for rows in (1, 2, 100):
        with store.transaction():
            blocks = list(reading.read_blocks(store, types, rows))
        frame = frames.to_pandas(types, blocks)
        _check_types(frame)
        table = frames.to_table(types, blocks)
        table.validate(full=True)
        got = table.drop_columns("at").to_pylist()
        assert [row["t"] for row in got] == [row[0] for row in ROWS]
        assert [row["b"] for row in got] == [row[3] for row in ROWS]
        assert [row["i"] for row in got] == [row[5] for row in ROWS]
        assert got[0]["s"] == {"start": 3, "stop": 9}
        assert got[0]["j"] == '{"a": [1, "ü"]}'
        assert got[2]["v"] is None
        assert got[4]["v"] == [5, 6, 7]
        assert table.schema.field("h").type == pa.list_(pa.float16(), 5)
        assert got[1]["h"] is None
        assert got[0]["h"] == [1, 2, 3, 4, 5]
        assert [row["at"] is None for row in table.slice(0, 4).to_pylist()] == [
            False,
            False,
            True,
            True,
        ]


def _check_types(frame: pd.DataFrame) -> None:
    def plain(values: Any) -> list[Any]:
        return [None if pd.api.types.is_scalar(v) and pd.isna(v) else v for v in values]

    assert plain(frame["t"]) == [row[0] for row in ROWS]
    assert plain(frame["j"]) == [{"a": [1, "ü"]}, {}, None, "x", None]
    assert plain(frame["s"]) == [(3, 9), (0, 1), None, None, None]
    assert [None if b is None else b.tolist() for b in frame["b"]] == [
        r[3] for r in ROWS
    ]
    assert plain(frame["f"]) == [row[4] for row in ROWS]
    assert plain(frame["i"]) == [row[5] for row in ROWS]
    assert plain(frame["y"]) == [row[6] for row in ROWS]
    assert frame["at"][0] == datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
    assert frame["at"][1] == datetime(1970, 1, 1, tzinfo=UTC) - timedelta(
        microseconds=1
    )
    assert frame["at"].isna().tolist() == [False, False, True, True, False]
    assert frame["at"].dt.year[4] == -43
    np.testing.assert_array_equal(frame["v"][1], np.float32([0.1, -0.2, 1e-30]))
    assert frame["v"][2] is None
    assert frame["h"][2].dtype == np.float16
    np.testing.assert_array_equal(frame["h"][3], np.float16([6e-8, 0, 0, 0, 1]))
    assert frame["n"].tolist() == ["1.50"] * 5


def test_what_is_no_row_is_refused() -> None:
    with pytest.raises(ValueError, match="not 2 columns"):
        decode.cells([b"\0\1\0\0\0\0"], 2)
    with pytest.raises(ValueError, match="does not end"):
        decode.cells([b"\0\1\0\0\0\0more"], 1)


def activity(store: Connection) -> int:
    row = store.execute(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE state = 'active' AND query LIKE 'COPY%%' AND pid <> pg_backend_pid()"
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_an_iterator_closed_early_leaves_the_connection_fit(
    filled: Project, store: Connection, store_dsn: str
) -> None:
    with connect(store_dsn, role="store") as held:
        chunks = embedding_tasks.read_batches("messages", rows=3, store=held)
        next(chunks)
        chunks.close()
        assert held.execute("SELECT 1").fetchone() == (1,)
    assert activity(store) == 0


@pytest.fixture
def slow(filled: Project, store: Connection) -> Project:
    """A reading that takes two minutes."""
    store.execute("DROP VIEW embeddings.messages")
    store.execute(
        "CREATE VIEW embeddings.messages AS SELECT key, unit, embedding,"
        " pg_sleep(1)::text AS data FROM embedline.vector_messages_v1"
    )
    return filled


def test_an_interrupt_cancels_the_statement_on_the_server(
    slow: Project, store: Connection
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import embedding_tasks as e; e.read('messages')"],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: activity(store) == 1)
    child.send_signal(2)
    _, told = child.communicate(timeout=20)
    assert "KeyboardInterrupt" in told
    assert activity(store) == 0


def test_a_lost_connection_and_a_time_limit_are_the_store_s(
    slow: Project, store: Connection, store_dsn: str
) -> None:
    with connect(store_dsn, role="store") as held:
        held.execute("SET statement_timeout = '300ms'")
        with pytest.raises(DatabaseAway, match=r"store database: .*statement timeout"):
            embedding_tasks.read("messages", store=held)
        held.execute("RESET statement_timeout")
        assert held.info.transaction_status == psycopg.pq.TransactionStatus.IDLE

        def kill() -> None:
            wait_until(lambda: activity(store) == 1)
            store.execute("SELECT pg_terminate_backend(%s)", [held.info.backend_pid])

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(DatabaseAway, match="lost the store database"):
            embedding_tasks.read("messages", store=held)
        killer.join()


def wait_until(so: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.05)


def test_the_package_is_light_to_import() -> None:
    heavy = ["torch", "transformers", "pandas", "pyarrow", "psycopg", "numpy"]
    loaded = f"[m for m in {heavy} if m in sys.modules]"
    told = subprocess.run(
        [sys.executable, "-c", f"import sys, embedding_tasks; print({loaded})"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "[]"
    reads = "import embedding_tasks.reading, embedding_tasks.export"
    heavy = ["torch", "transformers", "pandas", "pyarrow"]
    loaded = f"[m for m in {heavy} if m in sys.modules]"
    told = subprocess.run(
        [sys.executable, "-c", f"import sys; {reads}; print({loaded})"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "[]"


def test_a_reading_in_chunks_holds_one_of_them_in_memory(store: Connection) -> None:
    """30 MB of vectors, 1 MB at a time."""
    store.execute(
        "CREATE TABLE many AS SELECT n::text AS key, 0 AS unit,"
        " array_fill(n::real, '{384}')::vector(384) AS embedding"
        " FROM generate_series(1, 20000) n"
    )
    relation = sql.Identifier("many")
    columns = selection._columns(store, relation)
    chosen = Selection("none", [], columns, relation, sql.SQL("true"), columns[:2])
    rows = 0
    tracemalloc.start()
    try:
        with store.transaction():
            for block in reading.read_blocks(store, chosen, rows=600):
                rows += len(frames.to_pandas(chosen, [block]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert rows == 20000
    assert peak < 8_000_000
