"""Questions in SQL: the view, nearest, neighbors."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql

from embedding_tasks import search
from embedding_tasks.connections import Connection, connect
from embedding_tasks.errors import SearchError
from tests import search_store
from tests.fix_cli import Command
from tests.fix_project import Project

Write = Callable[..., None]

VIEW_COLUMNS = {
    "key": "text",
    "unit": "integer",
    "span": "int4range",
    "data": "text",
    "link": "text",
    "tags": "jsonb",
    "embedding": "vector(32)",
    "prediction": "text",
    "score": "double precision",
    "label": "text",
    "event_time": "timestamp with time zone",
    "environment": "text",
    "model_version": "integer",
    "embedded_at": "timestamp with time zone",
}


@pytest.fixture
def filled(project: Project, db: Connection, write_messages: Write) -> Project:
    project.use_case(prediction="head", label={"column": "author"})
    write_messages(range(60), "message number {0} of {0} and {0}")
    project.run()
    return project


def columns(store: Connection) -> dict[str, str]:
    rows = store.execute(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = 'embeddings.messages'::regclass AND attnum > 0"
        " ORDER BY attnum"
    )
    return dict(rows.fetchall())


def test_the_view_has_the_columns_it_promises(
    filled: Project, store: Connection
) -> None:
    assert columns(store) == VIEW_COLUMNS
    row = store.execute(
        "SELECT unit, data, prediction IS NOT NULL, score BETWEEN 0 AND 1, label,"
        " environment, model_version FROM embeddings.messages WHERE key = '4'"
    ).fetchone()
    text = "message number 4 of 4 and 4"
    assert row == (0, text, True, True, "author 1", "production", 1)


def brute_force(store: Connection, query: np.ndarray, metric: str) -> list[str]:
    rows = store.execute(
        "SELECT key, embedding::real[] FROM embeddings.messages ORDER BY key"
    ).fetchall()
    vectors = np.array([vector for _, vector in rows])
    distances = {
        "cosine": 1
        - vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query),
        "l2": np.linalg.norm(vectors - query, axis=1),
        "inner_product": -vectors @ query,
    }[metric]
    return [rows[i][0] for i in np.argsort(distances, kind="stable")]


@pytest.mark.parametrize("metric", ["cosine", "l2", "inner_product"])
@pytest.mark.parametrize("storage", ["vector", "halfvec"])
def test_nearest_is_exact_in_the_use_cases_own_distance(
    filled: Project, store: Connection, metric: str, storage: str
) -> None:
    filled.use_case(storage={"distance": metric, "type": storage})
    filled.run()
    query = np.random.default_rng(3).normal(size=32).astype(np.float32)
    found = store.execute(
        "SELECT key, distance, prediction, score, label, data"
        " FROM embeddings.nearest('messages', %s::real[]::vector, 10)",
        [query.tolist()],
    ).fetchall()
    assert [row[0] for row in found] == brute_force(store, query, metric)[:10]
    assert all(None not in row for row in found)
    assert [row[1] for row in found] == sorted(row[1] for row in found)


def test_neighbors_are_the_nearest_but_for_the_record_itself(
    filled: Project, store: Connection
) -> None:
    row = store.execute(
        "SELECT embedding::real[] FROM embeddings.messages WHERE key = '7'"
    ).fetchone()
    assert row is not None
    wanted = brute_force(store, np.array(row[0]), "cosine")
    assert wanted.pop(0) == "7"
    found = store.execute("SELECT key FROM embeddings.neighbors('messages', '7', 5)")
    assert [key for (key,) in found] == wanted[:5]


def test_an_index_is_used_where_there_is_one_and_k_rows_come_back(
    filled: Project, store: Connection, write_messages: Write
) -> None:
    write_messages(range(60, 800), "message number {0} of {0} and {0}")
    filled.run()
    store.execute(
        "CREATE INDEX hnsw ON embedline.vector_messages_v1"
        " USING hnsw (embedding vector_cosine_ops)"
    )
    store.execute("ANALYZE embedline.vector_messages_v1")
    store.execute("SET enable_seqscan = off; SET hnsw.iterative_scan = off")
    used = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'hnsw'"
    for k in (10, 100, 300):
        found = store.execute(
            "SELECT count(*) FROM embeddings.neighbors('messages', '7', %s)", [k]
        ).fetchone()
        assert found == (k,)
    store.execute("SELECT pg_stat_force_next_flush()")
    assert store.execute(used).fetchone() == (3,)
    # the functions' settings are their own affair
    assert store.execute("SHOW hnsw.iterative_scan").fetchone() == ("off",)


def has_statement(store: Connection, table: str) -> bool:
    row = store.execute(
        "SELECT prosrc FROM pg_proc WHERE oid = 'embedline.nearest_serving'::regproc"
    ).fetchone()
    assert row is not None
    return f"FROM embedline.{table} " in row[0]


def test_each_serving_version_has_a_statement_that_is_planned_once(
    filled: Project, store: Connection
) -> None:
    filled.use_case(pooling="max")
    assert has_statement(store, "vector_messages_v1")
    filled.run()
    assert not has_statement(store, "vector_messages_v1")
    assert has_statement(store, "vector_messages_v2")


def test_a_version_without_a_statement_of_its_own_is_searched_all_the_same(
    store: Connection, store_dsn: str
) -> None:
    with connect(store_dsn, role="store") as other, other.transaction():
        other.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended("
            " 'embedline.nearest_serving', 0))"
        )
        made = search_store.make(store)
        assert not has_statement(store, made.table)
    query = made.of("k7")
    question = "nearest('things', %s::vector, 5)"
    assert search_store.keys(search_store.ask(store, question, query)) == made.nearest(
        query, 5
    )
    store.execute("SELECT embedline.refresh_views(id, false) FROM embedline.use_case")
    assert has_statement(store, made.table)
    assert search_store.keys(search_store.ask(store, question, query)) == made.nearest(
        query, 5
    )


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("nearest('mesages', '[1]')", "no use case 'mesages' with vectors"),
        ("nearest('messages', '[1,2]')", "the query has 2 dimensions"),
        ("nearest('messages', array_fill(1, ARRAY[32])::vector, 0)", "k must be"),
        ("neighbors('messages', 'nobody')", "no vector for key 'nobody'"),
        ("nearest($$x'; DROP TABLE embedline.ledger; --$$, '[1]')", "no use case"),
        ("neighbors('messages', $$'; DROP TABLE embedline.ledger; --$$)", "no vector"),
    ],
)
def test_a_question_that_cannot_be_answered_says_why(
    filled: Project, store: Connection, call: str, says: str
) -> None:
    with pytest.raises(psycopg.Error, match=says):
        store.execute(f"SELECT * FROM embeddings.{call}")
    assert store.execute("SELECT count(*) FROM embedline.ledger").fetchone() == (60,)


def test_a_search_by_text_finds_the_text_itself(
    filled: Project, store: Connection
) -> None:
    text = "message number 33 of 33 and 33"
    found = search.by_text(store, "messages", text, 3)
    assert found[0]["key"] == "33"
    assert found[0]["distance"] == pytest.approx(0, abs=1e-6)
    assert len(found) == 3


def test_a_search_from_python_takes_a_filter(
    filled: Project, store: Connection
) -> None:
    text = "message number 33 of 33 and 33"
    since = datetime(2026, 1, 1, 0, 40, tzinfo=UTC)
    only: dict[str, Any] = {"event_time": [since, None], "label": ["author 1"]}
    wanted = {str(i) for i in range(40, 60) if i % 3 == 1}
    for found in (
        search.by_text(store, "messages", text, 20, filter=only),
        search.by_key(store, "messages", "33", 20, filter=only),
        search.hybrid(store, "messages", text, 20, filter=only),
    ):
        assert {row["key"] for row in found} == wanted
    found = search.hybrid(store, "messages", '"number 33"', 3)
    assert [row["text_rank"] for row in found if row["key"] == "33"] == [1]
    told = search.explain(store, "messages", text, filter=only)
    assert (told["plan"], told["rows"]) == ("exact", 7)
    with pytest.raises(SearchError, match="a filter has no key 'labels'; valid"):
        search.by_text(store, "messages", text, filter={"labels": "x"})
    with pytest.raises(SearchError, match="a filter cannot hold"):
        search.by_text(store, "messages", text, filter={"label": object()})


def test_a_search_from_the_terminal_takes_a_filter(
    filled: Project, embedline: Command
) -> None:
    def found(*options: str) -> set[str]:
        printed = embedline(
            "search", "messages", "number 33", "-k", "60", *options, "--json"
        )
        return {row["key"] for row in json.loads(printed)}

    numbers = range(60)
    assert found("--label", "author 1", "--label", "author 2") == {
        str(i) for i in numbers if i % 3
    }
    assert found("--since", "2026-01-01T00:50Z", "--environment", "production") == {
        str(i) for i in range(50, 60)
    }
    assert found("--until", "2026-01-01T00:05Z", "--misclassified") == {*"01234"}
    assert found("--correct") == found("--unlabelled") == found("--tag", "a=1") == set()
    assert len(found("--score", "0", "1", "--labelled")) == 60
    assert found("--hybrid", "--score", "0", "1") == {str(i) for i in numbers}
    printed = embedline("search", "messages", "number 33", "--explain")
    assert printed.startswith("exact, ")
    printed = embedline("search", "messages", "number 33", "--hybrid", "-k", "2")
    assert "text rank" in printed
    assert "nothing found" in embedline("search", "messages", "x", "--label", "nobody")
    for wrong, says in (
        (["--tag", "x"], "--tag 'x' is no TAG=VALUE"),
        (["--since", "soon"], "since: is no date or time; valid: e.g. 2026-03-01"),
        (["--key", "--hybrid"], "do not go together"),
        (["--hybrid", "--language", "klingon"], "klingon"),
    ):
        assert says in embedline("search", "messages", "x", *wrong, code=1)


def test_searches_for_what_is_not_there_are_refused(
    filled: Project, store: Connection
) -> None:
    with pytest.raises(SearchError, match="did you mean 'messages'"):
        search.by_text(store, "mesages", "x")
    with pytest.raises(
        SearchError, match="embedline explain messages 'nobody' says why"
    ):
        search.by_key(store, "messages", "nobody")


def test_every_class_has_its_probability(filled: Project, store: Connection) -> None:
    row = store.execute(
        "SELECT count(*), sum(probability), max(probability)"
        " FROM embedline.class_probability WHERE use_case = 'messages' AND key = '4'"
    ).fetchone()
    score = store.execute(
        "SELECT score FROM embeddings.messages WHERE key = '4'"
    ).fetchone()
    assert row is not None
    assert score is not None
    assert row[0] == 3
    assert row[1:] == pytest.approx((1, score[0]), abs=1e-6)


def test_a_view_whose_type_changes_keeps_its_grants(
    filled: Project, store: Connection
) -> None:
    name = sql.Identifier(f"reader_{store.info.dbname}")
    store.execute(sql.SQL("CREATE ROLE {}").format(name))
    try:
        store.execute(sql.SQL("GRANT SELECT ON embeddings.messages TO {}").format(name))
        filled.use_case(storage={"type": "halfvec"})
        filled.run()
        assert columns(store)["embedding"] == "halfvec(32)"
        row = store.execute(
            sql.SQL(
                "SELECT has_table_privilege({}, 'embeddings.messages', 'SELECT')"
            ).format(sql.Literal(name.as_string(store).strip('"')))
        ).fetchone()
        assert row == (True,)
    finally:
        store.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(name))


def test_a_zero_vector_has_no_direction_and_is_told_so(
    filled: Project, store: Connection
) -> None:
    zero: list[Any] = [0.0] * 32
    question = (
        "SELECT count(*) FROM embeddings.nearest('messages', %s::real[]::vector, 5)"
    )
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="all zeros"):
        store.execute(question, [zero])
    filled.use_case(storage={"distance": "l2"})
    filled.run()
    assert store.execute(question, [zero]).fetchone() == (5,)
