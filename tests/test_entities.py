"""Words and entities in the store: their labels, their places, and what moves them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from psycopg.types.json import Jsonb
from seqeval.metrics import f1_score
from seqeval.metrics.sequence_labeling import get_entities

from embedding_tasks import lane_io, search
from embedding_tasks.connections import Connection
from embedding_tasks.demo import corpora
from embedding_tasks.errors import SearchError, SourceError
from tests.fix_models import Family
from tests.fix_project import Project, sync, vector_versions
from tests.test_token_encoder import TAGS

SENTENCES = """
CREATE TABLE sentences (
    id    bigint PRIMARY KEY,
    words text[],
    body  text GENERATED ALWAYS AS (embed_join(words)) STORED,
    tags  text[],
    spans jsonb
)
"""
JOIN = """
CREATE FUNCTION embed_join(text[]) RETURNS text LANGUAGE sql IMMUTABLE
RETURN array_to_string($1, ' ')
"""


@pytest.fixture
def tagger(make_family: Family) -> str:
    return str(make_family("bert", "ForTokenClassification", TAGS))


@pytest.fixture
def tagged(project: Project, db: Connection, tagger: str) -> Callable[..., Project]:
    """A use case over sentences, with a tagger's own predictions."""

    def make(**changes: Any) -> Project:
        project.use_case(
            source={"table": "sentences", "input": "words", "event_time": None},
            encoder={"model": tagger},
            prediction="head",
        )
        project.use_case(**changes)
        return project

    db.execute(JOIN)
    db.execute(SENTENCES)
    return make


def write(
    db: Connection, sentences: list[corpora.Tagged], *, tags: bool = True
) -> None:
    with db.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO sentences (id, words, tags) VALUES (%s, %s, %s)",
            [(n, w, t if tags else None) for n, (w, t) in enumerate(sentences)],
        )


def rows(store: Connection, columns: str, where: str = "true") -> list[tuple[Any, ...]]:
    return store.execute(
        f"SELECT {columns} FROM embeddings.messages WHERE {where}"
        " ORDER BY key::int, unit"
    ).fetchall()


def test_every_row_shows_its_word_its_place_and_both_tags(
    tagged: Callable[..., Project],
    db: Connection,
    store: Connection,
    sentences: list[corpora.Tagged],
) -> None:
    project = tagged(pooling={"keep": "all"}, label={"column": "tags"})
    chosen = sentences[:50]
    write(db, chosen)
    project.run()
    found = rows(store, "key, unit, text, label, data, prediction IS NOT NULL")
    wanted = [
        (str(n), unit, word, tag, " ".join(words), True)
        for n, (words, tags) in enumerate(chosen)
        for unit, (word, tag) in enumerate(zip(words, tags, strict=True))
    ]
    assert found == wanted
    ((context,),) = rows(store, "context", "key = '0' AND unit = 7")
    around = "It 's the view from where [I] 'm living for two weeks ."
    assert context == f"@paulwalk {around} Empire State …"


def test_entity_f1_from_sql_equals_seqeval_on_the_raw_data(
    tagged: Callable[..., Project],
    db: Connection,
    store: Connection,
    sentences: list[corpora.Tagged],
) -> None:
    project = tagged(pooling={"keep": "all"}, label={"column": "tags"})
    chosen = sentences[:120]
    write(db, chosen)
    project.run()
    raw: dict[str, list[str]] = {}
    for key, prediction in rows(store, "key, prediction"):
        raw.setdefault(key, []).append(prediction)
    wanted = f1_score([tags for _, tags in chosen], [*raw.values()])
    project.use_case(pooling={"keep": "classified"})
    project.run()
    classified = rows(store, "key, unit, prediction, label")
    assert len(classified) < sum(len(words) for words, _ in chosen)
    predicted = [["O"] * len(words) for words, _ in chosen]
    labelled = [["O"] * len(words) for words, _ in chosen]
    for key, unit, prediction, label in classified:
        predicted[int(key)][unit] = prediction
        labelled[int(key)][unit] = label
    assert labelled == [tags for _, tags in chosen]
    assert f1_score(labelled, predicted) == pytest.approx(wanted, abs=1e-12)


def test_labels_given_by_characters_are_aligned_to_words(
    tagged: Callable[..., Project], db: Connection, store: Connection
) -> None:
    project = tagged(
        source={"input": "body"},
        pooling={"keep": "all"},
        label={"column": "spans"},
    )
    write(db, [(["Ada", "Lovelace", "met", "Émile", "in", "São", "Paulo."], [])])
    text = "Ada Lovelace met Émile in São Paulo."

    def span(words: str, label: str, grow: int = 0) -> dict[str, Any]:
        start = text.index(words)
        return {"start": start, "end": start + len(words) + grow, "label": label}

    db.execute(
        "UPDATE sentences SET spans = %s",
        [
            Jsonb(
                [
                    span("Ada Lovelace", "person", grow=1),  # the space after it, too
                    span("Émile", "person"),
                    span("São Paulo", "geo-loc"),
                    {"start": 5, "end": 2, "label": "backwards"},
                    {"start": "x", "end": 2, "label": "no number"},
                    {"start": 1},
                    7,
                ]
            )
        ],
    )
    project.run()
    assert rows(store, "text, label") == [
        ("Ada", "B-person"),
        ("Lovelace", "I-person"),
        ("met", "O"),
        ("Émile", "B-person"),
        ("in", "O"),
        ("São", "B-geo-loc"),
        ("Paulo", "I-geo-loc"),
        (".", "O"),
    ]


def test_a_record_that_shrinks_from_five_entities_to_three_leaves_three_rows(
    tagged: Callable[..., Project], db: Connection, store: Connection
) -> None:
    project = tagged(
        source={"input": "body"},
        prediction="none",
        pooling="entities",
        label={"column": "spans"},
    )
    spans = [{"start": 4 * n, "end": 4 * n + 3, "label": "x"} for n in range(5)]
    write(db, [(["aaa", "bbb", "ccc", "ddd", "eee"], []), (["fff"], [])])
    db.execute("UPDATE sentences SET spans = %s WHERE id = 0", [Jsonb(spans)])
    db.execute("UPDATE sentences SET spans = %s WHERE id = 1", [Jsonb(spans[:1])])
    project.run()
    texts = ["aaa", "bbb", "ccc", "ddd", "eee", "fff"]
    assert [t for (t,) in rows(store, "text")] == texts
    db.execute(
        "UPDATE sentences SET words = '{aaa,bbb,ccc}', spans = %s WHERE id = 0",
        [Jsonb(spans[:3])],
    )
    project.run()
    assert rows(store, "unit, text, label", "key = '0'") == [
        (0, "aaa", "x"),
        (1, "bbb", "x"),
        (2, "ccc", "x"),
    ]
    for table in ("vector_messages_v1", "label"):
        count = store.execute(
            f"SELECT count(*) FROM embedline.{table} WHERE key = '0' AND unit >= 0"
        )
        assert count.fetchone() == (3,)


def test_a_late_label_makes_a_vector_only_where_there_was_none(
    tagged: Callable[..., Project],
    db: Connection,
    store: Connection,
    sentences: list[corpora.Tagged],
) -> None:
    project = tagged(pooling="words", label={"column": "tags"})
    chosen = sentences[:40]
    write(db, chosen, tags=False)
    project.run()
    predicted: dict[int, dict[int, str]] = {n: {} for n in range(40)}
    for key, unit, prediction, label in rows(store, "key, unit, prediction, label"):
        assert label is None
        predicted[int(key)][unit] = prediction
    before = vector_versions(store)
    # labels that say just what was predicted
    for n in range(20):
        tags = [predicted[n].get(unit, "O") for unit in range(len(chosen[n][0]))]
        db.execute("UPDATE sentences SET tags = %s WHERE id = %s", [tags, n])
    assert sync(project)["labels"] == 20
    assert project.run().get("embedded", 0) == 0
    assert vector_versions(store) == before
    assert not rows(store, "key", "key::int < 20 AND prediction <> label")
    # a label for a word that nobody had classified
    quiet = next(n for n in range(20, 40) if len(predicted[n]) < len(chosen[n][0]))
    words = chosen[quiet][0]
    missed = next(u for u in range(len(words)) if u not in predicted[quiet])
    tags = ["B-person" if u == missed else "O" for u in range(len(words))]
    db.execute("UPDATE sentences SET tags = %s WHERE id = %s", [tags, quiet])
    assert project.run()["embedded"] == 1
    assert rows(store, "unit, prediction, label", f"key = '{quiet}'") == sorted(
        [(missed, "O", "B-person")]
        + [(unit, tag, "O") for unit, tag in predicted[quiet].items()]
    )
    # and withdrawn again: the word is nobody's, and leaves without being embedded
    db.execute(
        "UPDATE sentences SET tags = %s WHERE id = %s", [["O"] * len(words), quiet]
    )
    assert project.run().get("embedded", 0) == 0
    assert rows(store, "unit", f"key = '{quiet}'") == [
        (unit,) for unit in sorted(predicted[quiet])
    ]
    db.execute("UPDATE sentences SET tags = NULL WHERE id = %s", [quiet])
    project.run()
    assert {label for (label,) in rows(store, "label", f"key = '{quiet}'")} == {None}


@pytest.mark.parametrize("pooling", ["words", "entities"])
def test_a_label_that_comes_while_its_record_is_embedded_is_not_missed(
    pooling: str,
    tagged: Callable[..., Project],
    db: Connection,
    store: Connection,
    sentences: list[corpora.Tagged],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = tagged(
        source={"input": "body"}, pooling=pooling, label={"column": "spans"}
    )
    write(db, sentences[:3], tags=False)
    write_batch = lane_io.write
    whole = [{"start": 0, "end": 30, "label": "person"}]
    came = []

    def write_late(*arguments: Any) -> Any:
        if not came:
            came.append(True)
            db.execute("UPDATE sentences SET spans = %s", [json.dumps(whole)])
            sync(project)
        return write_batch(*arguments)

    monkeypatch.setattr(lane_io, "write", write_late)
    project.run()
    found = rows(store, "span, label", "label LIKE '%person'")
    assert {label for _, label in found} >= (
        {"person"} if pooling == "entities" else {"B-person", "I-person"}
    )
    if pooling == "words":
        covered = store.execute(
            "SELECT bool_and(count = last - first + 1) FROM (SELECT count(*),"
            " min(unit) AS first, max(unit) AS last FROM embeddings.messages"
            " WHERE span && '[0,30)' GROUP BY key) AS c"
        )
        assert covered.fetchone() == (True,)


def test_entities_are_found_in_tags_given_to_words(
    tagged: Callable[..., Project],
    db: Connection,
    store: Connection,
    sentences: list[corpora.Tagged],
) -> None:
    project = tagged(pooling="entities", label={"column": "tags"})
    chosen = [s for s in sentences if any(t.startswith("I-") for t in s[1])][:20]
    write(db, chosen)
    project.run()
    found = rows(store, "key, text, label", "label <> 'O'")
    wanted = [
        (str(n), " ".join(words[first : last + 1]), kind)
        for n, (words, tags) in enumerate(chosen)
        for kind, first, last in get_entities(tags)
    ]
    assert found == wanted


def test_a_label_column_that_cannot_be_read_is_refused_with_what_is_valid(
    tagged: Callable[..., Project], db: Connection
) -> None:
    write(db, [(["a"], ["O"])])
    project = tagged(pooling="words", label={"column": "body"})
    with pytest.raises(SourceError, match=r"text\[\], or json with tags"):
        project.run()
    project.use_case(
        source={"input": "body"}, pooling="entities", label={"column": "tags"}
    )
    with pytest.raises(SourceError, match="tags need the words they are given to"):
        project.run()


def test_a_word_can_be_searched_by_and_found_as_a_word(
    tagged: Callable[..., Project],
    db: Connection,
    store: Connection,
    sentences: list[corpora.Tagged],
) -> None:
    project = tagged(pooling={"words": "mean", "keep": "all"})
    write(db, sentences[:30])
    project.run()
    near = search.by_key(store, "messages", "0", 3, unit=7)
    assert len(near) == 3
    assert all(row["text"] for row in near)
    assert search.by_text(store, "messages", "London", 2)[0]["text"]


@pytest.mark.parametrize(
    "bad",
    [
        r'[{"start": 0, "end": 3, "label": "\ud800"}]',
        r'[{"start": 1e999999, "end": 3, "label": "x"}]',
        r'[{"start": 0, "end": 3, "label": "\\u0000"}]',
        r'[{"start": 0, "end": 3, "label": "\u0000"}]',
        '{"start": 0}',
    ],
)
def test_a_label_that_cannot_be_read_costs_no_other_record(
    bad: str, tagged: Callable[..., Project], db: Connection, store: Connection
) -> None:
    project = tagged(
        source={"input": "body"}, pooling={"keep": "all"}, label={"column": "j"}
    )
    db.execute("ALTER TABLE sentences ADD j json")
    write(db, [(["aaa", "bbb"], []), (["ccc"], [])])
    good = json.dumps([{"start": 0, "end": 3, "label": "x"}])
    db.execute("UPDATE sentences SET j = %s WHERE id = 0", [good])
    db.execute("UPDATE sentences SET j = %s::text::json WHERE id = 1", [bad])
    project.run()
    assert rows(store, "text, label", "key = '0'") == [("aaa", "B-x"), ("bbb", "O")]
    assert len(rows(store, "text", "key = '1'")) == 1


def test_a_word_may_look_like_an_escape(
    tagged: Callable[..., Project], db: Connection, store: Connection
) -> None:
    project = tagged(pooling={"keep": "all"}, label={"column": "tags"})
    write(db, [(["x", r"\u0000"], ["O", "B-person"])])
    project.run()
    assert rows(store, "text, label") == [("x", "O"), (r"\u0000", "B-person")]


@pytest.mark.parametrize("pooling", ["words", "entities"])
def test_without_a_head_a_withdrawn_label_takes_its_vector_along(
    pooling: str, tagged: Callable[..., Project], db: Connection, store: Connection
) -> None:
    project = tagged(
        source={"input": "body"},
        prediction="none",
        pooling=pooling,
        label={"column": "spans"},
    )
    write(db, [(["aaa", "bbb"], [])])
    spans = [{"start": 4 * n, "end": 4 * n + 3, "label": "x"} for n in range(2)]
    db.execute("UPDATE sentences SET spans = %s", [Jsonb(spans)])
    project.run()
    assert rows(store, "text") == [("aaa",), ("bbb",)]
    db.execute("UPDATE sentences SET spans = %s", [Jsonb(spans[:1])])
    assert project.run().get("embedded", 0) == 0
    assert rows(store, "text") == [("aaa",)]


def test_labels_that_the_use_case_no_longer_names_take_their_vectors_along(
    tagged: Callable[..., Project],
    db: Connection,
    store: Connection,
    sentences: list[corpora.Tagged],
) -> None:
    project = tagged(pooling="words", label={"column": "tags"})
    write(db, sentences[:20])
    project.run()
    project.use_case(label=None)
    project.run()
    assert not rows(store, "key", "prediction = 'O' OR label IS NOT NULL")


def test_a_label_table_is_read_anew_when_words_take_the_place_of_records(
    tagged: Callable[..., Project], db: Connection, store: Connection
) -> None:
    db.execute("CREATE TABLE marks (id bigint PRIMARY KEY, spans jsonb)")
    project = tagged(
        source={"input": "body"},
        prediction="none",
        label={"table": "marks", "key": "id", "label": "spans"},
    )
    write(db, [(["aaa", "bbb"], [])])
    spans = [{"start": 4, "end": 7, "label": "x"}]
    db.execute("INSERT INTO marks VALUES (0, %s)", [Jsonb(spans)])
    project.run()
    project.use_case(pooling={"keep": "all"})
    project.run()
    assert rows(store, "text, label") == [("aaa", "O"), ("bbb", "B-x")]


@pytest.mark.parametrize("type_", ["varchar(20)[]", "wordlist", "char(3)[]"])
def test_every_array_of_texts_is_one_of_words(
    type_: str, tagged: Callable[..., Project], db: Connection, store: Connection
) -> None:
    db.execute("CREATE DOMAIN wordlist AS text[]")
    db.execute(f"ALTER TABLE sentences ADD w {type_}")
    project = tagged(source={"input": "w"}, pooling={"keep": "all"})
    db.execute("INSERT INTO sentences (id, w) VALUES (0, '{aaa,bbb}')")
    project.run()
    assert rows(store, "text") == [("aaa",), ("bbb",)]


def test_another_name_for_what_is_labelled_touches_no_vector(
    tagged: Callable[..., Project], db: Connection, store: Connection
) -> None:
    project = tagged(
        source={"input": "body"}, pooling="words", label={"column": "spans"}
    )
    write(db, [(["aaa", "bbb", "ccc"], [])])
    for label in ("x", "y"):
        span = {"start": 0, "end": 4, "label": label}  # the space, too
        db.execute("UPDATE sentences SET spans = %s", [Jsonb([span])])
        before = vector_versions(store) if label == "y" else set()
        project.run()
    assert vector_versions(store) == before
    assert ("aaa", "B-y") in rows(store, "text, label")


def test_words_beside_other_columns_are_refused(
    tagged: Callable[..., Project], db: Connection
) -> None:
    project = tagged(source={"input": ["words", "body"]}, pooling={"keep": "all"})
    with pytest.raises(SourceError, match="words are counted in one column"):
        project.run()


@pytest.mark.parametrize("pooling", ["words", "entities"])
def test_a_search_is_by_the_whole_text(
    pooling: str,
    tagged: Callable[..., Project],
    db: Connection,
    store: Connection,
    sentences: list[corpora.Tagged],
) -> None:
    project = tagged(pooling=pooling)
    write(db, sentences[:30])
    project.run()
    text = " ".join(sentences[0][0][:4])
    assert search.by_text(store, "messages", text, 3)
    for nothing in ("", " "):
        with pytest.raises(SearchError, match="nothing to search by"):
            search.by_text(store, "messages", nothing)
