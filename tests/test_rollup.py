"""Sums of vectors by day are those of the rows, and only days that changed are made
anew."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any

import numpy as np
import pytest

from embedding_tasks import forgetting
from embedding_tasks.connections import Connection, connect
from embedding_tasks.encoders.text import TextEncoder
from embedding_tasks.monitoring.sums import cells, rollup
from embedding_tasks.store import versions
from embedding_tasks.store.versions import ModelVersion
from tests.fix_project import Project

FIRST, SECOND = date(2026, 1, 1), date(2026, 1, 2)


@pytest.fixture
def two_days(full_use_case: Project, write_messages: Callable[..., None]) -> Project:
    """120 records of one day, 60 of the next."""
    write_messages(range(1440, 1500))
    full_use_case.run()
    return full_use_case


def version_of(store: Connection, number: int = 1) -> ModelVersion:
    found = versions.live_by_name(store, "messages")
    return next(version for version in found if version.version == number)


def refreshed(store: Connection) -> tuple[list[date], list[date]]:
    done = rollup.refresh(store, version_of(store))
    return done.changed, done.gone


def vectors(store: Connection, day: date) -> np.ndarray:
    rows = store.execute(
        "SELECT embedding::real[] FROM embeddings.messages"
        " WHERE (event_time AT TIME ZONE 'UTC')::date = %s",
        [day],
    ).fetchall()
    return np.array([vector for (vector,) in rows], np.float64)


def assert_summed_up(store: Connection, day: date) -> None:
    moments = cells.of_days(store, version_of(store), day, day).all
    wanted = vectors(store, day)
    assert len(moments) == len(wanted)
    np.testing.assert_allclose(moments.mean, wanted.mean(axis=0), atol=1e-6)
    variance = np.square(wanted - wanted.mean(axis=0)).sum() / (len(wanted) - 1)
    assert moments.variance == pytest.approx(variance, rel=1e-3)


def test_any_days_are_the_mean_and_the_spread_of_their_vectors(
    two_days: Project, store: Connection
) -> None:
    assert refreshed(store) == ([FIRST, SECOND], [])
    assert_summed_up(store, FIRST)
    assert_summed_up(store, SECOND)
    everything = cells.of_days(store, version_of(store))
    assert len(everything.all) == 180
    predicted = store.execute(
        "SELECT prediction, count(*) FROM embeddings.messages GROUP BY 1"
    ).fetchall()
    assert everything.counts(everything.all) == dict(predicted)


def test_nothing_is_summed_up_twice(two_days: Project, store: Connection) -> None:
    refreshed(store)
    assert refreshed(store) == ([], [])


def test_whoever_asks_finds_the_same_days_unchanged(
    two_days: Project, store: Connection
) -> None:
    refreshed(store)
    store.execute("SET timezone TO 'Asia/Tokyo'")
    store.execute("SET datestyle TO 'German'")
    assert refreshed(store) == ([], [])


def edit(db: Connection) -> None:
    db.execute("UPDATE messages SET body = 'another text' WHERE id = 1450")


def add_late(db: Connection) -> None:
    db.execute(
        "INSERT INTO messages VALUES (5000, 'late', 'x', '2026-01-02T23:59:59.9Z')"
    )


def delete(db: Connection) -> None:
    db.execute("DELETE FROM messages WHERE id = 1450")


@pytest.mark.parametrize("change", [edit, add_late, delete])
def test_only_the_day_of_a_change_is_summed_up_anew(
    two_days: Project,
    store: Connection,
    db: Connection,
    change: Callable[[Connection], None],
) -> None:
    refreshed(store)
    change(db)
    two_days.run()
    assert refreshed(store) == ([SECOND], [])
    assert_summed_up(store, SECOND)


def test_a_record_that_moves_to_another_day_changes_both(
    two_days: Project, store: Connection, db: Connection
) -> None:
    refreshed(store)
    db.execute("UPDATE messages SET sent_at = '2026-01-03' WHERE id IN (7, 8)")
    two_days.run()
    third = date(2026, 1, 3)
    assert refreshed(store) == ([FIRST, third], [])
    assert_summed_up(store, FIRST)
    assert_summed_up(store, third)


def test_a_day_without_vectors_goes(
    two_days: Project, store: Connection, db: Connection
) -> None:
    refreshed(store)
    db.execute("DELETE FROM messages WHERE id >= 1440")
    two_days.run()
    assert refreshed(store) == ([], [SECOND])
    assert len(cells.of_days(store, version_of(store), SECOND).all) == 0


def test_a_label_sums_up_no_vector_anew(
    two_days: Project, store: Connection, db: Connection
) -> None:
    refreshed(store)
    db.execute("INSERT INTO verdicts VALUES (1, 'late')")
    two_days.run()
    assert refreshed(store) == ([], [])


def test_a_vector_that_is_made_again_sums_up_its_day_anew(
    two_days: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    refreshed(store)
    encode = TextEncoder.encode

    def turned(self: TextEncoder, inputs: Any) -> Any:
        encoded = encode(self, inputs)
        encoded.vectors[:] = encoded.vectors[:, ::-1]
        return encoded

    monkeypatch.setattr(TextEncoder, "encode", turned)
    store.execute("UPDATE embedline.ledger SET have_hash = NULL WHERE key = '1450'")
    two_days.run()
    assert refreshed(store) == ([SECOND], [])
    assert_summed_up(store, SECOND)


def test_a_store_of_half_precision_is_summed_up_in_full(
    full_use_case: Project, store: Connection
) -> None:
    full_use_case.use_case(storage={"type": "halfvec"})
    full_use_case.run()
    refreshed(store)
    assert_summed_up(store, FIRST)


def test_records_without_a_time_are_of_the_day_of_their_prediction(
    full_use_case: Project, store: Connection
) -> None:
    full_use_case.use_case(source={"event_time": None})
    full_use_case.run()
    [today] = store.execute(
        "SELECT DISTINCT (predicted_at AT TIME ZONE 'UTC')::date FROM"
        " embedline.prediction"
    ).fetchall()
    assert refreshed(store) == ([*today], [])


def test_two_at_once_leave_every_day_summed_up_once(
    two_days: Project, store_dsn: str, store: Connection
) -> None:
    def one(_: int) -> tuple[list[date], list[date]]:
        with connect(store_dsn, role="store") as own:
            return refreshed(own)

    with ThreadPoolExecutor(4) as pool:
        done = sorted(changed for changed, _ in pool.map(one, range(4)))
    assert done == [[], [], [], [FIRST, SECOND]]
    assert len(cells.of_days(store, version_of(store)).all) == 180


def test_no_sum_holds_a_forgotten_record(two_days: Project, store: Connection) -> None:
    refreshed(store)
    version = version_of(store)
    before = cells.of_days(store, version, SECOND, SECOND).all
    forgetting.forget(store, version.use_case, "1450")
    left = cells.of_days(store, version, SECOND, SECOND).all
    assert len(set(before.buckets) - set(left.buckets)) == 1
    assert refreshed(store) == ([FIRST, SECOND], [])
    assert_summed_up(store, SECOND)


def test_a_dropped_version_leaves_no_sums(
    two_days: Project, store: Connection, make_model: Callable[..., Any]
) -> None:
    refreshed(store)
    two_days.use_case(encoder={"model": str(make_model(seed=12))})
    two_days.run()
    store.execute("UPDATE embedline.model_version SET retired_at = '2026-01-01'")
    two_days.run()
    assert store.execute("SELECT count(*) FROM embedline.rollup").fetchone() == (0,)
