from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedding_tasks import use_case
from embedding_tasks.errors import ConfigError
from embedding_tasks.use_case import LabelTable, Window
from tests.fix_project import deep_merge

GOOD: dict[str, Any] = {
    "name": "reviews",
    "source": {"connection": "c", "table": "t", "key": "id", "input": "body"},
    "encoder": {"model": "./model"},
}


def load(folder: Path, changes: dict[str, Any] | None = None) -> use_case.UseCase:
    path = folder / "reviews.yaml"
    path.write_text(yaml.safe_dump(deep_merge(GOOD, changes or {})))
    return use_case.load(path)


def test_a_minimal_file_gets_sane_defaults(tmp_path: Path) -> None:
    case = load(tmp_path)
    assert case.source.key == ("id",)
    assert case.first_feature.pooling == "cls"
    assert case.prediction == "none"
    assert case.storage.data == "all"
    assert case.schedule == "@daily"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"poolin": "cls"},
            "top level: unknown field 'poolin': did you mean 'pooling'",
        ),
        ({"pooling": "clss"}, "pooling: no pooling 'clss': did you mean 'cls'? valid:"),
        ({"encoder": {"modle": "x"}}, "encoder: unknown field 'modle'"),
        ({"encoder": {"dtype": "float64"}}, "encoder.dtype: input should be 'auto'"),
        (
            {"encoder": {"device": "gpu"}},
            "encoder.device: valid: 'auto', 'cpu', 'cuda'",
        ),
        ({"source": {"query": "select 1"}}, "exactly one of `table` and `query`"),
        ({"source": {"dsn": "dbname=x"}}, "exactly one of `connection` and `dsn`"),
        ({"source": {"key": []}}, "source.key: needs at least one column, got []"),
        ({"source": {"start": "2026-01-01T00:00Z"}}, "`start` needs `event_time`"),
        ({"label": {"colum": "x"}}, "label: unknown field 'colum'"),
        ({"label": {"table": "t"}}, "label.key: required, but missing"),
        (
            {"prediction": "hed"},
            "score: …}, got 'hed'",
        ),
        (
            {"storage": {"data": 0}},
            "storage.data: valid: 'all', 'none', or a number",
        ),
        (
            {"storage": {"data": "some"}},
            "got 'some'",
        ),
        ({"layers": True}, "layers: valid: 'last', a layer's number, or {last: N"),
        ({"prediction": None}, "prediction: valid: 'none', 'head', or {column"),
        ({"label": {"tabel": "x"}}, "unknown field 'tabel': did you mean 'table'?"),
        ({"label": "x"}, "label: valid: {column: …}, or {table: …, key: …"),
        ({"batch": 3}, "batch: must be a mapping; valid: tokens, claim"),
        ({"schedule": False}, "schedule: valid: a cron expression, or null"),
        ({"source": {"tags": [1]}}, "source.tags.0: input should be a valid string"),
        ({"source": {"environment": "prod"}}, "environment: valid: 'training', "),
        ({"layers": {"last": 0}}, "layers.last: input should be greater than or"),
        ({"schedule": "61 * * * *"}, "'61 * * * *' is no cron expression"),
        ({"name": "other"}, "name: 'other' must equal the file's name"),
    ],
)
def test_a_wrong_field_is_refused_with_its_path_value_and_what_is_valid(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, changes)
    assert says in str(caught.value)
    assert str(tmp_path / "reviews.yaml") in str(caught.value)


def test_every_wrong_field_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {"pooling": "x", "encoder": {"dtype": "y"}})
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    "name",
    ["x; drop table tweets", 'x"; --', "Tweets", "1st", "a" * 41, "", "été", "a.b"],
)
def test_a_name_that_is_no_plain_identifier_is_refused(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(ConfigError, match="name:"):
        load(tmp_path, {"name": name})


@pytest.mark.parametrize(
    "dsn",
    ["postgresql://me:hunter2@db/app", "host=db user=me password=hunter2 dbname=app"],
)
def test_a_password_in_the_file_is_refused_and_not_repeated(
    tmp_path: Path, dsn: str
) -> None:
    with pytest.raises(ConfigError, match="password in the clear") as caught:
        load(tmp_path, {"source": {"connection": None, "dsn": dsn}})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("dsn", ["not a hunter2", "password='hunter2", "hunter2%zz://"])
def test_what_is_no_connection_string_is_refused_and_not_repeated(
    tmp_path: Path, dsn: str
) -> None:
    with pytest.raises(ConfigError, match="is no connection string") as caught:
        load(tmp_path, {"source": {"connection": None, "dsn": dsn}})
    assert "hunter2" not in str(caught.value)


def test_a_password_may_come_from_the_environment(tmp_path: Path) -> None:
    dsn = "postgresql://me:${PASSWORD}@db/app"
    assert load(tmp_path, {"source": {"connection": None, "dsn": dsn}}).source.dsn


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: a\nname: b\n", "duplicate key 'name'"),
        ("name: [a\n", "is not valid YAML"),
        ("- a\n- b\n", "must be a mapping of fields"),
        ("", "must be a mapping of fields"),
        ("a: !!python/object/apply:os.system [true]\n", "is not valid YAML"),
        ("description: 2026-02-30\n", "is not valid YAML: day is out of range"),
        ("a: " + "[" * 5000, "is not valid YAML"),
        ("a: 1" + "0" * 5000, "is not valid YAML"),
    ],
)
def test_what_is_no_proper_yaml_is_refused(
    tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "reviews.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        use_case.load(path)
    assert says in str(caught.value)


def test_labels_may_be_a_column_or_a_table(tmp_path: Path) -> None:
    table = {"table": "l", "key": ["a", "b"], "label": "value"}
    key = {"source": {"key": ["x", "y"]}}
    label = load(tmp_path, {"label": table, **key}).label
    assert isinstance(label, LabelTable)
    assert label.key == ("a", "b")
    assert load(tmp_path, {"label": {"column": "x"}}).label is not None


def test_a_label_needs_as_many_key_columns_as_its_record(tmp_path: Path) -> None:
    label = {"table": "l", "key": "a", "label": "value"}
    with pytest.raises(ConfigError, match=r"label.key has 1 columns, source.key 2"):
        load(tmp_path, {"source": {"key": ["a", "b"]}, "label": label})


@pytest.mark.parametrize(
    ("keep", "kept"), [("all", "héllo"), ("none", None), (2, "hé")]
)
def test_storage_data_says_what_is_kept(
    tmp_path: Path, keep: Any, kept: str | None
) -> None:
    assert load(tmp_path, {"storage": {"data": keep}}).kept("héllo") == kept


@pytest.mark.parametrize(
    ("text", "hour"),
    [("2026-03-01T00:00:00+01:00", -1), ("2026-03-01", 0), ("2026-03-01T02:00", 2)],
)
def test_a_window_is_read_in_its_time_zone_or_utc(text: str, hour: int) -> None:
    window = Window.parse(text, None)
    assert window is not None
    assert window.since == datetime(2026, 3, 1, tzinfo=UTC) + timedelta(hours=hour)


@pytest.mark.parametrize(
    ("since", "until", "says"),
    [
        ("yesterday", None, "since: is no date or time; valid: e.g. 2026-03-01"),
        ("2026-03-02T00:00Z", "2026-03-01T00:00Z", "must be before"),
    ],
)
def test_a_window_that_cannot_be_is_refused(
    since: str, until: str | None, says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Window.parse(since, until)
    assert says in str(caught.value)


def test_the_shipped_use_cases_are_valid() -> None:
    folder = Path(__file__).parent.parent / "use_cases"
    for path in use_case.files(folder):
        use_case.load(path)


def test_a_file_with_the_other_ending_is_pointed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDLINE_USE_CASES", str(tmp_path))
    (tmp_path / "reviews.yml").touch()
    with pytest.raises(ConfigError, match=r"must be called reviews\.yaml"):
        use_case.find("reviews")


def test_a_project_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDLINE_PROJECT", str(tmp_path / "typo"))
    with pytest.raises(ConfigError, match="EMBEDLINE_PROJECT: there is no folder"):
        use_case.files()
