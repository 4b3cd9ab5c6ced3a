"""How many tokens share a pass: learned where memory runs out, and not forgotten."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from embedding_tasks.encoders import devices
from embedding_tasks.encoders.devices import Budget
from embedding_tasks.errors import InputError

pytestmark = pytest.mark.usefixtures("own_memory")
CPU = torch.device("cpu")


def budget(asked: int | None = 4096, name: str = "weights") -> Budget:
    return Budget(asked, nn.Linear(2, 2), CPU, name)


def passes(made: Budget, room: int, positions: int = 64, each: int = 64) -> list[int]:
    """Batches of so many positions of `each` tokens, where `room` tokens fit; which of
    them ran."""
    ran: list[int] = []

    def forward(batch: Sequence[int]) -> None:
        if len(batch) * each > room:
            raise torch.OutOfMemoryError("no")
        ran.extend(batch)

    while len(ran) < positions:
        size = max(1, made.tokens // each)
        batch = range(len(ran), min(positions, len(ran) + size))
        made.run(forward, batch, lambda i: each, lambda i: f"input {i}")
    return ran


def test_memory_that_runs_out_halves_it_and_loses_no_input() -> None:
    made = budget()
    assert passes(made, room=1000) == list(range(64))
    assert made.tokens <= 1000


def test_it_is_remembered_for_the_model_and_the_device() -> None:
    passes(budget(), room=1000)
    assert budget().tokens <= 1000
    assert budget(name="another").tokens == 4096


def test_passes_that_go_well_let_it_grow_again_to_what_was_asked() -> None:
    passes(budget(), room=1000)
    made = budget()
    for _ in range(20 * devices._GOOD_PASSES):
        passes(made, room=10**6, positions=1)
    assert made.tokens == 4096
    assert budget().tokens == 4096


def test_what_is_asked_for_is_never_exceeded() -> None:
    assert budget(100).tokens == 100
    passes(budget(4096), room=10**6)
    assert budget(100).tokens == 100


def test_an_input_that_does_not_fit_alone_is_named() -> None:
    with pytest.raises(InputError, match="input 0 does not fit the memory"):
        passes(budget(), room=10)


def test_where_nothing_is_asked_the_device_decides() -> None:
    assert budget(None).tokens == devices._CPU_TOKENS
