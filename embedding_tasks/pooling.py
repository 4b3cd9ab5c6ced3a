"""Hidden states to vectors: pure functions, the same for every encoder.

`hidden` is (batch, tokens, hidden) and `mask` (batch, tokens), 1 for a real token and
0 for padding, on either side. No pooling ever reads a padded position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from embedding_tasks.errors import ModelError, valid_choices
from embedding_tasks.use_case import LayerMix

Pooling = Callable[[Tensor, Tensor], Tensor]


def cls(hidden: Tensor, mask: Tensor) -> Tensor:
    """The first real token, `[CLS]` in BERT-like models: (batch, hidden)."""
    first = mask.to(torch.int32).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), first]


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean of the real tokens, special ones included, as sentence-transformers
    takes it (Reimers and Gurevych 2019): (batch, hidden), summed in float32."""
    weights = mask.to(torch.float32).unsqueeze(-1)
    return (hidden.to(torch.float32) * weights).sum(1) / weights.sum(1)


POOLINGS: dict[str, Pooling] = {"cls": cls, "mean": mean}


def by_name(name: str) -> Pooling:
    try:
        return POOLINGS[name]
    except KeyError:
        raise ModelError(f"pooling {valid_choices(name, list(POOLINGS))}") from None


def mix_layers(layers: Sequence[Tensor], choice: int | LayerMix) -> Tensor:
    """One layer, or the mean or concatenation of the last few, of `layers`: the
    embedding output and each block's output, (batch, tokens, hidden) each. The
    concatenation has `last` times the width, the last layer's part last."""
    if isinstance(choice, int):
        return layers[choice]
    chosen = layers[-choice.last :]
    if choice.combine == "concat":
        return torch.cat(tuple(chosen), dim=-1)
    return torch.stack(tuple(chosen)).to(torch.float32).mean(0)


def normalized(vectors: Tensor) -> Tensor:
    """Unit length. A zero vector stays zero, which the store then refuses."""
    return torch.nn.functional.normalize(vectors, dim=-1)
