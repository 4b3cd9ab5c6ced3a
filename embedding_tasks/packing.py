"""Which inputs share a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Positions of the inputs, longest first, in batches that hold at most `budget`
    tokens once padded to their longest; an input longer than the budget goes alone.

    Longest first, so that what does not fit the memory shows at once.
    """
    order = _longest_first(lengths)
    start = 0
    while start < len(order):
        size = max(1, budget // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def packed_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """As `token_batches`, of inputs that are laid end to end and not padded: as few
    batches as hold at most `budget` tokens each, and about as many tokens in each as
    in every other. A small last batch would cost as long as a large one.
    """
    total = sum(lengths)
    share = total / max(1, -(-total // budget))
    batch: list[int] = []
    size = done = cut = 0
    for position in _longest_first(lengths):
        length = lengths[position]
        full = done + length / 2 > share * (cut + 1)
        if batch and (full or size + length > budget):
            yield batch
            batch, size, cut = [], 0, cut + 1
        batch.append(position)
        size += length
        done += length
    if batch:
        yield batch


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
