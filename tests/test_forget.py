"""A record erased on request leaves no trace, and no sync brings it back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from psycopg import sql

from embedding_tasks import backfills, forgetting, ledger, run, status
from embedding_tasks.connections import Connection
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.encoders.text import TextEncoder
from embedding_tasks.store import versions
from embedding_tasks.use_case import Everything, Keys, Window
from tests.fix_cli import Command
from tests.fix_models import ENCODE
from tests.fix_project import Project, keys, sync

Write = Callable[..., None]


def traces(store: Connection, key: str) -> set[str]:
    """The tables of the machine room that say this key anywhere."""
    names = store.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'embedline'::regnamespace"
        " AND relkind = 'r'"
    ).fetchall()
    found = set()
    for (name,) in names:
        row = store.execute(
            sql.SQL(
                "SELECT count(*) FROM embedline.{} t WHERE to_jsonb(t) ->> 'key' = {}"
            ).format(sql.Identifier(name), sql.Literal(key))
        ).fetchone()
        if row and row[0]:
            found.add(name)
    return found


def forget(store: Connection, key: str) -> dict[str, int]:
    return forgetting.forget(store, versions.use_case_id(store, "messages"), key)


@pytest.fixture
def two_versions(
    full_use_case: Project, store: Connection, make_model: Callable[..., Path]
) -> Project:
    """A retired version and a serving one, labels of a table, predictions."""
    full_use_case.run()
    full_use_case.use_case(encoder={"model": str(make_model(seed=5))})
    full_use_case.run()
    return full_use_case


def test_a_forgotten_record_leaves_every_table_of_every_version(
    two_versions: Project, store: Connection
) -> None:
    number = versions.use_case_id(store, "messages")
    everywhere = {
        *("ledger", "record", "input", "prediction", "label"),
        *("vector_messages_v1", "vector_messages_v2"),
    }
    assert traces(store, "3") == everywhere
    foreseen = forgetting.holdings(store, number, "3")
    assert {name for name, count in foreseen.items() if count} == everywhere
    others = {key: traces(store, key) for key in ("2", "33")}
    assert forget(store, "3") == foreseen
    assert traces(store, "3") == set()
    assert {key: traces(store, key) for key in ("2", "33")} == others
    hashes = store.execute("SELECT key_hash FROM embedline.forgotten").fetchall()
    assert [len(digest) for (digest,) in hashes] == [32]


@pytest.mark.parametrize("strategy", ["snapshot", "scan"])
def test_no_sync_brings_a_forgotten_record_back(
    two_versions: Project, db: Connection, store: Connection, strategy: str
) -> None:
    two_versions.use_case(source={"strategy": strategy})
    two_versions.run()
    forget(store, "3")
    two_versions.run()
    db.execute("UPDATE messages SET body = 'other' WHERE id IN (3, 4)")
    db.execute("UPDATE verdicts SET v = 'w' WHERE id IN (3, 6)")
    assert sync(two_versions)["changed"] == 1
    scopes = (Everything(), Keys(keys=("3", "4")), Window(since="2020-01-01"))  # type: ignore[arg-type]
    for scope in scopes:
        two_versions.run(backfill=scope, reembed=True)
    store.execute("DELETE FROM embedline.source_cursor")  # all is read
    two_versions.run()
    two_versions.use_case(pooling="mean")
    two_versions.run()  # another model version
    assert traces(store, "3") == set()
    numbers = status.of(store)[0]
    assert (numbers["stored"], numbers["pending"]) == (119, 0)


def test_a_forgotten_label_column_stays_away(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    project.use_case(label={"column": "author"}, prediction={"column": "author"})
    write_messages(range(5))
    project.run()
    forget(store, "3")
    db.execute("UPDATE messages SET author = 'x'")
    project.run()
    assert traces(store, "3") == set()
    assert keys(store, "embedline.label") == {"0", "1", "2", "4"}


def test_a_record_can_be_forgotten_before_it_was_ever_seen(
    project: Project, store: Connection, write_messages: Write
) -> None:
    write_messages(range(3))
    project.run()
    write_messages(range(3, 6))
    assert sum(forget(store, "4").values()) == 0
    assert sync(project)["new"] == 2


def test_undone_it_comes_back_with_the_next_sync(
    two_versions: Project, store: Connection
) -> None:
    number = versions.use_case_id(store, "messages")
    forget(store, "3")
    two_versions.run()
    assert forgetting.undo(store, number, "3")
    assert not forgetting.undo(store, number, "3")
    counts = two_versions.run()
    assert (counts["new"], counts["embedded"]) == (1, 1)
    assert {"label", "vector_messages_v2"} <= traces(store, "3")


def test_undone_it_comes_back_where_a_sync_does_not_read_all_keys(
    project: Project, store: Connection, write_messages: Write
) -> None:
    project.use_case(source={"audit_days": 7, "key_scan": "audit"})
    write_messages(range(5))
    sync(project)
    forget(store, "3")
    sync(project)
    forgetting.undo(store, versions.use_case_id(store, "messages"), "3")
    assert sync(project)["new"] == 1
    assert "3" in keys(store)
    assert sync(project) == {}


def test_a_worker_in_flight_writes_nothing_of_a_forgotten_record(
    full_use_case: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgotten_meanwhile(self: TextEncoder, inputs: Any) -> Encoded:
        if "message number 17" in inputs:
            forget(store, "17")
        return ENCODE(self, inputs)

    monkeypatch.setattr(TextEncoder, "encode", forgotten_meanwhile)
    counts = full_use_case.run()
    assert (counts["embedded"], counts["discarded"]) == (119, 1)
    assert traces(store, "17") == set()


def test_a_lease_on_a_forgotten_record_is_gone(
    full_use_case: Project, store: Connection
) -> None:
    run.sync_stage(full_use_case.request())
    version = versions.active(store, "messages")
    lease = ledger.claim(store, version, "me", 200, 60, uuid4())
    assert "17" in lease.hashes
    forget(store, "17")
    assert ledger.fail(store, lease, {"17": "no"}, full_use_case.use_case().retry) == 0
    assert traces(store, "17") == set()


def test_a_forgotten_record_is_not_trained_on(
    project: Project, db: Connection, store: Connection, write_messages: Write
) -> None:
    project.raw["encoder"] = {
        **{"type": "autoencoder", "size": 4, "epochs": 2, "min_rows": 50},
        "device": "cpu",
    }
    project.use_case(source={"input": ["author", "sent_at"]})
    write_messages(range(60))
    assert run.train_stage(project.request())["training_rows"] == 60
    project.run()
    forget(store, "3")
    assert run.train_stage(project.request(), retrain=True)["training_rows"] == 59


def test_with_none_forgotten_a_sync_hashes_no_key(
    full_use_case: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    original = forgetting._hash
    monkeypatch.setattr(
        forgetting, "_hash", lambda key: hashed.append(key) or original(key)
    )
    full_use_case.run()
    assert hashed == []


def test_forget_shows_asks_erases_and_says_what_it_cannot_reach(
    embedline: Command,
    two_versions: Project,
    store: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("typer.confirm", lambda question: False)
    told = embedline("forget", "messages", "3", code=1)
    assert "1 of vector_messages_v1, 1 of vector_messages_v2" in told
    assert "vector_messages_v2" in traces(store, "3")
    told = embedline("forget", "messages", "03", "--yes")  # as the source has it: 3
    assert "not reached: the source, backups, WAL, logs, trained weights" in told
    assert "VACUUM embedline.ledger, embedline.vector_messages_v1" in told
    assert traces(store, "3") == set()
    assert "forgotten on request at" in embedline("explain", "messages", "3")
    assert "none of it" in embedline("forget", "messages", "3", "--yes")
    undone = embedline("forget", "messages", "3", "--undo")
    assert "the next sync brings it back" in undone
    assert "it was not forgotten" in embedline("forget", "messages", "3", "--undo")
    assert "not yet seen by a sync" in embedline("explain", "messages", "3")


def test_a_record_is_forgotten_while_its_source_is_away(
    embedline: Command, two_versions: Project, store: Connection
) -> None:
    two_versions.use_case(source={"dsn": "host=/nowhere dbname=x"})
    embedline("forget", "messages", "3", "--yes")
    assert traces(store, "3") == set()


def test_a_paused_backfills_record_can_be_forgotten(
    full_use_case: Project, store: Connection
) -> None:
    request = full_use_case.request(backfill=Everything())
    run.sync_stage(request)
    backfills.pause(store, "messages")
    forget(store, "3")
    assert status.of(store)[0]["paused"] == 119
