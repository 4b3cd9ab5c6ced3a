"""Where a model's files are, and a digest of those that shape its vectors.

No model library is imported here: a run that finds nothing to do never pays for one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from embedding_tasks import settings
from embedding_tasks.encoders import memory
from embedding_tasks.errors import ModelError, TransientError
from embedding_tasks.use_case import Feature
from embedding_tasks.use_case.feature import OnDevice

# What transformers needs to load a model and its tokenizer. Never Python code: a
# model that wants to run its own (trust_remote_code) is not supported.
_NEEDED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
# Notes and training leftovers that change no vector.
_IGNORED = {"README.md", "training_args.json", "trainer_state.json", "modules.json"}


def locate(model: str, revision: str) -> Path:
    """The folder with the model's files. A Hugging Face id is fetched into its own
    cache unless it is there already. Raises `ModelError`, or `TransientError` when
    the hub cannot be reached."""
    if (folder := local(model)) is not None:
        return _with_config(folder)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(model, revision=revision, allow_patterns=[*_NEEDED])
        )
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelError(
            f"encoder.model: no model {model!r} at revision {revision!r} on the hub; "
            "a folder must start with '.', '/' or '~'"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise TransientError(
            f"encoder.model: {model!r} is not in the local cache and the hub cannot "
            f"be reached: {type(error).__name__}"
        ) from error


def local(model: str) -> Path | None:
    if not model.startswith((".", "/", "~")):
        return None
    path = Path(model).expanduser()
    return path if path.is_absolute() else settings.project() / path


def of_feature(feature: Feature) -> Path:
    encoder = feature.encoder
    assert isinstance(encoder, OnDevice)
    return locate(encoder.model, encoder.revision)


def digest(folder: Path) -> str:
    """SHA-256 over names and contents of all files that shape the vectors: weights,
    configuration, tokenizer."""
    total = hashlib.sha256()
    for path in _files(folder):
        total.update(f"{path.name}:{file_digest(path)}\n".encode())
    return total.hexdigest()


def _with_config(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"encoder.model: {str(folder)!r} is no folder with a model: "
            "it has no config.json"
        )
    return folder


def _files(folder: Path) -> Iterable[Path]:
    found = {p for pattern in _NEEDED for p in folder.glob(pattern)}
    weights = [p for p in found if p.suffix == ".safetensors"]
    if not weights:
        raise ModelError(
            f"encoder.model: {str(folder)!r} has no *.safetensors; "
            "save it with model.save_pretrained(folder)"
        )
    return sorted(p for p in found if p.name not in _IGNORED)


def file_digest(path: Path) -> str:
    """Weights are large and seldom change, so their digests are remembered by size
    and time of change, as make and git do."""
    stat = path.stat()
    key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"

    def digest() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return memory.remembered("digests", key, digest)
