"""Several kinds of vectors of one record, side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from embedding_tasks import run, search, status
from embedding_tasks.connections import Connection
from embedding_tasks.errors import ConfigError, SearchError
from embedding_tasks.store import versions
from tests.fix_project import Project, vector_versions


@pytest.fixture
def articles(project: Project, db: Connection, tiny: Path) -> Project:
    """Documents and their summaries, of which some are still to be written."""
    db.execute(
        "CREATE TABLE articles (id bigint PRIMARY KEY, document text, summary text,"
        " sent_at timestamptz NOT NULL DEFAULT now())"
    )
    db.execute(
        "INSERT INTO articles SELECT n, 'a long document number ' || n,"
        " CASE WHEN n % 4 > 0 THEN 'summary ' || n END FROM generate_series(1, 40) n"
    )
    del project.raw["source"]["input"]
    project.use_case(
        source={"table": "articles"},
        features={
            "document": {"input": "document"},
            "summary": {"input": "summary", "pooling": "mean", "normalize": True},
        },
        prediction="head",
    )
    return project


def states(store: Connection) -> list[tuple[Any, ...]]:
    return store.execute(
        "SELECT feature, version, state FROM embedline.model_version"
        " WHERE state <> 'retired' ORDER BY version"
    ).fetchall()


def test_features_lie_side_by_side_in_one_row(
    articles: Project, store: Connection
) -> None:
    counts = articles.run()
    assert counts["embedded"] == 40 + 30
    assert states(store) == [("document", 1, "active"), ("summary", 2, "active")]
    rows = store.execute(
        "SELECT count(*), count(document_embedding), count(summary_embedding),"
        " count(summary_data), count(prediction) FROM embeddings.messages"
    ).fetchone()
    assert rows == (40, 40, 30, 30, 40)
    lengths = store.execute(
        "SELECT min(vector_norm(embedding)), max(vector_norm(embedding))"
        " FROM embeddings.messages__summary"
    ).fetchone()
    assert lengths == pytest.approx((1, 1), abs=1e-5)
    assert store.execute(
        "SELECT data FROM embeddings.messages__document WHERE key = '7'"
    ).fetchone() == ("a long document number 7",)


def test_a_feature_without_its_record_s_first_one_is_there_too(
    articles: Project, db: Connection, store: Connection
) -> None:
    db.execute("UPDATE articles SET document = NULL WHERE id = 2")
    articles.run()
    assert store.execute(
        "SELECT document_embedding IS NULL, summary_data FROM embeddings.messages"
        " WHERE key = '2'"
    ).fetchone() == (True, "summary 2")


def test_a_change_of_one_feature_s_input_makes_that_vector_only(
    articles: Project, db: Connection, store: Connection
) -> None:
    articles.run()
    before = vector_versions(store)
    db.execute("UPDATE articles SET summary = 'another summary' WHERE id = 1")
    assert articles.run()["embedded"] == 1
    changed = {table for table, *_ in vector_versions(store) ^ before}
    assert changed == {"vector_messages_v2"}


def test_another_recipe_of_one_feature_leaves_the_other_alone(
    articles: Project, store: Connection
) -> None:
    articles.run()
    before = vector_versions(store)
    articles.use_case(features={"summary": {"pooling": "max"}})
    assert articles.run()["embedded"] == 30
    assert states(store) == [("document", 1, "active"), ("summary", 3, "active")]
    changed = {table for table, *_ in vector_versions(store) ^ before}
    assert changed == {"vector_messages_v3"}


def test_a_version_that_is_ready_takes_no_other_feature_s_with_it(
    articles: Project, store: Connection, make_model: Callable[..., Path]
) -> None:
    articles.run()
    articles.use_case(auto_promote=False, encoder={"model": str(make_model(seed=12))})
    articles.run()
    articles.use_case(auto_promote=True)
    request = articles.request()
    run.sync_stage(request)
    store.execute(
        "UPDATE embedline.ledger SET have_hash = NULL WHERE model_version ="
        " (SELECT id FROM embedline.model_version WHERE version = 3)"
    )
    run.publish_stage(request)
    assert states(store) == [
        ("document", 1, "active"),
        *(("document", 3, "ready"), ("summary", 4, "active")),
    ]


def test_a_feature_that_is_added_or_taken_away_leaves_the_others_alone(
    articles: Project, store: Connection
) -> None:
    articles.run()
    articles.use_case(features={"whole": {"input": ["document", "summary"]}})
    assert articles.run()["embedded"] == 40
    columns = store.execute("SELECT * FROM embeddings.messages LIMIT 0").description
    assert columns is not None
    assert [c.name for c in columns][:7:2] == [
        *("key", "document_data", "summary_data", "whole_data"),
    ]
    del articles.raw["features"]["summary"]
    articles.use_case()
    assert articles.run().get("embedded", 0) == 0
    assert [feature for feature, *_ in states(store)] == ["document", "whole"]
    with pytest.raises(psycopg.errors.UndefinedTable):
        store.execute("SELECT FROM embeddings.messages__summary")


def test_a_feature_is_searched_by_its_own_vectors(
    articles: Project, store: Connection
) -> None:
    articles.run()
    (first, *_) = search.by_text(store, "messages", "summary 7", 3, feature="summary")
    assert (first["key"], first["data"]) == ("7", "summary 7")
    near = search.by_key(store, "messages", "7", 3, feature="summary")
    assert "7" not in [row["key"] for row in near]
    with pytest.raises(SearchError, match="no feature 'sumary': did you mean"):
        search.by_text(store, "messages", "x", feature="sumary")
    with pytest.raises(psycopg.errors.UndefinedObject, match="no feature 'other'"):
        store.execute(
            "SELECT embeddings.neighbors('messages', '7', feature => 'other')"
        )


def test_explain_and_status_speak_of_each_feature(
    articles: Project, store: Connection
) -> None:
    articles.run()
    case = articles.use_case()
    told = status.explain(store, case, "4", feature="summary")
    assert told["verdict"] == "its input is null: nothing to embed"
    assert "stored" in status.explain(store, case, "4")["verdict"]
    rows = {row["feature"]: row for row in status.of(store, "messages")}
    assert rows["summary"]["skipped"] == 10
    assert rows["document"]["stored"] == 40


def test_a_use_case_becomes_one_of_features_and_back(
    project: Project,
    store: Connection,
    write_messages: Callable[..., None],
) -> None:
    write_messages(range(10))
    project.run()
    raw = dict(project.raw)
    source = {k: v for k, v in project.raw["source"].items() if k != "input"}
    project.raw = {**raw, "source": source, "features": {"text": {"input": "body"}}}
    project.use_case()
    assert project.run()["embedded"] == 10
    assert store.execute(
        "SELECT count(text_embedding) FROM embeddings.messages"
    ).fetchone() == (10,)
    project.raw = raw
    project.use_case()
    project.run()
    assert store.execute(
        "SELECT count(embedding) FROM embeddings.messages"
    ).fetchone() == (10,)
    assert versions.active(store, "messages").feature == "embedding"


@pytest.mark.parametrize(
    ("features", "says"),
    [
        ({"Document": {"input": "document"}}, "the name 'Document' must begin"),
        ({"embedding": {"input": "document"}}, "and not be 'embedding'"),
        ({"x": {"input": []}}, "needs at least one column"),
        ({"x": {"input": "document", "pooling": "words"}}, "no word is classified"),
    ],
)
def test_a_feature_that_cannot_be_is_refused(
    articles: Project, features: dict[str, Any], says: str
) -> None:
    articles.raw["features"] = features
    with pytest.raises(ConfigError, match=says):
        articles.use_case(prediction="none")


def test_a_table_s_columns_become_a_prompt_by_a_template(
    project: Project, db: Connection, store: Connection
) -> None:
    db.execute(
        "CREATE TABLE people (id int PRIMARY KEY, age int, job text, city text);"
        "INSERT INTO people VALUES (1, 41, 'baker', 'Rome'), (2, NULL, 'pilot', NULL),"
        " (3, NULL, NULL, NULL)"
    )
    project.use_case(
        source={
            "table": "people",
            "input": ["age", "job", "city"],
            "event_time": None,
            "template": "The {column} is {value}.",
            "separator": " ",
        }
    )
    project.run()
    data = "SELECT data FROM embeddings.messages ORDER BY key"
    said = [
        ("The age is 41. The job is baker. The city is Rome.",),
        ("The job is pilot.",),
    ]
    assert store.execute(data).fetchall() == said
    # kept anew by SQL, it reads the same
    project.use_case(storage={"data": "none"})
    project.run()
    assert store.execute(data).fetchall() == [(None,), (None,)]
    project.use_case(storage={"data": "all"})
    assert project.run().get("embedded", 0) == 0
    assert store.execute(data).fetchall() == said
    project.use_case(source={"template": "A {job} of {age} from {city}, 100 %"})
    project.run()
    assert store.execute(data).fetchall() == [
        ("A baker of 41 from Rome, 100 %",),
        ("A pilot of  from , 100 %",),
    ]


def test_features_of_words_alone_have_no_wide_view(
    project: Project, db: Connection, store: Connection
) -> None:
    db.execute("CREATE TABLE notes (id bigint PRIMARY KEY, body text)")
    db.execute("INSERT INTO notes VALUES (1, 'one two')")
    del project.raw["source"]["input"]
    words = {"words": "first", "keep": "all"}
    project.use_case(
        source={"table": "notes", "event_time": None},
        features={"w": {"input": "body", "pooling": words}},
    )
    project.run()
    assert store.execute(
        "SELECT count(*), to_regclass('embeddings.messages')"
        " FROM embeddings.messages__w"
    ).fetchone() == (2, None)


def test_labels_are_those_of_the_first_feature(
    project: Project, db: Connection, store: Connection
) -> None:
    db.execute("CREATE TABLE notes (id bigint PRIMARY KEY, body text, verdict text)")
    db.execute("INSERT INTO notes VALUES (1, 'one two', 'spam')")
    del project.raw["source"]["input"]
    words = {"words": "first", "keep": "all"}
    features = {
        "doc": {"input": "body"},
        "words": {"input": "body", "pooling": words},
    }
    project.use_case(
        source={"table": "notes", "event_time": None},
        features=features,
        label={"column": "verdict"},
    )
    project.run()
    labels = "SELECT label FROM embeddings."
    assert store.execute(labels + "messages__doc").fetchall() == [("spam",)]
    assert store.execute(labels + "messages__words").fetchall() == [(None,), (None,)]
    assert store.execute(labels + "messages").fetchall() == [("spam",)]
    features["words"]["pooling"] = "words"
    project.raw["features"] = features
    with pytest.raises(ConfigError, match="no word is classified"):
        project.use_case()


def test_records_that_vanish_while_features_are_renamed_leave_nothing_behind(
    articles: Project, db: Connection, store: Connection
) -> None:
    articles.run()
    articles.raw["features"] = {"text": {"input": "document"}}
    articles.use_case()
    db.execute("DELETE FROM articles WHERE id = 1")
    articles.run()
    for table in ("record", "prediction", "input", "ledger", "vector_messages_v1"):
        found = store.execute(f"SELECT count(*) FROM embedline.{table} WHERE key = '1'")
        assert found.fetchone() == (0,), table


def test_rights_on_columns_that_are_gone_do_not_hold_up_a_sync(
    project: Project, store: Connection, write_messages: Callable[..., None]
) -> None:
    write_messages(range(3))
    project.run()
    store.execute("GRANT SELECT (key, embedding) ON embeddings.messages TO PUBLIC")
    del project.raw["source"]["input"]
    project.use_case(features={"text": {"input": "body"}})
    project.run()
    rights = store.execute(
        "SELECT column_name FROM information_schema.column_privileges"
        " WHERE grantee = 'PUBLIC' AND table_name = 'messages'"
    ).fetchall()
    assert rights == [("key",)]


def test_a_template_has_no_formats(project: Project) -> None:
    with pytest.raises(ConfigError, match="has a format; valid"):
        project.use_case(source={"template": "{body:>10}"})


def test_every_table_view_type_and_column_says_what_it_holds(
    articles: Project, store: Connection
) -> None:
    articles.run()
    silent = store.execute(
        "SELECT c.oid::regclass::text, a.attname::text FROM pg_class c"
        " LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND attnum > 0"
        "  AND NOT attisdropped"
        " WHERE relnamespace IN ('embedline'::regnamespace,"
        "  'embeddings'::regnamespace) AND relkind IN ('r', 'v', 'c')"
        " AND (col_description(c.oid, attnum) IS NULL OR coalesce("
        "  obj_description(c.oid, 'pg_class'), obj_description(c.reltype, 'pg_type'))"
        "  IS NULL)"
    ).fetchall()
    assert silent == []
    described = "embeddings.messages__summary"
    assert store.execute(
        "SELECT col_description(%s::regclass, attnum) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attname = 'score'",
        [described, described],
    ).fetchall() == [("how sure the model was",)]


def test_an_upgrade_describes_the_columns_of_views_that_are_there(
    articles: Project, store: Connection
) -> None:
    articles.run()
    view = "embeddings.messages__summary"
    store.execute(f"COMMENT ON COLUMN {view}.score IS NULL")
    articles.run()
    assert store.execute(
        "SELECT count(*) FROM pg_attribute WHERE attrelid = %s::regclass"
        " AND col_description(attrelid, attnum) IS NULL",
        [view],
    ).fetchone() == (0,)
