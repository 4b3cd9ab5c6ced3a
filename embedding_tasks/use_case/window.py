"""The event times a backfill asks for."""

from __future__ import annotations

from datetime import datetime

from pydantic import ValidationError, model_validator

from embedding_tasks.errors import ConfigError
from embedding_tasks.use_case.part import Moment, Part
from embedding_tasks.use_case.reading import messages


class Window(Part):
    """Records whose event time lies in [since, until)."""

    since: Moment | None = None
    until: Moment | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Window:
        if self.since is None and self.until is None:
            raise ValueError("a window needs `since` or `until`")
        if self.since and self.until and self.since >= self.until:
            raise ValueError("`since` must be before `until`")
        return self

    @classmethod
    def parse(
        cls, since: datetime | str | None, until: datetime | str | None
    ) -> Window | None:
        if since is None and until is None:
            return None
        try:
            return cls.model_validate({"since": since, "until": until})
        except ValidationError as error:
            given = {"since": since, "until": until}
            raise ConfigError("; ".join(messages(error, cls, given))) from None
