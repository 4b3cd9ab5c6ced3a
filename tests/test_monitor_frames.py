"""What monitoring finds, in pandas, and drift of any two frames as the store has it."""

from __future__ import annotations

import pandas as pd
import pytest

import embedding_tasks
from embedding_tasks.connections import Connection
from embedding_tasks.errors import ConfigError
from embedding_tasks.monitoring import frames, watch
from tests.watched_store import NAME, Days, use_case


@pytest.fixture
def days(store: Connection) -> Days:
    made = Days(store)
    for day in range(10):
        made.add(day, moved=0.5 if day > 7 else 0.0)
    return made


def read(days: Days, first: int, last: int) -> pd.DataFrame:
    times = [str(days.day(first)), str(days.day(last + 1))]
    return embedding_tasks.read(
        NAME, filter={"event_time": times}, store=days.store
    ).reset_index(drop=True)


def test_what_was_found_is_a_frame(days: Days) -> None:
    watch.watch(days.store, use_case())
    history = frames.history(NAME, store=days.store)
    centroid = history[(history["metric"] == "centroid") & (history["slice"] == "")]
    assert centroid.sort_values("last_day")["state"].tolist() == [
        *("usual", "usual", "beyond", "beyond"),
    ]
    alarms = frames.alarms(NAME, store=days.store)
    assert "centroid" in set(alarms["metric"])


def test_two_frames_drift_as_their_days_do_in_the_store(days: Days) -> None:
    watch.watch(days.store, use_case())
    history = frames.history(NAME, store=days.store)
    stored = history[
        (history["metric"] == "centroid") & (history["last_day"] == days.day(9))
    ].iloc[0]
    found = frames.drift(read(days, 0, 5), read(days, 9, 9)).set_index("metric")
    assert found.loc["centroid", "value"] == pytest.approx(stored["value"], abs=1e-4)
    assert found.loc["centroid", "p_value"] < 0.01
    assert found.loc["mix", "p_value"] > 0.01


def test_frames_that_are_alike_do_not_drift(days: Days) -> None:
    found = frames.drift(read(days, 0, 5), read(days, 6, 7)).set_index("metric")
    assert (found["p_value"] > 0.01).all()


def test_frames_that_cannot_be_compared_are_refused(days: Days) -> None:
    frame = read(days, 0, 1)
    with pytest.raises(ConfigError, match="lacks the column 'key'"):
        frames.drift(frame, frame.drop(columns="key"))
    with pytest.raises(ConfigError, match="no row"):
        frames.drift(frame, frame.iloc[:0])
