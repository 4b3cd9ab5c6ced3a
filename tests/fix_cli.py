"""The command line, typed in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from embedding_tasks import cli

Command = Callable[..., str]


@pytest.fixture
def embedline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Types a command in this process; returns what it printed."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["embedline", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = "".join(capsys.readouterr())
        assert (ended.value.code or 0) == code, printed
        return printed

    return run
