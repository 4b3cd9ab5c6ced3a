from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_tasks.packing import packed_batches, token_batches

Batches = Callable[[list[int], int], Iterator[list[int]]]

lengths = st.lists(st.integers(0, 600), max_size=200)


@pytest.mark.parametrize("batches_of", [token_batches, packed_batches])
@given(sizes=lengths, budget=st.integers(1, 2000))
def test_every_input_is_in_exactly_one_batch(
    batches_of: Batches, sizes: list[int], budget: int
) -> None:
    batches = list(batches_of(sizes, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))


@given(lengths, st.integers(1, 2000))
def test_no_padded_batch_is_over_budget_unless_one_input_is(
    sizes: list[int], budget: int
) -> None:
    for batch in token_batches(sizes, budget):
        padded = len(batch) * max(sizes[i] for i in batch)
        assert padded <= budget or len(batch) == 1


@given(lengths, st.integers(1, 2000))
def test_no_packed_batch_is_over_budget_unless_one_input_is(
    sizes: list[int], budget: int
) -> None:
    for batch in packed_batches(sizes, budget):
        assert sum(sizes[i] for i in batch) <= budget or len(batch) == 1


@given(st.lists(st.integers(1, 40), min_size=1, max_size=300))
def test_packed_batches_are_few_and_of_about_one_size(sizes: list[int]) -> None:
    batches = [sum(sizes[i] for i in b) for b in packed_batches(sizes, 512)]
    assert len(batches) <= -(-sum(sizes) // 512) + 1 + sum(sizes) // 5000
    if len(batches) > 1:
        assert max(batches) - min(batches[:-1]) <= 2 * max(sizes)


@pytest.mark.parametrize("batches_of", [token_batches, packed_batches])
@given(sizes=lengths)
def test_the_longest_come_first(batches_of: Batches, sizes: list[int]) -> None:
    order = [sizes[i] for batch in batches_of(sizes, 512) for i in batch]
    assert order == sorted(sizes, reverse=True)
