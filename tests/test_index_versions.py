"""Indexes of versions that take over, go, or are kept for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from psycopg import sql

from embedding_tasks import promotion, run
from embedding_tasks.connections import Connection, connect
from embedding_tasks.store import index, versions
from embedding_tasks.store.versions import ModelVersion
from tests.fix_indexes import indexes, live, maintain, planned
from tests.fix_project import Project

Write = Callable[..., None]


def test_a_version_gets_its_index_before_it_serves(
    indexed: Project, store: Connection
) -> None:
    maintain(indexed)
    searched = []
    stop = threading.Event()

    def watch() -> None:
        with connect(store.info.dsn, role="store") as own:
            while not stop.is_set():
                searched.append(
                    own.execute(
                        "SELECT search FROM embedline.index_status"
                        " WHERE state = 'active'"
                    ).fetchone()
                )

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        indexed.use_case(pooling="mean")
        indexed.run()
    finally:
        stop.set()
        thread.join()
    assert [(v.version, v.state) for v in live(store)] == [(2, "active")]
    assert set(searched) == {("approximate",)}
    assert list(indexes(store).values()) == [True]


def test_a_version_that_is_promoted_by_hand_has_its_index_by_then(
    indexed: Project, store: Connection
) -> None:
    indexed.use_case(pooling="mean", auto_promote=False)
    indexed.run()
    built = indexes(store, place=1)
    assert list(built.values()) == [True]
    assert indexes(store) == {}  # the serving one's is for `maintain`
    store.execute(sql.SQL("DROP INDEX embedline.{}").format(sql.Identifier(*built)))
    promotion.promote(indexed.request())
    assert [v.version for v in live(store)] == [2]
    assert indexes(store) == built


def test_a_small_version_takes_over_without_an_index(
    project: Project, store: Connection, write_messages: Write
) -> None:
    write_messages(range(60))
    project.run()
    project.use_case(pooling="mean")
    project.run()
    assert [v.version for v in live(store)] == [2]
    assert indexes(store) == {}


def test_retired_versions_are_dropped_when_it_is_time(
    indexed: Project, store: Connection
) -> None:
    indexed.use_case(pooling="mean")
    indexed.run()
    maintain(indexed)
    store.execute("UPDATE embedline.model_version SET retired_at = '2026-01-01'")
    why = "the whole version: retired, and kept for 30 days"
    assert planned(indexed, store)[-1] == ("drop", why)
    assert maintain(indexed) == ["drop"]
    assert maintain(indexed) == []


def test_a_version_that_goes_meanwhile_keeps_no_other_from_its_index(
    indexed: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is retired, and its table dropped, after it was found to be live."""
    found = versions.live_by_name

    def overtaken(own: Connection, name: str) -> list[ModelVersion]:
        listed = found(own, name)
        if len(listed) > 1:
            versions.retire(store, listed[1])
            store.execute(sql.SQL("DROP TABLE {}").format(listed[1].table))
        return listed

    indexed.use_case(pooling="mean")
    run.sync_stage(indexed.request())
    monkeypatch.setattr(versions, "live_by_name", overtaken)
    assert maintain(indexed) == ["build"]


def test_a_version_retired_while_another_builds_gets_no_index(
    indexed: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = index.builder

    def overtaken(*arguments: Any) -> Any:
        versions.retire(store, version)
        return wait(*arguments)

    (version,) = live(store)
    monkeypatch.setattr(index, "builder", overtaken)
    assert maintain(indexed) == []
    assert index.existing(store, version) == []
