"""What makes a new model version, and what reaches it while it is built."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedding_tasks import run, status
from embedding_tasks.connections import Connection
from tests.fix_project import Project, keys, row_versions

MakeModel = Callable[..., Any]
Write = Callable[..., None]


def states(store: Connection) -> list[tuple[int, str]]:
    return [(n["model_version"], n["state"]) for n in status.of(store)]


@pytest.fixture
def small(project: Project, tiny: Path, write_messages: Write) -> Project:
    """A version of five records, of a model that may be changed."""
    folder = project.folder / "model"
    shutil.copytree(tiny, folder)
    project.use_case(
        encoder={"model": str(folder)}, source={"input": ["body", "author"]}
    )
    write_messages(range(5))
    project.run()
    return project


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": {"max_length": 16}},
        {"encoder": {"dtype": "bfloat16"}},
        {"pooling": "mean"},
        {"pooling": "max"},
        {"layers": -2},
        {"layers": {"last": 2, "combine": "concat"}},
        {"normalize": True},
        {"source": {"input": "body"}},
        {"source": {"input": ["author", "body"]}},
        {"source": {"separator": " / "}},
        {"source": {"template": "{author} said: {body}"}},
        {"storage": {"type": "halfvec"}},
        {"prediction": "head"},
    ],
    ids=str,
)
def test_what_shapes_the_vectors_builds_another_version_beside_the_serving_one(
    small: Project, store: Connection, change: dict[str, Any]
) -> None:
    before = row_versions(store, "vector_%")
    small.use_case(**change)
    run.sync_stage(small.request())
    assert states(store) == [(1, "active"), (2, "building")]
    small.run()
    assert states(store) == [(2, "active")]
    assert before < row_versions(store, "vector_%")  # for the way back


def test_other_weights_and_another_tokenizer_each_build_another_version(
    small: Project, store: Connection, make_model: MakeModel
) -> None:
    folder = small.folder / "model"
    weights = make_model(seed=41) / "model.safetensors"
    shutil.copy(weights, folder)
    run.sync_stage(small.request())
    assert states(store) == [(1, "active"), (2, "building")]
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "do_lower_case": False})
    )
    run.sync_stage(small.request())
    assert states(store) == [(1, "active"), (3, "building")]


@pytest.mark.parametrize(
    "change",
    [
        {
            "source": {
                "tags": ["author"],
                "where": "id < 100",
                "environment": "training",
            }
        },
        {"label": {"column": "author"}},
        {"prediction": {"column": "author"}},
        {"storage": {"data": "none", "distance": "l2"}},
        {"schedule": "@hourly", "batch": {"tokens": 512}, "keep_retired_days": 1},
    ],
    ids=str,
)
def test_what_shapes_no_vector_builds_none(
    small: Project, store: Connection, change: dict[str, Any]
) -> None:
    before = row_versions(store, "vector_%")
    small.use_case(**change)
    assert small.run().get("embedded", 0) == 0
    assert states(store) == [(1, "active")]
    assert row_versions(store, "vector_%") == before


def test_what_happens_while_a_version_is_built_happens_to_both(
    full_use_case: Project, db: Connection, store: Connection, make_model: MakeModel
) -> None:
    full_use_case.run()
    full_use_case.use_case(
        encoder={"model": str(make_model(seed=42))}, auto_promote=False
    )
    run.sync_stage(full_use_case.request())
    db.execute("INSERT INTO messages (id, body) VALUES (500, 'a new one')")
    db.execute("UPDATE messages SET body = 'other words' WHERE id IN (3, 4)")
    db.execute("DELETE FROM messages WHERE id = 6")
    db.execute("INSERT INTO verdicts VALUES (1, 'late')")
    full_use_case.run()
    assert states(store) == [(1, "active"), (2, "ready")]
    hashes = [
        store.execute(
            f"SELECT key, input_hash FROM embedline.vector_messages_v{version}"
            " ORDER BY key"
        ).fetchall()
        for version in (1, 2)
    ]
    assert hashes[0] == hashes[1]
    assert {key for key, _ in hashes[0]} == keys(store)
    assert "500" in keys(store)
    assert "6" not in keys(store)
    told = "SELECT data, label FROM embeddings.messages WHERE key IN ('1', '3')"
    wanted = [("message number 1", "late"), ("other words", "v")]
    assert sorted(store.execute(told).fetchall()) == wanted
    run.promote(full_use_case.request())
    assert sorted(store.execute(told).fetchall()) == wanted
