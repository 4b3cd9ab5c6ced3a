"""The ids are those that transformers' own tokenizer gives, of any text."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, ByT5Tokenizer

from embedding_tasks.encoders.tokenizing import (
    PlainTokenizing,
    Tokenizing,
    Tokens,
    tokenizing_of,
)
from tests.fix_models import Family
from tests.test_text_encoder import AWKWARD
from tests.test_token_encoder import ODD

KINDS = ("bert", "roberta", "xlm-roberta")
LONG = [
    "word " * 5_000,
    "a" * 50_000,
    "antidisestablishmentarianism" * 900,
    "x " * 700 + "y" * 90_000,
    " " * 40_000 + "end",
    "one two" + " " * 9_000 + "three four " * 500,
    "\n\t the  end \u00a0" * 3_000,
    "日本語のテキスト " * 900,
    "👩‍👩‍👧‍👦 e\u0301 " * 900,
    "word " * 120,
    "http://t.co/" + "abc-" * 5_000,
]


def plain(
    tokenizer: Any, texts: list[str], most: int
) -> tuple[list[list[int]], list[bool]]:
    made = tokenizer(texts, truncation=True, max_length=most)
    return made["input_ids"], [bool(e.overflowing) for e in made.encodings]


def listed(tokens: Tokens) -> list[list[int]]:
    return [own.tolist() for own in np.split(tokens.ids, tokens.lengths.cumsum()[:-1])]


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, make_family: Family) -> Path:
    return make_family(request.param)


@pytest.mark.parametrize("most", [3, 16, 128])
@pytest.mark.parametrize("side", ["right", "left"])
def test_ids_and_which_texts_are_cut_are_transformers_own(
    folder: Path, most: int, side: str, tweets: list[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.truncation_side = side
    texts = [*tweets, *AWKWARD, *ODD, *LONG, " ".join(tweets)]
    ids, truncated = plain(tokenizer, texts, most)
    tokens = tokenizing_of(tokenizer, folder, most)(texts)
    assert listed(tokens) == ids
    assert tokens.truncated.tolist() == truncated
    assert sum(truncated) > len(LONG) // 2


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(st.sampled_from("ab Z9.-é東\u0301\u200b\n"), max_size=400)),
    st.integers(3, 24),
)
def test_no_text_is_cut_where_it_shows(
    folder: Path, texts: list[str], most: int
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids, truncated = plain(tokenizer, [*texts, "a"], most)
    tokens = tokenizing_of(tokenizer, folder, most)([*texts, "a"])
    assert (listed(tokens), tokens.truncated.tolist()) == (ids, truncated)


def test_another_process_gives_the_same_without_torch(
    folder: Path, tmp_path: Path, tweets: list[str]
) -> None:
    tokenizing = tokenizing_of(AutoTokenizer.from_pretrained(folder), folder, 32)
    assert isinstance(tokenizing, Tokenizing)
    (tmp_path / "in").write_bytes(pickle.dumps((tokenizing, tweets[:50])))
    code = (
        "import pickle, sys\n"
        "tokenizing, texts = pickle.load(open(sys.argv[1], 'rb'))\n"
        "pickle.dump(tokenizing(texts), open(sys.argv[2], 'wb'))\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    paths = [str(tmp_path / name) for name in ("in", "out")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True)
    made = pickle.loads((tmp_path / "out").read_bytes())
    assert np.array_equal(made.ids, tokenizing(tweets[:50]).ids)


def test_a_tokenizer_in_python_knows_what_just_fits_from_what_was_cut(
    tmp_path: Path,
) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizing = tokenizing_of(tokenizer, tmp_path, 8)
    assert isinstance(tokenizing, PlainTokenizing)
    texts = ["a" * length for length in (9, 7, 8, 1)]  # and an end
    tokens = tokenizing(texts)
    assert tokens.lengths.tolist() == [8, 8, 8, 2]
    assert tokens.truncated.tolist() == [True, False, True, False]


def test_texts_are_picked_in_any_order() -> None:
    cut = np.array([True, False, False, True])
    tokens = Tokens.of([[1, 2, 3], [4], [], [5, 6]], cut)
    assert listed(tokens.only([3, 0, 1])) == [[5, 6], [1, 2, 3], [4]]
    assert tokens.only([3, 0, 1]).truncated.tolist() == [True, True, False]
