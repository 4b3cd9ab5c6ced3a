"""Where records come from, and which of their columns mean what."""

from __future__ import annotations

from typing import Annotated, Literal

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from embedding_tasks.use_case.part import (
    Column,
    Columns,
    Moment,
    Part,
    Tags,
    or_else,
)


class DeleteGuard(Part):
    """A sync that would delete more than `share` of the store, and more than
    `rows` records, withholds the deletions until somebody allows them."""

    share: float = Field(0.2, ge=0, le=1)
    rows: int = Field(100, ge=0)

    def forbids(self, deletions: int, known: int) -> bool:
        return deletions > self.rows and deletions > self.share * known


class Source(Part):
    connection: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]+$")
    dsn: str | None = None
    table: str | None = Field(None, min_length=1)
    query: str | None = Field(None, min_length=1)
    key: Columns
    input: Tags = ()
    separator: str = "\n"
    template: str | None = Field(None, min_length=1)
    where: str | None = Field(None, min_length=1)
    event_time: str | None = None
    environment: Annotated[
        Annotated[Literal["training", "validation", "production"], Tag("~constant")]
        | Annotated[Column, Tag("~column")],
        Discriminator(lambda v: "~constant" if isinstance(v, str) else "~column"),
        or_else("'training', 'validation', 'production', or {column: …}"),
    ] = "production"
    link: str | None = None
    tags: Tags = ()
    tenant: str | None = Field(None, min_length=1)
    strategy: Literal["auto", "snapshot", "timestamp", "outbox", "scan"] = "auto"
    updated_at: str | None = Field(None, min_length=1)
    slack_seconds: float = Field(5, ge=0, allow_inf_nan=False)
    audit_days: float | None = Field(None, gt=0, allow_inf_nan=False)
    key_scan: Literal["every_run", "audit"] | None = None
    start: Moment | None = None
    delete_guard: DeleteGuard = DeleteGuard()

    @field_validator("dsn")
    @classmethod
    def _no_password(cls, dsn: str | None) -> str | None:
        if dsn is None:
            return None
        try:
            password = str(conninfo_to_dict(dsn).get("password") or "")
        except ProgrammingError:  # whose text may quote a password
            raise ValueError(
                "is no connection string; valid: e.g. 'host=db.example dbname=crm "
                "user=reader password=${CRM_PASSWORD}'"
            ) from None
        if password and not password.startswith("${"):
            raise ValueError(
                "holds a password in the clear; write it as ${VARIABLE}, keep it in "
                "a password file, or use `connection`"
            )
        return dsn

    @model_validator(mode="after")
    def _one_of_each(self) -> Source:
        if (self.connection is None) == (self.dsn is None):
            raise ValueError("give exactly one of `connection` and `dsn`")
        if (self.table is None) == (self.query is None):
            raise ValueError("give exactly one of `table` and `query`")
        if self.query is not None and self.strategy in ("snapshot", "outbox"):
            raise ValueError(
                f"strategy {self.strategy!r} needs a `table`; a `query` is read by "
                "'scan' or 'timestamp'"
            )
        if self.start is not None and self.event_time is None:
            raise ValueError("`start` needs `event_time`")
        return self

    @model_validator(mode="after")
    def _strategy_has_its_fields(self) -> Source:
        by_time = self.strategy == "timestamp"
        if by_time and self.updated_at is None:
            raise ValueError("strategy 'timestamp' needs `updated_at`")
        for name in ("updated_at", "slack_seconds"):
            if name in self.model_fields_set and not by_time:
                raise ValueError(
                    f"`{name}` belongs to strategy 'timestamp', and this is "
                    f"{self.strategy!r}; leave it out, or say strategy: timestamp"
                )
        if self.key_scan == "audit" and self.strategy == "scan":
            raise ValueError(
                "`key_scan: audit` has nothing to spare with strategy 'scan', which "
                "reads everything; leave it out"
            )
        exact = self.strategy in ("auto", "snapshot")
        if self.key_scan == "audit" and exact and self.audit_days is None:
            raise ValueError(
                "`key_scan: audit` needs `audit_days` with strategy "
                f"{self.strategy!r}, which has no audits of its own: deletes would "
                "never be found"
            )
        return self
