"""The command line, as a newcomer types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress, TaskID

from embedding_tasks import status
from embedding_tasks.connections import Connection
from embedding_tasks.errors import ConfigError
from embedding_tasks.use_case import Everything
from tests.fix_cli import Command
from tests.fix_project import Project
from tests.forked import Forked

Write = Callable[..., None]


def in_a_process(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "embedding_tasks", *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_check_run_status_search_explain(
    embedline: Command, project: Project, db: Connection, write_messages: Write
) -> None:
    project.use_case(prediction="head")
    write_messages(range(30))
    checked = embedline("check")
    assert "messages: 30 rows, strategy snapshot" in checked
    assert "32 dimensions" in checked
    assert "fail" not in checked
    foreseen = "would do: 30 read, 30 new, 30 to embed"
    assert foreseen in embedline("run", "messages", "--dry-run")
    assert "30 embedded" in embedline("run", "messages")
    (numbers,) = json.loads(embedline("status", "--json"))
    assert (numbers["stored"], numbers["coverage"]) == (30, 1.0)
    assert "100.00% covered" in embedline("status", "messages")
    found = json.loads(
        embedline("search", "messages", "message number 7", "-k", "2", "--json")
    )
    assert [len(found), found[0]["key"]] == [2, "7"]
    near = embedline("search", "messages", "7", "--key", "-k", "5", "--json")
    assert len(json.loads(near)) == 5
    assert "stored, and its vector is of its current input" in embedline(
        "explain", "messages", "7"
    )


def test_an_audit_reads_every_row_and_goes_with_no_backfill(
    embedline: Command, project: Project, write_messages: Write
) -> None:
    write_messages(range(5))
    embedline("run", "messages")
    assert "done: 5 read, 5 wanted" in embedline("run", "messages", "--audit")
    with pytest.raises(ConfigError, match="leave out since, until, keys"):
        project.request(audit=True, backfill=Everything())


@pytest.mark.parametrize(
    ("arrange", "verdict"),
    [
        ("DELETE FROM messages WHERE id = 5", "the next sync removes it"),
        ("UPDATE messages SET body = 'x' WHERE id = 5", "changed since the last sync"),
        ("UPDATE messages SET author = 'x' WHERE id = 5", "stored, and its vector"),
    ],
)
def test_explain_says_where_a_record_stands(
    embedline: Command,
    project: Project,
    db: Connection,
    write_messages: Write,
    arrange: str,
    verdict: str,
) -> None:
    write_messages(range(10))
    embedline("run", "messages")
    db.execute(arrange)
    assert verdict in embedline("explain", "messages", "5")


def test_explain_knows_what_was_never_embedded(
    embedline: Command,
    project: Project,
    db: Connection,
    store: Connection,
    write_messages: Write,
) -> None:
    project.use_case(source={"start": "2026-01-01T00:05:00Z"})
    write_messages(range(10))
    db.execute("INSERT INTO messages (id, body) VALUES (20, NULL)")
    embedline("run", "messages")
    write_messages(range(30, 31))
    store.execute(
        "UPDATE embedline.ledger SET have_hash = NULL, dead_at = now(), attempts = 3,"
        " error = 'no' WHERE key = '8'"
    )
    for key, verdict in {
        "3": "before source.start (2026-01-01); a backfill brings it",
        "20": "its input is null: nothing to embed",
        "30": "in the source, and not yet seen by a sync",
        "99": "not in the source, or kept out by source.where",
        "8": "dead after 3 attempts: no",
    }.items():
        assert verdict in embedline("explain", "messages", key)
    assert "1 records will be tried again" in embedline("retry", "messages", "--dead")
    assert "1 new, 2 embedded" in embedline("run", "messages")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "mesages"], "no use case 'mesages': did you mean 'messages'?"),
        (["status", "--jsn"], "No such option"),
        (
            ["run", "messages", "--since", "2026-01-01"],
            "No such option",
        ),
        (["search", "nothing", "x"], "the store has no use case"),
        (["promote", "messages"], "the store has no use case"),
        (["retry", "messages"], "say which"),
        (["check", "mesages"], "no use case 'mesages'"),
    ],
)
def test_mistakes_are_answered_with_what_is_valid(
    embedline: Command, project: Project, arguments: list[str], says: str
) -> None:
    failing = 2 if says in ("No such option", "say which") else 1
    assert says in embedline(*arguments, code=failing)


def test_check_finds_every_kind_of_mistake_and_goes_on(
    embedline: Command, project: Project, db: Connection, store: Connection
) -> None:
    db.execute("CREATE TABLE loose (id int, body text)")
    db.execute("INSERT INTO loose VALUES (1, 'a'), (1, 'b')")
    project.use_case(source={"table": "loose", "event_time": None})
    folder = project.folder / "use_cases"
    (folder / "broken.yaml").write_text("name: [")
    text = (folder / "messages.yaml").read_text()
    model = text.replace("name: messages", "name: no_model").replace(
        str(project.raw["encoder"]["model"]), "./nowhere"
    )
    (folder / "no_model.yaml").write_text(model)
    told = embedline("check", "--no-model", code=1)
    assert "broken file: " in told
    assert "the key (id) is not unique: 2 rows have 1 different keys" in told
    assert "no_model recipe: encoder.model: " in told
    assert "ok   messages recipe" in told


def test_check_says_when_the_dimension_will_change(
    embedline: Command,
    project: Project,
    write_messages: Write,
    make_model: Callable[..., Path],
) -> None:
    write_messages(range(3))
    embedline("run", "messages")
    project.use_case(encoder={"model": str(make_model(hidden=64))})
    told = embedline("check")
    assert "the next run builds a new one (64 dimensions)" in told


def test_init_may_be_repeated(embedline: Command, project: Project) -> None:
    assert "up to date" in embedline("init")
    assert "applied" not in embedline("init")


def test_psql_passes_its_arguments_on(project: Project) -> None:
    shown = in_a_process("psql", "-Atc", "SELECT count(*) FROM embedline.use_case")
    assert shown.strip() == "0"


def test_without_any_configuration_the_store_is_embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDLINE_PROJECT", str(tmp_path))
    for name in ("EMBEDLINE_HOME", "EMBEDLINE_STORE_DSN"):
        monkeypatch.delenv(name, raising=False)
    assert "nothing has run yet" in in_a_process("status")
    assert (tmp_path / ".embedline" / "postgres" / "PG_VERSION").exists()
    assert not (tmp_path / ".embedline" / "postgres" / "postmaster.pid").exists()
    assert "the databases embedline" in in_a_process("demo", "--reset", "--yes")
    assert not (tmp_path / ".embedline").exists()


def test_a_dry_run_foresees_what_is_to_embed(
    embedline: Command, project: Project, db: Connection, write_messages: Write
) -> None:
    write_messages(range(30))
    embedline("run", "messages")
    dry = ("run", "messages", "--dry-run")
    assert "would do: nothing to do" in embedline(*dry)
    assert "would do: 30 to embed" in embedline(*dry, "--reembed")
    project.use_case(pooling="mean")
    foreseen = "30 to embed, as model version 2, beside the serving one"
    assert foreseen in embedline(*dry)
    project.use_case(pooling="cls", source={"delete_guard": {"rows": 5}})
    db.execute("DELETE FROM messages WHERE id < 20")
    assert "20 deletes withheld" in embedline(*dry)


def test_status_names_what_is_dead_and_why(
    embedline: Command, project: Project, store: Connection, write_messages: Write
) -> None:
    write_messages(range(9))
    embedline("run", "messages")
    store.execute(
        "UPDATE embedline.ledger SET have_hash = NULL, dead_at = now(),"
        " error = CASE key WHEN '3' THEN 'rare' ELSE 'common' END WHERE key < '4'"
    )
    told = embedline("status", "messages")
    assert told.index("3 dead: common; e.g. key 0") < told.index("1 dead: rare")


def test_status_of_what_has_not_run_says_so(
    embedline: Command, project: Project
) -> None:
    assert "nothing has run yet: embedline run messages" in embedline(
        "status", "messages"
    )
    assert "did you mean 'messages'" in embedline("status", "mesages", code=1)


def test_explain_takes_a_key_of_several_columns_as_a_list(
    embedline: Command, project: Project, db: Connection
) -> None:
    db.execute(
        "CREATE TABLE pages (site text, page int, body text, UNIQUE (site, page))"
    )
    db.execute("INSERT INTO pages VALUES ('acme', 1, 'x')")
    project.use_case(
        source={"table": "pages", "key": ["site", "page"], "event_time": None}
    )
    embedline("run", "messages")
    for key in ('["acme", "1"]', '["acme",1]'):
        assert "its current input" in embedline("explain", "messages", key)
    refused = embedline("explain", "messages", "acme,1", code=1)
    assert """write it as a JSON list of texts, '["site", "page"]'""" in refused


def test_an_interrupt_that_python_swallows_still_stops_a_run(
    embedline: Command,
    project: Project,
    store: Connection,
    write_messages: Write,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def swallow(self: Progress, task: TaskID, **fields: Any) -> None:
        with suppress(KeyboardInterrupt):  # as a finalizer does
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    monkeypatch.setattr(Progress, "update", swallow)
    project.use_case(batch={"claim": 8})
    write_messages(range(300))
    told = embedline("run", "messages", code=130)
    assert "what was finished is stored, the rest waits" in told
    numbers = status.of(store)[0]
    assert 8 <= numbers["stored"] < 300
    assert numbers["leased"] == 0


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_stopped_says_that_nothing_is_lost(
    project: Project,
    db: Connection,
    store: Connection,
    write_messages: Write,
    way: signal.Signals,
) -> None:
    project.use_case(batch={"claim": 1, "tokens": 1})
    write_messages(range(3000))
    running = Forked("embedding_tasks", "run", "messages")
    deadline = time.monotonic() + 60
    while not any(n["stored"] for n in status.of(store)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    running.send_signal(way)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "what was finished is stored, the rest waits" in told
    numbers = status.of(store)[0]
    assert 0 < numbers["stored"] < 3000
    assert numbers["leased"] == 0
