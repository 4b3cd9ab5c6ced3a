"""Images from a table to the store: a broken one costs its own row."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from embedding_tasks.connections import Connection
from tests import image_models
from tests.fix_project import Project
from tests.image_models import pictures


@pytest.fixture
def album(project: Project, db: Connection) -> Project:
    db.execute(
        "CREATE TABLE images (id int PRIMARY KEY, image bytea, path text, link text)"
    )
    project.use_case(
        source={"table": "images", "input": "image", "event_time": None}
        | {"link": "link"},
        thresholds={"undone_share": 1.0},
        retry={"max_attempts": 1},
        batch={"claim": 16},
    )
    return project


def add(db: Connection, number: int, image: bytes | None, path: str | None) -> None:
    db.execute(
        "INSERT INTO images VALUES (%s, %s, %s, %s)",
        [number, image, path, f"https://shop.example/{number}"],
    )


def use_image(album: Project, folder: Path, **changes: Any) -> None:
    album.raw["encoder"] = {"type": "image", "model": str(folder), "device": "cpu"}
    album.use_case(**changes)


def stored(store: Connection) -> dict[str, list[float]]:
    rows = store.execute(
        "SELECT key, embedding::real[] FROM embeddings.messages ORDER BY key"
    )
    return dict(rows.fetchall())


def dead(store: Connection) -> dict[str, str]:
    return dict(
        store.execute(
            "SELECT key, error FROM embedline.ledger WHERE dead_at IS NOT NULL"
        ).fetchall()
    )


def test_images_of_a_bytea_column_reach_the_store_and_a_broken_one_costs_a_row(
    album: Project, db: Connection, store: Connection, tmp_path: Path
) -> None:
    folder = image_models.save(tmp_path / "vit", "vit_head")
    use_image(album, folder, prediction="head")
    some = pictures()[::3][:20]
    for number, picture in enumerate(some):
        add(db, number, b"no image" if number == 7 else picture, None)
    counts = album.run()
    assert counts["embedded"] == 19
    assert counts["dead"] == 1
    [(key, error)] = dead(store).items()
    assert key == "7"
    assert error.startswith("InputError: no image")
    vectors = stored(store)
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    for number, picture in enumerate(some):
        if number == 7:
            continue
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        with torch.inference_mode():
            inputs = processor(images=image, return_tensors="pt")
            wanted = model.vit(**inputs).last_hidden_state[0].mean(0).numpy()
        assert np.abs(np.array(vectors[str(number)]) - wanted).max() < 1e-4
    rows = store.execute(
        "SELECT key, link, data, prediction, score FROM embeddings.messages"
    ).fetchall()
    for key, link, data, prediction, score in rows:
        assert link == f"https://shop.example/{key}"
        assert data is None  # bytes are not kept a second time
        assert prediction in image_models.CLASSES.values()
        assert 0 < score <= 1
    db.execute("UPDATE images SET image = %s WHERE id = 7", [some[7]])
    assert album.run()["embedded"] == 1
    assert not dead(store)


def test_images_by_address_keep_the_address(
    album: Project, db: Connection, store: Connection, tmp_path: Path
) -> None:
    use_image(album, image_models.save(tmp_path / "clip", "clip"), pooling="features")
    album.use_case(source={"input": "path"})
    (tmp_path / "photos").mkdir()
    for number, picture in enumerate(pictures()[:6]):
        (tmp_path / "photos" / f"{number}.png").write_bytes(picture)
        add(db, number, None, f"photos/{number}.png")
    add(db, 6, None, "photos/lost.png")
    counts = album.run()
    assert (counts["embedded"], counts["dead"]) == (6, 1)
    assert dead(store) == {"6": "InputError: 'photos/lost.png': there is nothing"}
    data = dict(store.execute("SELECT key, data FROM embeddings.messages").fetchall())
    assert data == {str(i): f"photos/{i}.png" for i in range(6)}
    assert {len(v) for v in stored(store).values()} == {20}


def test_objects_are_rows_with_boxes_and_fewer_objects_leave_fewer_rows(
    album: Project, db: Connection, store: Connection, tmp_path: Path
) -> None:
    folder = image_models.save(tmp_path / "detr", "detr")
    least = 0.6
    use_image(album, folder, prediction="head", pooling={"objects": least})
    wanted = {str(i): boxes(folder, x, least) for i, x in enumerate(pictures()[:63:3])}
    by_count = sorted(wanted, key=lambda key: len(wanted[key]))
    few, many = by_count[0], by_count[-1]
    assert len(wanted[few]) < len(wanted[many])
    for number, picture in enumerate(pictures()[:63:3]):
        add(db, number, picture, None)
    counts = album.run()
    assert counts["embedded"] == len(wanted)
    assert counts["vectors"] == sum(map(len, wanted.values()))
    found: dict[str, list[list[float]]] = {key: [] for key in wanted}
    for key, unit, box, score in store.execute(
        "SELECT key, unit, box, score FROM embeddings.messages ORDER BY key, unit"
    ):
        assert unit == len(found[key])
        assert score >= least
        found[key].append(box)
    for key, boxes_ in wanted.items():
        assert len(found[key]) == len(boxes_)
        if boxes_:
            assert np.abs(np.subtract(found[key], boxes_)).max() < 0.05
    db.execute(
        "UPDATE images SET image = (SELECT image FROM images WHERE id = %s)"
        " WHERE id = %s",
        [int(few), int(many)],
    )
    assert album.run()["embedded"] == 1
    for table in ("embedline.vector_messages_v1", "embedline.prediction"):
        row = store.execute(f"SELECT count(*) FROM {table} WHERE key = %s", [many])
        assert row.fetchone() == (len(wanted[few]),)


def boxes(folder: Path, picture: bytes, least: float) -> list[list[float]]:
    """As transformers finds them."""
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    with torch.inference_mode():
        output = model(**processor(images=image, return_tensors="pt"))
    found = processor.post_process_object_detection(
        output, threshold=least, target_sizes=[image.size[::-1]]
    )
    rows: list[list[float]] = found[0]["boxes"].tolist()
    return rows
