"""A notifier as a provider of Airflow has it, that writes to a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow.sdk.bases.notifier import BaseNotifier


class Writes(BaseNotifier):  # type: ignore[misc]
    template_fields: Sequence[str] = ("text",)

    def __init__(self, path: str, text: str) -> None:
        super().__init__()
        self.path, self.text = path, text

    def notify(self, context: Any) -> None:
        with Path(self.path).open("a") as file:
            file.write(f"{self.text}\n")
