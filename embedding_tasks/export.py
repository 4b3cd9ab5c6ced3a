"""A use case's rows in Parquet files: in key order, in parts, with a manifest.

All that one run writes is of one snapshot. A run that was interrupted leaves whole
parts; the next one goes on behind the last key they have, with the rows as they are by
then, and only if it asks for the same of the same model versions.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedding_tasks import frames, reading
from embedding_tasks.connections import Connection
from embedding_tasks.errors import ConfigError
from embedding_tasks.filters import Filter
from embedding_tasks.selection import Selection

if TYPE_CHECKING:
    import pyarrow

log = logging.getLogger(__name__)

ROWS_PER_PART = 100_000
ROWS_PER_GROUP = 10_000
# pyarrow, Spark and others take a folder's files for data, but for those with "_".
MANIFEST = "_manifest.json"
_FORMAT = 1
_LOCK = ".lock"
# Numbers of vectors hardly compress; a few texts that come again and again do.
_DICTIONARY = ["prediction", "label", "environment", "model_version"]

Progress = Callable[[int, int], None]
"""Takes rows that are written, and all there are to write."""


@dataclass
class Manifest:
    """What an export asks for, and the parts it has so far. `rows` are those of whole
    parts; `complete` says that no part is missing."""

    asked: dict[str, Any]
    parts: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = False

    @property
    def rows(self) -> int:
        return sum(part["rows"] for part in self.parts)

    @property
    def last(self) -> list[Any] | None:
        return self.parts[-1]["last"] if self.parts else None

    def save(self, folder: Path) -> None:
        content = {
            "format": _FORMAT,
            **self.asked,
            "complete": self.complete,
            "rows": self.rows,
            "parts": self.parts,
        }
        with _whole(folder / MANIFEST) as path:
            path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n")


@dataclass(frozen=True)
class Exported:
    """`rows` and `parts` are all that lie there now, `written` those rows of them that
    this run has written, or, in a dry run, would write."""

    rows: int
    parts: int
    written: int
    resumed: bool


def export(
    use_case: str,
    folder: Path,
    *,
    filter: Filter | None = None,
    columns: Sequence[str] | None = None,
    feature: str | None = None,
    model_version: int | None = None,
    rows_per_part: int = ROWS_PER_PART,
    overwrite: bool = False,
    dry_run: bool = False,
    store: Connection | None = None,
    progress: Progress = lambda done, total: None,
) -> Exported:
    """Raises `ConfigError` where the folder holds something else, or an export of
    something else that may not be overwritten; `SearchError` and `DatabaseAway` as
    `reading.read`. An error or an interrupt leaves the parts that are whole."""
    frames.arrow()
    with reading.selected(store, use_case, filter, columns, feature, model_version) as (
        held,
        chosen,
    ):
        chosen = chosen.with_keys()
        asked = _asked(chosen, filter)
        if dry_run:
            found = None if overwrite else _resumable(folder, asked)
            return _foreseen(held, chosen, found or Manifest(asked), rows_per_part)
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if overwrite:
                _remove(folder)
            found = _resumable(folder, asked)
            manifest = found or Manifest(asked)
            before = manifest.rows
            manifest.save(folder)  # first: what lies beside it is ours
            _sweep(folder, manifest)
            if not manifest.complete:
                _write(held, chosen, manifest, folder, rows_per_part, progress)
    return Exported(
        rows=manifest.rows,
        parts=len(manifest.parts),
        written=manifest.rows - before,
        resumed=found is not None,
    )


def _asked(chosen: Selection, filter: Filter | None) -> dict[str, Any]:
    """As JSON has it, to be compared with a manifest."""
    told = {
        **chosen.facts,
        "filter": dict(filter or {}),
        "columns": [column.name for column in chosen.columns],
        "order": list(chosen.order),
    }
    return dict(json.loads(json.dumps(told, default=_plain)))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return sorted(value) if isinstance(value, set) else str(value)


def _foreseen(
    store: Connection, chosen: Selection, manifest: Manifest, rows_per_part: int
) -> Exported:
    left = 0 if manifest.complete else _count(store, chosen, manifest)
    return Exported(
        rows=manifest.rows + left,
        parts=len(manifest.parts) - (-left // rows_per_part),
        written=left,
        resumed=bool(manifest.parts),
    )


def _count(store: Connection, chosen: Selection, manifest: Manifest) -> int:
    row = store.execute(chosen.count(after=manifest.last)).fetchone()
    assert row is not None
    return int(row[0])


def _resumable(folder: Path, asked: dict[str, Any]) -> Manifest | None:
    """The manifest of what is there, once its parts are seen to be whole; None where
    there is nothing."""
    try:
        text = (folder / MANIFEST).read_text()
    except FileNotFoundError:
        _refuse_others(folder)
        return None
    try:
        kept = json.loads(text)
        manifest = Manifest(
            {name: kept[name] for name in asked}, kept["parts"], kept["complete"]
        )
        if kept["format"] != _FORMAT:
            raise KeyError("format")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder / MANIFEST} is no manifest of this version ({error}); "
            "name another folder"
        ) from None
    for name, value in asked.items():
        if manifest.asked[name] != value:
            raise ConfigError(
                f"{folder} has an export of other {name}: {manifest.asked[name]!r}, "
                f"not {value!r}; name another folder, or say --overwrite"
            )
    for part in manifest.parts:
        if _digest(folder / part["file"]) != part["sha256"]:
            raise ConfigError(
                f"{folder / part['file']} is missing, or not as it was written; "
                "say --overwrite to export all anew"
            )
    return manifest


def _refuse_others(folder: Path) -> None:
    others = sorted(
        path.name
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name != _LOCK and not path.name.startswith(".tmp-")
    )
    if folder.exists() and (others or not folder.is_dir()):
        raise ConfigError(
            f"{folder} is no empty folder, and has no {MANIFEST}; name another"
        )


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _remove(folder: Path) -> None:
    """An export, and nothing else: the files its manifest names, which goes last."""
    try:
        parts = json.loads((folder / MANIFEST).read_text())["parts"]
        files = [Path(part["file"]).name for part in parts]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{folder / MANIFEST} is no manifest of an export; name another folder"
        ) from None
    for name in (*files, MANIFEST):
        (folder / name).unlink(missing_ok=True)


def _sweep(folder: Path, manifest: Manifest) -> None:
    """A part that was renamed by a run that was killed before it could say so."""
    known = {part["file"] for part in manifest.parts}
    for path in folder.glob("part-[0-9][0-9][0-9][0-9][0-9].parquet"):
        if path.name not in known:
            path.unlink()


def _write(
    store: Connection,
    chosen: Selection,
    manifest: Manifest,
    folder: Path,
    rows_per_part: int,
    progress: Progress,
) -> None:
    total = manifest.rows + _count(store, chosen, manifest)
    facts = {"filter": manifest.asked["filter"], "as_of": _now(store)}
    schema = frames.schema(chosen, facts)
    blocks = reading.read_blocks(
        store,
        chosen,
        min(ROWS_PER_GROUP, rows_per_part),
        ordered=True,
        after=manifest.last,
    )
    with closing(blocks):
        batches = (frames.to_batch(chosen, block, schema) for block in blocks)
        for part in _parts(batches, rows_per_part):
            path = folder / f"part-{len(manifest.parts):05}.parquet"
            written = _write_part(path, part, schema, chosen.order)
            manifest.parts.append({**written, "as_of": facts["as_of"]})
            manifest.save(folder)
            log.info("exported file=%s rows=%d", path.name, written["rows"])
            progress(manifest.rows, total)
    manifest.complete = True
    manifest.save(folder)


def _now(store: Connection) -> str:
    row = store.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    return str(row[0].isoformat())


def _parts(
    batches: Iterator[pyarrow.RecordBatch], rows: int
) -> Iterator[Iterator[pyarrow.RecordBatch]]:
    """Each part is to be read to its end before the next one."""
    left: pyarrow.RecordBatch | None = None

    def part() -> Iterator[pyarrow.RecordBatch]:
        nonlocal left
        room = rows
        while left is not None and room:
            now, left = left.slice(0, room), left.slice(room)
            room -= now.num_rows
            if not left.num_rows:
                left = next(batches, None)
            yield now

    left = next(batches, None)
    while left is not None:
        yield part()


def _write_part(
    path: Path,
    batches: Iterator[pyarrow.RecordBatch],
    schema: pyarrow.Schema,
    order: Sequence[str],
) -> dict[str, Any]:
    from pyarrow import parquet

    repeated = [name for name in _DICTIONARY if name in schema.names]
    rows = 0
    ends = []
    with _whole(path) as temporary:
        with parquet.ParquetWriter(
            temporary, schema, compression="zstd", use_dictionary=repeated
        ) as writer:
            for batch in batches:
                writer.write_batch(batch)
                rows += batch.num_rows
                ends += [_key(batch, 0, order), _key(batch, -1, order)]
        size, digest = temporary.stat().st_size, _digest(temporary)
    return {
        "file": path.name,
        "rows": rows,
        "bytes": size,
        "sha256": digest,
        "first": ends[0],
        "last": ends[-1],
    }


def _key(batch: pyarrow.RecordBatch, row: int, order: Sequence[str]) -> list[Any]:
    return [batch.column(name)[row].as_py() for name in order]


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file that is there as a whole, or not at all."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another export writes into {folder}") from None
        for left in folder.glob(".tmp-*"):  # of a run that was killed
            left.unlink()
        yield
