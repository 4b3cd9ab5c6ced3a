"""Who may search, and that nothing a caller says is ever run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.conninfo import make_conninfo

from embedding_tasks.connections import Connection, connect
from tests.search_store import Made, add_index, ask, keys, make

CALLS = (
    "nearest('things', %(query)s::vector, 5)",
    "neighbors('things', 'k1', 5)",
    "within('things', %(query)s::vector, 9, 5)",
    "nearest_to('things', '{k1,k2}', '{k3}', 5)",
    "hybrid('things', 'even', %(query)s::vector, 5)",
    "mmr('things', %(query)s::vector, 5)",
    "duplicates('things', 0.1)",
    "medoid('things')",
    "centroid('things')",
    "explain_nearest('things', %(query)s::vector, 5, filter => '{\"score\": [0, 1]}')",
)


@pytest.fixture
def made(store: Connection) -> Made:
    return make(store, count=60)


@pytest.fixture
def reader(store: Connection, store_dsn: str) -> Iterator[Connection]:
    """A role that has USAGE on the schema, and nothing else yet."""
    role = f"reader {store.info.dbname}"
    name = sql.Identifier(role)
    store.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
    store.execute(sql.SQL("GRANT USAGE ON SCHEMA embeddings TO {}").format(name))
    try:
        with connect(make_conninfo(store_dsn, user=role), role="reader") as connection:
            yield connection
    finally:
        store.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(name))


def call(connection: Connection, question: str, made: Made) -> list[Any]:
    query = str(made.vectors[0].tolist())
    given = {"query": query} if "%(query)s" in question else {}
    return connection.execute(
        f"SELECT * FROM embeddings.{question}",  # type: ignore[arg-type]
        given,
    ).fetchall()


def grant(store: Connection, reader: Connection) -> None:
    store.execute(
        sql.SQL("GRANT SELECT ON embeddings.things TO {}").format(
            sql.Identifier(reader.info.user)
        )
    )


def test_select_on_the_view_is_the_right_to_search_and_to_no_more(
    made: Made, store: Connection, reader: Connection
) -> None:
    for question in CALLS:
        with pytest.raises(
            psycopg.errors.InsufficientPrivilege, match=r"view embeddings\.things"
        ):
            call(reader, question, made)
    grant(store, reader)
    for question in CALLS:
        assert call(reader, question, made), question
    for table in ("record", made.table, "prediction"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute(f"SELECT FROM embedline.{table}")


def test_a_role_that_is_set_has_its_own_rights_and_no_others(
    made: Made, store: Connection, reader: Connection
) -> None:
    user = sql.Identifier(reader.info.user)
    store.execute(sql.SQL("SET ROLE {}").format(user))
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        call(store, CALLS[0], made)
    store.execute("RESET ROLE")
    assert call(store, CALLS[0], made)
    grant(store, reader)
    store.execute(sql.SQL("SET ROLE {}").format(user))
    assert call(store, CALLS[0], made)
    store.execute("RESET ROLE")


def test_what_a_caller_s_schemas_hold_is_never_called(
    made: Made, store: Connection, reader: Connection
) -> None:
    """A search path of the caller's, with functions and operators of the same names."""
    grant(store, reader)
    reader.execute(
        "CREATE FUNCTION pg_temp.format(text, VARIADIC text[]) RETURNS text LANGUAGE"
        " plpgsql AS 'BEGIN RAISE ''called''; END';"
        "CREATE FUNCTION pg_temp.left(text, int) RETURNS text LANGUAGE plpgsql AS"
        " 'BEGIN RAISE ''called''; END'; SET search_path = pg_temp, public"
    )
    for question in CALLS:
        assert call(reader, question, made), question


HOSTILE = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    st.sampled_from(
        [
            "'; DROP TABLE embedline.ledger; --",
            "$$; DROP SCHEMA embedline CASCADE; $$",
            "\\'; DELETE FROM embedline.record; --",
            "%I %s %L %1$s",
            'a"; --',
            "{}",
            "{NULL}",
            '{"a,b"}',
            "k1",
            "red",
            "things",
        ]
    ),
)
KEYS = ("prediction", "label", "misclassified", "labelled", "score", "event_time")
KEYS += ("environment", "tags", "key")
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | HOSTILE,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(HOSTILE, inner, max_size=3)
    ),
    max_leaves=5,
)
FILTERS = st.dictionaries(st.sampled_from(KEYS) | HOSTILE, JSON, max_size=3)

# What a search may say no with; docs/sql.md has the list, too.
DOCUMENTED = {
    "22023",  # invalid_parameter_value: a filter, k, a query's dimensions
    "42704",  # undefined_object: a use case, a feature, a text search configuration
    "P0002",  # no_data_found: a key
    "55000",  # object_not_in_prerequisite_state: another model version serves
    "42501",  # insufficient_privilege
}


def state(store: Connection) -> Any:
    return store.execute(
        "SELECT (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_proc),"
        " (SELECT md5(string_agg(r::text, '' ORDER BY key)) FROM embedline.record r)"
    ).fetchone()


def test_no_name_filter_or_value_is_run_or_answered_with_an_unclear_error(
    made: Made, store: Connection, reader: Connection
) -> None:
    grant(store, reader)
    add_index(store, made)
    before = state(store)

    @settings(
        max_examples=400,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(
        st.sampled_from(["things"]) | HOSTILE,
        st.none() | HOSTILE,
        HOSTILE,
        FILTERS,
        st.integers(-2, 2**31 - 1),
        st.sampled_from(range(7)),
    )
    def ask_anything(
        use_case: str, feature: str | None, text: str, filter: Any, k: int, which: int
    ) -> None:
        query = str(made.vectors[0].tolist())
        question, given = [
            ("nearest(%s, %s::vector, %s, %s, filter => %s)", [query, k, feature]),
            ("neighbors(%s, %s, %s, feature => %s, filter => %s)", [text, k, feature]),
            ("within(%s, %s::vector, 1, %s, %s, filter => %s)", [query, k, feature]),
            (
                "nearest_to(%s, %s, k => %s, feature => %s, filter => %s)",
                [["k1", text], k, feature],
            ),
            (
                "hybrid(%s, %s, %s::vector, %s, feature => %s, filter => %s)",
                [text, query, k, feature],
            ),
            (
                "mmr(%s, %s::vector, %s, feature => %s, filter => %s)",
                [query, k, feature],
            ),
            ("duplicates(%s, 0.1, %s, feature => %s, filter => %s)", [k, feature]),
        ][which]
        try:
            found = ask(reader, question, use_case, *given, _jsonb(filter))
        except psycopg.Error as error:
            if error.sqlstate not in DOCUMENTED:
                raise
        else:
            assert {*keys(found)} <= {row.key for row in made.rows}

    ask_anything()
    assert state(store) == before


def _jsonb(filter: Any) -> str:
    return json.dumps(filter)


def test_keys_and_values_of_any_letters_are_found_as_they_are(
    store: Connection,
) -> None:
    made = make(store, count=30)

    @settings(max_examples=100, deadline=None)
    @given(HOSTILE.filter(lambda t: t.strip("k0123456789") != "" and len(t) < 500))
    def found(text: str) -> None:
        with store.transaction(force_rollback=True):
            for table, column in (
                (made.table, "key"),
                ("prediction", "key"),
                ("record", "key"),
            ):
                store.execute(
                    f"UPDATE embedline.{table} SET {column} = %s WHERE key = 'k3'",  # type: ignore[arg-type]
                    [text],
                )
            store.execute(
                "UPDATE embedline.prediction SET prediction = %(t)s WHERE key = %(t)s;",
                {"t": text},
            )
            store.execute(
                "UPDATE embedline.record SET environment = %(t)s,"
                " tags = jsonb_build_object(%(t)s::text, %(t)s::text)"
                " WHERE key = %(t)s",
                {"t": text},
            )
            for filter in (
                {"key": text},
                {"prediction": [text], "key": text},
                {"environment": text},
                {"tags": {text: text}},
            ):
                call = "neighbors('things', 'k1', 9, filter => %s)"
                assert keys(ask(store, call, filter)) == [text], filter
            assert len(ask(store, "neighbors('things', %s, 29)", text)) == 29

    found()
