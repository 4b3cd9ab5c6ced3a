"""Predictions are counted beside their labels, day by day, and only days of which
something has changed are counted anew."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import numpy as np
import pytest

from embedding_tasks import forgetting
from embedding_tasks.connections import Connection
from embedding_tasks.errors import ConfigError
from embedding_tasks.monitoring import days
from embedding_tasks.monitoring.labels import outcomes
from embedding_tasks.monitoring.labels.outcomes import Outcomes, Selection
from embedding_tasks.monitoring.sums import rollup
from embedding_tasks.store import versions
from embedding_tasks.store.versions import ModelVersion
from tests.fix_project import Project, sync

FIRST, SECOND = date(2026, 1, 1), date(2026, 1, 2)


@pytest.fixture
def labelled(
    project: Project, db: Connection, write_messages: Callable[..., None]
) -> Project:
    """120 records of one day, 60 of the next; two of three have a label, given an hour
    after the record, and one of them one that the model does not know."""
    db.execute("CREATE TABLE verdicts (id bigint PRIMARY KEY, v text, at timestamptz)")
    project.use_case(
        prediction="head",
        label={"table": "verdicts", "key": "id", "label": "v", "time": "at"},
        source={"tags": ["author"], "delete_guard": {"rows": 1000}},
    )
    write_messages(range(120))
    write_messages(range(1440, 1500))
    db.execute(
        "INSERT INTO verdicts SELECT id, CASE id % 2 WHEN 0 THEN 'negative'"
        " ELSE 'positive' END, sent_at + '1 hour' FROM messages WHERE id % 3 > 0"
    )
    db.execute("UPDATE verdicts SET v = 'unheard of' WHERE id = 4")
    project.run()
    return project


def version_of(store: Connection) -> ModelVersion:
    return versions.live_by_name(store, "messages")[0]


def refreshed(store: Connection, *tags: str) -> tuple[list[date], list[date]]:
    done = outcomes.refresh(store, version_of(store), tags)
    return done.changed, done.gone


def counted(store: Connection) -> set[tuple[Any, ...]]:
    return set(
        store.execute(
            "SELECT day, environment, tag, value, class, label, bin, rows, score,"
            " losses, loss, loss_square, lag FROM embedline.outcome"
        ).fetchall()
    )


def read(store: Connection, day: date | None = None) -> Outcomes:
    selection = Selection(day, day)
    return outcomes.read(store, version_of(store), selection)[outcomes.ALL]


def row_by_row(store: Connection) -> list[tuple[Any, ...]]:
    return store.execute(
        "SELECT p.prediction, l.label, p.score, p.probabilities::float8[], m.classes"
        " FROM embedline.prediction p LEFT JOIN embedline.label l USING (use_case, key)"
        " JOIN embedline.model_version m ON m.id = p.model_version"
    ).fetchall()


def test_cells_are_the_counts_and_the_sums_of_their_rows(
    labelled: Project, store: Connection
) -> None:
    assert refreshed(store) == ([FIRST, SECOND], [])
    rows, cells = row_by_row(store), read(store)
    wanted = Counter(
        (said, true, min(int(score * 20), 19)) for said, true, score, *_ in rows
    )
    merged = cells.merged()
    names = zip(merged.classes, merged.labels, merged.bins, strict=True)
    assert dict(zip(names, merged.rows, strict=True)) == wanted
    assert cells.scores.sum() == pytest.approx(sum(row[2] for row in rows), rel=1e-12)
    losses = [
        -math.log(probabilities[classes.index(label)])
        for _, label, _, probabilities, classes in rows
        if label in classes
    ]
    assert cells.losses.sum() == len(losses) == 119
    assert cells.loss.sum() == pytest.approx(sum(losses), rel=1e-12)
    squares = sum(loss**2 for loss in losses)
    assert cells.loss_square.sum() == pytest.approx(squares, rel=1e-12)
    assert len(cells.labelled) == 120
    assert cells.lags.sum() == 120 * 3600
    assert len(read(store, SECOND)) == 60


def test_what_is_counted_is_not_counted_again(
    labelled: Project, store: Connection
) -> None:
    refreshed(store)
    assert refreshed(store) == ([], [])
    store.execute("SET TimeZone = 'Asia/Tokyo'")
    assert refreshed(store) == ([], [])


def correct(db: Connection) -> None:
    db.execute("UPDATE verdicts SET v = 'negative' WHERE id = 1441")


def withdraw(db: Connection) -> None:
    db.execute("DELETE FROM verdicts WHERE id = 1441")


def come_late(db: Connection) -> None:
    db.execute("INSERT INTO verdicts VALUES (1440, 'positive', '2026-03-31')")


def give_at_another_time(db: Connection) -> None:
    db.execute("UPDATE verdicts SET at = '2026-03-31' WHERE id = 1441")


@pytest.mark.parametrize("change", [correct, withdraw, come_late, give_at_another_time])
def test_a_label_that_moves_counts_only_its_own_day_anew(
    labelled: Project,
    store: Connection,
    db: Connection,
    change: Callable[[Connection], None],
) -> None:
    refreshed(store)
    rollup.refresh(store, version_of(store))
    first, before = read(store, FIRST), counted(store)
    change(db)
    sync(labelled)
    assert refreshed(store) == ([SECOND], [])
    assert counted(store) != before
    again = read(store, FIRST)
    assert [*again.labels] == [*first.labels]
    done = rollup.refresh(store, version_of(store))
    assert (done.changed, done.gone) == ([], [])


def test_labels_that_come_over_90_days_count_as_if_they_had_come_in_time(
    labelled: Project, store: Connection, db: Connection
) -> None:
    refreshed(store, "author")
    in_time = counted(store)
    db.execute("CREATE TABLE to_come AS TABLE verdicts")
    db.execute("DELETE FROM verdicts")
    sync(labelled)
    refreshed(store, "author")
    assert len(read(store).labelled) == 0
    for day in range(0, 90, 10):
        # some of them wrong at first
        db.execute(
            "INSERT INTO verdicts SELECT id, CASE WHEN id %% 4 = 0 THEN 'negative'"
            " ELSE v END, at FROM to_come WHERE abs(hashint8(id) %% 90) BETWEEN %s"
            " AND %s",
            [day, day + 9],
        )
        sync(labelled)
        refreshed(store, "author")
    db.execute("UPDATE verdicts v SET v = t.v FROM to_come t WHERE t.id = v.id")
    sync(labelled)
    refreshed(store, "author")
    assert counted(store) == in_time


def test_a_day_whose_records_are_gone_goes(
    labelled: Project, store: Connection, db: Connection
) -> None:
    refreshed(store)
    db.execute("DELETE FROM messages WHERE id >= 1440")
    sync(labelled)
    assert refreshed(store) == ([], [SECOND])
    assert len(read(store, SECOND)) == 0


def test_every_value_of_a_tag_is_counted_by_itself(
    labelled: Project, store: Connection
) -> None:
    refreshed(store, "author")
    found = outcomes.read(store, version_of(store), Selection())
    assert {name: len(own) for name, own in found.items()} == {
        "": 180,
        "author=author 0": 60,
        "author=author 1": 60,
        "author=author 2": 60,
    }
    assert len(found["author=author 0"].labelled) == 0


def test_a_tag_that_is_a_name_is_no_slice(
    labelled: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(days, "MOST_VALUES", 2)
    with pytest.raises(ConfigError, match="'author' has 3 values"):
        refreshed(store, "author")


def test_another_slice_counts_every_day_anew(
    labelled: Project, store: Connection
) -> None:
    refreshed(store)
    assert refreshed(store, "author") == ([FIRST, SECOND], [])


def test_a_window_is_of_its_environments(
    labelled: Project, store: Connection, db: Connection
) -> None:
    db.execute("ALTER TABLE messages ADD env text")
    db.execute("UPDATE messages SET env = CASE WHEN id < 100 THEN 'training' END")
    labelled.use_case(source={"environment": {"column": "env"}})
    sync(labelled)
    refreshed(store)
    version = version_of(store)

    def rows(**which: Any) -> int:
        return len(outcomes.read(store, version, Selection(**which))[outcomes.ALL])

    assert rows() == 180
    assert rows(environments=["training"]) == 100
    assert rows(without=["training"]) == 80
    assert rows(without=["training"], since=SECOND) == 60


def test_predictions_of_a_column_are_counted_by_their_score(
    labelled: Project, store: Connection, db: Connection
) -> None:
    db.execute("ALTER TABLE messages ADD guess text, ADD p float8")
    db.execute("UPDATE messages SET guess = 'positive', p = 0.97 WHERE id < 10")
    db.execute("UPDATE messages SET p = NULL WHERE id = 1")
    db.execute("UPDATE messages SET p = 12 WHERE id = 2")  # no probability
    db.execute("UPDATE messages SET p = 1 WHERE id = 3")
    labelled.use_case(prediction={"column": "guess", "score": "p"})
    labelled.run()
    refreshed(store)
    cells = read(store)
    bins = np.bincount(cells.bins + 1, cells.rows)
    assert {bin_ - 1: n for bin_, n in enumerate(bins) if n} == {-1: 2, 19: 8}
    assert cells.scores.sum() == pytest.approx(7 * 0.97 + 1)
    assert cells.losses.sum() == 0


def test_no_count_holds_a_forgotten_record(
    labelled: Project, store: Connection
) -> None:
    refreshed(store)
    forgetting.forget(store, version_of(store).use_case, "1441")
    assert counted(store) == set()
    assert refreshed(store) == ([FIRST, SECOND], [])
    assert len(read(store, SECOND)) == 59


def test_a_dropped_version_leaves_no_counts(
    labelled: Project, store: Connection, make_model: Callable[..., Any]
) -> None:
    refreshed(store)
    labelled.use_case(encoder={"model": str(make_model(seed=12))})
    labelled.run()
    store.execute("UPDATE embedline.model_version SET retired_at = '2026-01-01'")
    labelled.run()
    assert counted(store) == set()
    days = store.execute("SELECT count(*) FROM embedline.outcome_day").fetchone()
    assert days == (0,)


def test_confusions_are_a_view(labelled: Project, store: Connection) -> None:
    refreshed(store, "author")
    matrix = store.execute(
        "SELECT prediction, label, sum(rows) FROM embedline.confusion"
        " WHERE use_case = 'messages' AND slice = '' AND day = '2026-01-02'"
        " GROUP BY 1, 2 ORDER BY 1, 2"
    ).fetchall()
    by_hand = store.execute(
        "SELECT prediction, label, count(*) FROM embeddings.messages"
        " WHERE label IS NOT NULL AND event_time >= '2026-01-02'"
        " GROUP BY 1, 2 ORDER BY 1, 2"
    ).fetchall()
    assert matrix == by_hand
    assert matrix
    slices = {row for (row,) in store.execute("SELECT slice FROM embedline.confusion")}
    assert slices == {"", "author=author 1", "author=author 2"}


def test_coverage_and_lag_are_a_view(labelled: Project, store: Connection) -> None:
    refreshed(store, "author")
    coverage = (
        "SELECT day, predicted, labelled, coverage, mean_lag"
        " FROM embedline.label_coverage WHERE slice = %s ORDER BY day"
    )
    hour = timedelta(hours=1)
    assert store.execute(coverage, [""]).fetchall() == [
        (FIRST, 120, 80, pytest.approx(2 / 3), hour),
        (SECOND, 60, 40, pytest.approx(2 / 3), hour),
    ]
    assert store.execute(coverage, ["author=author 0"]).fetchall() == [
        (FIRST, 40, 0, 0, None),
        (SECOND, 20, 0, 0, None),
    ]
