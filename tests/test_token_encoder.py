"""Words and entities: each vector is of the right tokens, in any company."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from transformers import AutoModel, AutoModelForTokenClassification, AutoTokenizer

from embedding_tasks.demo import corpora
from embedding_tasks.encoders import Runtime
from embedding_tasks.encoders.tokens import TokenEncoder
from embedding_tasks.encoders.windows import Tokenizer
from embedding_tasks.errors import ModelError
from embedding_tasks.inputs import Sentence, sentence_of
from tests.fix_models import Family
from tests.test_text_encoder import cosine, recipe_of, use_case

KINDS = {"wordpiece": "bert", "bytes": "roberta", "unigram": "xlm-roberta"}
TAGS = ["O", "B-person", "I-person", "B-geo-loc", "I-geo-loc"]
ODD = [
    "👩‍👩‍👧‍👦 went to 🇫🇷 with 👍🏽 !",
    "Z̷a̷l̷g̷o e\u0301te\u0301 A\u030angstro\u0308m n\u0303",  # combining marks
    "東京 は 日本 の 首都 です 。",
    "나는 서울 에 산다",
    "هو يعيش في مكة المكرمة .",
    "ירושלים היא עיר הבירה",
    "mixed العربية and 中文 and Ελληνικά",
    "x " * 200 + "end",
    "\u200bzero\u200b width\u00a0space \ufeff",
    "Donaudampfschifffahrtsgesellschaftskapitän " * 3,
]


def encoder(
    folder: Path, pooling: Any, tokens: int = 4096, **changes: Any
) -> TokenEncoder:
    changes.setdefault("label", {"column": "tags"})
    case = use_case(folder, pooling=pooling, **changes)
    return TokenEncoder(folder, recipe_of(case).spec, Runtime("cpu", tokens))


@cache
def tokenizer_of(folder: Path, *, split: bool) -> Any:
    return AutoTokenizer.from_pretrained(folder, add_prefix_space=split)


@pytest.fixture(scope="module")
def odd_and_real(sentences: list[corpora.Tagged]) -> list[list[str]]:
    return [words for words, _ in sentences] + [text.split(" ") for text in ODD]


@pytest.mark.parametrize("kind", KINDS)
def test_no_word_that_is_given_is_misaligned(
    kind: str, make_family: Family, odd_and_real: list[list[str]]
) -> None:
    folder = make_family(KINDS[kind])
    plain = tokenizer_of(folder, split=True)
    given_words = [[w for w in words if w] for words in odd_and_real]
    ours = Tokenizer(folder, AutoTokenizer.from_pretrained(folder), 4096).read(
        [sentence_of(words) for words in given_words]
    )
    checked = 0
    for words, read in zip(given_words, ours, strict=True):
        text = " ".join(words)
        theirs = plain(words, is_split_into_words=True, add_special_tokens=False)
        tokens_of: dict[int, list[int]] = {}
        for place, number in enumerate(theirs.word_ids()):
            tokens_of.setdefault(number, []).append(place)
        assert [w.number for w in read.words] == sorted(tokens_of)
        for word in read.words:
            assert [*range(word.first, word.stop)] == tokens_of[word.number]
            assert text[word.begin : word.end] == words[word.number]
            checked += 1
    assert checked > 46_000


@pytest.mark.parametrize("kind", KINDS)
def test_no_word_that_the_tokenizer_finds_is_misaligned(
    kind: str, make_family: Family, odd_and_real: list[list[str]]
) -> None:
    folder = make_family(KINDS[kind])
    plain = tokenizer_of(folder, split=False)
    texts = [" ".join(words) for words in odd_and_real]
    ours = Tokenizer(folder, AutoTokenizer.from_pretrained(folder), 4096).read(
        [Sentence(text) for text in texts]
    )
    for text, read in zip(texts, ours, strict=True):
        theirs = plain(text, add_special_tokens=False)
        found = {word.number: word for word in read.words}
        for number in {n for n in theirs.word_ids() if n is not None}:
            tokens, characters = (
                theirs.word_to_tokens(number),
                theirs.word_to_chars(number),
            )
            whole = text[characters.start : characters.end]
            if not whole.strip():
                assert number not in found
                continue
            word = found.pop(number)
            assert (word.first, word.stop) == (tokens.start, tokens.end)
            assert text[word.begin : word.end] == whole.strip()
        assert not found


def plain_words(
    folder: Path, words: list[str], kind: Any = AutoModel
) -> tuple[torch.Tensor, list[int | None], Any]:
    """Hidden states of one sentence, which word each is of, and the output."""
    tokens = tokenizer_of(folder, split=True)(
        words, is_split_into_words=True, truncation=True, return_tensors="pt"
    )
    numbers = tokens.word_ids()
    tokens.pop("token_type_ids", None)
    with torch.inference_mode():
        output = _model(folder, kind)(**tokens, output_hidden_states=True)
    return output.hidden_states[-1][0], numbers, output


@cache
def _model(folder: Path, kind: Any) -> Any:
    return kind.from_pretrained(folder).eval()


@pytest.mark.parametrize("which", ["first", "mean"])
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "deberta-v2"])
def test_a_word_s_vector_is_that_of_its_own_tokens(
    family: str, which: str, make_family: Family, sentences: list[corpora.Tagged]
) -> None:
    folder = make_family(family)
    chosen = [words for words, _ in sentences[:60]]
    made = encoder(folder, {"words": which, "keep": "all"}, 300).encode(
        [sentence_of(words) for words in chosen]
    )
    row = 0
    for position, words in enumerate(chosen):
        hidden, numbers, _ = plain_words(folder, words)
        for number in range(len(words)):
            own = [i for i, n in enumerate(numbers) if n == number]
            plain = hidden[own[:1] if which == "first" else own].mean(0).numpy()
            assert (made.inputs[row], made.units[row]) == (position, number)
            np.testing.assert_allclose(made.vectors[row], plain, atol=2e-5)
            row += 1
    assert row == len(made.vectors)


def test_tag_and_score_are_those_of_the_same_pass(
    make_family: Family, sentences: list[corpora.Tagged]
) -> None:
    folder = make_family("bert", "ForTokenClassification", TAGS)
    chosen = [words for words, _ in sentences[:60]]
    made = encoder(folder, {"words": "first", "keep": "all"}, prediction="head").encode(
        [sentence_of(words) for words in chosen]
    )
    predictions = iter(made.predictions)
    for words in chosen:
        *_, numbers, output = plain_words(
            folder, words, AutoModelForTokenClassification
        )
        spread = output.logits[0].softmax(-1)
        for number in range(len(words)):
            plain = spread[numbers.index(number)]
            ours = next(predictions)
            assert ours.prediction == TAGS[int(plain.argmax())]
            assert ours.score == pytest.approx(float(plain.max()), abs=1e-5)
            assert ours.probabilities == pytest.approx(plain.tolist(), abs=1e-5)


def test_an_entity_s_vector_is_the_mean_of_its_tokens(
    make_family: Family, sentences: list[corpora.Tagged]
) -> None:
    folder = make_family("roberta", "ForTokenClassification", TAGS)
    chosen = [words for words, _ in sentences[:80]]
    made = encoder(folder, "entities", prediction="head").encode(
        [sentence_of(words) for words in chosen]
    )
    row = 0
    for position, words in enumerate(chosen):
        hidden, numbers, output = plain_words(
            folder, words, AutoModelForTokenClassification
        )
        spread = output.logits[0].softmax(-1)
        firsts = [numbers.index(n) for n in range(len(words))]
        tags = [TAGS[int(spread[i].argmax())] for i in firsts]
        starts = [sum(len(w) + 1 for w in words[:n]) for n in range(len(words))]
        for unit, (kind, first, last) in enumerate(get_entities(tags)):
            own = [i for i, n in enumerate(numbers) if n in range(first, last + 1)]
            assert (made.inputs[row], made.units[row]) == (position, unit)
            assert made.spans is not None
            assert made.spans[row].tolist() == [
                starts[first],
                starts[last] + len(words[last]),
            ]
            np.testing.assert_allclose(
                made.vectors[row], hidden[own].mean(0).numpy(), atol=2e-5
            )
            score = np.mean([float(spread[i].max()) for i in firsts[first : last + 1]])
            assert made.predictions[row].prediction == kind
            assert made.predictions[row].score == pytest.approx(score, abs=1e-5)
            row += 1
    assert row == len(made.vectors) > 80


def test_only_classified_words_are_kept_unless_all_are_asked_for(
    make_family: Family, sentences: list[corpora.Tagged]
) -> None:
    folder = make_family("bert", "ForTokenClassification", TAGS)
    words = sentences[0][0]
    every = encoder(folder, {"keep": "all"}, prediction="head").encode(
        [sentence_of(words)]
    )
    outside = [n for n, p in enumerate(every.predictions) if p.prediction == "O"]
    assert 0 < len(outside) < len(words)
    labelled = replace(sentence_of(words), labelled_words=frozenset(outside[:1]))
    kept = encoder(folder, "words", prediction="head").encode([labelled])
    assert [*kept.units] == [
        n for n in range(len(words)) if n not in outside or n == outside[0]
    ]


def test_an_entity_is_kept_once_where_label_and_prediction_agree(
    make_family: Family, sentences: list[corpora.Tagged]
) -> None:
    folder = make_family("bert", "ForTokenClassification", TAGS)
    sentence = sentence_of(sentences[0][0])
    made = encoder(folder, "entities", prediction="head")
    predicted = made.encode([sentence])
    assert predicted.spans is not None
    spans = [tuple(span) for span in predicted.spans.tolist()]
    missed = (0, len(sentence.text))
    assert missed not in spans
    both = made.encode([replace(sentence, labelled_spans=(spans[0], missed))])
    assert both.spans is not None
    assert {tuple(s) for s in both.spans.tolist()} == {*spans, missed}
    place = [tuple(s) for s in both.spans.tolist()].index(missed)
    assert both.predictions[place].prediction == "O"
    assert 0 < both.predictions[place].score < 1
    outside = made.encode([replace(sentence, labelled_spans=((9000, 9005),))])
    assert outside.spans is not None
    assert len(outside.spans) == len(spans)


def test_words_beyond_the_model_s_length_are_read_in_overlapping_windows(
    make_family: Family,
) -> None:
    folder = make_family("bert")
    words = [f"{'very' if n % 3 else 'extraordinarily'}{n}" for n in range(300)]
    options = {"words": "mean", "keep": "all"}
    made = encoder(folder, options, 500, encoder={"max_length": 40}).encode(
        [sentence_of(words), sentence_of(words[:2])]
    )
    assert [*made.units] == [*range(300), 0, 1]
    assert made.truncated is None
    # each token once, where its context is widest on its narrower side
    ids = tokenizer_of(folder, split=True)(
        words, is_split_into_words=True, add_special_tokens=False
    )
    room, step = 38, 38 - 9
    starts = [*range(0, len(ids["input_ids"]) - room + step, step)]
    plain = []
    for start in starts:
        window = ids["input_ids"][start : start + room]
        with torch.inference_mode():
            hidden = _model(folder, AutoModel)(
                input_ids=torch.tensor([[101, *window, 102]])
            ).last_hidden_state[0, 1:-1]
        plain.append((start, hidden))
    numbers = ids.word_ids()
    for number in range(300):
        own = [i for i, n in enumerate(numbers) if n == number]
        states = [_widest(plain, i, len(numbers)) for i in own]
        np.testing.assert_allclose(
            made.vectors[number], torch.stack(states).mean(0).numpy(), atol=2e-5
        )


def _widest(
    windows: list[tuple[int, torch.Tensor]], token: int, count: int
) -> torch.Tensor:
    """The text's own ends are no want of context."""

    def context(start: int, length: int) -> int:
        before = token - start if start else count
        after = start + length - 1 - token if start + length < count else count
        return min(before, after)

    found = [
        (context(start, len(hidden)), hidden[token - start])
        for start, hidden in windows
        if start <= token < start + len(hidden)
    ]
    return max(found, key=lambda f: f[0])[1]


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_batch_mates_never_change_a_word(
    data: st.DataObject, make_family: Family, sentences: list[corpora.Tagged]
) -> None:
    folder = make_family_once(make_family)
    chosen = data.draw(
        st.lists(st.integers(0, len(sentences) - 1), min_size=1, max_size=12)
    )
    layers = data.draw(st.sampled_from(["last", -2, {"last": 2, "combine": "mean"}, 0]))
    tokens = data.draw(st.integers(1, 400))
    length = data.draw(st.sampled_from([16, 128]))
    made = encoder(
        folder,
        {"words": "mean", "keep": "all"},
        tokens,
        layers=layers,
        encoder={"max_length": length},
    )
    together = made.encode([sentence_of(sentences[i][0]) for i in chosen])
    alone = [made.encode([sentence_of(sentences[i][0])]).vectors for i in chosen]
    np.testing.assert_allclose(together.vectors, np.concatenate(alone), atol=2e-5)


_made: list[Path] = []


def make_family_once(make_family: Family) -> Path:
    if not _made:
        _made.append(make_family("bert"))
    return _made[0]


def test_a_text_without_words_has_no_vector(make_family: Family) -> None:
    folder = make_family_once(make_family)
    made = encoder(folder, {"keep": "all"})
    assert made.encode([Sentence(""), sentence_of([])]).vectors.shape == (0, 32)
    some = made.encode([Sentence(""), Sentence("one"), sentence_of([])])
    assert [*some.inputs] == [1]
    assert cosine(some.vectors, made.encode([Sentence("one")]).vectors) > 0.999999


def test_a_tokenizer_that_finds_no_words_asks_for_them(make_family: Family) -> None:
    folder = make_family("xlm-roberta")
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["pre_tokenizer"] = None
    file.write_text(json.dumps(content))
    made = encoder(folder, {"keep": "all"})
    assert len(made.encode([sentence_of(["one", "two"])]).vectors) == 2
    with pytest.raises(ModelError, match=r"give the words in the source, as text\[\]"):
        made.encode([Sentence("one two")])
