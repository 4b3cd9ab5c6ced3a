"""Ways of turning inputs into vectors, and what they all give back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from embedding_tasks.encoders import weights
from embedding_tasks.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from embedding_tasks.store.versions import ModelVersion


@dataclass(frozen=True)
class Prediction:
    """`probabilities` is one per class, in the encoder's order of classes, or empty
    where the head has none (a regression)."""

    prediction: str
    score: float
    probabilities: Sequence[float]


@dataclass(frozen=True)
class Encoded:
    """Vectors of a sequence of inputs.

    `vectors` (n, dims) float32; `inputs` (n,) the position of the input each vector
    belongs to; `units` (n,) its number within that input, 0 for a whole record.
    `predictions` is empty or has one for each vector.
    """

    vectors: npt.NDArray[np.float32]
    inputs: npt.NDArray[np.int32]
    units: npt.NDArray[np.int32]
    predictions: Sequence[Prediction]
    truncated: int


class Encoder(Protocol):
    """Holds a loaded model. The same input gives the same vector in any company."""

    def encode(self, inputs: Sequence[str]) -> Encoded:
        """At least one input. Raises `DeviceError` when the device is lost, and
        `InputError`, or anything else, when an input cannot be encoded."""
        ...

    def probe(self) -> Encoded:
        """Encode something that is known to be fine, to tell a bad input from an
        encoder that no longer works. Raises what `encode` raises."""
        ...


def load(version: ModelVersion, *, device: str, batch_tokens: int) -> Encoder:
    """The encoder a model version's vectors were and are made with. Raises
    `ModelError` when its files are no longer the same."""
    spec = version.spec
    folder = weights.locate(spec["encoder"]["model"], spec["encoder"]["revision"])
    if weights.digest(folder) != spec["weights"]:
        raise ModelError(
            f"the model files in {str(folder)!r} are not those that model version "
            f"{version.version} was made with; restore them, or run the use case to "
            "build a new version"
        )
    from embedding_tasks.encoders.text import TextEncoder

    return TextEncoder(folder, spec, device, batch_tokens)
