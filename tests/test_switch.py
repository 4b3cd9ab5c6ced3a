"""Questions while the serving version changes: each is answered by one version."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psycopg
import pytest

from embedding_tasks import promotion, run, search
from embedding_tasks.connections import Connection, connect
from embedding_tasks.errors import SearchError, TransientError
from embedding_tasks.store import versions
from embedding_tasks.store.versions import ModelVersion
from tests.fix_project import Project
from tests.switch_load import Load, known

MakeModel = Callable[..., Any]

NEAREST = (
    "SELECT key, distance, score FROM embeddings.nearest('messages', %s::vector, 5"
)


@pytest.fixture(params=[32, 48], ids=["same dimension", "another dimension"])
def ready(
    full_use_case: Project, make_model: MakeModel, request: pytest.FixtureRequest
) -> Project:
    """A version that serves, and another that waits to be promoted."""
    full_use_case.run()
    model = make_model(hidden=request.param, seed=31)
    full_use_case.use_case(encoder={"model": str(model)}, auto_promote=False)
    full_use_case.run()
    return full_use_case


def vector_of(store: Connection, version: int, key: str = "7") -> str:
    row = store.execute(
        f"SELECT embedding::text FROM embedline.vector_messages_v{version}"
        " WHERE key = %s",
        [key],
    ).fetchone()
    assert row is not None
    return str(row[0])


def test_a_vector_of_another_version_is_refused(
    ready: Project, store: Connection
) -> None:
    query = vector_of(store, 1)
    given = f"{NEAREST}, model_version => %s)"
    assert store.execute(given, [query, 1]).fetchall()
    run.promote(ready.request())
    with pytest.raises(
        psycopg.errors.ObjectNotInPrerequisiteState,
        match="a vector of model version 1, but version 2 serves 'messages' now",
    ) as refused:
        store.execute(given, [query, 1])
    assert refused.value.diag.message_hint is not None
    assert "embed it with the model of version 2" in refused.value.diag.message_hint
    assert store.execute(given, [vector_of(store, 2), 2]).fetchall()


def test_an_answer_is_of_the_version_its_query_s_snapshot_has(
    ready: Project, store: Connection, store_dsn: str
) -> None:
    """A STABLE function looks at rows as its query's snapshot has them, and finds
    relations by the names they have by now."""
    query = vector_of(store, 1)
    before = store.execute(f"{NEAREST})", [query]).fetchall()
    with connect(store_dsn, role="reader") as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with reader.transaction():
            reader.execute("SELECT count(*) FROM embedline.model_version")
            run.promote(ready.request())
            assert reader.execute(f"{NEAREST})", [query]).fetchall() == before
            found = reader.execute(
                "SELECT key, distance, score FROM embeddings.neighbors("
                "'messages', '7', 4)"
            ).fetchall()
            assert found == before[1:]


@pytest.mark.parametrize(
    "question", ["nearest('messages', %s::vector, 5)", "neighbors('messages', '7', 5)"]
)
def test_a_question_whose_version_is_dropped_beneath_it_says_so(
    ready: Project, store: Connection, store_dsn: str, question: str
) -> None:
    given = [vector_of(store, 1)] if "%s" in question else []
    ready.use_case(keep_retired_days=0, auto_promote=True)
    with connect(store_dsn, role="reader") as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with reader.transaction():
            reader.execute("SELECT count(*) FROM embedline.model_version")
            ready.run()
            with pytest.raises(
                psycopg.errors.ObjectNotInPrerequisiteState,
                match="model version 1 of 'messages' was dropped while it was being",
            ):
                reader.execute(f"SELECT FROM embeddings.{question}", given)


def test_a_store_whose_views_are_still_to_be_made_anew_is_searched_by_name(
    full_use_case: Project, store: Connection
) -> None:
    full_use_case.run()
    store.execute("DELETE FROM embedline.view")
    query = vector_of(store, 1)
    assert len(store.execute(f"{NEAREST})", [query]).fetchall()) == 5


def test_a_search_by_text_that_is_overtaken_is_made_again(
    ready: Project, store: Connection
) -> None:
    asked = []

    def encoder_for(version: ModelVersion) -> Any:
        asked.append(version.version)
        if asked == [1]:
            run.promote(ready.request())
        return search.encoder_of(version, device="cpu")

    text = "message number 33"
    found = search.by_text(store, "messages", text, 3, encoder_for=encoder_for)
    assert asked == [1, 2]
    assert (found[0]["key"], len(found)) == ("33", 3)
    assert found[0]["distance"] == pytest.approx(0, abs=1e-5)


def test_a_search_that_is_overtaken_every_time_ends_with_an_error(
    full_use_case: Project, store: Connection
) -> None:
    full_use_case.run()

    def encoder_for(version: ModelVersion) -> Any:
        store.execute("UPDATE embedline.model_version SET version = version + 1")
        return search.encoder_of(version, device="cpu")

    with pytest.raises(SearchError, match="but version 6 serves 'messages' now"):
        search.by_text(store, "messages", "a text", 3, encoder_for=encoder_for)


@pytest.mark.parametrize("prepared", [False, True])
def test_a_query_through_the_view_waits_for_a_switch_and_sees_the_new_version_whole(
    ready: Project, store: Connection, store_dsn: str, prepared: bool
) -> None:
    question = (
        "SELECT key, model_version, embedding <=>"
        " (SELECT embedding FROM embeddings.messages WHERE key = '7') AS distance"
        " FROM embeddings.messages ORDER BY distance, key"
    )
    with connect(store_dsn, role="reader") as reader, ThreadPoolExecutor(1) as pool:
        before = reader.execute(question, prepare=prepared).fetchall()
        with store.transaction():
            use_case_id = versions.use_case_id(store, "messages")
            ready = [v for v in versions.live(store, use_case_id) if not v.serves]
            versions.promote(store, use_case_id, ready, prediction_from_source=False)
            asked = pool.submit(
                lambda: reader.execute(question, prepare=prepared).fetchall()
            )
            time.sleep(0.5)
            assert not asked.done()
        after = asked.result()
    assert {(len(before), version) for _, version, _ in before} == {(120, 1)}
    assert {(len(after), version) for _, version, _ in after} == {(120, 2)}
    have = known(store, "messages")[2]
    wanted = have.nearest(have.vectors[have.keys.index("7")])
    np.testing.assert_allclose(
        [wanted[key] for key, *_ in after], [d for *_, d in after], atol=1e-5
    )


def test_a_promotion_behind_a_long_query_keeps_nobody_else_waiting(
    ready: Project,
    store: Connection,
    store_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with connect(store_dsn, role="reader") as reader, ThreadPoolExecutor(1) as pool:
        with reader.transaction():
            reader.execute("SELECT FROM embeddings.messages")
            promoting = pool.submit(run.promote, ready.request())
            for _ in range(20):
                row = store.execute(
                    "SELECT count(*), min(model_version) FROM embeddings.messages"
                ).fetchone()
                assert row == (120, 1)
                time.sleep(0.1)
            assert not promoting.done()
        assert [v.version for v in promoting.result()] == [2]
    monkeypatch.setattr(versions, "VIEW_ATTEMPTS", 1)
    with connect(store_dsn, role="reader") as reader, reader.transaction():
        reader.execute("SELECT FROM embeddings.messages")
        with pytest.raises(TransientError, match="or an open transaction holds it"):
            promotion.rollback(ready.request())
    assert promotion.rollback(ready.request()).back.version == 1


def test_a_prepared_query_for_embeddings_themselves_is_prepared_again(
    ready: Project, store: Connection, store_dsn: str
) -> None:
    """Postgres fixes the type of its columns, dimension included."""
    question = "SELECT embedding::text, embedding FROM embeddings.messages LIMIT 1"
    with connect(store_dsn, role="reader") as reader:
        reader.execute(f"PREPARE question AS {question}")
        reader.execute("EXECUTE question")
        serving, other = versions.live(store, versions.use_case_id(store, "messages"))
        run.promote(ready.request())
        if serving.dims != other.dims:
            with pytest.raises(psycopg.errors.FeatureNotSupported, match="result type"):
                reader.execute("EXECUTE question")
            reader.execute(f"DEALLOCATE question; PREPARE question AS {question}")
        assert reader.execute("EXECUTE question").fetchone()


def test_questions_under_a_switch_are_all_answered_by_one_version(
    ready: Project, store: Connection, store_dsn: str
) -> None:
    have = known(store, "messages")
    with Load(store_dsn, "messages", have, threads=3, rate=30, k=5) as load:
        for _ in range(4):
            run.promote(ready.request())
            enough(load)
            promotion.rollback(ready.request())
            enough(load)
            promotion.undo_rollback(ready.request())
            ready.run()  # revives it, and it waits to be promoted
    answers = load.answers
    assert (answers.failed, answers.mixed, answers.empty) == ([], 0, 0)
    assert answers.refused > 0
    assert answers.seconds.keys() == {"nearest", "neighbors", "view", "text"}


def enough(load: Load) -> None:
    """Waits until this many more questions are answered."""
    goal = load.answers.count + 20
    while load.answers.count < goal and not load.answers.failed:
        time.sleep(0.01)
