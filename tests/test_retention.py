"""Retired versions are kept for as long as the use case says, and no longer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from embedding_tasks import promotion, run, status
from embedding_tasks.cli import app
from embedding_tasks.connections import Connection, connect
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.encoders.text import TextEncoder
from embedding_tasks.errors import StoreError
from embedding_tasks.store import retired, versions
from tests.fix_models import ENCODE
from tests.fix_project import Project

MakeModel = Callable[..., Any]


@pytest.fixture
def switched(full_use_case: Project, make_model: MakeModel) -> Project:
    """Two versions, the second of which serves."""
    full_use_case.run()
    full_use_case.use_case(encoder={"model": str(make_model(seed=12))})
    full_use_case.run()
    return full_use_case


def age(store: Connection, days: int) -> None:
    store.execute(
        "UPDATE embedline.model_version"
        " SET retired_at = retired_at - make_interval(days => %s)",
        [days],
    )


def tables(store: Connection) -> set[str]:
    rows = store.execute(
        "SELECT relname FROM pg_class WHERE relname ~ '^vector_messages_v[0-9]+$'"
    )
    return {name for (name,) in rows}


def of_version(store: Connection, version: int) -> tuple[int, ...]:
    """Its predictions and inputs."""
    row = store.execute(
        "SELECT (SELECT count(*) FROM embedline.prediction WHERE model_version = m.id),"
        " (SELECT count(*) FROM embedline.input WHERE model_version = m.id)"
        " FROM embedline.model_version m WHERE version = %s",
        [version],
    ).fetchone()
    assert row is not None
    return row


def test_a_retired_version_goes_when_its_time_is_over_and_its_row_stays(
    switched: Project, store: Connection
) -> None:
    age(store, 29)
    switched.run()
    assert tables(store) == {"vector_messages_v1", "vector_messages_v2"}
    assert of_version(store, 1) == (120, 120)
    age(store, 2)
    switched.run()
    assert tables(store) == {"vector_messages_v2"}
    assert (of_version(store, 1), of_version(store, 2)) == ((0, 0), (120, 120))
    row = store.execute(
        "SELECT state, dropped_at IS NOT NULL FROM embedline.model_version"
        " WHERE version = 1"
    ).fetchone()
    assert row == ("retired", True)
    with pytest.raises(StoreError, match="no version of 'messages' that served before"):
        promotion.rollback(switched.request())


def test_a_dry_run_drops_nothing(switched: Project, store: Connection) -> None:
    age(store, 40)
    switched.run(dry_run=True)
    assert tables(store) == {"vector_messages_v1", "vector_messages_v2"}


@pytest.mark.parametrize(("days", "kept"), [(None, True), (0, False)])
def test_versions_are_kept_for_ever_or_not_at_all(
    full_use_case: Project,
    store: Connection,
    make_model: MakeModel,
    days: float | None,
    kept: bool,
) -> None:
    full_use_case.use_case(keep_retired_days=days)
    full_use_case.run()
    full_use_case.use_case(encoder={"model": str(make_model(seed=12))})
    full_use_case.run()
    age(store, 1000)
    full_use_case.run()
    assert ("vector_messages_v1" in tables(store)) == kept


def test_time_counts_from_when_a_version_last_served(
    switched: Project, store: Connection
) -> None:
    """It is what a rollback goes back to, however long ago it was made."""
    age(store, 29)
    promotion.rollback(switched.request())
    promotion.undo_rollback(switched.request())
    switched.run()
    age(store, 2)
    switched.run()
    assert promotion.rollback(switched.request()).back.version == 1


def test_a_version_that_was_dropped_is_built_anew(
    switched: Project, store: Connection, tiny: Any
) -> None:
    age(store, 40)
    switched.run()
    switched.use_case(encoder={"model": str(tiny)})
    assert switched.run()["embedded"] == 120
    assert tables(store) == {"vector_messages_v2", "vector_messages_v3"}


def test_a_table_that_something_depends_on_stays_and_fails_no_run(
    switched: Project, store: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    store.execute(
        "CREATE VIEW public.mine AS SELECT key FROM embedline.vector_messages_v1"
    )
    age(store, 40)
    switched.run()
    assert "vector_messages_v1" in tables(store)
    assert "not dropped version=1" in caplog.text
    assert "view public.mine depends on" in caplog.text
    assert of_version(store, 1) == (120, 120)
    store.execute("DROP VIEW public.mine")
    switched.run()
    assert "vector_messages_v1" not in tables(store)


def test_a_table_that_is_in_use_stays_and_fails_no_run(
    switched: Project,
    store: Connection,
    store_dsn: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retired, "DROP_LOCK_SECONDS", 1)
    age(store, 40)
    with connect(store_dsn, role="reader") as reader, reader.transaction():
        reader.execute("SELECT FROM embedline.vector_messages_v1")
        switched.run()
    assert "not dropped version=1" in caplog.text
    assert "vector_messages_v1" in tables(store)


def test_a_worker_whose_version_was_dropped_goes_on_with_the_others(
    full_use_case: Project,
    db: Connection,
    store: Connection,
    make_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was the serving one when the worker began."""
    full_use_case.run()
    full_use_case.use_case(keep_retired_days=0)
    db.execute("UPDATE messages SET body = 'other words' WHERE id < 40")
    request = full_use_case.request()
    run.sync_stage(request)
    use_case_id = versions.use_case_id(store, "messages")
    other = str(make_model(seed=12))
    calls: list[int] = []

    def overtaken(self: TextEncoder, inputs: Any) -> Encoded:
        calls.append(1)
        if len(calls) == 1:
            full_use_case.use_case(encoder={"model": other})
            run.sync_stage(full_use_case.request())
            building = versions.live(store, use_case_id)[1:]
            versions.promote(store, use_case_id, building, prediction_from_source=False)
            retired.drop_expired(store, use_case_id, 0)
        return ENCODE(self, inputs)

    monkeypatch.setattr(TextEncoder, "encode", overtaken)
    assert run.embed_stage(request, 0)["embedded"] == 0
    assert tables(store) == {"vector_messages_v2"}
    full_use_case.run()
    assert status.of(store)[0]["stored"] == 120


def test_a_table_dropped_by_hand_leaves_nothing_behind(
    switched: Project, store: Connection
) -> None:
    store.execute("DROP TABLE embedline.vector_messages_v1")
    age(store, 40)
    switched.run()
    assert of_version(store, 1) == (0, 0)


def test_weights_go_with_the_last_version_that_was_made_with_them(
    project: Project, db: Connection, store: Connection
) -> None:
    db.execute("CREATE TABLE measures (id int PRIMARY KEY, a float8, b float8)")
    db.execute(
        "INSERT INTO measures SELECT n, sin(n), cos(n) FROM generate_series(1, 200) n"
    )
    del project.raw["source"]["event_time"]
    project.raw["encoder"] = {}
    project.use_case(
        source={"table": "measures", "input": ["a", "b"]},
        encoder={"type": "autoencoder", "size": 4, "epochs": 2, "device": "cpu"},
    )
    project.run()
    db.execute("UPDATE measures SET a = a * 3")
    digests = "SELECT left(digest, 12) FROM embedline.trained_model ORDER BY id"
    run.train_stage(project.request(), retrain=True)
    project.run()
    made = [digest for (digest,) in store.execute(digests)]
    assert len(set(made)) == 2
    age(store, 29)
    project.run()
    assert [digest for (digest,) in store.execute(digests)] == made
    age(store, 2)
    project.run()
    assert [digest for (digest,) in store.execute(digests)] == made[1:]


def test_the_command_lists_every_version_and_how_long_it_is_kept(
    switched: Project, store: Connection, make_model: MakeModel
) -> None:
    age(store, 40)
    switched.use_case(keep_retired_days=1)
    switched.run()
    switched.use_case(encoder={"model": str(make_model(hidden=48))})
    switched.run()
    promotion.rollback(switched.request())
    shown = CliRunner().invoke(app, ["versions", "messages", "--json"])
    rows = json.loads(shown.output)
    told = [(r["version"], r["state"], r["dims"], r["vectors"]) for r in rows]
    assert told == [
        (1, "retired", 32, None),
        (2, "active", 32, 120),
        (3, "retired", 48, 120),
    ]
    assert all(len(r["fingerprint"]) == 64 for r in rows)
    until = [r["kept_until"] is not None for r in rows]
    assert (until, [bool(r["rolled_back"]) for r in rows]) == (
        [False, False, True],
    ) * 2
    table = CliRunner().invoke(app, ["versions", "messages"], env={"COLUMNS": "300"})
    assert "dropped 20" in table.output
    assert "rolled back, until 20" in table.output
