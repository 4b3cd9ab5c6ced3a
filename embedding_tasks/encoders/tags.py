"""From one tag a word to entities."""

from __future__ import annotations

from collections.abc import Sequence

OUTSIDE = "O"


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Kind and words [first, stop) of each entity, by the rule of CoNLL's script and of
    seqeval's default mode: B and S begin one, E and S end one, and so does another
    kind. The SQL function `embedline.label_rows` does the same for labels."""
    found: list[tuple[str, int, int]] = []
    previous = OUTSIDE
    for word, tag in enumerate(tags):
        if tag != OUTSIDE:
            kind = kind_of(tag)
            if _begins(previous, tag):
                found.append((kind, word, word + 1))
            else:
                found[-1] = (kind, found[-1][1], word + 1)
        previous = tag
    return found


def kind_of(tag: str) -> str:
    return tag[2:] if tag[:2] in ("B-", "I-", "E-", "S-") else tag


def _begins(previous: str, tag: str) -> bool:
    return (
        previous == OUTSIDE
        or tag[:2] in ("B-", "S-")
        or previous[:2] in ("E-", "S-")
        or kind_of(previous) != kind_of(tag)
    )
