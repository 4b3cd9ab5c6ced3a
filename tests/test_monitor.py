"""Alarms are raised by what has drifted, in the window in which it has, and by nothing
else; and a history is the same whenever it is made."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest

from embedding_tasks import forgetting
from embedding_tasks import use_case as declared
from embedding_tasks.connections import Connection, connect
from embedding_tasks.errors import ConfigError, StoreError
from embedding_tasks.monitoring import (
    baseline,
    flags,
    html,
    report,
    results,
    stages,
    telling,
    watch,
)
from embedding_tasks.monitoring.flags import Flag
from embedding_tasks.monitoring.maps import projection
from embedding_tasks.monitoring.measured import Measured, Window
from embedding_tasks.monitoring.quality import neighbors
from embedding_tasks.monitoring.results import Alarm
from embedding_tasks.monitoring.sums import rollup
from embedding_tasks.monitoring.watch import Watched
from embedding_tasks.store import versions
from embedding_tasks.use_case import UseCase
from tests.fix_cli import Command
from tests.watched_store import NAME, Days, use_case


@pytest.fixture
def days(store: Connection) -> Days:
    """Six of a baseline, then four that are like it."""
    made = Days(store)
    for day in range(10):
        made.add(day)
    return made


def watched(days: Days, case: UseCase | None = None, **options: Any) -> Watched:
    [found] = watch.watch(days.store, case or use_case(), **options)
    return found


def alarms(days: Days, *, every: bool = True) -> list[Alarm]:
    return results.alarms(days.store, NAME, every=every)


def moved(days: Days) -> Alarm:
    """Of the vectors as a whole; rows that moved are of a new kind, too."""
    [alarm] = [a for a in alarms(days) if a.metric == "centroid"]
    return alarm


def history(days: Days) -> list[Any]:
    """All that was found, but for when; sums of other orders differ in rounding."""
    rows = days.store.execute(
        "SELECT metric, slice, first_day, last_day, rows, state, value, low, high,"
        " p_value, adjusted, excess, least, noise, detail"
        " FROM embedline.monitor_history ORDER BY metric, slice, last_day"
    )
    return [rounded(json.dumps(row, default=str)) for row in rows]


def rounded(text: str) -> Any:
    return json.loads(text, parse_float=lambda number: round(float(number), 9))


def states(days: Days, metric: str, slice_: str = "") -> list[str]:
    rows = days.store.execute(
        "SELECT state FROM embedline.monitor_history WHERE metric = %s AND slice = %s"
        " ORDER BY last_day",
        [metric, slice_],
    )
    return [state for (state,) in rows]


def test_days_like_the_baseline_raise_no_alarm(days: Days) -> None:
    found = watched(days)
    assert [w.until for w in found.windows] == [days.day(n) for n in range(6, 10)]
    assert states(days, "centroid") == states(days, "mix") == ["usual"] * 4
    assert alarms(days) == []


def test_a_drift_raises_one_alarm_in_its_second_window_and_says_since_when(
    days: Days,
) -> None:
    for day in range(10, 14):
        days.add(day, moved=0.5)
    watched(days)
    assert states(days, "centroid") == ["usual"] * 4 + ["beyond"] * 4
    alarm = moved(days)
    assert (alarm.metric, alarm.slice) == ("centroid", "")
    assert alarm.since == days.day(10)
    assert alarm.raised == days.day(11)
    assert alarm.last_seen == days.day(13)
    assert alarm.cleared is None
    assert alarm.value == pytest.approx(0.5, abs=0.1)


def test_one_odd_day_is_no_alarm(days: Days) -> None:
    days.add(10, moved=0.5)
    days.add(11)
    days.add(12)
    watched(days)
    assert states(days, "centroid")[4:] == ["beyond", "usual", "usual"]
    assert alarms(days) == []


def test_an_alarm_ends_when_two_windows_are_usual_again(days: Days) -> None:
    for day, far in ((10, 0.5), (11, 0.5), (12, 0.0), (13, 0.0)):
        days.add(day, moved=far)
    watched(days)
    alarm = moved(days)
    assert alarm.last_seen == days.day(11)
    assert alarm.cleared == days.day(13)
    assert not any(a.metric == "centroid" for a in alarms(days, every=False))


def test_a_change_of_the_mix_is_told_from_a_drift_of_the_vectors(days: Days) -> None:
    for day in (10, 11):
        days.add(day, mix=(0.2, 0.3, 0.5))
    watched(days)
    [alarm] = alarms(days)
    assert alarm.metric == "mix"
    changes = alarm.detail["classes"]
    assert changes["blue"] == pytest.approx(0.3, abs=0.07)
    assert states(days, "centroid") == ["usual"] * 6


def test_a_slice_that_drifts_is_named(days: Days) -> None:
    for day in range(6):
        days.add(day, language="de")
    for day in range(6, 12):
        days.add(day, language="de", moved=0.5 if day > 9 else 0.0)
        if day > 9:
            days.add(day, 1200)
    watched(days, use_case(slices=["language", "prediction"]))
    assert ("centroid", "language=de") in {(a.metric, a.slice) for a in alarms(days)}
    assert not any(a.slice == "language=en" for a in alarms(days))
    assert states(days, "centroid", "prediction=red")[:4] == ["usual"] * 4


def test_a_window_of_few_rows_raises_no_alarm(days: Days) -> None:
    for day in range(10, 13):
        days.add(day, 150, moved=2.0)
    watched(days)
    assert states(days, "centroid") == ["usual"] * 4 + ["too few"] * 3
    assert alarms(days) == []


def test_days_without_rows_have_no_data(days: Days) -> None:
    days.add(12)
    watched(days)
    assert states(days, "centroid")[4:] == ["no data", "no data", "usual"]


def test_nothing_is_measured_twice(days: Days) -> None:
    watched(days)
    assert watched(days).windows == []


def test_only_windows_whose_rows_changed_are_measured_again(days: Days) -> None:
    watched(days)
    days.add(7, 30)
    assert [w.until for w in watched(days).windows] == [days.day(7)]
    days.remove(8, 10)
    assert [w.until for w in watched(days).windows] == [days.day(8)]


def test_a_history_with_late_rows_is_the_one_that_had_been_in_time(
    days: Days, store: Connection
) -> None:
    for day in (10, 11, 12):
        days.add(day, 200, moved=0.4)
        watched(days)
    for day in (10, 12):
        days.add(day, 200, moved=0.4)
        watched(days)
    as_they_came, raised = history(days), alarms(days)
    for table in ("alarm", "measurement", "monitored", "rollup_day"):
        store.execute(f"DELETE FROM embedline.{table}")  # type: ignore[arg-type]
    watched(days)
    assert history(days) == as_they_came
    assert [(a.since, a.raised) for a in alarms(days)] == [
        (a.since, a.raised) for a in raised
    ]


def test_measured_again_a_history_is_the_same(days: Days) -> None:
    watched(days)
    before = history(days)
    assert len(watched(days, again=True).windows) == 4
    assert history(days) == before


def test_a_list_that_cannot_be_made_is_told_until_it_can_be(
    days: Days, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    days.store.execute(
        "INSERT INTO embedline.label (use_case, key, label) SELECT use_case, key,"
        " prediction FROM embedline.prediction ORDER BY key LIMIT 50"
    )
    [version] = versions.live_by_name(days.store, NAME)
    projection.fit(days.store, version, sample=200)
    monkeypatch.setattr(neighbors, "EXACT", 10)
    monkeypatch.setattr(neighbors, "MOST_EXACT", 40)
    caplog.set_level("INFO", logger="embedding_tasks")
    for placed in (True, False):
        caplog.clear()
        [said] = watched(days).problems
        assert "50 labelled vectors and no index" in said
        assert ("placed" in caplog.text) == placed
    monkeypatch.setattr(neighbors, "MOST_EXACT", 50)
    for listed in (True, False):
        caplog.clear()
        assert watched(days).problems == []
        assert ("reviewed" in caplog.text) == listed
        assert "placed" not in caplog.text


def test_what_is_left_of_a_window_is_judged_without_what_went(days: Days) -> None:
    watched(days)
    before = history(days)
    [version] = versions.live_by_name(days.store, NAME)
    window = Window(days.day(9), days.day(9))
    wrong = Measured("accuracy", "", window, 300, 0.5, p_value=0.9, excess=0.1)
    results.save(
        *(days.store, version, "performance", window, [wrong]),
        inputs="labels that are withdrawn later",
        baseline=None,
    )
    assert history(days) != before
    watched(days)
    assert history(days) == before


def test_two_at_once_find_what_one_does(days: Days, store_dsn: str) -> None:
    for day in (10, 11):
        days.add(day, moved=0.5)

    def one(_: int) -> Watched:
        with connect(store_dsn, role="store") as own:
            [found] = watch.watch(own, use_case(), again=True)
            return found

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(one, range(3)))
    assert len({w.baseline for w in found}) == 1
    both = history(days)
    watched(days, again=True)
    assert history(days) == both
    assert moved(days).raised == days.day(11)


def test_rows_that_come_late_do_not_move_a_frozen_baseline(days: Days) -> None:
    first = watched(days).baseline
    before = history(days)
    days.add(2, 300, moved=3.0)
    assert watched(days, again=True).baseline == first
    assert history(days) == before
    anew = watched(days, freeze=True)
    assert anew.baseline != first
    assert len(anew.windows) == 4


def buckets(days: Days) -> int:
    found = days.store.execute("SELECT DISTINCT bucket FROM embedline.baseline_cell")
    return len(found.fetchall())


def test_a_baseline_holds_no_sum_of_a_forgotten_record(days: Days) -> None:
    watched(days)
    assert buckets(days) == rollup.BUCKETS
    [version] = versions.live_by_name(days.store, NAME)
    forgetting.forget(days.store, version.use_case, "k7")
    assert buckets(days) == rollup.BUCKETS - 1
    watched(days)
    assert alarms(days) == []


def test_nothing_that_is_written_meanwhile_holds_a_forgotten_record(
    days: Days, store_dsn: str
) -> None:
    watched(days)
    [version] = versions.live_by_name(days.store, NAME)
    monitoring = use_case().monitoring
    assert monitoring is not None
    with ThreadPoolExecutor() as pool, connect(store_dsn, role="store") as other:
        with days.store.transaction():
            baseline.lift(days.store, version)
            baseline.freeze(days.store, version, monitoring, days.day(30))
            flags.replace(days.store, version, ["odd"], [Flag("k7", 0, "odd", 1.0)])
            projection.fit(days.store, version, sample=200)
            forgot = pool.submit(forgetting.forget, other, version.use_case, "k7")
            wait([forgot], timeout=1)
        forgot.result()
    assert buckets(days) == rollup.BUCKETS - 1
    held = forgetting.holdings(days.store, version.use_case, "k7")
    assert {name for name, count in held.items() if count} == set()


def test_a_baseline_by_environment_is_not_compared_with_itself(
    store: Connection,
) -> None:
    days = Days(store)
    for day in range(8):
        days.add(day, environment="training")
        days.add(day, moved=0.5 if day > 3 else 0.0)
    watched(days, use_case(baseline={"environment": "training"}))
    assert states(days, "centroid") == ["usual"] * 4 + ["beyond"] * 4


def test_the_days_of_a_baseline_must_be_over(days: Days) -> None:
    case = use_case(baseline={"since": "2026-03-01", "until": "2999-01-01"})
    found = watched(days, case)
    assert found.problems == ["the days of the baseline are over on 2999-01-01"]


def test_a_baseline_of_too_few_rows_is_refused(days: Days) -> None:
    case = use_case(baseline={"environment": "validation"})
    found = watched(days, case)
    assert found.problems
    assert "fewer than 200 records" in found.problems[0]


def test_windows_of_several_days_are_measured_when_they_are_over(days: Days) -> None:
    watched(days, use_case(window_days=2))
    rows = days.store.execute(
        "SELECT first_day, last_day, rows FROM embedline.monitor_history"
        " WHERE metric = 'mix' ORDER BY 1"
    ).fetchall()
    assert rows == [
        (days.day(6), days.day(7), 600),
        (days.day(8), days.day(9), 600),
    ]


def test_an_acknowledged_alarm_says_so_and_stays_so(days: Days) -> None:
    for day in (10, 11):
        days.add(day, moved=0.5)
    watched(days)
    alarm = moved(days)
    results.acknowledge(days.store, alarm.id, "ann", "new customers")
    days.add(12, moved=0.5)
    watched(days)
    later = moved(days)
    assert (later.id, later.acknowledged_by) == (alarm.id, "ann")
    found = days.store.execute(
        "SELECT state FROM embedline.monitor WHERE metric = 'centroid'"
    ).fetchone()
    assert found == ("acknowledged",)
    with pytest.raises(StoreError, match="no alarm 999 is on"):
        results.acknowledge(days.store, 999, "ann", "")


def test_the_statement_of_an_alarm_shows_its_rows(days: Days) -> None:
    for day in (10, 11):
        days.add(day, 250, moved=0.5)
    watched(days)
    alarm = moved(days)
    said = telling.tell(days.store, alarm)
    assert "moved by 0.48 standard deviations" in said
    assert f"since {days.day(10)}" in said
    rows = days.store.execute(said.splitlines()[-1].encode()).fetchall()
    assert len(rows) == 500


def test_an_alarm_whose_notice_failed_is_told_again(
    days: Days, store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", store_dsn)
    for day in (10, 11):
        days.add(day, moved=0.5)
    told: list[str] = []

    def fail(alarm: dict[str, Any]) -> None:
        if alarm["id"] == first:
            raise OSError("no way to the mail server")
        told.append(alarm["text"])

    stages.measure(use_case(), nowhere)
    first, *others = sorted(alarm.id for alarm in alarms(days, every=False))
    assert others
    with pytest.raises(OSError, match="mail server"):
        stages.tell(use_case(), nowhere, fail)
    assert len(told) == len(others)
    assert stages.tell(use_case(), nowhere, lambda a: told.append(a["text"])) == 1
    assert stages.tell(use_case(), nowhere, lambda a: told.append(a["text"])) == 0
    assert sorted(told) == sorted(stages.unacknowledged(use_case(), nowhere))


def nowhere(connection: str) -> dict[str, Any]:
    raise KeyError(connection)


def test_a_use_case_without_monitoring_is_told_what_to_write(days: Days) -> None:
    case = use_case().model_copy(update={"monitoring": None})
    with pytest.raises(ConfigError, match="has no `monitoring`"):
        watch.watch(days.store, case)


@pytest.mark.parametrize(
    ("monitoring", "said"),
    [
        ({"baseline": {}}, "valid: {environment: training}"),
        ({"baseline": {"since": "2026-01-01"}}, "give both"),
        ({"slices": ["colour"]}, "'colour' is not in source.tags"),
        (
            {"baseline": {"environment": "training"}, "environment": "training"},
            "cannot be compared with itself",
        ),
        ({"notify": [{"notifier": "nothing"}]}, "notifier"),
    ],
)
def test_what_cannot_be_monitored_is_refused(
    monitoring: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        use_case(**monitoring)


def test_a_tag_of_too_many_values_is_no_slice(days: Days) -> None:
    days.store.execute(
        "UPDATE embedline.record SET tags = jsonb_build_object('language', key)"
    )
    with pytest.raises(ConfigError, match="'language' has 3000 values"):
        watched(days, use_case(slices=["language"]))


def test_what_is_told_has_no_more_than_json_has(days: Days) -> None:
    days.add(10, moved=0.5)
    days.add(11, moved=0.5)
    watched(days)
    alarm = moved(days)
    assert json.loads(json.dumps(alarm.detail)) == alarm.detail
    assert alarm.use_case == NAME


def test_the_page_has_a_chart_of_each_metric_and_what_there_is_to_say(
    days: Days,
) -> None:
    for day in (10, 11):
        days.add(day, moved=0.5)
    case = use_case(slices=["language"])
    found = report.of(days.store, case, watch.watch(days.store, case))
    written = html.page(days.store, found)
    assert written.count("<svg") == 9  # three of them of a language, too
    assert "the vectors have moved by" in written
    assert "&#x27;" in written  # what is SQL is text here


def test_the_command_watches_takes_on_and_compares(
    days: Days, embedline: Command, store_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in (10, 11):
        days.add(day, moved=0.5)
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", store_dsn)
    monkeypatch.setattr(declared, "find", lambda name: use_case())
    said = embedline("monitor", NAME)
    assert "alarm since 2026-03-11" in said
    alarm = moved(days)
    assert f"alarm {alarm.id}" in said
    embedline("acknowledge", str(alarm.id), "--remark", "new customers", "--by", "ann")
    assert "acknowledged by ann: new customers" in embedline("monitor", NAME)
    assert "outlier" in embedline("review", NAME)
    assert "no record has a label" in embedline("compare", NAME, "1", "1")
    mapped = embedline("map", NAME, "--clusters", "3")
    assert f"{days.written} vectors" in mapped
