"""Model versions: built beside the serving one, promoted whole, never mixed."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from embedding_tasks import encoders, run, status
from embedding_tasks.connections import Connection, connect
from embedding_tasks.encoders.text import TextEncoder
from embedding_tasks.errors import StoreError, ThresholdError
from embedding_tasks.store import versions
from tests.fix_models import ENCODE, poison
from tests.fix_project import Project

Write = Callable[..., None]


def test_a_new_fingerprint_builds_beside_the_serving_version_and_is_promoted(
    full_use_case: Project,
    db: Connection,
    store: Connection,
    make_model: Callable[..., Any],
) -> None:
    full_use_case.run()
    other = make_model(hidden=48, seed=5)
    full_use_case.use_case(encoder={"model": str(other)}, auto_promote=False)
    request = full_use_case.request()
    run.sync_stage(request)
    row = store.execute(
        "SELECT count(*), min(vector_dims(embedding)) FROM embeddings.messages"
    ).fetchone()
    assert row == (120, 32)  # the old one serves on
    db.execute("UPDATE messages SET body = 'other' WHERE id = 3")
    run.sync_stage(request)
    assert run.embed_stage(request, 0)["embedded"] == 121  # the change goes to both
    run.publish_stage(request)
    states = [(n["model_version"], n["state"]) for n in status.of(store)]
    assert states == [(1, "active"), (2, "ready")]
    full_use_case.use_case(auto_promote=True)
    full_use_case.run()
    row = store.execute(
        "SELECT count(*), min(vector_dims(embedding)), min(model_version),"
        " count(prediction) FROM embeddings.messages"
    ).fetchone()
    assert row == (120, 48, 2, 120)
    db.execute("DELETE FROM messages WHERE id = 5")
    full_use_case.run()
    row = store.execute(
        "SELECT count(*) FROM embedline.vector_messages_v1 WHERE key = '5'"
    ).fetchone()
    assert row == (0,)  # gone from the retired version, too


def test_a_model_replaced_in_place_builds_a_new_version_and_never_mixes(
    full_use_case: Project,
    db: Connection,
    store: Connection,
    make_model: Callable[..., Any],
) -> None:
    folder = make_model(seed=6)
    full_use_case.use_case(encoder={"model": str(folder)})
    full_use_case.run()
    retrained = make_model(seed=7)
    (folder / "model.safetensors").write_bytes(
        (retrained / "model.safetensors").read_bytes()
    )
    db.execute("UPDATE messages SET body = 'other' WHERE id = 3")
    full_use_case.run()
    assert [n["model_version"] for n in status.of(store)] == [2]
    wanted = project_with(full_use_case, retrained, store)
    got = store.execute(
        "SELECT key, embedding::real[] FROM embeddings.messages ORDER BY key"
    ).fetchall()
    for (_, left), (_, right) in zip(wanted, got, strict=True):
        assert left == pytest.approx(right, abs=1e-5)


def project_with(project: Project, model: Any, store: Connection) -> list[Any]:
    project.use_case(encoder={"model": str(model)})
    project.run()
    return store.execute(
        "SELECT key, embedding::real[] FROM embeddings.messages ORDER BY key"
    ).fetchall()


def states(store: Connection) -> list[tuple[int, str]]:
    return [(n["model_version"], n["state"]) for n in status.of(store)]


def vectors(store: Connection, version: int) -> dict[str, np.ndarray]:
    rows = store.execute(
        f"SELECT key, embedding::real[] FROM embedline.vector_messages_v{version}"
    )
    return {key: np.array(vector) for key, vector in rows}


def test_a_version_with_too_many_dead_records_does_not_serve(
    full_use_case: Project,
    store: Connection,
    make_model: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full_use_case.run()
    full_use_case.use_case(
        encoder={"model": str(make_model(seed=5))}, retry={"max_attempts": 1}
    )
    poison(monkeypatch, "number 1")
    with pytest.raises(ThresholdError, match=r"in model version 2 \(building\)"):
        full_use_case.run()
    assert states(store) == [(1, "active"), (2, "building")]
    monkeypatch.setattr(TextEncoder, "encode", ENCODE)
    full_use_case.run(reembed=True)
    assert states(store) == [(2, "active")]


def test_a_version_that_has_fallen_behind_is_not_promoted(
    full_use_case: Project,
    store: Connection,
    make_model: Callable[..., Any],
    write_messages: Write,
) -> None:
    full_use_case.run()
    full_use_case.use_case(
        encoder={"model": str(make_model(seed=5))}, auto_promote=False
    )
    full_use_case.run()
    assert states(store) == [(1, "active"), (2, "ready")]
    write_messages(range(200, 250))
    run.sync_stage(full_use_case.request())
    with pytest.raises(StoreError, match="version 2 has 50 records waiting by now"):
        run.promote(full_use_case.request())
    full_use_case.run()
    store.execute(
        "UPDATE embedline.ledger SET dead_at = now(), have_hash = NULL"
        " WHERE key < '15' AND model_version = (SELECT max(id) FROM"
        " embedline.model_version)"
    )
    with pytest.raises(ThresholdError, match=r"dead\) in model version 2 \(ready\)"):
        run.promote(full_use_case.request())
    store.execute("UPDATE embedline.ledger SET dead_at = NULL")
    full_use_case.run()
    assert [v.version for v in run.promote(full_use_case.request())] == [2]
    assert states(store) == [(2, "active")]


def test_a_version_the_source_has_moved_on_from_is_not_promoted(
    full_use_case: Project, store: Connection, make_model: Callable[..., Any]
) -> None:
    full_use_case.run()
    full_use_case.use_case(
        encoder={"model": str(make_model(seed=12))}, auto_promote=False
    )
    full_use_case.run()
    store.execute(
        "UPDATE embedline.ledger SET have_hash = NULL, deferred = true"
        " WHERE key < '5' AND model_version ="
        " (SELECT id FROM embedline.model_version WHERE version = 2)"
    )
    with pytest.raises(StoreError, match=r"version 2 has \d+ records waiting by now"):
        run.promote(full_use_case.request())


def test_a_version_is_not_promoted_past_a_sync_that_is_under_way(
    full_use_case: Project,
    store: Connection,
    store_dsn: str,
    make_model: Callable[..., Any],
) -> None:
    full_use_case.run()
    full_use_case.use_case(encoder={"model": str(make_model(seed=5))})
    request = full_use_case.request()
    run.sync_stage(request)
    run.embed_stage(request, 0)
    with ThreadPoolExecutor(1) as pool:
        with connect(store_dsn, role="test") as syncing, syncing.transaction():
            versions.open_use_case(syncing, "messages")
            publishing = pool.submit(run.publish_stage, request)
            time.sleep(1)
            assert not publishing.done()
            syncing.execute(
                "UPDATE embedline.ledger SET want_hash = '1',"
                " queued_at = now() - interval '1 hour' WHERE key < '15'"
            )
        with pytest.raises(ThresholdError, match="in model version 1"):
            publishing.result()
    assert states(store) == [(1, "active"), (2, "building")]


def test_a_run_promotes_no_version_that_a_later_sync_has_begun(
    full_use_case: Project, store: Connection, make_model: Callable[..., Any]
) -> None:
    """What was queued after a run's sync is not its own: nor is the version."""
    full_use_case.run()
    earlier = full_use_case.request()
    run.sync_stage(earlier)
    full_use_case.use_case(encoder={"model": str(make_model(seed=12))})
    run.sync_stage(full_use_case.request())
    run.publish_stage(earlier)
    states = [(n["model_version"], n["state"]) for n in status.of(store)]
    assert states == [(1, "active"), (2, "building")]
    assert store.execute("SELECT count(*) FROM embeddings.messages").fetchone() == (
        120,
    )


def test_a_hot_record_does_not_keep_a_version_from_serving(
    full_use_case: Project,
    db: Connection,
    store: Connection,
    make_model: Callable[..., Any],
) -> None:
    full_use_case.run()
    full_use_case.use_case(encoder={"model": str(make_model(seed=5))})
    request = full_use_case.request()
    run.sync_stage(request)
    db.execute("UPDATE messages SET body = 'changed again' WHERE id = 7")
    run.embed_stage(request, 0)
    run.publish_stage(request)
    assert states(store) == [(2, "active")]


def test_a_serving_version_that_is_broken_does_not_hold_up_its_successor(
    full_use_case: Project,
    db: Connection,
    store: Connection,
    make_model: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full_use_case.run()
    broken = versions.live(store, versions.use_case_id(store, "messages"))[0]
    load = encoders.load

    def load_all_but_one(version: Any, runtime: Any) -> Any:
        if version.id == broken.id:
            raise RuntimeError("out of order")
        return load(version, runtime)

    monkeypatch.setattr(encoders, "load", load_all_but_one)
    db.execute("UPDATE messages SET body = 'other' WHERE id = 3")
    with pytest.raises(RuntimeError, match="out of order"):
        full_use_case.run()
    full_use_case.use_case(encoder={"model": str(make_model(seed=5))})
    full_use_case.run()
    assert states(store) == [(2, "active")]


def test_a_version_given_up_for_another_with_other_inputs_leaves_nothing_behind(
    full_use_case: Project, store: Connection, make_model: Callable[..., Any]
) -> None:
    full_use_case.run()
    full_use_case.use_case(source={"input": ["body", "author"]})
    run.sync_stage(full_use_case.request())
    full_use_case.use_case(encoder={"model": str(make_model(seed=5))})
    full_use_case.run()
    assert states(store) == [(3, "active")]
    assert status.of(store)[0]["stored"] == 120


def test_what_is_kept_of_the_input_is_that_of_the_serving_version(
    full_use_case: Project, db: Connection, store: Connection
) -> None:
    def data(key: str) -> Any:
        row = store.execute(
            "SELECT data FROM embeddings.messages WHERE key = %s", [key]
        ).fetchone()
        return row and row[0]

    full_use_case.run()
    db.execute("UPDATE messages SET author = NULL WHERE id = 5")
    full_use_case.use_case(source={"input": "author"}, auto_promote=False)
    full_use_case.run()
    assert [data("4"), data("5")] == ["message number 4", "message number 5"]
    run.promote(full_use_case.request())
    assert [data("4"), data("5")] == ["author 1", None]


@pytest.mark.parametrize(
    "change", [{"input": ["body", "author"]}, {"separator": " / "}], ids=str
)
def test_each_version_is_made_of_its_own_inputs(
    full_use_case: Project, db: Connection, store: Connection, change: dict[str, Any]
) -> None:
    """The serving version follows the source with the inputs it was made of."""
    full_use_case.use_case(source={"input": ["body", "author"], **{"separator": "\n"}})
    if "input" in change:
        full_use_case.use_case(source={"input": ["body"]})
    full_use_case.run()
    full_use_case.use_case(source=change, auto_promote=False)
    before = vectors(store, 1)
    request = full_use_case.request()
    run.sync_stage(request)
    assert run.embed_stage(request, 0)["embedded"] == 120  # the new version alone
    assert all((before[key] == v).all() for key, v in vectors(store, 1).items())
    db.execute("UPDATE messages SET body = 'message number 1' WHERE id = 4")
    full_use_case.run()
    for version in (1, 2):
        made = vectors(store, version)
        np.testing.assert_allclose(made["4"], made["1"], atol=1e-5)
    assert np.abs(vectors(store, 1)["1"] - vectors(store, 2)["1"]).max() > 1e-2


def test_a_column_may_go_once_a_version_without_it_is_built(
    full_use_case: Project, db: Connection, store: Connection
) -> None:
    full_use_case.use_case(source={"input": ["body", "author"], "tags": []})
    full_use_case.run()
    db.execute("UPDATE messages SET body = 'other' WHERE id = 3")
    run.sync_stage(full_use_case.request())  # the old version has work to do
    full_use_case.use_case(source={"input": "body"})
    db.execute("ALTER TABLE messages DROP author")
    full_use_case.run()
    assert states(store) == [(2, "active")]
    assert status.of(store)[0]["stored"] == 120


def test_a_model_may_move(
    full_use_case: Project,
    store: Connection,
    make_model: Callable[..., Any],
    write_messages: Write,
) -> None:
    folder = make_model(seed=5)
    full_use_case.use_case(encoder={"model": str(folder)})
    full_use_case.run()
    moved = folder.rename(folder.with_name("moved"))
    full_use_case.use_case(encoder={"model": str(moved)})
    write_messages(range(200, 210))
    assert full_use_case.run()["embedded"] == 10
    assert states(store) == [(1, "active")]


def test_what_depends_on_the_view_is_named_when_it_must_be_made_anew(
    full_use_case: Project, store: Connection, make_model: Callable[..., Any]
) -> None:
    full_use_case.run()
    store.execute("CREATE VIEW public.mine AS SELECT key FROM embeddings.messages")
    full_use_case.use_case(encoder={"model": str(make_model(hidden=48))})
    with pytest.raises(StoreError, match=r"public\.mine depends on view"):
        full_use_case.run()
    assert states(store) == [(1, "active"), (2, "building")]
    store.execute("DROP VIEW public.mine")
    assert full_use_case.run()["embedded"] == 0
    assert states(store) == [(2, "active")]


def test_a_view_made_anew_keeps_its_rights_and_options(
    full_use_case: Project, store: Connection, make_model: Callable[..., Any]
) -> None:
    full_use_case.run()
    role = f"reader_{store.info.dbname}"
    store.execute(f"CREATE ROLE {role}")
    store.execute(
        f"GRANT SELECT ON embeddings.messages TO {role} WITH GRANT OPTION;"
        f"GRANT UPDATE (label) ON embeddings.messages TO {role};"
        "ALTER VIEW embeddings.messages SET (security_barrier = true)"
    )
    rights = (
        "SELECT relacl::text, reloptions, (SELECT array_agg(attacl::text)"
        " FROM pg_attribute WHERE attrelid = c.oid AND attacl IS NOT NULL)"
        " FROM pg_class c WHERE oid = 'embeddings.messages'::regclass"
    )
    try:
        before = store.execute(rights).fetchone()
        full_use_case.use_case(encoder={"model": str(make_model(hidden=48))})
        full_use_case.run()
        assert store.execute(rights).fetchone() == before
    finally:
        store.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
