"""A large re-embed into a fresh table, which takes over when it is complete."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from embedding_tasks import backfills, foresight, promotion, run, status
from embedding_tasks.connections import Connection, connect
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.encoders.text import TextEncoder
from embedding_tasks.errors import ConfigError, StoreError
from embedding_tasks.use_case import Everything, Keys, Window
from tests.fix_cli import Command
from tests.fix_indexes import indexes, maintain
from tests.fix_models import ENCODE, Family
from tests.fix_project import EndState, Project, row_versions, sync
from tests.test_entities import JOIN, SENTENCES, TAGS
from tests.test_outbox import install
from tests.test_run import run_and_die

Write = Callable[..., None]
Rows = dict[tuple[str, int], tuple[Any, ...]]


@pytest.fixture
def stored(full_use_case: Project) -> Project:
    """120 records with vectors, predictions, labels and tags."""
    full_use_case.run()
    return full_use_case


@pytest.fixture
def rewritten(stored: Project, db: Connection) -> Project:
    """Of 120 stored records, 72 have another text by now."""
    rewrite(db)
    return stored


def rewrite(db: Connection, where: str = "id < 72") -> None:
    db.execute(f"UPDATE messages SET body = body || ' anew' WHERE {where}".encode())


def states(store: Connection) -> list[tuple[int, str]]:
    return [(n["model_version"], n["state"]) for n in status.of(store)]


def begun(project: Project, **options: Any) -> tuple[run.Request, int]:
    """A fresh table that has what need not be embedded, and its backfill's number."""
    request = project.request(fresh=True, **options)
    run.sync_stage(request)
    return request, run.begin(request)


def vectors(store: Connection, version: int) -> Rows:
    rows = store.execute(
        "SELECT key, unit, input_hash, embedding::text, run_id, embedded_at, span::text"
        f" FROM embedline.vector_messages_v{version}"
    )
    return {(key, unit): tuple(more) for key, unit, *more in rows}


def served(store: Connection) -> EndState:
    """All that the view shows, but which version and when."""
    rows = store.execute(
        "SELECT key || '/' || unit, span::text, data, tags, prediction, label,"
        "  event_time, embedding::real[], score FROM embeddings.messages"
    ).fetchall()
    facts = {place: tuple(told) for place, *told, _, _ in rows}
    floats = {place: np.array([*vector, score]) for place, *_, vector, score in rows}
    return EndState(facts, floats)


def during(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """In the middle of what is embedded next."""
    calls: list[int] = []

    def encode(self: TextEncoder, inputs: Any) -> Encoded:
        calls.append(1)
        if len(calls) == 2:
            do()
        return ENCODE(self, inputs)

    monkeypatch.setattr(TextEncoder, "encode", encode)


# What becomes of the vectors


def test_a_rewritten_source_is_embedded_into_a_table_that_takes_over(
    rewritten: Project, store: Connection
) -> None:
    old, before = vectors(store, 1), row_versions(store, "vector_%")
    counts = rewritten.run(fresh=True)
    assert (counts["changed"], counts["copied"], counts["embedded"]) == (72, 48, 72)
    assert states(store) == [(2, "active")]
    assert before < row_versions(store, "vector_%")
    new = vectors(store, 2)
    assert len(new) == 120
    kept = {key for key, row in new.items() if row == old[key]}
    assert kept == {(str(n), 0) for n in range(72, 120)}
    assert status.of(store)[0]["stored"] == 120
    here = served(store)
    rewritten.run(reembed=True)
    served(store).assert_same(here)


def test_to_make_all_anew_leaves_what_serves_alone(
    stored: Project, store: Connection
) -> None:
    before = served(store)
    request, _ = begun(stored, backfill=Everything(), reembed=True)
    serving, filled = status.of(store)
    assert (serving["stored"], serving["pending"]) == (120, 0)
    assert (filled["stored"], filled["pending"]) == (0, 120)
    run.embed_stage(request, 0)
    assert run.publish_stage(request)["embedded"] == 120
    assert states(store) == [(2, "active")]
    served(store).assert_same(before)
    assert {row[2] for row in vectors(store, 2).values()} == {run.begin(request)}


def test_where_nothing_is_to_be_embedded_nothing_is_begun(
    stored: Project, store: Connection
) -> None:
    before = row_versions(store)
    assert stored.run(fresh=True)["embedded"] == 0
    assert row_versions(store) == before


def test_only_the_feature_that_has_something_to_embed_is_filled(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    del project.raw["source"]["input"]
    features = {"text": {"input": "body"}, "author": {"input": "author"}}
    project.use_case(features=features)
    write_messages(range(20))
    project.run()
    rewrite(db)
    assert project.run(fresh=True)["embedded"] == 20
    rows = store.execute(
        "SELECT feature, version FROM embedline.model_version"
        " WHERE state = 'active' ORDER BY version"
    ).fetchall()
    assert rows == [("author", 1), ("text", 3)]


def test_all_parts_of_a_record_are_copied_and_those_with_none_are_not_embedded(
    project: Project, db: Connection, store: Connection, make_family: Family
) -> None:
    """Words, of which labels say, too, which have a vector."""
    db.execute(JOIN)
    db.execute(SENTENCES.encode())
    db.execute(
        "INSERT INTO sentences (id, words, tags) SELECT n, CASE WHEN n > 5"
        "  THEN ARRAY['in', 'Paris', 'number', n::text] ELSE '{}' END,"
        " CASE WHEN n > 5 THEN ARRAY['O', 'B-geo-loc', 'O', 'O'] ELSE '{}' END"
        " FROM generate_series(1, 40) n"
    )
    project.use_case(
        source={"table": "sentences", "input": "words", "event_time": None},
        encoder={"model": str(make_family("bert", "ForTokenClassification", TAGS))},
        pooling={"words": "first"},
        prediction="head",
        label={"column": "tags"},
    )
    project.run()
    before, old = served(store), vectors(store, 1)
    assert len(old) > 35
    # a word that had no vector gets one with its label
    key, word = next(
        (n, unit)
        for n in range(6, 20)
        for unit in range(4)
        if (str(n), unit) not in old
    )
    db.execute(
        "UPDATE sentences SET tags[%s] = 'B-person' WHERE id = %s", [word + 1, key]
    )
    db.execute("UPDATE sentences SET words = words || 'too'::text WHERE id > 20")
    counts = project.run(fresh=True)
    assert (counts["copied"], counts["embedded"]) == (19, 21)
    new = vectors(store, 2)
    assert (str(key), word) in new
    copied = [p for p in old if int(p[0]) <= 20 and p[0] != str(key)]
    assert copied
    assert all(new[place] == old[place] for place in copied)
    here = served(store)
    assert {p.split("/")[0] for p in here.facts} == {
        p.split("/")[0] for p in before.facts
    }
    project.run(reembed=True)
    served(store).assert_same(here)


# What is served meanwhile


def test_what_waits_when_it_begins_is_served_as_it_was_until_the_switch(
    rewritten: Project, store: Connection
) -> None:
    before = served(store)
    request, number = begun(rewritten)
    serving, filled = status.of(store)
    names = ("stored", "pending", "paused", "awaiting_switch", "oldest_pending_age")
    assert [serving[n] for n in names] == [48, 0, 0, 72, None]
    assert [filled[n] for n in names[:4]] == [48, 72, 0, 0]
    told = status.explain(store, request.use_case, "3")["verdict"]
    assert f"served as it was until the fresh table of backfill {number}" in told
    assert run.embed_stage(request, 0)["embedded"] == 72
    served(store).assert_same(before)
    run.publish_stage(request)
    assert served(store).facts["3/0"] != before.facts["3/0"]
    told = status.explain(store, request.use_case, "3")["verdict"]
    assert told == "stored, and its vector is of its current input"


@pytest.mark.parametrize("scope", [None, Everything()], ids=str)
def test_the_little_that_waits_when_it_begins_is_embedded_in_both(
    stored: Project, db: Connection, store: Connection, scope: Any
) -> None:
    """At most one record in twenty."""
    rewrite(db, "id < 6")
    request, _ = begun(stored, backfill=scope, reembed=True)
    assert [row["pending"] for row in status.of(store)] == [6, 120]
    run.embed_stage(request, 0)
    assert served(store).facts["3/0"][1] == "message number 3 anew"
    assert [row["stored"] for row in status.of(store)] == [120, 120]


@pytest.mark.parametrize("strategy", ["snapshot", "outbox", "scan"])
def test_what_happens_while_it_is_filled_happens_to_both(
    rewritten: Project, db: Connection, store: Connection, strategy: str
) -> None:
    """And a scheduled run that comes meanwhile takes nothing back that was left to the
    fresh table."""
    rewritten.use_case(source={"strategy": strategy}, auto_promote=False)
    if strategy == "outbox":
        install(rewritten)
    begun(rewritten)
    db.execute("INSERT INTO messages (id, body) VALUES (500, 'a new one')")
    rewrite(db, "id IN (100, 101)")  # had been copied
    rewrite(db, "id = 3")  # waits, and goes on waiting
    db.execute("DELETE FROM messages WHERE id IN (4, 102)")
    db.execute("UPDATE messages SET body = NULL WHERE id IN (5, 103)")
    db.execute("INSERT INTO verdicts VALUES (104, 'late')")
    counts = rewritten.run()
    assert (counts["deleted"], counts["embedded"]) == (2, 3 + 70 + 3)
    serving, filled = status.of(store)
    assert (serving["stored"], serving["awaiting_switch"]) == (47, 70)
    assert (filled["state"], filled["stored"]) == ("ready", 117)
    facts = served(store).facts
    assert facts["500/0"][1] == "a new one"
    assert facts["100/0"][1] == "message number 100 anew"
    assert facts["3/0"][1] == "message number 3"
    assert facts["104/0"][4] == "late"
    assert not {"4/0", "5/0", "102/0", "103/0"} & facts.keys()
    run.promote(rewritten.request())
    here = served(store)
    assert len(here.facts) == 117
    assert here.facts["3/0"][1] == "message number 3 anew anew"
    rewritten.run(reembed=True)
    served(store).assert_same(here)


def test_a_run_at_work_leaves_the_rest_of_it_to_a_fresh_table(
    rewritten: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = rewritten.request()
    run.sync_stage(request)
    with monkeypatch.context() as patch:
        during(patch, lambda: begun(rewritten))
        embedded = run.embed_stage(request, 0)["embedded"]
    assert embedded in (16, 32, 48)  # what its lanes had in hand
    run.publish_stage(request)
    serving, filled = status.of(store)
    assert (serving["stored"], serving["awaiting_switch"]) == (
        *(48 + embedded, 72 - embedded),
    )
    assert rewritten.run()["embedded"] == filled["pending"]
    assert states(store) == [(2, "active")]


def test_it_waits_for_no_worker_that_is_just_writing(
    rewritten: Project, store: Connection, store_dsn: str
) -> None:
    """Who may wait for a record that the sync has locked."""
    sync(rewritten)
    with (
        connect(store_dsn, role="store") as worker,
        worker.transaction(),
        ThreadPoolExecutor(1) as pool,
    ):
        worker.execute("SELECT FROM embedline.ledger WHERE key = '3' FOR UPDATE")
        pool.submit(begun, rewritten).result(timeout=30)
    serving, filled = status.of(store)
    assert (serving["pending"], serving["awaiting_switch"]) == (1, 71)
    assert filled["pending"] == 72


def test_searches_meanwhile_are_answered_by_what_serves(
    rewritten: Project,
    store: Connection,
    store_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    question = (
        "SELECT key, (SELECT min(model_version) FROM embeddings.messages)"
        " FROM embeddings.neighbors('messages', '100', 5)"
    )
    before = store.execute(question).fetchall()
    asked: list[object] = []

    def ask() -> None:
        with connect(store_dsn, role="reader") as reader:
            asked.append(reader.execute(question).fetchall())

    during(monkeypatch, ask)
    rewritten.run(fresh=True)
    assert asked == [before]
    assert {version for _, version in store.execute(question)} == {2}


def test_it_has_its_index_before_it_serves_and_the_old_one_keeps_its_own(
    indexed: Project, db: Connection, store: Connection
) -> None:
    maintain(indexed)
    rewrite(db)
    old = indexes(store)
    indexed.run(fresh=True)
    assert states(store) == [(2, "active")]
    assert [*indexes(store).values()] == [True]
    assert indexes(store) != old
    assert status.index_of(store, "messages", "embedding", 2)["recall"] == 1  # type: ignore[index]
    promotion.rollback(indexed.request())
    assert indexes(store) == old


# Back, and away


def test_a_rollback_serves_the_old_table_again_without_what_has_changed(
    rewritten: Project, store: Connection
) -> None:
    rewritten.run(fresh=True)
    here = served(store)
    back = promotion.rollback(rewritten.request())
    assert (back.back.version, back.vectors, back.to_embed) == (1, 48, 72)
    assert rewritten.run()["embedded"] == 72
    assert states(store) == [(1, "active")]
    served(store).assert_same(here)
    assert rewritten.run()["embedded"] == 0
    assert promotion.rollback(rewritten.request()).back.version == 2


def test_the_old_table_is_kept_as_long_as_any_retired_one(
    rewritten: Project, store: Connection
) -> None:
    rewritten.use_case(keep_retired_days=0)
    rewritten.run(fresh=True)
    rows = store.execute(
        "SELECT version, dropped_at IS NULL FROM embedline.model_version ORDER BY 1"
    ).fetchall()
    assert rows == [(1, False), (2, True)]
    assert rewritten.run(fresh=True, reembed=True)["embedded"] == 120
    assert states(store) == [(3, "active")]


# Broken off, and gone on with

DEATHS = [
    ("embedding_tasks.store.fresh._copy", 1, "after"),
    ("embedding_tasks.store.write._settle", 2, "after"),
    ("embedding_tasks.store.versions.mark_ready", 1, "after"),
]


@pytest.mark.parametrize(("point", "number", "when"), DEATHS)
def test_killed_at_any_point_and_run_again_it_ends_as_if_nothing_had_happened(
    rewritten: Project, store: Connection, point: str, number: int, when: str
) -> None:
    run_and_die(point, number, when, "fresh")
    counts = rewritten.run(external_id="killed", fresh=True)
    assert counts["embedded"] == 72  # of the whole run, its earlier life included
    assert states(store) == [(2, "active")]
    here = served(store)
    rewritten.run(reembed=True)
    served(store).assert_same(here)


def test_the_next_run_completes_what_was_broken_off(
    rewritten: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        during(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            rewritten.run(fresh=True)
    (row,) = backfills.of(store, "messages")
    assert (row["state"], row["versions"], row["scope"]) == ("waiting", [2], None)
    assert 0 < row["waiting"] < 72
    assert rewritten.run()["embedded"] == row["waiting"]
    assert states(store) == [(2, "active")]
    assert [row["state"] for row in backfills.of(store, "messages")] == ["done"]


def test_it_is_not_done_before_it_serves(stored: Project, store: Connection) -> None:
    stored.use_case(auto_promote=False)
    stored.run(fresh=True, reembed=True)
    (row,) = backfills.of(store, "messages")
    assert (row["state"], row["waiting"]) == ("waiting", 0)
    run.promote(stored.request())
    assert backfills.of(store, "messages")[0]["state"] == "done"


@pytest.mark.parametrize("reembed", [False, True])
def test_paused_it_is_filled_by_nobody_and_the_schedule_goes_on(
    stored: Project, db: Connection, store: Connection, reembed: bool
) -> None:
    stored.use_case(source={"strategy": "scan"})
    if not reembed:
        rewrite(db)
    request, number = begun(stored, reembed=reembed)
    assert backfills.pause(store, "messages") == [number]
    db.execute("INSERT INTO messages (id, body) VALUES (500, 'a new one')")
    assert stored.run()["embedded"] == 2
    waiting = 120 if reembed else 72
    assert run.embed_stage(request, 0)["embedded"] == 0
    assert run.publish_stage(request)["paused"] == waiting
    assert states(store) == [(1, "active"), (2, "building")]
    assert backfills.resume(store, "messages") == [number]
    assert stored.run()["embedded"] == waiting
    assert states(store) == [(2, "active")]


def test_cancelled_it_leaves_the_store_and_what_waited_goes_in_place(
    rewritten: Project, store: Connection
) -> None:
    request, number = begun(rewritten)
    foreseen = backfills.foresee_cancel(store, request.use_case, [number])
    assert foreseen == backfills.Fates(0, 0, left=72, versions=(2,))
    assert states(store) == [(1, "active"), (2, "building")]
    assert backfills.cancel(store, request.use_case, [number]) == foreseen
    assert status.of(store)[0]["pending"] == 72
    row = store.execute(
        "SELECT to_regclass('embedline.vector_messages_v2'), count(*)"
        " FROM embedline.prediction p JOIN embedline.model_version m"
        "  ON m.id = p.model_version WHERE m.version = 2"
    ).fetchone()
    assert row == (None, 0)
    assert rewritten.run(external_id=request.external_id, fresh=True)["embedded"] == 72
    assert states(store) == [(1, "active")]
    assert backfills.of(store, "messages")[0]["state"] == "cancelled"


def test_a_worker_that_fills_what_is_cancelled_ends_well(
    stored: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, number = begun(stored, reembed=True)
    during(monkeypatch, lambda: backfills.cancel(store, request.use_case, [number]))
    assert run.embed_stage(request, 0)["embedded"] < 120
    run.publish_stage(request)
    assert states(store) == [(1, "active")]
    assert status.of(store)[0]["stored"] == 120


def test_what_only_it_had_brought_leaves_with_it(
    project: Project, store: Connection, write_messages: Write
) -> None:
    write_messages(range(100))
    project.use_case(source={"start": "2026-01-01T00:40:00Z"})
    project.run()
    request, number = begun(project, backfill=Everything())
    assert [row["wanted"] for row in status.of(store)] == [100, 100]
    run.embed_stage(request, 0)
    fates = backfills.cancel(store, request.use_case, [number])
    assert (fates.removed, fates.left) == (40, 0)
    assert status.of(store)[0]["wanted"] == 60


def test_another_recipe_takes_its_place(rewritten: Project, store: Connection) -> None:
    begun(rewritten)
    rewritten.use_case(pooling="mean")
    sync(rewritten)
    assert states(store) == [(1, "active"), (3, "building")]
    assert [row["pending"] for row in status.of(store)] == [72, 120]
    rewritten.run()
    assert states(store) == [(3, "active")]
    rewritten.use_case(pooling="cls")
    rewritten.run()
    assert states(store) == [(1, "active")]  # and not the one that was not completed


# Bad states, and dry runs


def test_one_at_a_time(
    rewritten: Project, store: Connection, make_model: Callable[..., Any]
) -> None:
    request, number = begun(rewritten)
    before = row_versions(store)
    run.sync_stage(request)  # tried again
    assert row_versions(store) == before
    with pytest.raises(
        StoreError, match=f"backfill {number} is filling version 2 already; "
    ):
        rewritten.run(fresh=True)
    assert row_versions(store) == before
    rewritten.use_case(encoder={"model": str(make_model(seed=7))})
    with pytest.raises(StoreError, match="version 3 is being built of another recipe"):
        rewritten.run(fresh=True)
    assert row_versions(store) == before


def test_a_first_build_is_completed_first(
    full_use_case: Project, store: Connection
) -> None:
    says = "is still being filled for the first time"
    with pytest.raises(StoreError, match=says):
        full_use_case.run(fresh=True)
    request = full_use_case.request()
    run.sync_stage(request)
    with pytest.raises(StoreError, match=says):
        full_use_case.run(fresh=True)
    full_use_case.run(backfill=Keys(keys=("3",)))
    assert status.of(store)[0]["stored"] == 120
    full_use_case.run()
    assert full_use_case.run(fresh=True, reembed=True)["embedded"] == 120


@pytest.mark.parametrize(
    "scope", [Keys(keys=("3",)), Window.parse("2026-01-01", None)], ids=str
)
def test_a_fresh_table_takes_every_record(stored: Project, scope: Any) -> None:
    with pytest.raises(ConfigError, match="valid with fresh: everything, or no scope"):
        stored.request(fresh=True, backfill=scope)


@pytest.mark.parametrize("into_fresh", [False, True])
def test_a_dry_run_tells_how_long_it_takes_either_way_and_leaves_nothing(
    indexed: Project, db: Connection, store: Connection, into_fresh: bool
) -> None:
    maintain(indexed)
    store.execute("UPDATE embedline.vector_index SET seconds = 600")
    rewrite(db, "id < 30")
    before = row_versions(store)
    foreseen = indexed.run(fresh=into_fresh, dry_run=True)
    assert row_versions(store) == before
    assert foreseen["to_embed"] == 30
    assert foreseen.get("copied") == (30 if into_fresh else None)
    assert foreseen["builds_version"] == (2 if into_fresh else 0)
    rate = foreseen["records_per_second"]
    assert foreseen["fresh_seconds"] == pytest.approx(30 / rate + 600)
    through_index = foresight._THROUGH_INDEX * 600 / 2
    assert foreseen["in_place_seconds"] == pytest.approx(through_index)


def test_nothing_is_offered_for_little_or_without_an_index(
    indexed: Project, db: Connection
) -> None:
    rewrite(db)
    assert "fresh_seconds" not in indexed.run(dry_run=True)
    indexed.run()
    maintain(indexed)
    rewrite(db, "id < 3")
    assert "fresh_seconds" not in indexed.run(dry_run=True)


def test_a_run_that_rewrites_much_in_place_says_that_it_could_be_done_sooner(
    indexed: Project,
    db: Connection,
    store: Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    maintain(indexed)
    store.execute("UPDATE embedline.vector_index SET seconds = 600")
    rewrite(db)
    run.sync_stage(indexed.request())
    assert "`embedline backfill start messages --fresh`" in caplog.text
    caplog.clear()
    begun(indexed)
    run.sync_stage(indexed.request())
    assert "--fresh" not in caplog.text


# From a terminal


def test_start_list_stop_and_go_on(
    embedline: Command,
    rewritten: Project,
    store: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = ("backfill", "start", "messages", "--fresh")
    dry = embedline(*start, "--dry-run")
    assert "72 changed, 48 copied, 72 to embed, as model version 2, beside" in dry

    def stop() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        during(patch, stop)
        told = embedline(*start, code=130)
    (row,) = backfills.of(store, "messages")
    assert f"backfill {row['id']} of messages" in told
    assert f"{row['waiting']} records wait: `embedline work messages` goes on" in told
    assert "72 await the switch to a fresh table" in embedline("status", "messages")
    listed = embedline("backfill", "list", "messages")
    assert "all that is stored, as version 2" in listed
    assert f"{row['waiting']} embedded" in embedline("work", "messages")
    told = embedline(*start, code=1)
    assert f"backfill {row['id']} is filling version 2 already" in told
    assert "0 embedded" not in embedline("run", "messages")
    assert states(store) == [(2, "active")]
    (row,) = json.loads(embedline("backfill", "list", "messages", "--json"))
    assert (row["state"], row["versions"]) == ("done", [2])


def test_the_index_that_is_built_before_the_switch_is_seen_to_grow(
    embedline: Command, indexed: Project
) -> None:
    maintain(indexed)
    told = embedline("backfill", "start", "messages", "--reembed", "--fresh")
    assert "build hnsw_2_cosine_m16_ef64: measuring recall" in told


def test_start_all_anew_and_cancel(
    embedline: Command, stored: Project, store: Connection
) -> None:
    stored.use_case(auto_promote=False)
    start = ("backfill", "start", "messages", "--everything", "--reembed", "--fresh")
    told = embedline(*start)
    assert "version 2 is complete: embedline promote messages" in told
    told = embedline("backfill", "cancel", "messages", "--yes")
    assert "version 2 is dropped, 0 records keep the vectors they have" in told
    assert states(store) == [(1, "active")]


def test_stopped_before_the_switch_it_says_so(
    embedline: Command,
    stored: Project,
    store: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(promotion, "_index", interrupted)
        start = ("backfill", "start", "messages", "--reembed", "--fresh")
        told = embedline(*start, code=130)
    assert "stopped; version 2 is filled, and the next run lets it serve" in told
    embedline("run", "messages")
    assert states(store) == [(2, "active")]
