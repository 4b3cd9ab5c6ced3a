"""What a reading reads: a view of a use case, or one model version; which columns of
it, and their types; which rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import sql

from embedding_tasks import filters
from embedding_tasks.connections import Connection
from embedding_tasks.errors import SearchError, valid_choices
from embedding_tasks.filters import Filter
from embedding_tasks.store import versions
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.use_case import ONE_FEATURE

# What is read as it is; all else as Postgres writes it.
KINDS = {
    "bool": "bool",
    "int2": "int2",
    "int4": "int4",
    "int8": "int8",
    "float4": "float4",
    "float8": "float8",
    "text": "text",
    "varchar": "text",
    "timestamptz": "timestamptz",
    "jsonb": "jsonb",
    "int4range": "int4range",
    "_float4": "reals",
    "vector": "vector",
    "halfvec": "halfvec",
}


@dataclass(frozen=True)
class Column:
    """`dims` is of vectors only."""

    name: str
    kind: str
    dims: int = 0

    @property
    def is_vector(self) -> bool:
        return self.kind in ("vector", "halfvec")


@dataclass(frozen=True)
class Selection:
    """`versions` are those whose vectors are in it: several in a view that has the
    features of a record side by side."""

    use_case: str
    versions: list[ModelVersion]
    columns: list[Column]
    relation: sql.Composable
    condition: sql.Composable
    keys: list[Column]

    @property
    def order(self) -> list[str]:
        """What tells one row from another, and how rows are ordered."""
        return [column.name for column in self.keys]

    def with_keys(self) -> Selection:
        return replace(self, columns=list(dict.fromkeys([*self.keys, *self.columns])))

    @property
    def facts(self) -> dict[str, Any]:
        """Where the rows come from, as data that is read keeps it."""
        made_by = [
            {
                "feature": v.feature,
                "unit": v.unit,
                "model_version": v.version,
                "fingerprint": v.fingerprint,
                "dims": v.dims,
                "storage": v.storage,
                "distance": v.distance,
            }
            for v in self.versions
        ]
        return {"use_case": self.use_case, "versions": made_by}

    def copy(
        self, *, ordered: bool = False, after: Sequence[Any] | None = None
    ) -> sql.Composed:
        """`after` the row with these values of `order`."""
        statement = sql.SQL("COPY (SELECT {} FROM {} WHERE {}").format(
            sql.SQL(", ").join(map(_expression, self.columns)),
            self.relation,
            self._condition(after),
        )
        if ordered:
            statement += sql.SQL(" ORDER BY {}").format(self._order)
        return statement + sql.SQL(") TO STDOUT (FORMAT binary)")

    def count(self, after: Sequence[Any] | None = None) -> sql.Composed:
        return sql.SQL("SELECT count(*) FROM {} WHERE {}").format(
            self.relation, self._condition(after)
        )

    @property
    def _order(self) -> sql.Composed:
        return sql.SQL(", ").join(map(sql.Identifier, self.order))

    def _condition(self, after: Sequence[Any] | None) -> sql.Composable:
        if after is None:
            return self.condition
        return sql.SQL("{} AND ({}) > ({})").format(
            self.condition, self._order, sql.SQL(", ").join(map(sql.Literal, after))
        )


def select(
    store: Connection,
    use_case: str,
    *,
    filter: Filter | None = None,
    columns: Sequence[str] | None = None,
    feature: str | None = None,
    model_version: int | None = None,
) -> Selection:
    """To be called in a transaction, which then holds what is read: no promotion
    changes it before the end. Raises `SearchError`, which lists what is valid, or says
    which right is lacking."""
    try:
        return _select(store, use_case, filter, columns, feature, model_version)
    except psycopg.errors.InsufficientPrivilege as error:
        raise SearchError(
            f"{error.diag.message_primary}; what serves is read by a role that has the "
            "reader's rights (embedline init --roles), another version by the writer's"
        ) from error


def _select(
    store: Connection,
    use_case: str,
    filter: Filter | None,
    columns: Sequence[str] | None,
    feature: str | None,
    model_version: int | None,
) -> Selection:
    relation, made_by = _asked(store, use_case, feature, model_version)
    available = _columns(store, relation)
    # held by now: no promotion can come between
    relation, made_by = _asked(store, use_case, feature, model_version)
    names = [column.name for column in available]
    return Selection(
        use_case=use_case,
        versions=made_by,
        columns=_chosen(available, columns),
        relation=relation,
        condition=filters.condition(filter, names),
        keys=[column for column in available if column.name in ("key", "unit")],
    )


def _chosen(available: list[Column], names: Sequence[str] | None) -> list[Column]:
    if names is None:
        return available
    if isinstance(names, str) or not names:
        raise SearchError(f"columns: {names!r} is no list of names")
    by_name = {column.name: column for column in available}
    for name in names:
        if name not in by_name:
            raise SearchError(f"columns: no {valid_choices(name, list(by_name))}")
    return [by_name[name] for name in dict.fromkeys(names)]


def _asked(
    store: Connection, use_case: str, feature: str | None, model_version: int | None
) -> tuple[sql.Composable, list[ModelVersion]]:
    """What to select from, and whose vectors it has."""
    if model_version is not None:
        chosen = versions.numbered(store, use_case, model_version, feature)
        if not chosen.serves:
            return _query(store, chosen), [chosen]
        feature = chosen.feature
    serving = versions.active(store, use_case, feature)
    if feature is None and serving.feature != ONE_FEATURE:
        beside = _side_by_side(store, use_case, serving)
        if beside:
            return sql.Identifier("embeddings", use_case), beside
    own = "" if serving.feature == ONE_FEATURE else f"__{serving.feature}"
    return sql.Identifier("embeddings", use_case + own), [serving]


def _side_by_side(
    store: Connection, use_case: str, serving: ModelVersion
) -> list[ModelVersion]:
    """The versions in the view of all features; none where there is no such view."""
    found = store.execute(
        "SELECT to_regclass(format('embeddings.%%I', %s::text)) IS NOT NULL", [use_case]
    ).fetchone()
    live = versions.live(store, serving.use_case) if found == (True,) else []
    return [v for v in live if v.serves and v.unit == "record"]


def _query(store: Connection, version: ModelVersion) -> sql.Composed:
    """A version that does not serve has no view, but could have this one."""
    row = store.execute(
        "SELECT embedline.feature_view(m, u.predicted_by_source)"
        " FROM embedline.model_version m JOIN embedline.use_case u ON u.id = m.use_case"
        " WHERE m.id = %s",
        [version.id],
    ).fetchone()
    assert row is not None
    return sql.SQL("({}) AS version").format(sql.SQL(row[0]))


def _columns(store: Connection, relation: sql.Composable) -> list[Column]:
    try:
        cursor = store.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(relation))
    except psycopg.errors.UndefinedTable as error:
        raise SearchError(
            f"{error.diag.message_primary}: another version serves by now; ask again"
        ) from error
    result = cursor.pgresult
    assert result is not None
    assert cursor.description is not None
    types: dict[int, str] = dict(
        store.execute(
            "SELECT oid::int8, typname FROM pg_type WHERE oid = ANY (%s)",
            [[column.type_code for column in cursor.description]],
        ).fetchall()
    )
    return [
        Column(
            name=column.name,
            kind=KINDS.get(types.get(column.type_code, ""), "other"),
            dims=max(result.fmod(i), 0),
        )
        for i, column in enumerate(cursor.description)
    ]


def _expression(column: Column) -> sql.Composable:
    name = sql.Identifier(column.name)
    return sql.SQL("{}::text").format(name) if column.kind == "other" else name
