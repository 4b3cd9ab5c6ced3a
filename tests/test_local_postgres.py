"""The embedded server runs while somebody uses it, and no longer."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from embedding_tasks.errors import EmbedlineError
from embedding_tasks.local import postgres

USER = """
import sys
from pathlib import Path
from embedding_tasks.local import postgres
print(postgres.conninfo("app", Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def start_user(home: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", USER, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "dbname=app" in process.stdout.readline()
    return process


def is_up(home: Path) -> bool:
    try:
        psycopg.connect(f"host={home / 'postgres'} user=postgres dbname=app").close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_the_last_user_to_leave_stops_it(home: Path) -> None:
    first, second = start_user(home), start_user(home)
    first.communicate()
    assert is_up(home)
    second.communicate()
    assert not is_up(home)


def test_a_killed_user_does_not_count_for_ever(home: Path) -> None:
    killed, other = start_user(home), start_user(home)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert is_up(home)
    other.communicate()
    assert not is_up(home)


def test_it_is_not_stopped_under_another_user(home: Path) -> None:
    user = start_user(home)
    with pytest.raises(EmbedlineError, match="is in use"):
        postgres.stop(home)
    user.communicate()
    postgres.stop(home)
    assert not is_up(home)


def test_a_crashed_server_comes_up_again(home: Path) -> None:
    user = start_user(home)
    server = int((home / "postgres" / "postmaster.pid").read_text().split()[0])
    subprocess.run(["kill", "-9", str(server)], check=True)
    user.communicate()
    again = start_user(home)
    assert is_up(home)
    again.communicate()
    assert not is_up(home)


def test_databases_are_listed(home: Path) -> None:
    start_user(home).communicate()
    try:
        assert postgres.databases(home) == ["app"]
    finally:
        postgres.release(home)
