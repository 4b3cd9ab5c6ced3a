"""Hidden states to vectors: pure functions, the same for every encoder.

`hidden` is (batch, tokens, hidden): the words of a text, the patches of an image, the
cells of a feature map, the queries of a detector. `mask` (batch, tokens) is the layout:
1 for what is to be read, 0 for padding on either side, or for a token that is to be
left out. No pooling ever reads a masked position. Texts come without padding, as rows
end to end: `of_rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from embedding_tasks.errors import ModelError, valid_choices
from embedding_tasks.use_case import LayerMix

Pooling = Callable[[Tensor, Tensor], Tensor]
RowPooling = Callable[[Tensor, Tensor], Tensor]


def cls(hidden: Tensor, mask: Tensor) -> Tensor:
    """The first real token, `[CLS]` in BERT-like models: (batch, hidden)."""
    first = mask.to(torch.int32).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), first]


def last(hidden: Tensor, mask: Tensor) -> Tensor:
    """The last real token, which alone has seen the whole text in a decoder
    (Neelakantan et al. 2022), whichever side the padding is on: (batch, hidden)."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    final = (mask * positions).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), final]


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean of the real tokens, special ones included, as sentence-transformers
    takes it (Reimers and Gurevych 2019): (batch, hidden), summed in float32."""
    weights = mask.to(torch.float32).unsqueeze(-1)
    return (hidden.to(torch.float32) * weights).sum(1) / weights.sum(1)


def max_(hidden: Tensor, mask: Tensor) -> Tensor:
    """The greatest value of each dimension among the real tokens: (batch, hidden)."""
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(1)


POOLINGS: dict[str, Pooling] = {"cls": cls, "mean": mean, "max": max_, "last": last}


def by_name(name: str) -> Pooling:
    try:
        return POOLINGS[name]
    except KeyError:
        raise ModelError(f"pooling {valid_choices(name, list(POOLINGS))}") from None


def _bags(mode: str) -> RowPooling:
    def pool(rows: Tensor, bounds: Tensor) -> Tensor:
        every = torch.arange(len(rows), dtype=bounds.dtype, device=rows.device)
        return torch.nn.functional.embedding_bag(
            every, rows.to(torch.float32), bounds[:-1], mode=mode
        )

    return pool


# The same of rows (tokens, hidden) of texts end to end, of which text i has those from
# bounds[i] on to bounds[i + 1]: nothing is padded, so there is nothing to leave out.
_OF_ROWS: dict[str, RowPooling] = {
    "cls": lambda rows, bounds: rows.index_select(0, bounds[:-1]),
    "mean": _bags("mean"),
    "max": _bags("max"),
    "last": lambda rows, bounds: rows.index_select(0, bounds[1:] - 1),
}


def of_rows(name: str, rows: Tensor, bounds: Tensor) -> Tensor:
    by_name(name)
    return _OF_ROWS[name](rows, bounds)


def spans(tokens: Tensor, starts: Sequence[int], stops: Sequence[int]) -> Tensor:
    """The mean of each run [start, stop) of `tokens` (tokens, hidden), in float32:
    (spans, hidden). Runs may overlap; none may be empty."""
    if not starts:
        return tokens.new_empty((0, tokens.shape[1]), dtype=torch.float32)
    lengths = torch.tensor(stops) - torch.tensor(starts)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)[:-1]])
    rows = torch.cat([torch.arange(a, b) for a, b in zip(starts, stops, strict=True)])
    return torch.nn.functional.embedding_bag(
        rows.to(tokens.device),
        tokens.to(torch.float32),
        offsets.to(tokens.device),
        mode="mean",
    )


def cells(feature_map: Tensor) -> Tensor:
    """The cells of a feature map (batch, channels, height, width) as tokens: (batch,
    height * width, channels)."""
    return feature_map.flatten(2).transpose(1, 2)


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
