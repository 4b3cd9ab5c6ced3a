"""Entities out of tags, in Python and in SQL, as seqeval finds them."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from embedding_tasks.connections import Connection
from embedding_tasks.encoders.tags import entities

TAGS = st.lists(
    st.sampled_from(["O", *(f"{p}-{kind}" for p in "BIES" for kind in ("per", "loc"))]),
    max_size=12,
)


def reference(tags: list[str]) -> list[tuple[str, int, int]]:
    return [(kind, first, last + 1) for kind, first, last in get_entities(tags)]


@given(TAGS)
def test_entities_are_those_that_seqeval_finds(tags: list[str]) -> None:
    assert entities(tags) == reference(tags)


def test_tags_without_a_prefix_are_entities_where_they_last() -> None:
    assert entities(["per", "per", "O", "loc"]) == [("per", 0, 2), ("loc", 3, 4)]


def test_sql_finds_the_same_entities_in_the_source_s_tags(store: Connection) -> None:
    @given(TAGS)
    def same(tags: list[str]) -> None:
        words = [f"{'w' * (n % 3 + 1)}" for n in range(len(tags))]
        starts = [sum(len(w) + 1 for w in words[:n]) for n in range(len(words))]
        rows = store.execute(
            "SELECT label, lower(span), upper(span)"
            " FROM embedline.label_rows(%s::jsonb, true) WHERE unit >= 0 ORDER BY 2",
            [json.dumps({"label": tags, "words": words})],
        ).fetchall()
        assert rows == [
            (kind, starts[first], starts[stop - 1] + len(words[stop - 1]))
            for kind, first, stop in reference(tags)
        ]

    same()
