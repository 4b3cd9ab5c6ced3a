"""Models that read an image as tokens or as a feature map: one vector each.

What a model is shows in what it returns for a first image: a feature map or tokens,
how many of them come before the patches, whether there is a pooler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageClassification, PreTrainedModel

from embedding_tasks import pooling
from embedding_tasks.encoders import transformer
from embedding_tasks.encoders.encoded import Encoded
from embedding_tasks.encoders.transfer import Returning
from embedding_tasks.errors import ModelError

# Of a model of images and texts, what the vectors of images need not have.
_TEXT_SIDE = ("text_model.", "text_projection", "logit_scale", "logit_bias")
_POOLINGS = {"mean": "mean", "patches": "mean", "cls": "cls", "max": "max"}


class Vision:
    """Keeps `image.Model`."""

    wants = ("pixel_values",)

    def __init__(
        self, folder: Path, spec: dict[str, Any], device: torch.device
    ) -> None:
        self._pools: str = spec["pooling"]
        self._normalize = bool(spec["normalize"])
        self.device = device
        model = load(folder, spec, device)
        self.network, self.dtype = model, model.dtype
        self._head = transformer.Head(model.config) if spec["head"] else None
        self._features = features_of(model) if self._pools == "features" else None
        tower = vision_tower(model)
        self._hidden = transformer.HiddenStates(
            model if self._head else tower, transformer.layers(spec["layers"]), tower
        )
        self._patches = PatchCount(tower)

    def __call__(
        self, pixels: dict[str, Tensor], sizes: Sequence[tuple[int, int]]
    ) -> Callable[[], Encoded]:
        if self._features is not None:
            return self._encoded(self._features(pixels["pixel_values"]))
        output, base, hidden = self._hidden(**pixels)
        if self._pools == "pooler":
            vectors = pooler_output(base)
        else:
            vectors = self._pooled(hidden)
        return self._encoded(vectors, output.logits if self._head else None)

    def _encoded(
        self, vectors: Tensor, logits: Tensor | None = None
    ) -> Callable[[], Encoded]:
        vectors = vectors.to(torch.float32)
        if self._normalize:
            vectors = pooling.normalized(vectors)
        head = self._head
        if head is None or logits is None:
            alone = Returning(vectors)
            return lambda: Encoded.of_records(alone.arrived()[0].numpy())
        both = Returning(vectors, logits.to(torch.float32))

        def predicted() -> Encoded:
            made, spread = both.arrived()
            return Encoded.of_records(
                made.numpy(), predictions=head.predictions(spread)
            )

        return predicted

    def _pooled(self, hidden: Tensor) -> Tensor:
        is_map = hidden.ndim == 4
        tokens = pooling.cells(hidden) if is_map else hidden
        special = 0 if is_map else self._patches.before(tokens.shape[1])
        if self._pools == "cls" and not special:
            kind = "a feature map" if is_map else "patches alone"
            raise ModelError(
                f"pooling: this model has no class token, it gives {kind}; valid: "
                "mean, patches, max, pooler"
            )
        mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        if self._pools == "patches":
            mask[:, :special] = 0
        return pooling.by_name(_POOLINGS[self._pools])(tokens, mask)


class PatchCount:
    """How many patches a model cuts an image into: the places its first convolution
    is applied to. What a model returns besides comes before them: a class token, a
    distillation token (Touvron et al. 2021), registers (Darcet et al. 2024)."""

    def __init__(self, tower: nn.Module) -> None:
        self._patches: int | None = None
        tower.register_forward_pre_hook(self._begin)
        for module in tower.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(self._count)

    def _begin(self, module: nn.Module, args: object) -> None:
        self._patches = None

    def _count(self, module: nn.Module, args: object, output: Tensor) -> None:
        if self._patches is None:
            self._patches = output.shape[-1] * output.shape[-2]

    def before(self, tokens: int) -> int:
        """Of `tokens` of the last pass; none where a model merges its patches."""
        if self._patches is None:
            raise ModelError(
                "encoder.model: it does not cut an image into patches by a "
                "convolution, so that its tokens cannot be told apart; not supported"
            )
        return max(0, tokens - self._patches)


def load(folder: Path, spec: dict[str, Any], device: torch.device) -> PreTrainedModel:
    pools, dtype = spec["pooling"], spec["encoder"]["dtype"]
    kind = AutoModelForImageClassification if spec["head"] else AutoModel
    optional = [*_TEXT_SIDE]
    # A pooler or a projection that nobody asked for may be missing.
    optional += [] if pools == "pooler" or spec["head"] else ["pooler."]
    optional += [] if pools == "features" else ["visual_projection"]
    model = transformer.load(kind, folder, dtype, device, optional)
    if not transformer.takes(vision_tower(model), "pixel_values"):
        raise ModelError(
            f"encoder.model: a model of type {model.config.model_type!r} takes no "
            "pixel_values; it is not supported as an image encoder"
        )
    return model


def vision_tower(model: PreTrainedModel) -> PreTrainedModel:
    """The part that sees the image, of a model of images and texts one of two."""
    bare: Any = model.base_model
    tower: PreTrainedModel = getattr(bare, "vision_model", bare)
    return tower


def features_of(model: Any) -> Any:
    """What `get_image_features` gives, as a function of `pixel_values`; the vision
    tower alone runs."""
    if not hasattr(model, "get_image_features"):
        raise ModelError(
            f"pooling: a model of type {model.config.model_type!r} has no image "
            "features, which models of images and texts like CLIP have; valid: mean, "
            "patches, cls, max, pooler"
        )

    def features(pixel_values: Tensor) -> Tensor:
        # (batch, dims), or an output whose pooler_output that is, by version
        output = model.get_image_features(pixel_values=pixel_values)
        return output if isinstance(output, Tensor) else pooler_output(output)

    return features


def pooler_output(base: Any) -> Tensor:
    pooled: Tensor | None = getattr(base, "pooler_output", None)
    if pooled is None:
        raise ModelError(
            "pooling: this model, as it is loaded here, has no pooler; valid: mean, "
            "patches, max, and cls where it has a class token"
        )
    return pooled.flatten(1)
