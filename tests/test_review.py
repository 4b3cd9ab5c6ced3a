"""Wrong labels are found, conflicts are told, what somebody dismissed stays away."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np
import pytest
from psycopg import sql

from embedding_tasks import forgetting
from embedding_tasks.connections import Connection
from embedding_tasks.errors import StoreError
from embedding_tasks.monitoring.measured import Window
from embedding_tasks.monitoring.quality import label_quality, neighbors, review
from embedding_tasks.store import versions
from embedding_tasks.store.versions import ModelVersion
from tests import labelled_store
from tests.fix_project import Project
from tests.labelled_store import digits, flipped, key_of

DAY = Window(date(2026, 3, 1), date(2026, 3, 1))
FIRST = Window(date(2026, 1, 1), date(2026, 1, 1))


def listed(store: Connection, kind: str) -> list[str]:
    rows = store.execute(
        "SELECT key FROM embedline.review WHERE kind = %s ORDER BY rank", [kind]
    )
    return [key for (key,) in rows]


def precision_and_recall(found: list[str], wrong: np.ndarray) -> tuple[float, float]:
    """Among the first 100, and of all that were planted."""
    planted = {key_of(int(n)) for n in np.flatnonzero(wrong)}
    return len(planted & {*found[:100]}) / 100, len(planted & {*found}) / len(planted)


def test_planted_label_errors_are_found_by_neighbors_alone(store: Connection) -> None:
    vectors, labels = digits()
    noisy, wrong = flipped(labels, 0.1)
    version = labelled_store.make(store, vectors, noisy)
    review.refresh(store, version)
    precision, recall = precision_and_recall(listed(store, "label"), wrong)
    assert precision >= 0.9
    assert recall >= 0.75
    right = dict(zip(map(key_of, range(len(labels))), labels, strict=True))
    told = store.execute(
        "SELECT key, suggested_label FROM embedline.review WHERE kind = 'label'"
        " AND rank <= 100"
    ).fetchall()
    assert sum(right[key] == suggested for key, suggested in told) >= 85


def test_a_head_that_has_learned_the_errors_makes_the_list_no_worse(
    store: Connection,
) -> None:
    from sklearn.linear_model import LogisticRegression

    vectors, labels = digits()
    noisy, wrong = flipped(labels, 0.1)
    head = LogisticRegression(max_iter=300).fit(vectors, noisy)
    classes = [str(label) for label in head.classes_]
    order = np.random.default_rng(1).permutation(len(classes))  # not the labels' own
    version = labelled_store.make(
        store,
        vectors,
        noisy,
        classes=[classes[n] for n in order],
        probabilities=head.predict_proba(vectors)[:, order],
    )
    labelled = label_quality.read(store, version)
    assert len(labelled.probabilities) == len(labels)
    found = sorted(label_quality.suspects(labelled), key=lambda flag: -flag.score)
    precision, recall = precision_and_recall([flag.key for flag in found], wrong)
    assert precision >= 0.93
    assert recall >= 0.75
    assert found[0].detail["model"] is not None


def test_a_label_that_the_head_does_not_know_is_the_neighbors_alone_to_judge(
    store: Connection,
) -> None:
    """Else every record of a new class would be suspected."""
    vectors, labels = digits()
    known = [str(digit) for digit in range(9)]
    probabilities = np.full((len(labels), 9), 1 / 9)
    version = labelled_store.make(
        store, vectors, labels, classes=known, probabilities=probabilities
    )
    flags = label_quality.suspects(label_quality.read(store, version))
    nines = [flag for flag in flags if flag.detail["label"] == "9"]
    assert len(nines) < 0.2 * labels.count("9")
    assert all(flag.detail["model"] is None for flag in nines)


def test_probabilities_that_are_none_and_classes_nobody_has_do_no_harm(
    store: Connection,
) -> None:
    vectors, labels = digits()
    vectors, labels = vectors[:300], labels[:300]
    classes = ["unheard of", *sorted({*labels})]
    probabilities = np.full((300, len(classes)), 1 / len(classes))
    probabilities[0] = np.nan
    probabilities[1] = 0
    version = labelled_store.make(
        store, vectors, labels, classes=classes, probabilities=probabilities
    )
    flags = label_quality.suspects(label_quality.read(store, version))
    assert all(np.isfinite(flag.score) for flag in flags)
    assert "unheard of" not in {flag.detail["suggested"] for flag in flags}


@pytest.mark.parametrize("distance", ["cosine", "l2", "inner_product"])
def test_neighbors_by_products_are_those_that_the_server_finds(
    store: Connection, distance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, labels = digits()
    vectors, some = vectors[:400], [*labels[:350], *[None] * 50]
    version = labelled_store.make(store, vectors, some, distance=distance)
    exact = label_quality.read(store, version, k=5).near
    add_index(store, version)
    monkeypatch.setattr(neighbors, "EXACT", 0)
    by_index = label_quality.read(store, version, k=5).near
    assert exact.rows.shape == by_index.rows.shape == (350, 5)
    same = (exact.rows == by_index.rows).mean()
    assert same > 0.97  # the index is approximate
    agreed = exact.rows == by_index.rows
    np.testing.assert_allclose(
        exact.distances[agreed], by_index.distances[agreed], atol=1e-4
    )


def add_index(store: Connection, version: ModelVersion) -> None:
    kinds = {"cosine": "cosine", "l2": "l2", "inner_product": "ip"}
    store.execute(
        sql.SQL("CREATE INDEX ON {} USING hnsw (embedding {})").format(
            version.table,
            sql.Identifier("public", f"vector_{kinds[version.distance]}_ops"),
        )
    )
    store.execute("ANALYZE")


def test_too_many_to_compare_without_an_index_say_what_to_do(
    store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, labels = digits()
    version = labelled_store.make(store, vectors[:50], labels[:50])
    monkeypatch.setattr(neighbors, "EXACT", 10)
    monkeypatch.setattr(neighbors, "MOST_EXACT", 40)
    with pytest.raises(StoreError, match="50 labelled vectors and no index"):
        review.refresh(store, version)
    assert listed(store, "label") == []


@pytest.mark.parametrize("labels", [["a", "b"], ["a", "b", "b"], [*"abcdefgh"] * 2])
def test_few_labels_are_no_trouble(store: Connection, labels: list[str]) -> None:
    version = labelled_store.make(store, digits()[0][: len(labels)], labels)
    found = review.refresh(store, version)
    assert found["label"] <= len(labels)


def test_more_classes_than_can_be_judged_are_said_to_be(
    store: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = np.random.default_rng(0).normal(size=(1001, 4))
    version = labelled_store.make(store, vectors, [f"class {n}" for n in range(1001)])
    assert review.refresh(store, version)["label"] == 0
    assert "1001 labels of 1001 classes" in caplog.text


@pytest.mark.parametrize("labels", [[None] * 30, ["a"] * 30, ["a", *[None] * 29]])
def test_labels_that_cannot_contradict_each_other_are_not_suspected(
    store: Connection, labels: list[str | None]
) -> None:
    version = labelled_store.make(store, digits()[0][:30], labels)
    assert review.refresh(store, version) == dict.fromkeys(review.KINDS, 0)


def test_a_list_that_is_made_again_writes_nothing(store: Connection) -> None:
    vectors, labels = digits()
    version = labelled_store.make(store, vectors, flipped(labels, 0.1)[0])
    review.refresh(store, version)
    first = store.execute("SELECT ctid, f FROM embedline.flag f ORDER BY 1").fetchall()
    review.refresh(store, version)
    again = store.execute("SELECT ctid, f FROM embedline.flag f ORDER BY 1").fetchall()
    assert first == again != []


def test_flags_of_other_checks_stay(store: Connection) -> None:
    version = labelled_store.make(store, digits()[0][:30], digits()[1][:30])
    store.execute(
        "INSERT INTO embedline.flag (model_version, key, unit, kind, day, score)"
        " VALUES (%s, %s, 0, 'novel', '2026-03-01', 2)",
        [version.id, key_of(3)],
    )
    review.refresh(store, version)
    assert listed(store, "novel") == [key_of(3)]


def test_shares_are_of_the_window_and_have_intervals(store: Connection) -> None:
    vectors, labels = digits()
    noisy, _ = flipped(labels[:500], 0.1)
    texts = ["  \n", *["some words"] * 499]
    version = labelled_store.make(store, vectors[:500], [None, *noisy[1:]], texts=texts)
    found = review.refresh(store, version)
    measured = {one.metric: one for one in review.measure(store, version, DAY)}
    assert measured["label"].rows == 499
    assert measured["label"].value == found["label"] / 499
    assert measured["label"].low < measured["label"].value < measured["label"].high
    assert (measured["empty"].rows, measured["empty"].value) == (500, 1 / 500)
    assert measured["truncated"].rows == 0
    assert measured["truncated"].value is None
    other = {one.rows for one in review.measure(store, version, FIRST)}
    assert other == {0}


def test_inputs_of_words_the_encoder_does_not_know_are_told(store: Connection) -> None:
    version = labelled_store.make(
        store, digits()[0][:40], [None] * 40, texts=["words"] * 40
    )
    store.execute("UPDATE embedline.input SET unknown_words = key::int / 40.0")
    found = {one.metric for one in review.measure(store, version, DAY)}
    assert "unknown_words" not in found
    store.execute(
        "UPDATE embedline.model_version"
        " SET spec = jsonb_set(spec, '{encoder,type}', '\"words\"')"
    )
    version = versions.active(store, "things")
    assert review.refresh(store, version)["unknown_words"] == 20
    worst_first = [key_of(number) for number in range(39, 19, -1)]
    assert listed(store, "unknown_words") == worst_first
    measured = {one.metric: one for one in review.measure(store, version, DAY)}
    assert measured["unknown_words"].value == pytest.approx(19.5 / 40)
    assert measured["unknown_words"].rows == 40


# What follows runs a whole use case.


@pytest.fixture
def twins(full_use_case: Project, db: Connection) -> Project:
    """Messages 1 and 2 are one text with two labels; 4 has no words."""
    full_use_case.run()
    db.execute("UPDATE messages SET body = 'the same text' WHERE id IN (1, 2)")
    db.execute("UPDATE messages SET body = '   ' WHERE id = 4")
    db.execute("DELETE FROM verdicts WHERE id IN (1, 2)")
    db.execute("INSERT INTO verdicts VALUES (1, 'spam'), (2, 'ham')")
    full_use_case.run()
    return full_use_case


def reviewed(store: Connection) -> None:
    review.refresh(store, versions.active(store, "messages"))


def dismiss(store: Connection, key: str, kind: str) -> bool:
    row = store.execute(
        "SELECT embedline.dismiss('messages', %s, %s)", [key, kind]
    ).fetchone()
    assert row is not None
    return bool(row[0])


def test_twins_of_different_labels_are_a_conflict_until_one_is_corrected(
    twins: Project, store: Connection, db: Connection
) -> None:
    reviewed(store)
    assert sorted(listed(store, "conflict")) == ["1", "2"]
    row = store.execute(
        "SELECT label, suggested_label, detail ->> 'other_key', score, data,"
        " event_time::date, day FROM embedline.review"
        " WHERE kind = 'conflict' AND key = '1'"
    ).fetchone()
    first = date(2026, 1, 1)
    assert row == ("spam", "ham", "2", 1, "the same text", first, first)
    db.execute("UPDATE verdicts SET v = 'ham' WHERE id = 1")
    twins.run()
    reviewed(store)
    assert listed(store, "conflict") == []


def test_an_input_of_no_words_is_told_until_it_has_some(
    twins: Project, store: Connection, db: Connection
) -> None:
    reviewed(store)
    assert listed(store, "empty") == ["4"]
    db.execute("UPDATE messages SET body = 'words' WHERE id = 4")
    twins.run()
    reviewed(store)
    assert listed(store, "empty") == []


def relabel(db: Connection) -> None:
    db.execute("UPDATE verdicts SET v = 'eggs' WHERE id = 1")


def edit(db: Connection) -> None:
    db.execute("UPDATE messages SET body = 'THE SAME TEXT' WHERE id IN (1, 2)")


def edit_another(db: Connection) -> None:
    db.execute("UPDATE messages SET body = 'other words' WHERE id = 50")
    db.execute("UPDATE verdicts SET v = 'bacon' WHERE id = 51")


@pytest.mark.parametrize(
    ("change", "back"), [(relabel, True), (edit, True), (edit_another, False)]
)
def test_a_dismissed_flag_stays_away_until_its_record_or_label_changes(
    twins: Project,
    store: Connection,
    db: Connection,
    change: Callable[[Connection], None],
    back: bool,
) -> None:
    reviewed(store)
    assert dismiss(store, "1", "conflict")
    assert listed(store, "conflict") == ["2"]
    reviewed(store)
    assert listed(store, "conflict") == ["2"]
    change(db)
    twins.run()
    reviewed(store)
    assert ("1" in listed(store, "conflict")) is back
    who = store.execute("SELECT dismissed_by = session_user FROM embedline.dismissed")
    assert who.fetchall() == [(True,)]


def test_what_was_dismissed_is_not_counted(twins: Project, store: Connection) -> None:
    reviewed(store)
    version = versions.active(store, "messages")

    def conflicts() -> float | None:
        measured = review.measure(store, version, FIRST)
        return next(one.value for one in measured if one.metric == "conflict")

    before = conflicts()
    assert before is not None
    dismiss(store, "1", "conflict")
    assert conflicts() == before / 2


def test_nothing_is_dismissed_that_is_no_flag(
    twins: Project, store: Connection
) -> None:
    reviewed(store)
    assert not dismiss(store, "1", "empty")
    assert not dismiss(store, "none", "conflict")
    assert store.execute("SELECT count(*) FROM embedline.dismissed").fetchone() == (0,)


def test_a_deleted_record_leaves_the_list_at_once_and_its_flag_with_the_next_run(
    twins: Project, store: Connection, db: Connection
) -> None:
    reviewed(store)
    db.execute("DELETE FROM messages WHERE id = 1")
    twins.run()
    assert listed(store, "conflict") == ["2"]
    reviewed(store)
    assert (
        store.execute("SELECT key FROM embedline.flag WHERE key = '1'").fetchall() == []
    )
    assert listed(store, "conflict") == []


def test_a_forgotten_record_leaves_no_flag_and_is_named_in_none(
    twins: Project, store: Connection
) -> None:
    reviewed(store)
    dismiss(store, "1", "conflict")
    erased = forgetting.forget(store, versions.use_case_id(store, "messages"), "1")
    assert (erased["flag"], erased["dismissed"]) == (2, 1)
    conflicts = "SELECT count(*) FROM embedline.flag WHERE kind = 'conflict'"
    assert store.execute(conflicts).fetchone() == (0,)
    assert store.execute("SELECT count(*) FROM embedline.dismissed").fetchone() == (0,)


def test_a_dropped_version_leaves_no_flag(
    twins: Project, store: Connection, make_model: Callable[..., Any]
) -> None:
    reviewed(store)
    twins.use_case(encoder={"model": str(make_model(seed=12))})
    twins.run()
    store.execute("UPDATE embedline.model_version SET retired_at = '2026-01-01'")
    twins.run()
    assert store.execute("SELECT count(*) FROM embedline.flag").fetchone() == (0,)
