"""What the fields of a use case are made of."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Tags = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_tuple)
]
Columns = Annotated[Tags, Field(min_length=1)]


def or_else(valid: str) -> WrapValidator:
    """One sentence for a field that may be this or that. What is wrong inside a
    mapping is still told field by field."""

    def validate(value: Any, validate_any: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate_any(value)
        except ValidationError:
            if isinstance(value, dict):
                raise
            raise ValueError(f"valid: {valid}") from None

    return WrapValidator(validate)


def _as_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


Moment = Annotated[datetime, AfterValidator(_as_utc)]
"""A date or a time; without a time zone it is UTC."""


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Column(Part):
    column: str = Field(min_length=1)
