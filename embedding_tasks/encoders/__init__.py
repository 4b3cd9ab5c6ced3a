"""Ways of turning inputs into vectors, and what they all give back.

One module per way. The next one is a kind of encoder in `use_case/feature.py`, a
branch in `shape.of` and in `load`, and a module with a class that keeps `Encoder`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from embedding_tasks.encoders import weights
from embedding_tasks.errors import ModelError

if TYPE_CHECKING:
    from embedding_tasks.connections import Connection, Resolve
    from embedding_tasks.encoders.encoded import Encoded
    from embedding_tasks.store.versions import ModelVersion


class Encoder(Protocol):
    """Holds a loaded model. The same input gives the same vector in any company."""

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        """At least one input, as `embedding_tasks.inputs` forms them. Raises
        `DeviceError` when the device is lost, `TransientError` when a server is away,
        and `InputError`, or anything else, when an input cannot be encoded."""
        ...

    def probe(self) -> Encoded:
        """Encode something that is known to be fine, to tell a bad input from an
        encoder that no longer works. Raises what `encode` raises."""
        ...


@dataclass(frozen=True)
class Runtime:
    """What an encoder needs of its surroundings and that shapes no vector. `tokens`
    is the most one forward pass may hold, padding included. `stopped`: somebody wants
    an end; encoders look at it between batches and raise `Stopped`."""

    device: str = "auto"
    tokens: int = 4096
    resolve: Resolve | None = None
    open_store: Callable[[], Connection] | None = None
    stopped: threading.Event = field(default_factory=threading.Event)


def load(version: ModelVersion, runtime: Runtime) -> Encoder:
    """The encoder a model version's vectors were and are made with. Raises
    `ModelError` when its files are no longer the same."""
    spec = version.spec
    match spec["encoder"]["type"]:
        case "text" if version.form.by_unit:
            from embedding_tasks.encoders.tokens import TokenEncoder

            return TokenEncoder(_files(version), spec, runtime)
        case "text":
            from embedding_tasks.encoders.text import TextEncoder

            return TextEncoder(_files(version), spec, runtime)
        case "image":
            from embedding_tasks.encoders.image import ImageEncoder

            return ImageEncoder(_files(version), spec, runtime)
        case "openai":
            from embedding_tasks.encoders.endpoint import EndpointEncoder

            return EndpointEncoder(spec, runtime, version.dims)
        case "words":
            from embedding_tasks.encoders.words import WordsEncoder

            return WordsEncoder(_files(version), spec, runtime)
        case "autoencoder" | "gan":
            from embedding_tasks.encoders.trained.encoder import TrainedEncoder

            return TrainedEncoder(spec, runtime)
        case kind:
            raise ModelError(f"no encoder of type {kind!r}")


def _files(version: ModelVersion) -> Path:
    encoder = version.spec["encoder"]
    find: Callable[[str, str], Path] = weights.locate
    digest: Callable[[Path], str] = weights.digest
    if encoder["type"] == "words":
        from embedding_tasks.encoders import word_files

        find, digest = word_files.find, word_files.digest
    path = find(encoder["model"], encoder["revision"])
    if digest(path) != version.spec["weights"]:
        raise ModelError(
            f"the model files in {str(path)!r} are not those that model version "
            f"{version.version} was made with; restore them, or run the use case to "
            "build a new version"
        )
    return path
