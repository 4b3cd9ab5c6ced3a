"""Backfills: by window, by keys, whole; paused, resumed, cancelled; beside others."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import uuid4

import pytest

from embedding_tasks import backfills, ledger, promotion, run, status, terminal
from embedding_tasks.connections import Connection
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.encoders.text import TextEncoder
from embedding_tasks.errors import ConfigError, SearchError, SourceError
from embedding_tasks.store import versions
from embedding_tasks.use_case import Everything, Keys, Window, scope_of
from tests.fix_models import ENCODE, poison
from tests.fix_project import Project, end_state, keys, row_versions, sync

Write = Callable[..., None]
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
START = BEGIN + timedelta(minutes=60)
CLAIM = ledger.claim


def window(since: int | None = None, until: int | None = None) -> Window:
    """Of message numbers: there is one a minute."""
    return Window(
        since=None if since is None else BEGIN + timedelta(minutes=since),
        until=None if until is None else BEGIN + timedelta(minutes=until),
    )


@pytest.fixture
def late_start(project: Project, write_messages: Write) -> Project:
    """A hundred messages, of which the schedule wants the last forty."""
    project.use_case(source={"start": START}, batch={"claim": 8, "lease_seconds": 5})
    write_messages(range(100))
    return project


def begun(project: Project, **options: Any) -> tuple[run.Request, int]:
    """A backfill that has enqueued its records, and its number."""
    request = project.request(**options)
    run.sync_stage(request)
    return request, run.begin(request)


def ledger_rows(store: Connection, columns: str, where: str = "true") -> Any:
    return store.execute(
        f"SELECT {columns} FROM embedline.ledger WHERE {where} ORDER BY key::int"
    ).fetchall()


def embedded(store: Connection) -> dict[str, tuple[int, int]]:
    rows = store.execute("SELECT external_id, embedded, discarded FROM embedline.run")
    return {name: (count, vain) for name, count, vain in rows}


# What is asked for


@pytest.mark.parametrize(
    ("scope", "count"),
    [
        (window(10, 20), 10),
        (window(until=20), 20),
        (window(since=50), 10),
        (Keys(keys=("3", "5", "70")), 2),
        (Everything(), 60),
    ],
    ids=str,
)
def test_a_backfill_embeds_what_it_asks_for_and_moves_no_cursor(
    late_start: Project, db: Connection, store: Connection, scope: Any, count: int
) -> None:
    late_start.run()
    db.execute("DELETE FROM messages WHERE id = 99")
    cursor = "SELECT * FROM embedline.source_cursor"
    before = store.execute(cursor).fetchall()
    assert late_start.run(backfill=scope)["embedded"] == count
    assert store.execute(cursor).fetchall() == before
    assert "99" in keys(store)
    assert late_start.run()["deleted"] == 1


def test_the_whole_and_a_key_list_of_all_end_as_one_full_run(
    full_use_case: Project, store: Connection
) -> None:
    full_use_case.run()
    wanted = end_state(store)
    everything = Keys(keys=tuple(str(n) for n in range(120)))
    for scope in (Everything(), everything):
        store.execute(
            "UPDATE embedline.vector_messages_v1 SET embedding = embedding + embedding"
        )
        counts = full_use_case.run(backfill=scope, reembed=True)
        assert counts["embedded"] == 120
        end_state(store).assert_same(wanted)


def test_a_backfill_of_unchanged_records_writes_nothing(
    full_use_case: Project, store: Connection
) -> None:
    full_use_case.run()
    before = row_versions(store)
    assert full_use_case.run(backfill=Everything())["embedded"] == 0
    assert row_versions(store) == before


def test_odd_keys_are_counted_and_named_and_cost_the_others_nothing(
    late_start: Project, store: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    odd = ("4711", "seven", "", "1e3", "9" * 30, "nul\0", "\udcff")
    asked = Keys(keys=("3", *odd, "5", "05", "3"))
    with caplog.at_level(logging.WARNING):
        counts = late_start.run(backfill=asked)
    assert (counts["embedded"], counts["not_found"]) == (2, len(odd))
    assert "4711, seven" in caplog.text
    assert keys(store) == {"3", "5"}


def test_keys_of_several_columns_are_written_as_a_list(
    project: Project, db: Connection, store: Connection
) -> None:
    db.execute(
        "CREATE TABLE pages (site text, page int, body text, UNIQUE (site, page));"
        "INSERT INTO pages SELECT 'acme', n, 'x' FROM generate_series(1, 5) n"
    )
    project.use_case(
        source={"table": "pages", "key": ["site", "page"], "event_time": None}
    )
    asked = Keys(keys=('["acme", "1"]', '["acme",2]', '["acme", "x"]', "acme", '["a"]'))
    assert sync(project, backfill=asked) == {"read": 2, "new": 2, "not_found": 3}


@pytest.mark.parametrize("kind", ["query", "view"])
def test_keys_are_found_in_what_has_no_keys_of_its_own(
    project: Project, db: Connection, write_messages: Write, kind: str
) -> None:
    write_messages(range(10))
    db.execute("CREATE VIEW shown AS SELECT * FROM messages WHERE id < 5")
    place = {"table": None, "query": "SELECT * FROM shown -- all"}
    project.use_case(source=place if kind == "query" else {"table": "shown"})
    counts = sync(project, backfill=Keys(keys=("1", "7")))
    assert counts == {"read": 1, "new": 1, "not_found": 1}


def test_a_key_that_reads_otherwise_in_the_source_is_found(
    project: Project, db: Connection, store: Connection
) -> None:
    db.execute("CREATE TABLE prices (id numeric PRIMARY KEY, body text)")
    db.execute("INSERT INTO prices VALUES (1.50, 'a'), (2, 'b')")
    project.use_case(source={"table": "prices", "event_time": None})
    assert sync(project, backfill=Keys(keys=("1.5", "1.500", "2.0"))) == {
        "read": 2,
        "new": 2,
    }
    assert keys(store) == {"1.50", "2"}


def test_many_keys_are_read_in_parts(
    project: Project, write_messages: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding_tasks.source.keys.KEYS_PER_READ", 7)
    write_messages(range(30))
    asked = Keys(keys=tuple(str(n) for n in range(-5, 30)))
    assert sync(project, backfill=asked) == {"read": 30, "new": 30, "not_found": 5}


def test_a_mistake_in_the_filter_is_no_key_that_is_not_found(
    late_start: Project,
) -> None:
    late_start.use_case(source={"where": "1 / (id - 3) > 0"})
    with pytest.raises(SourceError, match="division by zero"):
        late_start.run(backfill=Keys(keys=("3", "4")))


def test_one_scope_may_be_given() -> None:
    assert scope_of() is None
    assert scope_of(keys=[]) is None
    for given in (
        {"since": "2026-01-01", "keys": ["1"]},
        {"until": "2026-01-01", "everything": True},
        {"keys": ["1"], "everything": True},
    ):
        with pytest.raises(ConfigError, match="a backfill has one scope; valid: "):
            scope_of(**given)  # type: ignore[arg-type]


def test_keys_and_everything_ask_for_no_event_time(
    project: Project, write_messages: Write
) -> None:
    write_messages(range(5))
    project.use_case(source={"event_time": None})
    assert project.run(backfill=Keys(keys=("1",)))["embedded"] == 1
    assert project.run(backfill=Everything())["embedded"] == 4


# Beside the schedule and each other


def test_scheduled_records_go_first_and_nothing_is_embedded_twice(
    late_start: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed: list[int] = []
    one_at_a_time = Lock()  # two lanes that claim at once may be told in any order

    def noted(*args: Any) -> ledger.Lease:
        with one_at_a_time:
            lease = CLAIM(*args)
            claimed.extend(map(int, lease.hashes))
            return lease

    monkeypatch.setattr(ledger, "claim", noted)
    first, one = begun(late_start, backfill=window(0, 30))
    second, two = begun(late_start, backfill=window(20, 50))
    scheduled, _ = begun(late_start)
    assert ledger_rows(store, "backfill", "key::int IN (10, 25, 40, 70)") == [
        *((one,), (one,), (two,), (None,))
    ]
    for request in (first, second, scheduled):
        run.embed_stage(request, 0)
        run.publish_stage(request)
    assert {*claimed[:40]} == {*range(60, 100)}
    assert sorted(claimed) == [*range(50), *range(60, 100)]
    assert sum(count for count, _ in embedded(store).values()) == 90
    assert ledger_rows(store, "key", "backfill IS NOT NULL") == []


def test_backfills_and_the_schedule_at_once_embed_everything_once(
    late_start: Project, store: Connection
) -> None:
    requests = [
        late_start.request(backfill=window(0, 40)),
        late_start.request(backfill=window(20, 60)),
        late_start.request(),
    ]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run.run, requests))
    counts = embedded(store)
    assert sum(count for count, _ in counts.values()) == 100
    assert {vain for _, vain in counts.values()} == {0}
    assert status.of(store)[0]["stored"] == 100
    row = store.execute("SELECT count(*) FROM embedline.source_cursor").fetchone()
    assert row == (1,)
    assert sync(late_start) == {}


def test_what_waits_for_the_schedule_stays_the_schedules(
    late_start: Project, store: Connection
) -> None:
    begun(late_start)
    _, number = begun(late_start, backfill=window(50, 70), reembed=True)
    assert {*ledger_rows(store, "backfill", "key::int >= 60")} == {(None,)}
    assert {*ledger_rows(store, "backfill", "key::int < 60")} == {(number,)}


@pytest.mark.parametrize(("reembed", "paused"), [(False, 50), (True, 98)])
@pytest.mark.parametrize("strategy", ["snapshot", "scan"])
def test_a_scheduled_sync_makes_its_own_what_a_backfill_saw_first(
    late_start: Project,
    db: Connection,
    store: Connection,
    write_messages: Write,
    strategy: str,
    reembed: bool,
    paused: int,
) -> None:
    """Pausing a backfill must not keep the schedule's records waiting: changed ones,
    and new ones after the start. Those it does not ask for stay paused."""
    late_start.use_case(source={"strategy": strategy})
    late_start.run()
    late_start.run(backfill=window(0, 10))
    db.execute("UPDATE messages SET body = 'other' WHERE id IN (5, 70)")
    write_messages(range(100, 103))
    _, number = begun(late_start, backfill=Everything(), reembed=reembed)
    backfills.pause(store, "messages", number)
    assert status.of(store)[0]["paused"] == paused + 5
    counts = late_start.run()
    assert (counts["embedded"], counts["new"], counts["changed"]) == (5, 0, 0)
    assert status.of(store)[0]["paused"] == paused
    assert keys(store, "embeddings.messages") == {
        str(n) for n in (*range(10), *range(60, 103))
    }


def test_a_scheduled_sync_leaves_vectors_to_be_made_anew_to_their_backfill(
    late_start: Project, db: Connection, store: Connection
) -> None:
    late_start.run()
    _, number = begun(late_start, backfill=window(since=60), reembed=True)
    backfills.pause(store, "messages", number)
    db.execute("UPDATE messages SET author = 'x'")
    assert late_start.run()["embedded"] == 0
    assert status.of(store)[0]["paused"] == 40


def test_a_run_that_makes_all_anew_takes_what_a_paused_backfill_was_to(
    late_start: Project, store: Connection
) -> None:
    late_start.run()
    _, number = begun(late_start, backfill=window(50, 70), reembed=True)
    backfills.pause(store, "messages", number)
    assert late_start.run(reembed=True)["embedded"] == 40
    assert status.of(store)[0]["paused"] == 10


def test_a_backfill_takes_over_from_one_that_is_paused(
    late_start: Project, store: Connection
) -> None:
    _, one = begun(late_start, backfill=window(0, 30))
    backfills.pause(store, "messages", one)
    assert late_start.run(backfill=window(20, 40))["embedded"] == 20
    assert status.of(store)[0]["paused"] == 20


def test_a_version_that_is_built_meanwhile_lacks_no_record_that_served(
    full_use_case: Project, store: Connection, make_model: Callable[..., Path]
) -> None:
    full_use_case.run()
    _, number = begun(full_use_case, backfill=Everything(), reembed=True)
    backfills.pause(store, "messages", number)
    full_use_case.use_case(encoder={"model": str(make_model(seed=5))})
    full_use_case.run()
    numbers = status.of(store)[0]
    assert (numbers["model_version"], numbers["stored"]) == (2, 120)
    assert len(keys(store, "embeddings.messages")) == 120


def test_a_version_waits_for_a_paused_record_that_the_serving_one_has(
    late_start: Project,
    store: Connection,
    make_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late_start.run()
    late_start.use_case(encoder={"model": str(make_model(seed=5))})
    request, number = begun(late_start, backfill=window(0, 30))
    calls: list[int] = []

    def paused_once_it_serves(self: TextEncoder, inputs: Any) -> Encoded:
        calls.append(1)
        if len(calls) == 5:  # thirty by eight
            backfills.pause(store, "messages", number)
        return ENCODE(self, inputs)

    monkeypatch.setattr(TextEncoder, "encode", paused_once_it_serves)
    run.embed_stage(request, 0)
    run.publish_stage(request)
    serving, building = status.of(store)
    assert (serving["model_version"], serving["stored"]) == (1, 70)
    assert building["paused"] > 0
    assert building["pending"] == 0
    backfills.resume(store, "messages")
    late_start.run()
    assert [(n["model_version"], n["stored"]) for n in status.of(store)] == [(2, 70)]


def test_a_version_waits_for_a_paused_record_that_was_put_off(
    late_start: Project, store: Connection, make_model: Callable[..., Path]
) -> None:
    late_start.run()
    late_start.use_case(
        encoder={"model": str(make_model(seed=5))}, thresholds={"undone_share": 0}
    )
    request, number = begun(late_start, backfill=window(0, 30))
    run.embed_stage(request, 0)
    store.execute(
        "UPDATE embedline.ledger SET have_hash = NULL, deferred = true, backfill = %s"
        " WHERE key = '3' AND model_version ="
        " (SELECT id FROM embedline.model_version WHERE version = 2)",
        [number],
    )
    store.execute("UPDATE embedline.run SET paused_at = now() WHERE id = %s", [number])
    run.publish_stage(request)
    assert status.of(store)[0]["model_version"] == 1


def test_a_paused_backfill_stays_paused_in_a_version_built_meanwhile(
    late_start: Project, store: Connection, make_model: Callable[..., Path]
) -> None:
    late_start.run()
    _, number = begun(late_start, backfill=window(0, 10))
    backfills.pause(store, "messages", number)
    late_start.use_case(encoder={"model": str(make_model(seed=5))})
    late_start.run()
    numbers = status.of(store)[0]
    assert (numbers["model_version"], numbers["stored"], numbers["paused"]) == (
        *(2, 40, 10),
    )


def test_a_paused_backfill_stays_paused_in_a_version_of_other_columns(
    late_start: Project, store: Connection
) -> None:
    late_start.run()
    _, number = begun(late_start, backfill=window(0, 10))
    backfills.pause(store, "messages", number)
    late_start.use_case(source={"input": ["body", "author"]})
    assert late_start.run()["embedded"] == 40
    numbers = status.of(store)[0]
    assert (numbers["model_version"], numbers["stored"], numbers["paused"]) == (
        *(2, 40, 10),
    )


@pytest.mark.parametrize("way", ["the file", "a rollback"])
def test_a_paused_backfill_stays_paused_in_a_version_that_comes_back(
    late_start: Project,
    store: Connection,
    make_model: Callable[..., Path],
    tiny: Path,
    way: str,
) -> None:
    late_start.run()
    late_start.use_case(encoder={"model": str(make_model(seed=5))})
    late_start.run()
    _, number = begun(late_start, backfill=window(0, 10))
    backfills.pause(store, "messages", number)
    if way == "a rollback":
        promotion.rollback(late_start.request())
    else:
        late_start.use_case(encoder={"model": str(tiny)})
    assert late_start.run().get("embedded", 0) == 0
    numbers = status.of(store)[0]
    assert (numbers["model_version"], numbers["stored"], numbers["paused"]) == (
        *(1, 40, 10),
    )
    case = late_start.use_case()
    assert backfills.cancel(store, case, [number]).removed == 10


def test_a_backfill_that_others_have_finished_is_done(
    late_start: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> Encoded:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "encode", stopped)
        with pytest.raises(KeyboardInterrupt):
            late_start.run(backfill=window(0, 10))
    assert [row["state"] for row in backfills.of(store, "messages")] == ["waiting"]
    late_start.run()
    assert [row["state"] for row in backfills.of(store, "messages")] == ["done"]


# Pause and resume


def test_a_paused_backfill_is_taken_by_none_and_missed_by_none(
    late_start: Project, store: Connection
) -> None:
    late_start.run()
    request, number = begun(late_start, backfill=window(0, 50))
    assert backfills.pause(store, "messages") == [number]
    numbers = status.of(store)[0]
    assert (numbers["paused"], numbers["pending"]) == (50, 0)
    assert numbers["oldest_pending_age"] is None
    assert run.plan_stage(request) == 0
    assert run.embed_stage(request, 0)["embedded"] == 0
    assert run.publish_stage(request)["paused"] == 50
    assert late_start.run()["embedded"] == 0
    assert backfills.resume(store, "messages", number) == [number]
    (row,) = backfills.of(store, "messages")
    assert (row["state"], row["waiting"]) == ("waiting", 50)
    assert late_start.run()["embedded"] == 50
    assert backfills.of(store, "messages")[0]["state"] == "done"


def test_a_worker_stops_after_its_present_claims(
    late_start: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, number = begun(late_start, backfill=window(0, 50))
    calls: list[int] = []

    def paused_at_the_second(self: TextEncoder, inputs: Any) -> Encoded:
        calls.append(1)
        if len(calls) == 2:
            backfills.pause(store, "messages", number)
        return ENCODE(self, inputs)

    monkeypatch.setattr(TextEncoder, "encode", paused_at_the_second)
    embedded = run.embed_stage(request, 0)["embedded"]
    assert embedded in (16, 24)  # the other lane may have had one in hand, too
    counts = run.publish_stage(request)
    assert (counts["paused"], counts["embedded"]) == (50 - embedded, embedded)
    assert status.of(store)[0]["last_run_state"] == "success"


def test_a_backfill_paused_before_it_has_enqueued_anything_is_paused(
    late_start: Project, store: Connection
) -> None:
    request = late_start.request(backfill=window(0, 50))
    number = run.begin(request)
    backfills.pause(store, "messages", number)
    counts = run.run(request)
    assert (counts["new"], counts["embedded"], counts["paused"]) == (50, 0, 50)


def test_a_dead_record_of_a_paused_backfill_is_still_counted_as_dead(
    late_start: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    late_start.use_case(retry={"max_attempts": 1}, thresholds={"undone_share": 1})
    poison(monkeypatch, "number 17")
    request, number = begun(late_start, backfill=window(0, 50))
    run.embed_stage(request, 0)
    with pytest.raises(SearchError, match=rf"backfill {number} is running"):
        backfills.resume(store, "messages", number)
    backfills.pause(store, "messages", number)
    numbers = status.of(store)[0]
    assert (numbers["dead"], numbers["paused"]) == (1, 0)
    assert backfills.of(store, "messages")[0]["dead"] == 1


@pytest.mark.parametrize("change", [backfills.pause, backfills.resume])
def test_what_is_no_backfill_is_told_with_those_there_are(
    late_start: Project, store: Connection, change: Any
) -> None:
    late_start.run()
    assert change(store, "messages") == []
    with pytest.raises(SearchError, match="no backfill 1; valid: none"):
        change(store, "messages", 1)
    _, number = begun(late_start, backfill=window(0, 5))
    with pytest.raises(SearchError, match=f"no backfill 4711; valid: {number}"):
        change(store, "messages", 4711)


# Cancel


def test_cancelling_lets_go_what_only_the_backfill_asked_for(
    late_start: Project, db: Connection, store: Connection
) -> None:
    late_start.use_case(prediction="head", label={"column": "author"})
    late_start.run()
    before = end_state(store)
    request, number = begun(late_start, backfill=window(0, 50))
    case = late_start.use_case()
    foreseen = backfills.foresee_cancel(store, case, [number])
    assert foreseen == backfills.Fates(restored=0, removed=50, left=0)
    assert status.of(store)[0]["pending"] == 50
    assert backfills.cancel(store, case, [number]) == foreseen
    end_state(store).assert_same(before)
    assert run.embed_stage(request, 0)["embedded"] == 0
    run.publish_stage(request)
    assert backfills.of(store, "messages")[0]["state"] == "cancelled"
    run.sync_stage(request)  # tried again, it brings nothing back
    end_state(store).assert_same(before)


def test_a_backfill_cancelled_before_its_first_sync_ends_well(
    late_start: Project, store: Connection
) -> None:
    request = late_start.request(backfill=window(0, 50))
    number = run.begin(request)
    fates = backfills.cancel(store, late_start.use_case(), [number])
    assert fates == backfills.Fates(0, 0, 0)
    assert run.run(request)["wanted"] == 0
    assert backfills.of(store, "messages")[0]["state"] == "cancelled"


def test_cancelling_gives_back_the_vectors_that_were_to_be_made_anew(
    late_start: Project, db: Connection, store: Connection
) -> None:
    late_start.run()
    db.execute("UPDATE messages SET body = 'other' WHERE id = 70")
    _, number = begun(late_start, backfill=window(since=50), reembed=True)
    case = late_start.use_case()
    fates = backfills.cancel(store, case, [number])
    assert fates == backfills.Fates(restored=39, removed=10, left=1)
    assert ledger_rows(store, "key, priority, backfill", "pending") == [("70", 0, None)]
    numbers = status.of(store)[0]
    assert (numbers["stored"], numbers["pending"]) == (39, 1)
    assert late_start.run()["embedded"] == 1


def test_what_a_cancelled_backfill_has_embedded_stays_and_is_followed(
    late_start: Project, db: Connection, store: Connection, monkeypatch: Any
) -> None:
    request, number = begun(late_start, backfill=window(0, 50))
    calls: list[int] = []

    def cancelled_at_the_third(self: TextEncoder, inputs: Any) -> Encoded:
        calls.append(1)
        made = ENCODE(self, inputs)
        if len(calls) == 3:
            backfills.cancel(store, request.use_case, [number])
        return made

    monkeypatch.setattr(TextEncoder, "encode", cancelled_at_the_third)
    counts = run.embed_stage(request, 0)
    # what was in hand then, in either lane, was computed in vain: its lease was taken
    embedded = counts["embedded"]
    assert (embedded, counts["discarded"]) in ((16, 8), (16, 16), (8, 16))
    assert len(keys(store)) == len(keys(store, "embedline.record")) == embedded
    db.execute("UPDATE messages SET body = 'other' WHERE id < 50")
    assert sync(late_start)["changed"] == embedded


def test_a_worker_that_holds_records_of_a_cancelled_backfill_is_fenced_off(
    late_start: Project, store: Connection
) -> None:
    late_start.run()
    request, number = begun(late_start, backfill=window(since=60), reembed=True)
    version = versions.active(store, "messages")
    lease = ledger.claim(store, version, "me", 5, 60, uuid4())
    backfills.cancel(store, request.use_case, [number])
    row = store.execute(
        "SELECT count(*) FROM embedline.ledger WHERE lease_token = %s", [lease.token]
    ).fetchone()
    assert row == (0,)
    assert status.of(store)[0]["stored"] == 40


def test_a_record_another_version_has_does_not_leave(
    late_start: Project, store: Connection, make_model: Callable[..., Path]
) -> None:
    late_start.run()
    late_start.run(backfill=window(0, 5))
    late_start.use_case(encoder={"model": str(make_model(seed=5))}, auto_promote=False)
    request, number = begun(late_start, backfill=window(0, 10))
    fates = backfills.cancel(store, request.use_case, [number])
    assert fates == backfills.Fates(restored=0, removed=5, left=0)
    late_start.run()
    assert {n["stored"] for n in status.of(store)} == {45}


# How long


def test_a_dry_run_says_how_many_and_how_long_by_what_was_measured(
    late_start: Project, store: Connection
) -> None:
    late_start.use_case(batch={"rows_per_worker": 30})
    foreseen = late_start.run(backfill=window(0, 50), dry_run=True)
    assert (foreseen["to_embed"], foreseen["workers"]) == (50, 2)
    assert "records_per_second" not in foreseen
    assert store.execute("SELECT FROM embedline.run").fetchall() == []
    late_start.run()
    row = store.execute(
        "SELECT embedded / embed_seconds, embed_seconds, finished_at - started_at"
        " FROM embedline.run WHERE embedded > 0"
    ).fetchone()
    assert row is not None
    assert 0 < row[1] < row[2].total_seconds()
    foreseen = late_start.run(backfill=window(0, 50), dry_run=True)
    assert foreseen["records_per_second"] == pytest.approx(row[0])
    assert foreseen["expected_seconds"] == pytest.approx(50 / row[0] / 2)
    assert status.of(store)[0]["pending"] == 0


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"workers": 1}, "no rate measured yet, so no saying how long; 1 worker"),
        (
            {"workers": 2, "records_per_second": 812.4, "expected_seconds": 240},
            "about 4 min at the measured 812 records/s per worker, 2 workers; "
            "about 8 min with one, as here",
        ),
        (
            {"workers": 1, "records_per_second": 0.25, "expected_seconds": 7200},
            "about 2 h at the measured 0.25 records/s per worker, 1 worker",
        ),
        (
            {"workers": 1, "records_per_second": 900.0, "expected_seconds": 0.1},
            "about 1 s at the measured 900 records/s per worker, 1 worker",
        ),
    ],
)
def test_a_dry_run_says_it_in_a_sentence(counts: dict[str, Any], says: str) -> None:
    assert terminal.expectation(counts) == says


# From a terminal


def test_start_list_pause_resume_cancel(
    embedline: Callable[..., str], late_start: Project, store: Connection
) -> None:
    embedline("run", "messages")
    assert "no backfill yet" in embedline("backfill", "list", "messages")
    dry = embedline(
        *("backfill", "start", "messages", "--since", "2026-01-01", "--dry-run")
    )
    assert "would do: 100 read, 60 new, 60 to embed" in dry
    assert "records/s per worker, 1 worker" in dry
    told = embedline("backfill", "start", "messages", "--key", "3", "--key", "x")
    (row,) = backfills.of(store, "messages")
    assert f"backfill {row['id']} of messages" in told
    assert told.index("backfill") < told.index("embedding messages")
    assert "1 embedded" in told
    assert "1 not found" in told
    listed = json.loads(embedline("backfill", "list", "messages", "--json"))
    assert [(r["state"], r["scope"], r["not_found"]) for r in listed] == [
        ("done", "keys", 1)
    ]
    _, number = begun(late_start, backfill=window(10, 40))
    number_ = str(number)
    assert "30 records wait" in embedline("backfill", "pause", "messages")
    assert "30 paused" in embedline("status", "messages")
    assert "paused" in embedline("backfill", "list", "messages")
    goes_on = embedline("backfill", "resume", "messages", number_)
    assert "embedline work messages" in goes_on
    told = embedline("backfill", "cancel", "messages", number_, "--yes")
    assert "30 leave the store" in told
    assert "no backfill is" in embedline("backfill", "cancel", "messages", "--yes")
    assert len(keys(store)) == 41


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda *a: backfills.pause(a[0], "messages"),
            r"is paused, [89]0 records wait: ",
        ),
        (lambda *a: backfills.cancel(*a), "was cancelled"),
    ],
    ids=["paused", "cancelled"],
)
def test_a_backfill_that_is_stopped_from_elsewhere_ends_well_and_says_so(
    embedline: Callable[..., str],
    late_start: Project,
    store: Connection,
    monkeypatch: pytest.MonkeyPatch,
    change: Any,
    says: str,
) -> None:
    late_start.use_case(source={"start": None}, batch={"claim": 10})
    case = late_start.use_case()

    def changed(self: TextEncoder, inputs: Any) -> Encoded:
        made = ENCODE(self, inputs)
        if status.of(store)[0]["paused"] == 0:
            running = [r["id"] for r in backfills.of(store, "messages")]
            change(store, case, running)
        return made

    monkeypatch.setattr(TextEncoder, "encode", changed)
    told = embedline("backfill", "start", "messages", "--everything")
    assert re.search(says, told)


def test_a_cancel_that_is_not_confirmed_changes_nothing(
    embedline: Callable[..., str],
    late_start: Project,
    store: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun(late_start, backfill=window(0, 10))
    monkeypatch.setattr("typer.confirm", lambda question: False)
    told = embedline("backfill", "cancel", "messages", code=1)
    assert "0 records keep the vectors they have, 10 leave the store" in told
    assert status.of(store)[0]["pending"] == 10


def test_keys_come_from_a_file_or_a_pipe(
    embedline: Callable[..., str],
    late_start: Project,
    store: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import io

    file = late_start.folder / "keys.txt"
    file.write_text("1\n2\n\n")
    start = ("backfill", "start", "messages", "--keys-from")
    assert "2 embedded" in embedline(*start, str(file))
    monkeypatch.setattr("sys.stdin", io.StringIO("3\n4\n5\n"))
    assert "3 embedded" in embedline(*start, "-")
    file.write_text("\n")
    assert "holds no key" in embedline(*start, str(file), code=1)
    assert "cannot be read" in embedline(*start, "nowhere.txt", code=1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "a backfill of what? valid: --since"),
        (["--since", "soon"], "since: is no date or time; valid: e.g."),
        (["--everything", "--key", "1"], "a backfill has one scope"),
    ],
)
def test_a_backfill_of_nothing_in_particular_is_refused(
    embedline: Callable[..., str], project: Project, arguments: list[str], says: str
) -> None:
    assert says in embedline("backfill", "start", "messages", *arguments, code=1)


def test_ctrl_c_says_how_to_go_on(
    embedline: Callable[..., str],
    late_start: Project,
    store: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def interrupted(self: TextEncoder, inputs: Any) -> Encoded:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return ENCODE(self, inputs)

    monkeypatch.setattr(TextEncoder, "encode", interrupted)
    told = embedline("backfill", "start", "messages", "--everything", code=130)
    assert "84 records wait: `embedline work messages` goes on" in told
    monkeypatch.setattr(TextEncoder, "encode", ENCODE)
    assert "84 embedded" in embedline("work", "messages")
    (row,) = backfills.of(store, "messages")
    assert row["waiting"] == 0


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ("sync_stage", "before anything was enqueued"),
        ("publish_stage", "nothing of it waits any more"),
    ],
)
def test_ctrl_c_tells_nothing_begun_from_all_done(
    embedline: Callable[..., str],
    late_start: Project,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    says: str,
) -> None:
    def interrupted(*_: object) -> dict[str, int]:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, stage, interrupted)
    assert says in embedline("backfill", "start", "messages", "--key", "3", code=130)
