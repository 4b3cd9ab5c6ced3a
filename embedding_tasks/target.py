"""The side of the store that a sync writes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, LiteralString

from psycopg import sql

from embedding_tasks.connections import Connection
from embedding_tasks.store.versions import ModelVersion


@dataclass(frozen=True)
class Target:
    """The side of the store that one use case's sync writes to, inside one
    transaction. Statements find `%(use_case)s`, `%(versions)s` (ids), `%(first)s` (the
    id of the first feature's serving version) and `%(keep_labelled)s` (ids of the
    versions that have vectors of labelled parts) filled in."""

    store: Connection
    use_case: int
    versions: list[ModelVersion]
    labelled_unit: str = "record"

    @property
    def keep_labelled(self) -> list[ModelVersion]:
        """Those of which a record's labelled parts have a vector, whatever else."""
        return [v for v in self.versions if v.keeps_labelled(self.labelled_unit)]

    def execute(
        self, statement: LiteralString | sql.SQL | sql.Composed, **more: Any
    ) -> int:
        """Returns the rows affected."""
        return self.store.execute(statement, self._parameters(more)).rowcount

    def rows(self, statement: LiteralString, **more: Any) -> list[tuple[Any, ...]]:
        return self.store.execute(statement, self._parameters(more)).fetchall()

    def value(self, statement: LiteralString, **more: Any) -> Any:
        return self.rows(statement, **more)[0][0]

    def _parameters(self, more: dict[str, Any]) -> dict[str, Any]:
        ids = [version.id for version in self.versions]
        keep = [version.id for version in self.keep_labelled]
        return {
            "use_case": self.use_case,
            "versions": ids,
            "first": ids[0],
            "keep_labelled": keep,
            **more,
        }
