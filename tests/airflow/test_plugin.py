"""The page in Airflow's menu: for signed-in users only, and safe under any text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from embedding_tasks import run
from embedding_tasks.connections import Connection
from embedding_tasks.monitoring import watch
from tests.fix_project import Project

Write = Callable[..., None]


@pytest.fixture
def plugin(metadata: None) -> Any:
    import sys

    from tests.airflow.conftest import ROOT

    sys.path.insert(0, str(ROOT / "plugins"))
    try:
        import embedline_view
    finally:
        sys.path.pop(0)
    return embedline_view


@pytest.fixture
def anonymous(plugin: Any) -> Iterator[Any]:
    from airflow.api_fastapi.app import create_app
    from fastapi.testclient import TestClient

    app = create_app()
    with TestClient(app) as client:
        yield client


@pytest.fixture
def signed_in(plugin: Any, project: Project, write_messages: Write) -> Iterator[Any]:
    from airflow.api_fastapi.core_api.security import get_user
    from fastapi.testclient import TestClient

    project.use_case(prediction="head")
    write_messages(range(20))
    project.run()
    plugin.app.dependency_overrides[get_user] = lambda: object()
    with TestClient(plugin.app) as client:
        yield client
    plugin.app.dependency_overrides.clear()


def test_airflow_mounts_the_page_and_anonymous_requests_get_401_on_every_route(
    plugin: Any, anonymous: Any
) -> None:
    paths = [route.path for route in plugin.app.routes]
    assert paths
    for path in [*paths, "/?use_case=messages&q=x"]:
        assert anonymous.get(f"/embedline{path}").status_code == 401, path
    forged = anonymous.get("/embedline/", headers={"Authorization": "Bearer forged"})
    assert forged.status_code in (401, 403)
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert anonymous.get(f"/embedline{path}").status_code == 404, path


def test_the_page_shows_how_every_use_case_stands(signed_in: Any) -> None:
    page = signed_in.get("/").text
    assert "messages" in page
    assert "100.00 %" in page
    assert ">paused</th>" in page
    assert "held back" not in page


def test_the_page_links_to_what_monitoring_found(
    signed_in: Any, project: Project, write_messages: Write, store: Connection
) -> None:
    assert "monitor/messages" not in signed_in.get("/").text
    for day in range(1, 7):
        write_messages(range(day * 1440, day * 1440 + 60))
    baseline = {"since": "2026-01-02", "until": "2026-01-06"}
    case = project.use_case(monitoring={"baseline": baseline, "least_rows": 50})
    project.run()
    watch.watch(store, case)
    assert 'href="monitor/messages"' in signed_in.get("/").text
    page = signed_in.get("/monitor/messages").text
    assert "centroid" in page
    assert "<svg" in page


def test_the_page_says_what_holds_a_source_back(
    signed_in: Any, store: Connection
) -> None:
    held = '{"transactions": 7, "pid": 4711, "application": "etl", "since": "noon"}'
    store.execute("UPDATE embedline.source_cursor SET held_back = %s", [held])
    page = " ".join(signed_in.get("/").text.split())
    assert "held back by etl since noon" in page


@pytest.mark.parametrize("by", ["text", "key"])
def test_a_search_shows_records_with_prediction_and_score(
    signed_in: Any, by: str
) -> None:
    asked = {"use_case": "messages", "q": "7", "by": by, "k": 3}
    page = signed_in.get("/", params=asked).text
    assert page.count("message number") == 3


@pytest.mark.parametrize(
    ("asked", "code", "says"),
    [
        ({"use_case": "nothing", "q": "x"}, 400, "the store has no use case"),
        ({"use_case": "messages", "q": "nobody", "by": "key"}, 400, "no vector for"),
        ({"use_case": "messages", "q": "x", "k": 0}, 422, ""),
        ({"use_case": "messages", "q": "x", "by": "sql"}, 422, ""),
    ],
)
def test_a_question_that_cannot_be_answered_says_why(
    signed_in: Any, asked: dict[str, Any], code: int, says: str
) -> None:
    answer = signed_in.get("/", params=asked)
    assert answer.status_code == code
    assert says in answer.text


def test_a_search_by_text_survives_a_switch_of_the_model(
    signed_in: Any, project: Project, make_model: Any, plugin: Any, monkeypatch: Any
) -> None:
    """Also one in the midst of a search, when the encoder is at hand already."""
    project.use_case(encoder={"model": str(make_model(hidden=48))}, auto_promote=False)
    project.run()
    load, loaded = plugin._encoder, []

    def switched(version: Any) -> Any:
        encoder = load(version)
        loaded.append(version.version)
        if loaded == [1]:
            run.promote(project.request())
        return encoder

    monkeypatch.setattr(plugin, "_encoder", switched)
    asked = {"use_case": "messages", "q": "message number 7", "k": 3}
    for _ in range(2):
        assert signed_in.get("/", params=asked).text.count("message number") == 3 + 1
    assert loaded == [1, 2, 2]


def test_text_is_shown_as_text(
    signed_in: Any, project: Project, db: Connection
) -> None:
    script = "<script>alert('x')</script>"
    db.execute("UPDATE messages SET body = %s WHERE id = 7", [script])
    project.run()
    asked = {"use_case": "messages", "q": script, "k": 20}
    page = signed_in.get("/", params=asked).text
    assert script not in page
    assert "&lt;script&gt;" in page


def test_a_store_that_is_away_is_said_so(
    signed_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", "host=/nowhere")
    answer = signed_in.get("/")
    assert answer.status_code == 503
    assert "cannot connect to the store database" in answer.text
