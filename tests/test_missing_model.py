"""A feature whose model is away holds up nothing but itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedding_tasks import run, status
from embedding_tasks.connections import Connection
from embedding_tasks.encoders import recipe
from embedding_tasks.errors import ModelError, TransientError
from tests.fix_project import Project

MakeModel = Callable[..., Any]


@pytest.fixture
def two(full_use_case: Project, make_model: MakeModel) -> Path:
    """Two features, each of a model of its own; where that of `who` lies."""
    folder = Path(make_model(seed=21))
    del full_use_case.raw["source"]["input"]
    full_use_case.use_case(
        features={
            "body": {"input": "body"},
            "who": {
                "input": "author",
                "encoder": {"model": str(folder), "device": "cpu"},
            },
        }
    )
    return folder


def live(store: Connection) -> list[tuple[Any, ...]]:
    return [
        (n["feature"], n["model_version"], n["state"], n["wanted"], n["stored"])
        for n in status.of(store)
    ]


def test_the_other_features_are_followed_and_the_run_says_what_is_missing(
    full_use_case: Project, two: Path, db: Connection, store: Connection
) -> None:
    full_use_case.run()
    away = two.rename(f"{two}_away")
    db.execute("DELETE FROM messages WHERE id = 6")
    db.execute("UPDATE messages SET body = 'other words' WHERE id = 7")
    with pytest.raises(ModelError, match=r"feature 'who': encoder\.model: .* is no"):
        full_use_case.run()
    assert live(store) == [
        ("body", 1, "active", 119, 119),
        ("who", 2, "active", 119, 119),
    ]
    text = "SELECT data FROM embeddings.messages__body WHERE key = '7'"
    assert store.execute(text).fetchone() == ("other words",)
    away.rename(two)
    assert full_use_case.run()["embedded"] == 0
    row = store.execute(
        "SELECT state, models_missing FROM embedline.run ORDER BY id DESC LIMIT 1"
    ).fetchone()
    assert row == ("success", {})


def test_another_feature_s_new_version_is_built_and_serves(
    full_use_case: Project, two: Path, store: Connection
) -> None:
    full_use_case.run()
    two.rename(f"{two}_away")
    full_use_case.use_case(features={"body": {"normalize": True}})
    with pytest.raises(ModelError, match="feature 'who'"):
        full_use_case.run()
    assert [row[:3] for row in live(store)] == [
        ("who", 2, "active"),
        ("body", 3, "active"),
    ]


def test_a_feature_that_never_had_a_model_comes_when_it_has_one(
    full_use_case: Project, two: Path, store: Connection
) -> None:
    away = two.rename(f"{two}_away")
    with pytest.raises(ModelError, match="feature 'who'"):
        full_use_case.run()
    assert live(store) == [("body", 1, "active", 120, 120)]
    away.rename(two)
    full_use_case.run()
    assert [row[:3] for row in live(store)] == [
        ("body", 1, "active"),
        ("who", 2, "active"),
    ]


def test_deletes_reach_the_store_though_the_one_model_is_away(
    full_use_case: Project, db: Connection, store: Connection, make_model: MakeModel
) -> None:
    folder = Path(make_model(seed=22))
    full_use_case.use_case(encoder={"model": str(folder)})
    full_use_case.run()
    away = folder.rename(f"{folder}_away")
    db.execute("DELETE FROM messages WHERE id = 6")
    with pytest.raises(ModelError, match=r"is no folder with a model"):
        full_use_case.run()
    key = "SELECT count(*) FROM embeddings.messages WHERE key = '6'"
    assert store.execute(key).fetchone() == (0,)
    db.execute("UPDATE messages SET body = 'other words' WHERE id = 7")
    with pytest.raises(ModelError, match=r"is no folder with a model"):
        full_use_case.run()
    assert live(store) == [("embedding", 1, "active", 119, 118)]
    failed = store.execute(
        "SELECT failed_stages FROM embedline.run ORDER BY id DESC LIMIT 1"
    ).fetchone()
    assert failed == (["embed/0"],)
    away.rename(folder)
    assert full_use_case.run()["embedded"] == 1


@pytest.mark.parametrize("dry_run", [False, True])
def test_where_nothing_serves_the_sync_itself_fails(
    full_use_case: Project, store: Connection, dry_run: bool
) -> None:
    full_use_case.use_case(encoder={"model": "./nowhere"})
    request = full_use_case.request(dry_run=dry_run)
    with pytest.raises(ModelError, match="is no folder with a model"):
        run.sync_stage(request)
    assert live(store) == []


def test_a_feature_that_is_renamed_goes_when_the_new_one_has_a_model(
    full_use_case: Project, two: Path, store: Connection
) -> None:
    del full_use_case.raw["features"]["who"]
    full_use_case.use_case()
    full_use_case.run()
    body = full_use_case.raw["features"].pop("body")
    nowhere = {"encoder": {"model": "./nowhere"}}
    full_use_case.use_case(features={"text": {**body, **nowhere}})
    with pytest.raises(ModelError, match="is no folder with a model"):
        run.sync_stage(full_use_case.request())
    assert live(store) == [("body", 1, "active", 120, 120)]


def test_a_model_that_is_out_of_reach_for_now_is_asked_for_again(
    full_use_case: Project,
    db: Connection,
    store: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What can be followed is, and then the sync fails, so that it is tried again."""
    full_use_case.run()
    db.execute("DELETE FROM messages WHERE id = 6")
    case = full_use_case.use_case(
        encoder={"model": "nobody/nothing", "revision": "main"}
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert [*recipe.found(case)[1]] == ["embedding"]
    with pytest.raises(TransientError, match="the hub cannot"):
        run.sync_stage(full_use_case.request())
    assert live(store) == [("embedding", 1, "active", 119, 119)]
