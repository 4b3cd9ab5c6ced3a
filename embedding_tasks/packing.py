"""Which inputs share a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Positions of the inputs, longest first, in batches that hold at most `budget`
    tokens once padded to their longest; an input longer than the budget goes alone.

    Longest first, so that what does not fit the memory shows at once.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    start = 0
    while start < len(order):
        size = max(1, budget // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size
