from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from embedding_tasks.packing import token_batches

lengths = st.lists(st.integers(0, 600), max_size=200)


@given(lengths, st.integers(1, 2000))
def test_every_input_is_in_exactly_one_batch(sizes: list[int], budget: int) -> None:
    batches = list(token_batches(sizes, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))


@given(lengths, st.integers(1, 2000))
def test_no_padded_batch_is_over_budget_unless_one_input_is(
    sizes: list[int], budget: int
) -> None:
    for batch in token_batches(sizes, budget):
        padded = len(batch) * max(sizes[i] for i in batch)
        assert padded <= budget or len(batch) == 1


@given(lengths)
def test_the_longest_come_first(sizes: list[int]) -> None:
    order = [sizes[i] for batch in token_batches(sizes, 512) for i in batch]
    assert order == sorted(sizes, reverse=True)
