"""Object detectors with queries, as DETR (Carion et al. 2020) is: one vector for an
image, or one for each object in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForObjectDetection

from embedding_tasks import pooling
from embedding_tasks.encoders import transformer
from embedding_tasks.encoders.encoded import Encoded, Prediction
from embedding_tasks.errors import ModelError


class Detector:
    """Keeps `image.Model`."""

    def __init__(
        self, folder: Path, spec: dict[str, Any], device: torch.device
    ) -> None:
        wanted = spec["pooling"]
        self._least: float | None = None if wanted == "queries" else wanted["objects"]
        self._normalize = bool(spec["normalize"])
        self.device = device
        self._model = transformer.load(
            AutoModelForObjectDetection, folder, spec["encoder"]["dtype"], device
        )
        self.network, self.dtype = self._model, self._model.dtype
        self.wants = [
            name
            for name in ("pixel_values", "pixel_mask")
            if transformer.takes(self._model, name)
        ]
        config: Any = self._model.config
        self._names = [config.id2label[i] for i in range(config.num_labels)]

    def __call__(
        self, pixels: dict[str, Tensor], sizes: Sequence[tuple[int, int]]
    ) -> Callable[[], Encoded]:
        encoded = self._encoded(pixels, sizes)
        return lambda: encoded

    def _encoded(
        self, pixels: dict[str, Tensor], sizes: Sequence[tuple[int, int]]
    ) -> Encoded:
        output = self._model(**pixels)
        queries = queries_of(output)
        if self._least is None:
            mask = torch.ones(queries.shape[:2], device=queries.device)
            return Encoded.of_records(self._final(pooling.mean(queries, mask)))
        scores = self._class_scores(output.logits.to(torch.float32))
        best, classes = scores.max(-1)
        found = (best >= self._least).nonzero()  # by image, then by query
        images, numbers = found.unbind(1)
        return Encoded(
            vectors=self._final(queries[images, numbers]),
            inputs=images.to(torch.int32).cpu().numpy(),
            units=ranks(images),
            predictions=self._predictions(
                classes[images, numbers], scores[images, numbers]
            ),
            boxes=corners(output.pred_boxes[images, numbers], images, sizes),
        )

    def _final(self, vectors: Tensor) -> Any:
        vectors = vectors.to(torch.float32)
        if self._normalize:
            vectors = pooling.normalized(vectors)
        return vectors.cpu().numpy()

    def _class_scores(self, logits: Tensor) -> Tensor:
        """(batch, queries, classes). DETR's softmax has one more, "no object"; its
        later kin (Zhu et al. 2021) ask each class by itself."""
        known = len(self._names)
        if logits.shape[-1] == known + 1:
            return logits.softmax(-1)[..., :-1]
        if logits.shape[-1] == known and getattr(
            self._model.config, "use_focal_loss", True
        ):
            return logits.sigmoid()
        raise ModelError(
            f"encoder.model: its head has {logits.shape[-1]} classes, its configuration"
            f" names {known}; it is not supported as a detector"
        )

    def _predictions(self, classes: Tensor, scores: Tensor) -> list[Prediction]:
        return [
            Prediction(self._names[c], row[c], row)
            for c, row in zip(classes.tolist(), scores.tolist(), strict=True)
        ]


def queries_of(output: Any) -> Tensor:
    """(batch, queries, hidden), what the heads read: all that a decoder returns, or
    the last tokens of a detector without one (YOLOS)."""
    hidden: Tensor | None = getattr(output, "last_hidden_state", None)
    if hidden is None or hidden.ndim != 3 or hidden.shape[1] < output.logits.shape[1]:
        raise ModelError(
            "encoder.model: this detector does not return the hidden states of its "
            "queries; valid: detectors like DETR"
        )
    return hidden[:, -output.logits.shape[1] :]


def ranks(images: Tensor) -> Any:
    """0, 1, 2, … within each run of an image's number."""
    numbers = images.cpu().numpy()
    starts = np.searchsorted(numbers, numbers)
    return (np.arange(len(numbers)) - starts).astype(np.int32)


def corners(boxes: Tensor, images: Tensor, sizes: Sequence[tuple[int, int]]) -> Any:
    """From shares (centre x, centre y, width, height) of an image to its pixels (xmin,
    ymin, xmax, ymax), float32."""
    x, y, width, height = boxes.to(torch.float32).cpu().unbind(-1)
    shares = torch.stack(
        [x - width / 2, y - height / 2, x + width / 2, y + height / 2], -1
    )
    shown = torch.tensor(sizes, dtype=torch.float32)[images.cpu()].reshape(-1, 2)
    return (shares * shown[:, [1, 0, 1, 0]]).numpy()
