"""Retired versions: revived rather than rebuilt, and served again at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from embedding_tasks import promotion, run, status
from embedding_tasks.cli import app
from embedding_tasks.connections import Connection
from embedding_tasks.errors import SearchError, SourceError, StoreError
from embedding_tasks.store import versions
from embedding_tasks.use_case import Window
from tests.fix_project import Project, keys, row_versions

MakeModel = Callable[..., Any]


def states(store: Connection) -> list[tuple[int, str]]:
    return [(n["model_version"], n["state"]) for n in status.of(store)]


def vectors(store: Connection, version: int = 1) -> dict[str, np.ndarray]:
    rows = store.execute(
        f"SELECT key, embedding::real[] FROM embedline.vector_messages_v{version}"
        " WHERE unit = 0"
    )
    return {key: np.array(vector) for key, vector in rows}


def served(store: Connection) -> dict[str, np.ndarray]:
    rows = store.execute("SELECT key, embedding::real[] FROM embeddings.messages")
    return {key: np.array(vector) for key, vector in rows}


@pytest.fixture
def switched(full_use_case: Project, make_model: MakeModel) -> Project:
    """Two versions, of the model `tiny` and of another, which serves."""
    full_use_case.run()
    full_use_case.use_case(encoder={"model": str(make_model(seed=12))})
    full_use_case.run()
    return full_use_case


def change_five_records(db: Connection) -> None:
    db.execute("UPDATE messages SET body = 'other words' WHERE id IN (3, 4)")
    db.execute("UPDATE messages SET body = NULL WHERE id = 5")
    db.execute("DELETE FROM messages WHERE id = 6")
    db.execute("INSERT INTO messages (id, body) VALUES (500, 'a new one')")


def test_a_recipe_that_comes_back_embeds_only_what_has_changed_since(
    switched: Project, db: Connection, store: Connection, tiny: Path
) -> None:
    before = vectors(store)
    change_five_records(db)
    switched.run()
    switched.use_case(encoder={"model": str(tiny)})
    assert switched.run()["embedded"] == 3
    assert states(store) == [(1, "active")]
    after = served(store)
    assert after.keys() == before.keys() - {"5", "6"} | {"500"}
    kept = after.keys() - {"3", "4", "500"}
    assert all((after[key] == before[key]).all() for key in kept)
    assert store.execute(
        "SELECT count(*), count(prediction), count(data) FROM embeddings.messages"
    ).fetchone() == (119, 119, 119)
    for table in ("prediction", "input"):
        rows = store.execute(
            f"SELECT DISTINCT key FROM embedline.{table} WHERE model_version ="
            " (SELECT id FROM embedline.model_version WHERE version = 1)"
        )
        assert {key for (key,) in rows} == after.keys()
    numbers = status.of(store)[0]
    assert (numbers["wanted"], numbers["stored"], numbers["pending"]) == (119, 119, 0)


def test_a_revived_version_follows_the_source_while_it_is_built(
    switched: Project, db: Connection, store: Connection, tiny: Path
) -> None:
    switched.use_case(encoder={"model": str(tiny)})
    run.sync_stage(switched.request())
    assert states(store) == [(2, "active"), (1, "building")]
    change_five_records(db)
    switched.run()
    assert states(store) == [(1, "active")]
    assert served(store).keys() == keys(store) - {"5"}
    np.testing.assert_allclose(served(store)["3"], served(store)["4"], atol=1e-5)


def test_an_input_that_was_changed_and_changed_back_is_what_is_there(
    switched: Project, db: Connection, store: Connection, tiny: Path
) -> None:
    """What left the store as outdated must not be believed to be there."""
    db.execute("UPDATE messages SET body = 'for a while' WHERE id = 7")
    switched.run()
    switched.use_case(encoder={"model": str(tiny)})
    run.sync_stage(switched.request())
    db.execute("UPDATE messages SET body = 'message number 7' WHERE id = 7")
    assert switched.run()["embedded"] == 2  # of the serving version, too
    assert "7" in served(store)


@pytest.mark.parametrize("columns", ["author", ["body", "author"]], ids=str)
def test_a_version_of_other_columns_is_revived_by_their_hashes(
    full_use_case: Project, db: Connection, store: Connection, columns: Any
) -> None:
    full_use_case.run()
    full_use_case.use_case(source={"input": columns})
    full_use_case.run()
    before = vectors(store)
    db.execute("UPDATE messages SET author = 'somebody' WHERE id = 8")
    change_five_records(db)
    full_use_case.run()
    full_use_case.use_case(source={"input": "body"})
    assert full_use_case.run()["embedded"] == 3
    assert states(store) == [(1, "active")]
    after = served(store)
    kept = before.keys() - {"3", "4", "5", "6"}
    assert after.keys() == kept | {"3", "4", "500"}
    assert all((after[key] == before[key]).all() for key in kept)


def test_a_window_revives_no_version_whose_hashes_it_does_not_read(
    full_use_case: Project, db: Connection, store: Connection
) -> None:
    full_use_case.run()
    full_use_case.use_case(source={"input": "author"})
    full_use_case.run()
    db.execute("UPDATE messages SET body = 'other words' WHERE id = 100")
    full_use_case.use_case(source={"input": "body"})
    window = Window.parse("2026-01-01T00:00Z", "2026-01-01T00:10Z")
    full_use_case.run(window=window)
    assert states(store) == [(2, "active")]
    assert full_use_case.run()["embedded"] == 1
    assert states(store) == [(1, "active")]


def test_a_feature_that_comes_back_serves_what_is_still_true(
    full_use_case: Project, db: Connection, store: Connection
) -> None:
    full_use_case.run()
    body = {"body": {"input": "body"}}
    del full_use_case.raw["source"]["input"]
    full_use_case.use_case(features={**body, "who": {"input": "author"}})
    full_use_case.run()
    del full_use_case.raw["features"]["who"]
    full_use_case.use_case()
    full_use_case.run()
    db.execute("UPDATE messages SET author = 'somebody' WHERE id = 8")
    change_five_records(db)
    full_use_case.use_case(features={"who": {"input": "author"}})
    run.sync_stage(full_use_case.request())
    view = "SELECT key FROM embeddings.messages__who"
    left = {str(i) for i in range(120)} - {"6", "8"}
    assert {key for (key,) in store.execute(view)} == left
    assert full_use_case.run()["embedded"] == 1 + 3  # and the records of `body`
    assert {key for (key,) in store.execute(view)} == left | {"8"}


def test_a_rollback_serves_the_previous_version_at_once_and_nothing_stale(
    switched: Project,
    db: Connection,
    store: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = vectors(store)
    change_five_records(db)
    switched.run()
    source = switched.raw["source"]["dsn"]
    switched.use_case(source={"dsn": "host=/nowhere dbname=away"})
    done = promotion.rollback(switched.request())
    assert (done.serving.version, done.back.version) == (2, 1)
    assert (done.vectors, done.to_embed) == (116, 3)
    assert states(store) == [(1, "active")]
    now = served(store)
    assert now.keys() == before.keys() - {"3", "4", "5", "6"}
    assert all((now[key] == before[key]).all() for key in now)
    versions_ = store.execute(
        "SELECT DISTINCT model_version FROM embeddings.messages"
    ).fetchall()
    assert versions_ == [(1,)]
    switched.use_case(source={"dsn": source}, thresholds={"undone_share": 0})
    assert switched.run()["embedded"] == 3
    assert served(store).keys() == keys(store) - {"5"}


def test_what_was_rolled_back_is_not_built_again_before_that_is_undone(
    switched: Project, store: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    promotion.rollback(switched.request())
    before = row_versions(store)
    assert switched.run()["embedded"] == 0
    assert states(store) == [(1, "active")]
    assert row_versions(store) == before
    assert "the version its file describes was rolled back" in caplog.text
    promotion.undo_rollback(switched.request())
    assert switched.run()["embedded"] == 0
    assert states(store) == [(2, "active")]
    with pytest.raises(StoreError, match="no version of 'messages' is rolled back"):
        promotion.undo_rollback(switched.request())


def test_another_recipe_in_the_file_lifts_the_mark(
    switched: Project, store: Connection, make_model: MakeModel
) -> None:
    second = switched.raw["encoder"]["model"]
    promotion.rollback(switched.request())
    switched.use_case(encoder={"model": str(make_model(seed=13))})
    switched.run()
    assert states(store) == [(3, "active")]
    switched.use_case(encoder={"model": second})
    assert switched.run()["embedded"] == 0
    assert states(store) == [(2, "active")]


def test_rollbacks_go_back_one_version_after_the_other(
    switched: Project, store: Connection, make_model: MakeModel
) -> None:
    switched.use_case(encoder={"model": str(make_model(seed=13))})
    switched.run()
    assert promotion.rollback(switched.request()).back.version == 2
    assert promotion.rollback(switched.request()).back.version == 1
    switched.run()
    assert states(store) == [(1, "active")]
    with pytest.raises(StoreError, match="before version 1 is still there"):
        promotion.rollback(switched.request())
    promotion.undo_rollback(switched.request())
    switched.run()
    assert states(store) == [(3, "active")]


def test_what_is_being_built_is_taken_back_with_the_version_it_was_to_replace(
    switched: Project, store: Connection, make_model: MakeModel
) -> None:
    switched.use_case(encoder={"model": str(make_model(seed=13))})
    run.sync_stage(switched.request())
    assert states(store) == [(2, "active"), (3, "building")]
    promotion.rollback(switched.request())
    switched.run()
    assert states(store) == [(1, "active")]


def test_a_rollback_to_other_columns_reads_the_source_for_their_hashes(
    full_use_case: Project, db: Connection, store: Connection
) -> None:
    full_use_case.run()
    before = vectors(store)
    full_use_case.use_case(source={"input": "author"})
    full_use_case.run()
    change_five_records(db)  # which no sync has seen
    done = promotion.rollback(full_use_case.request())
    assert (done.vectors, done.to_embed) == (116, 3)
    now = served(store)
    assert now.keys() == before.keys() - {"3", "4", "5", "6"}
    assert full_use_case.run()["embedded"] == 3
    assert served(store).keys() == keys(store) - {"5"}


def test_a_rollback_to_a_column_that_is_gone_is_refused(
    full_use_case: Project, db: Connection, store: Connection
) -> None:
    full_use_case.use_case(source={"input": ["body", "author"], "tags": []})
    full_use_case.run()
    full_use_case.use_case(source={"input": "body"})
    full_use_case.run()
    db.execute("ALTER TABLE messages DROP author")
    with pytest.raises(SourceError, match=r"made of body, author, and .* has lost"):
        promotion.rollback(full_use_case.request())
    assert states(store) == [(2, "active")]


def test_a_rollback_over_a_change_of_dimension_makes_the_view_anew(
    full_use_case: Project, store: Connection, make_model: MakeModel
) -> None:
    full_use_case.run()
    full_use_case.use_case(encoder={"model": str(make_model(hidden=48))})
    full_use_case.run()
    promotion.rollback(full_use_case.request())
    row = store.execute(
        "SELECT count(*), min(vector_dims(embedding)) FROM embeddings.messages"
    ).fetchone()
    assert row == (120, 32)


def test_where_labels_say_what_has_a_vector_all_is_made_anew(
    project: Project, db: Connection, store: Connection, make_model: MakeModel
) -> None:
    """They were not followed while the version was retired."""
    db.execute("ALTER TABLE messages ADD tags text[]")
    for i in range(20):
        db.execute(
            "INSERT INTO messages (id, body, tags) VALUES (%s, 'one two three',"
            " ARRAY['B-x', 'O', 'O'])",
            [i],
        )
    words = {"words": "first", "keep": "classified"}
    project.use_case(pooling=words, label={"column": "tags"})
    project.run()
    project.use_case(normalize=True)
    project.run()
    db.execute("UPDATE messages SET tags = ARRAY['O', 'O', 'B-x'] WHERE id = 3")
    project.run()
    done = promotion.rollback(project.request())
    assert done.to_embed == 20
    assert project.run()["embedded"] == 20
    rows = store.execute(
        "SELECT text, label FROM embeddings.messages WHERE key = '3'"
    ).fetchall()
    assert rows == [("three", "B-x")]


def test_the_command_says_what_a_rollback_will_do_and_asks(
    switched: Project, db: Connection, store: Connection
) -> None:
    change_five_records(db)
    switched.run()
    asked = CliRunner().invoke(app, ["rollback", "messages"], input="n\n")
    assert asked.exit_code == 1
    assert (
        "version 1 will serve in place of version 2, with 116 vectors" in asked.output
    )
    assert "the next run embeds 3 records" in asked.output
    assert states(store) == [(2, "active")]
    done = CliRunner().invoke(app, ["rollback", "messages", "--yes"])
    assert "version 1 serves now, with 116 vectors; 3 records wait" in done.output
    assert states(store) == [(1, "active")]
    undone = CliRunner().invoke(app, ["rollback", "messages", "--undo"])
    assert "version 2 serves again after the next run" in undone.output


def test_a_rollback_that_was_agreed_to_is_no_other(
    switched: Project, store: Connection, make_model: MakeModel
) -> None:
    foreseen = promotion.rollback(switched.request(dry_run=True))
    switched.use_case(encoder={"model": str(make_model(seed=13))})
    switched.run()
    with pytest.raises(StoreError, match="version 3 serves by now, and 2 served"):
        promotion.rollback(switched.request(), agreed=foreseen)
    assert states(store) == [(3, "active")]


@pytest.mark.parametrize(("kept", "shown"), [("none", None), (7, "message")])
def test_what_is_not_to_be_kept_any_more_does_not_come_back(
    switched: Project, store: Connection, kept: Any, shown: Any
) -> None:
    switched.use_case(storage={"data": kept})
    switched.run()
    promotion.rollback(switched.request())
    rows = store.execute("SELECT DISTINCT data FROM embeddings.messages")
    assert rows.fetchall() == [(shown,)]


@pytest.mark.parametrize("way", ["the file", "a rollback"])
def test_what_is_to_be_kept_by_now_comes_with_the_next_run(
    switched: Project, store: Connection, make_model: MakeModel, way: str
) -> None:
    switched.use_case(storage={"data": "none"})
    switched.run()
    switched.use_case(encoder={"model": str(make_model(seed=13))})
    switched.run()
    switched.use_case(storage={"data": 9})
    switched.run()
    if way == "a rollback":
        promotion.rollback(switched.request())
    else:
        switched.use_case(encoder={"model": str(make_model(seed=12))})
    assert switched.run().get("embedded", 0) == 0
    assert states(store) == [(2, "active")]
    rows = store.execute("SELECT DISTINCT data FROM embeddings.messages")
    assert rows.fetchall() == [("message n",)]


def test_of_several_features_one_is_named(
    full_use_case: Project, store: Connection
) -> None:
    del full_use_case.raw["source"]["input"]
    full_use_case.use_case(
        features={"body": {"input": "body"}, "who": {"input": "author"}}
    )
    full_use_case.run()
    full_use_case.use_case(features={"who": {"normalize": True}})
    full_use_case.run()
    with pytest.raises(SearchError, match=r"\(--feature\); valid: body, who"):
        promotion.rollback(full_use_case.request())
    done = promotion.rollback(full_use_case.request(), "who")
    assert (done.serving.version, done.back.version) == (3, 2)
    live = versions.live(store, versions.use_case_id(store, "messages"))
    assert [(v.feature, v.version) for v in live] == [("body", 1), ("who", 2)]
