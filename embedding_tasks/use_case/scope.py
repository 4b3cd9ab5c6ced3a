"""Which records a backfill asks for: a window of event times, some keys, or all."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pydantic import Field, ValidationError, model_validator

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


class Keys(Part):
    """Records with these keys, written as a person writes them: one of several columns
    as a JSON list."""

    keys: tuple[str, ...] = Field(min_length=1)


class Everything(Part):
    """Every record of the source, those before the use case's `start` included."""


Scope = Window | Keys | Everything


def scope_of(
    *,
    since: datetime | str | None = None,
    until: datetime | str | None = None,
    keys: Sequence[str] | None = None,
    everything: bool = False,
) -> Scope | None:
    """The one scope that is given, or None. Raises `ConfigError` for several."""
    given: list[Scope | None] = [
        Window.parse(since, until),
        Keys(keys=tuple(keys)) if keys else None,
        Everything() if everything else None,
    ]
    scopes = [scope for scope in given if scope is not None]
    if len(scopes) > 1:
        raise ConfigError(
            "a backfill has one scope; valid: `since` and/or `until`, or `keys`, or "
            "`everything`"
        )
    return scopes[0] if scopes else None


def kind_of(scope: Scope | None) -> str | None:
    """As `embedline.run.scope` has it."""
    return None if scope is None else type(scope).__name__.lower()
