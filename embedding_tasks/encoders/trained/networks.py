"""What both kinds are built of: layers from inputs to a vector, and back.

The shape of an input is `(width,)` for the row of a table and
`(channels, side, side)` for an image. No layer looks at a row's batch-mates.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import nn

Shape = tuple[int, ...]

# An image is halved until it is no wider.
_NARROWEST = 8
_CHANNELS = (16, 32, 64, 64, 64)


def inwards(shape: Shape, size: int, activation: Callable[[], nn.Module]) -> nn.Module:
    """From inputs to (batch, size)."""
    if len(shape) == 1:
        hidden = _hidden(shape[0])
        return nn.Sequential(
            nn.Linear(shape[0], hidden), activation(), nn.Linear(hidden, size)
        )
    sides, channels = _pyramid(shape)
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), activation()]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(channels[-1] * sides[-1] ** 2, size)
    )


def outwards(shape: Shape, size: int, activation: Callable[[], nn.Module]) -> nn.Module:
    """From (batch, size) to inputs."""
    if len(shape) == 1:
        hidden = _hidden(shape[0])
        return nn.Sequential(
            nn.Linear(size, hidden), activation(), nn.Linear(hidden, shape[0])
        )
    sides, channels = _pyramid(shape)
    start = (channels[-1], sides[-1], sides[-1])
    layers: list[nn.Module] = [
        nn.Linear(size, channels[-1] * sides[-1] ** 2),
        nn.Unflatten(1, start),
    ]
    for side, (after, before) in zip(
        sides[-2::-1], reversed([*pairwise(channels)]), strict=True
    ):
        layers += [
            activation(),
            # not transposed convolutions, which leave a chequerboard
            # (distill.pub/2016/deconv-checkerboard)
            nn.Upsample(size=(side, side)),
            nn.Conv2d(before, after, 3, padding=1),
        ]
    return nn.Sequential(*layers)


def _hidden(width: int) -> int:
    return min(512, max(64, 2 * width))


def _pyramid(shape: Shape) -> tuple[list[int], list[int]]:
    sides, channels = [shape[1]], [shape[0]]
    while sides[-1] > _NARROWEST:
        channels.append(_CHANNELS[len(sides) - 1])
        sides.append((sides[-1] + 1) // 2)
    if len(sides) == 1:  # as narrow as that from the start
        channels.append(_CHANNELS[0])
        sides.append((sides[-1] + 1) // 2)
    return sides, channels
