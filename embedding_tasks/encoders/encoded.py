"""What every encoder gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Prediction:
    """`probabilities` is one per class, in the encoder's order of classes, or empty
    where the head has none (a regression, an entity)."""

    prediction: str
    score: float
    probabilities: Sequence[float] = ()


@dataclass(frozen=True)
class Encoded:
    """Vectors of a sequence of inputs, which may have none, one or many each.

    `vectors` (n, dims) float32; `inputs` (n,) the position of the input each vector
    belongs to; `units` (n,) its number within that input, 0 for a whole record;
    `spans` (n, 2) the characters [start, stop) of the input it stands for; `boxes`
    (n, 4) xmin, ymin, xmax, ymax in pixels of the image as it is shown.
    `predictions` is empty or has one for each vector. `unknown` has one for each
    input: the share of its words that the encoder does not know; `truncated`, too:
    whether it was longer than the encoder takes, and was cut; None: the encoder cuts
    nothing. `failed` says by position why an input has no vector: it could not be
    read, and cost the others nothing.
    """

    vectors: npt.NDArray[np.float32]
    inputs: npt.NDArray[np.int32]
    units: npt.NDArray[np.int32]
    predictions: Sequence[Prediction] = ()
    spans: npt.NDArray[np.int32] | None = None
    boxes: npt.NDArray[np.float32] | None = None
    unknown: npt.NDArray[np.float32] | None = None
    truncated: npt.NDArray[np.bool_] | None = None
    failed: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of_records(cls, vectors: npt.NDArray[np.float32], **more: Any) -> Encoded:
        """One vector for each input, in their order."""
        return cls(
            vectors=vectors,
            inputs=np.arange(len(vectors), dtype=np.int32),
            units=np.zeros(len(vectors), dtype=np.int32),
            **more,
        )

    def only(self, positions: Sequence[int]) -> Encoded:
        """What belongs to these inputs alone, renumbered to their places."""
        count = 1 + max(int(self.inputs.max(initial=-1)), *positions)
        place = np.full(count, -1, np.int32)
        place[list(positions)] = np.arange(len(positions), dtype=np.int32)
        kept = self.rows(np.flatnonzero(place[self.inputs] >= 0))
        unknown, truncated = self.unknown, self.truncated
        return replace(
            kept,
            inputs=place[kept.inputs],
            unknown=None if unknown is None else unknown[list(positions)],
            truncated=None if truncated is None else truncated[list(positions)],
            failed={
                place: self.failed[position]
                for place, position in enumerate(positions)
                if position in self.failed
            },
        )

    def rows(self, chosen: npt.NDArray[np.intp]) -> Encoded:
        """These vectors, in this order, with all that belongs to them."""
        return replace(
            self,
            vectors=self.vectors[chosen],
            inputs=self.inputs[chosen],
            units=self.units[chosen],
            predictions=[self.predictions[i] for i in chosen.tolist()]
            if self.predictions
            else (),
            spans=None if self.spans is None else self.spans[chosen],
            boxes=None if self.boxes is None else self.boxes[chosen],
        )


def joined(parts: Sequence[tuple[Sequence[int], Encoded]], count: int) -> Encoded:
    """Several answers as one over `count` inputs; each comes with the positions of
    the inputs it was given."""
    failed = {places[i]: why for places, e in parts for i, why in e.failed.items()}
    whole = [(np.asarray(p, np.int32), e) for p, e in parts if e.vectors.shape[1]]
    if not whole:
        return Encoded.of_records(np.empty((0, 0), np.float32), failed=failed)
    arrays = {
        name: _concatenated([getattr(e, name) for _, e in whole])
        for name in ("vectors", "units", "spans", "boxes")
    }
    return Encoded(
        inputs=np.concatenate([place[e.inputs] for place, e in whole]),
        predictions=[p for _, e in whole for p in e.predictions],
        unknown=_by_input([(p, e.unknown) for p, e in whole], count),
        truncated=_by_input([(p, e.truncated) for p, e in whole], count),
        failed=failed,
        **arrays,
    )


def _concatenated(arrays: list[Any]) -> Any:
    if len(arrays) == 1:
        return arrays[0]
    return None if arrays[0] is None else np.concatenate(arrays)


def _by_input(parts: list[tuple[Any, Any]], count: int) -> Any:
    """0 for an input that is in no part."""
    if parts[0][1] is None:
        return None
    whole = np.zeros(count, parts[0][1].dtype)
    for place, own in parts:
        whole[place] = own
    return whole


def unit_length(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: npt.NDArray[np.float32] = vectors / np.maximum(norms, 1e-12)
    return scaled
