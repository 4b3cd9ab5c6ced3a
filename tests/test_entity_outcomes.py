"""Entities are counted as seqeval's strict mode counts them, day by day."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import pytest
from seqeval import metrics
from seqeval.scheme import IOB2, IOBES

from embedding_tasks import forgetting
from embedding_tasks.connections import Connection
from embedding_tasks.demo import corpora
from embedding_tasks.monitoring.labels import entities, outcomes
from embedding_tasks.monitoring.labels.entities import Entities
from embedding_tasks.monitoring.labels.outcomes import Selection
from embedding_tasks.monitoring.measured import Measured, Window
from embedding_tasks.store import versions
from embedding_tasks.store.versions import ModelVersion
from tests.fix_models import Family
from tests.fix_project import Project, sync
from tests.test_token_encoder import TAGS

FIRST, SECOND = date(2026, 1, 1), date(2026, 1, 2)
SENTENCES = 300
Tags = list[list[str]]


@dataclass(frozen=True)
class Tagged:
    project: Project
    store: Connection
    db: Connection

    @property
    def version(self) -> ModelVersion:
        return versions.live_by_name(self.store, "messages")[0]

    def refresh(self, *tags: str) -> list[date]:
        return entities.refresh(self.store, self.version, tags).changed

    def read(self, day: date | None = None) -> Entities:
        found = entities.read(self.store, self.version, Selection(day, day))
        return found[outcomes.ALL]

    def predict(self, tags: Tags) -> None:
        """In place of what the model said of each word."""
        self.store.cursor().executemany(
            "UPDATE embedline.prediction SET prediction = %s, predicted_at = now()"
            " WHERE key = %s AND unit = %s",
            [
                (tag, str(n), unit)
                for n, own in enumerate(tags)
                for unit, tag in enumerate(own)
            ],
        )


@pytest.fixture
def tagged(
    project: Project,
    store: Connection,
    db: Connection,
    make_family: Family,
    sentences: list[corpora.Tagged],
) -> Callable[..., Tagged]:
    """A use case over 300 tweets of two days, a tagger of their words."""

    def make(**changes: object) -> Tagged:
        db.execute(
            "CREATE TABLE sentences (id bigint PRIMARY KEY, words text[], tags text[],"
            " part text, at timestamptz)"
        )
        db.cursor().executemany(
            "INSERT INTO sentences VALUES (%s, %s, %s, %s, %s)",
            [
                (n, words, tags, f"part {n % 2}", SECOND if n >= 200 else FIRST)
                for n, (words, tags) in enumerate(sentences[:SENTENCES])
            ],
        )
        db.execute("UPDATE sentences SET at = at + interval '12 hours'")
        project.use_case(
            source={
                "table": "sentences",
                "input": "words",
                "event_time": "at",
                "tags": ["part"],
                "delete_guard": {"rows": 1000},
            },
            encoder={"model": str(make_family("bert", "ForTokenClassification", TAGS))},
            prediction="head",
            label={"column": "tags"},
            pooling={"keep": "all"},
        )
        project.use_case(**changes)
        project.run()
        return Tagged(project, store, db)

    return make


def noisy(labels: Tags, seed: int = 1) -> Tags:
    """A fifth of the tags are any others, so that many an I has no B."""
    rng = np.random.default_rng(seed)
    every = sorted({tag for own in labels for tag in own})
    return [
        [str(rng.choice(every)) if rng.random() < 0.2 else tag for tag in own]
        for own in labels
    ]


def assert_as_seqeval(own: Entities, labels: Tags, said: Tags, scheme: type) -> None:
    options = {"mode": "strict", "scheme": scheme, "zero_division": 0}
    precision, recall, f1 = entities.scores(own.counts)
    assert precision == pytest.approx(
        metrics.precision_score(labels, said, **options), abs=1e-9
    )
    assert recall == pytest.approx(
        metrics.recall_score(labels, said, **options), abs=1e-9
    )
    assert f1 == pytest.approx(metrics.f1_score(labels, said, **options), abs=1e-9)
    report = metrics.classification_report(labels, said, output_dict=True, **options)
    report = {name: r for name, r in report.items() if not name.endswith(" avg")}
    assert own.by_type.keys() == report.keys()
    for name, counts in own.by_type.items():
        wanted = [report[name][m] for m in ("precision", "recall", "f1-score")]
        np.testing.assert_allclose(entities.scores(counts), wanted, atol=1e-9)
        assert counts[0] + counts[2] == report[name]["support"]


def labels_of(sentences: Sequence[corpora.Tagged]) -> Tags:
    return [tags for _, tags in sentences[:SENTENCES]]


def test_precision_recall_and_f1_are_seqevals_in_strict_mode(
    tagged: Callable[..., Tagged], sentences: list[corpora.Tagged]
) -> None:
    use_case, labels = tagged(), labels_of(sentences)
    said = noisy(labels)
    use_case.predict(said)
    assert use_case.refresh("part") == [FIRST, SECOND]
    assert use_case.read().counts.min() > 20
    assert_as_seqeval(use_case.read(), labels, said, IOB2)
    assert_as_seqeval(use_case.read(SECOND), labels[200:], said[200:], IOB2)
    odd = entities.read(use_case.store, use_case.version, Selection())["part=part 1"]
    assert_as_seqeval(odd, labels[1::2], said[1::2], IOB2)


def test_words_that_nobody_kept_are_outside(
    tagged: Callable[..., Tagged], sentences: list[corpora.Tagged]
) -> None:
    """What the tagger itself says, of a store that keeps what is classified."""
    use_case = tagged(pooling={"keep": "classified"})
    use_case.refresh()
    said = [["O"] * len(words) for words, _ in sentences[:SENTENCES]]
    for key, unit, tag in use_case.store.execute(
        "SELECT key, unit, prediction FROM embedline.prediction"
    ):
        said[int(key)][unit] = tag
    # of records of which nothing is kept there is nothing to count
    assert_as_seqeval(use_case.read(), labels_of(sentences), said, IOB2)


def iobes(tags: list[str]) -> list[str]:
    made = []
    for tag, following in zip(tags, [*tags[1:], "O"], strict=True):
        ends = not following.startswith("I-")
        if tag.startswith("B-") and ends:
            tag = "S" + tag[1:]
        elif tag.startswith("I-") and ends:
            tag = "E" + tag[1:]
        made.append(tag)
    return made


def test_tags_with_an_end_are_read_by_their_own_scheme(
    tagged: Callable[..., Tagged], sentences: list[corpora.Tagged]
) -> None:
    use_case = tagged()
    labels = [iobes(tags) for tags in labels_of(sentences)]
    said = noisy(labels, seed=2)
    use_case.db.cursor().executemany(
        "UPDATE sentences SET tags = %s WHERE id = %s",
        [(own, n) for n, own in enumerate(labels)],
    )
    sync(use_case.project)
    use_case.store.execute(
        "UPDATE embedline.model_version SET classes = '{O,B-x,I-x,E-x,S-x}'"
    )
    use_case.predict(said)
    use_case.refresh()
    assert_as_seqeval(use_case.read(), labels, said, IOBES)


def test_entities_of_characters_are_counted_by_place_and_type(
    tagged: Callable[..., Tagged],
) -> None:
    use_case = tagged(pooling="entities")
    use_case.refresh()
    store = use_case.store
    said = set(
        store.execute(
            "SELECT key, span, prediction FROM embeddings.messages"
            " WHERE prediction <> 'O'"
        ).fetchall()
    )
    store.execute(
        "UPDATE embedline.label l SET label = p.prediction FROM embeddings.messages p"
        " WHERE p.key = l.key AND p.span = l.span AND p.prediction <> 'O'"
    )
    use_case.refresh()
    labels = set(
        store.execute(
            "SELECT key, span, label FROM embedline.label WHERE unit >= 0"
        ).fetchall()
    )
    wanted = [len(said & labels), len(said - labels), len(labels - said)]
    assert wanted[1] > 0
    assert wanted[2] > 0
    assert use_case.read().counts.tolist() == wanted


def test_a_record_without_a_label_says_nothing_is_wrong(
    tagged: Callable[..., Tagged], sentences: list[corpora.Tagged]
) -> None:
    use_case = tagged()
    use_case.db.execute("UPDATE sentences SET tags = NULL WHERE id % 2 = 0")
    sync(use_case.project)
    labels = labels_of(sentences)
    said = noisy(labels)
    use_case.predict(said)
    use_case.refresh()
    found = use_case.read()
    assert (found.records, found.labelled) == (300, 150)
    assert_as_seqeval(found, labels[1::2], said[1::2], IOB2)


def test_a_label_that_moves_counts_only_its_own_day_anew(
    tagged: Callable[..., Tagged], sentences: list[corpora.Tagged]
) -> None:
    use_case, labels = tagged(), labels_of(sentences)
    use_case.refresh()
    assert use_case.refresh() == []
    words = len(labels[250])
    for tags in (["B-person"] * words, None, labels[250]):
        use_case.db.execute("UPDATE sentences SET tags = %s WHERE id = 250", [tags])
        sync(use_case.project)
        assert use_case.refresh() == [SECOND]


def test_labels_in_any_order_count_the_same(tagged: Callable[..., Tagged]) -> None:
    use_case = tagged()
    use_case.refresh("part")
    counts = (
        "SELECT day, environment, tag, value, type, records, labelled, found, wrong,"
        " missed FROM embedline.entity_outcome"
    )
    in_time = set(use_case.store.execute(counts).fetchall())
    use_case.db.execute("CREATE TABLE given AS SELECT id, tags FROM sentences")
    use_case.db.execute("UPDATE sentences SET tags = NULL")
    sync(use_case.project)
    use_case.refresh("part")
    assert use_case.read().labelled == 0
    for part in range(3):
        use_case.db.execute(
            "UPDATE sentences s SET tags = g.tags FROM given g"
            " WHERE g.id = s.id AND s.id * 7 %% 3 = %s",
            [part],
        )
        sync(use_case.project)
        use_case.refresh("part")
    assert set(use_case.store.execute(counts).fetchall()) == in_time


def test_a_tagger_that_gets_worse_is_told_by_its_f1(
    tagged: Callable[..., Tagged], sentences: list[corpora.Tagged]
) -> None:
    use_case, labels = tagged(), labels_of(sentences)
    use_case.predict([*labels[:200], *noisy(labels[200:])])
    use_case.refresh()

    def measured(least_rows: int) -> dict[str, Measured]:
        window = Window(SECOND, SECOND)
        found = entities.measure(
            *(use_case.store, use_case.version, window, Selection.of(window)),
            *(Selection(FIRST, FIRST),),
            least_rows=least_rows,
        )
        return {m.metric: m for m in found if m.slice == ""}

    f1 = measured(100)["entity_f1"]
    assert f1.value is not None
    assert f1.low is not None
    assert f1.high is not None
    assert f1.p_value is not None
    assert f1.low < f1.value < f1.high
    assert f1.excess == pytest.approx(1 - f1.value)
    assert f1.p_value < 0.001
    assert f1.detail["coverage"] == 1
    assert measured(101)["entity_f1"].p_value is None
    assert measured(100)["label_coverage"].value == 1


def test_no_count_holds_a_forgotten_record(
    tagged: Callable[..., Tagged], sentences: list[corpora.Tagged]
) -> None:
    use_case, labels = tagged(), labels_of(sentences)
    use_case.predict(noisy(labels))
    use_case.refresh()
    forgetting.forget(use_case.store, use_case.version.use_case, "250")
    left = use_case.store.execute("SELECT count(*) FROM embedline.entity_outcome")
    assert left.fetchone() == (0,)
    assert use_case.refresh() == [FIRST, SECOND]
    assert use_case.read().records == 299
