"""Parquet out of the store: whole files in key order, whatever interrupts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedding_tasks
from embedding_tasks import export as exports
from embedding_tasks.connections import Connection, connect
from embedding_tasks.errors import ConfigError
from tests.fix_project import Project
from tests.test_entities import tagged, tagger, write  # noqa: F401


@pytest.fixture
def filled(full_use_case: Project) -> Project:
    full_use_case.run()
    return full_use_case


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "_manifest.json").read_text()))


def stop_after(parts: int) -> Any:
    """A progress that interrupts once so many parts are there."""
    seen = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == parts:
            raise KeyboardInterrupt

    return progress


def test_files_hold_what_the_store_holds_in_key_order(
    filled: Project, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    made = exports.export("messages", folder, rows_per_part=50)
    assert (made.rows, made.parts, made.written) == (120, 3, 120)
    files = sorted(path.name for path in folder.glob("*.parquet"))
    assert files == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    expected = embedding_tasks.read_arrow("messages").sort_by("key")
    table = pa.concat_tables(pq.read_table(folder / name) for name in files)
    assert table.equals(expected)
    schema = pq.read_schema(folder / files[0])
    told = json.loads(schema.metadata[b"embedline"])
    assert told["use_case"] == "messages"
    assert len(told["versions"][0]["fingerprint"]) == 64
    assert told["filter"] == {}
    kept = manifest(folder)
    assert kept["complete"]
    assert [part["rows"] for part in kept["parts"]] == [50, 50, 20]
    assert kept["parts"][1]["first"] > kept["parts"][0]["last"]
    assert kept["versions"] == told["versions"]


def test_pandas_and_duckdb_read_the_files(filled: Project, tmp_path: Path) -> None:
    exports.export("messages", tmp_path / "out", rows_per_part=50)
    vector = embedding_tasks.read("messages", {"key": "7"})["embedding"][0]
    frame = pd.read_parquet(tmp_path / "out", filters=[("key", "==", "7")])
    np.testing.assert_array_equal(frame["embedding"][0], vector)
    (row,) = duckdb.sql(
        "SELECT embedding, tags ->> 'author', event_time, label"
        f" FROM '{tmp_path}/out/*.parquet' WHERE key = '7'"
    ).fetchall()
    np.testing.assert_array_equal(np.float32(row[0]), vector)
    assert row[1] == "author 1"
    assert row[2] == frame["event_time"][0]


def test_an_interrupted_export_goes_on_after_its_last_whole_part(
    filled: Project, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    whole = tmp_path / "whole"
    exports.export("messages", whole, rows_per_part=25)
    with pytest.raises(KeyboardInterrupt):
        exports.export("messages", folder, rows_per_part=25, progress=stop_after(2))
    assert not manifest(folder)["complete"]
    assert not list(folder.glob(".tmp-*"))
    before = (folder / "part-00001.parquet").stat().st_mtime_ns
    (folder / ".tmp-part-00002.parquet").write_text("of a run that was killed")
    made = exports.export("messages", folder, rows_per_part=25)
    assert (made.rows, made.parts, made.written, made.resumed) == (120, 5, 70, True)
    assert (folder / "part-00001.parquet").stat().st_mtime_ns == before
    assert pq.read_table(folder).equals(pq.read_table(whole))
    again = exports.export("messages", folder, rows_per_part=25)
    assert (again.written, again.rows) == (0, 120)


def test_a_killed_export_leaves_only_whole_files(
    filled: Project, store: Connection, tmp_path: Path
) -> None:
    store.execute("DROP VIEW embeddings.messages")
    store.execute(
        "CREATE VIEW embeddings.messages AS SELECT key, unit, embedding,"
        " pg_sleep(0.02)::text AS data FROM embedline.vector_messages_v1"
    )
    folder = tmp_path / "out"
    child = subprocess.Popen(
        [
            *(sys.executable, "-m", "embedding_tasks", "export", "messages"),
            *("--to", str(folder), "--rows", "30"),
        ],
    )
    deadline = time.monotonic() + 120
    while not (folder / "part-00000.parquet").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    # a part that was being written has another name, and goes with the next export
    done = [pq.read_table(path).num_rows for path in folder.glob("part-*.parquet")]
    assert set(done) == {30}
    exports.export("messages", folder, rows_per_part=30)
    keys = pq.read_table(folder)["key"].to_pylist()
    assert sorted(keys) == sorted(set(keys)) == sorted(map(str, range(120)))
    assert not list(folder.glob(".tmp-*"))


def test_a_part_that_no_manifest_knows_does_not_stay(
    filled: Project, store: Connection, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        exports.export("messages", folder, rows_per_part=60, progress=stop_after(1))
    # killed between the second part's name and the manifest; its rows go meanwhile
    stray = folder / "part-00001.parquet"
    stray.write_bytes((folder / "part-00000.parquet").read_bytes())
    last = manifest(folder)["parts"][0]["last"][0]
    store.execute("DELETE FROM embedline.vector_messages_v1 WHERE key > %s", [last])
    made = exports.export("messages", folder, rows_per_part=60)
    assert (made.rows, made.parts) == (60, 1)
    assert not stray.exists()


def test_an_export_of_something_else_is_not_mixed_in(
    filled: Project, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        exports.export("messages", folder, rows_per_part=25, progress=stop_after(1))
    with pytest.raises(ConfigError, match="export of other filter"):
        exports.export("messages", folder, filter={"label": "v"})
    with pytest.raises(ConfigError, match="export of other columns"):
        exports.export("messages", folder, columns=["embedding"])
    filled.use_case(pooling="max")
    filled.run()
    with pytest.raises(ConfigError, match="export of other versions"):
        exports.export("messages", folder)
    made = exports.export("messages", folder, model_version=1)
    assert (made.rows, made.resumed) == (120, True)
    made = exports.export("messages", folder, overwrite=True)
    assert (made.rows, made.parts, made.resumed) == (120, 1, False)
    assert len(list(folder.glob("*.parquet"))) == 1


def test_a_file_that_was_spoiled_is_found(filled: Project, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    exports.export("messages", folder)
    with (folder / "part-00000.parquet").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ConfigError, match="not as it was written"):
        exports.export("messages", folder)


def test_a_folder_with_something_else_in_it_is_left_alone(
    filled: Project, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "precious.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="no empty folder"):
            exports.export("messages", folder, overwrite=overwrite)
    (folder / "_manifest.json").write_text('{"parts": 3}')
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="no manifest"):
            exports.export("messages", folder, overwrite=overwrite)
    assert (folder / "precious.txt").read_text() == "mine"


def test_two_exports_do_not_write_into_one_folder(
    filled: Project, tmp_path: Path
) -> None:
    def meanwhile(done: int, total: int) -> None:
        exports.export("messages", tmp_path / "out")

    with pytest.raises(ConfigError, match="another export writes"):
        exports.export("messages", tmp_path / "out", progress=meanwhile)


def test_a_dry_run_counts_and_writes_nothing(filled: Project, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    made = exports.export("messages", folder, rows_per_part=50, dry_run=True)
    assert (made.rows, made.parts, made.written) == (120, 3, 120)
    assert not folder.exists()
    only = {"label": "v"}
    assert exports.export("messages", folder, filter=only, dry_run=True).rows == 40


def test_what_one_run_writes_is_of_one_moment(
    filled: Project, store_dsn: str, tmp_path: Path
) -> None:
    def meanwhile(done: int, total: int) -> None:
        with connect(store_dsn, role="store") as other:
            other.execute("DELETE FROM embedline.vector_messages_v1")

    folder = tmp_path / "out"
    made = exports.export("messages", folder, rows_per_part=25, progress=meanwhile)
    assert made.rows == 120
    empty = exports.export("messages", tmp_path / "empty")
    assert (empty.rows, empty.parts) == (0, 0)
    assert manifest(tmp_path / "empty")["complete"]


def test_the_command_says_what_it_did(filled: Project, tmp_path: Path) -> None:
    def embedline(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "embedding_tasks", "export", "messages", *words],
            capture_output=True,
            text=True,
        )

    only = ["--filter", '{"labelled": true}', "--columns", "embedding,label"]
    to = ["--to", str(tmp_path / "out"), "--rows", "30"]
    planned = embedline(*to, *only, "--dry-run")
    assert "would write 40 rows" in planned.stdout
    made = embedline(*to, *only)
    assert "wrote 40 rows" in made.stdout
    assert "40 rows in 2 files" in made.stdout
    assert "30 of 40 rows" in made.stderr
    names = pq.read_schema(tmp_path / "out" / "part-00000.parquet").names
    assert names == ["key", "unit", "embedding", "label"]
    refused = embedline(*to, "--filter", "label = 'v'")
    assert refused.returncode == 1
    assert "--filter is not JSON" in refused.stderr


def test_words_are_read_and_exported_one_by_one(
    tagged: Callable[..., Project],  # noqa: F811
    db: Connection,
    store: Connection,
    tmp_path: Path,
) -> None:
    sentences = [["Ada", "met", f"Zoë{n}", "in", "Turin"] for n in range(6)]
    write(db, [(words, ["O"] * 5) for words in sentences])
    tagged(pooling={"keep": "all"}).run()
    frame = embedding_tasks.read("messages", store=store)
    assert len(frame) == 30
    for row in frame.to_dict("records"):
        start, stop = row["span"]
        assert row["data"][start:stop] == row["text"]
        assert sentences[int(row["key"])][row["unit"]] == row["text"]
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):  # in the middle of a record
        exports.export("messages", folder, rows_per_part=7, progress=stop_after(2))
    assert manifest(folder)["parts"][1]["last"] == ["2", 3]
    exports.export("messages", folder, rows_per_part=7)
    table = pq.read_table(folder)
    expected = embedding_tasks.read_arrow("messages", store=store)
    assert table.equals(expected.sort_by([("key", "ascending"), ("unit", "ascending")]))
    assert table["text"].to_pylist() == [w for words in sentences for w in words]
