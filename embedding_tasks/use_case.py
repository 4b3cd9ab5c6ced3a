"""One validated description of a use case, read from `use_cases/<name>.yaml`.

Everything else in the package takes a `UseCase` and never looks at YAML again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from croniter import croniter
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from embedding_tasks import settings
from embedding_tasks.errors import ConfigError, valid_choices

# A use case names a view, a table and a DAG; 40 characters leave room in
# Postgres' 63 for `vector_…_v123` and the names of its indexes.
NAME = r"[a-z][a-z0-9_]{0,39}"


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Tags = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_tuple)
]
Columns = Annotated[Tags, Field(min_length=1)]


def _or_else(valid: str) -> WrapValidator:
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
    input: Columns
    separator: str = "\n"
    where: str | None = Field(None, min_length=1)
    event_time: str | None = None
    environment: Annotated[
        Annotated[Literal["training", "validation", "production"], Tag("~constant")]
        | Annotated[Column, Tag("~column")],
        Discriminator(lambda v: "~constant" if isinstance(v, str) else "~column"),
        _or_else("'training', 'validation', 'production', or {column: …}"),
    ] = "production"
    link: str | None = None
    tags: Tags = ()
    strategy: Literal["auto", "snapshot", "scan"] = "auto"
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
        if self.query is not None and self.strategy == "snapshot":
            raise ValueError(
                "strategy 'snapshot' needs a `table`; a `query` is read by 'scan'"
            )
        if self.start is not None and self.event_time is None:
            raise ValueError("`start` needs `event_time`")
        return self


class LayerMix(Part):
    """Mean or concatenation of the last `last` hidden layers."""

    last: int = Field(ge=1)
    combine: Literal["mean", "concat"] = "mean"


Layers = Annotated[
    Annotated[Literal["last"], Tag("~word")]
    | Annotated[int, Tag("~index")]
    | Annotated[LayerMix, Tag("~mix")],
    Discriminator(
        lambda v: (
            "~mix"
            if isinstance(v, dict | LayerMix)
            else "~index"
            if isinstance(v, int) and not isinstance(v, bool)
            else "~word"
        )
    ),
    _or_else("'last', a layer's number, or {last: N, combine: mean or concat}"),
]


class Encoder(Part):
    """`model` is a Hugging Face id, or a folder when it starts with `.`, `/` or `~`
    (relative to the project)."""

    model: str = Field(min_length=1)
    revision: str = "main"
    max_length: int | None = Field(None, ge=4)
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    device: str = "auto"

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError("valid: 'auto', 'cpu', 'cuda', 'cuda:0' and so on")
        return device


class PredictionColumn(Part):
    column: str = Field(min_length=1)
    score: str | None = None


Prediction = Annotated[
    Annotated[Literal["none", "head"], Tag("~word")]
    | Annotated[PredictionColumn, Tag("~column")],
    Discriminator(
        lambda v: "~column" if isinstance(v, dict | PredictionColumn) else "~word"
    ),
    _or_else("'none', 'head', or {column: …, score: …}"),
]


class LabelTable(Part):
    """Labels that live in a table of their own and arrive when they arrive."""

    table: str = Field(min_length=1)
    key: Columns
    label: str = Field(min_length=1)
    time: str | None = None


def _label_kind(value: Any) -> str:
    if isinstance(value, dict):
        return "~column" if "column" in value else "~table"
    return "~table" if isinstance(value, LabelTable) else "~column"


Label = Annotated[
    Annotated[Column, Tag("~column")] | Annotated[LabelTable, Tag("~table")],
    Discriminator(_label_kind),
    _or_else("{column: …}, or {table: …, key: …, label: …, time: …}"),
]


class Storage(Part):
    """`data` is what is kept beside the vector: all of the input, its first N
    characters, or nothing."""

    type: Literal["vector", "halfvec"] = "vector"
    distance: Literal["cosine", "l2", "inner_product"] = "cosine"
    data: Annotated[
        Annotated[Literal["all", "none"], Tag("~word")]
        | Annotated[int, Field(ge=1), Tag("~count")],
        Discriminator(lambda v: "~count" if isinstance(v, int) else "~word"),
        _or_else("'all', 'none', or a number of characters"),
    ] = "all"


class Batch(Part):
    tokens: int = Field(4096, ge=1, description="padded tokens in one forward pass")
    claim: int = Field(1024, ge=1, description="records leased and written at a time")
    lease_seconds: int = Field(120, ge=5)
    rows_per_worker: int = Field(20_000, ge=1)
    max_workers: int = Field(4, ge=1, le=1000)


class Retry(Part):
    """How often one record may fail before it is set aside as dead."""

    max_attempts: int = Field(3, ge=1)
    backoff_seconds: float = Field(60, ge=0)


class Thresholds(Part):
    """A run fails when it leaves more than both undone: pending and dead records."""

    undone_rows: int = Field(0, ge=0)
    undone_share: float = Field(0.01, ge=0, le=1)


class UseCase(Part):
    name: str
    description: str = ""
    source: Source
    encoder: Encoder
    pooling: Literal["cls", "mean"] = "cls"
    layers: Layers = "last"
    normalize: bool = False
    prediction: Prediction = "none"
    label: Label | None = None
    storage: Storage = Storage()
    schedule: str | None = "@daily"
    auto_promote: bool = True
    batch: Batch = Batch()
    retry: Retry = Retry()
    thresholds: Thresholds = Thresholds()

    def kept(self, text: str) -> str | None:
        """What of it is kept beside the vector."""
        keep = self.storage.data
        return None if keep == "none" else text if keep == "all" else text[:keep]

    @model_validator(mode="after")
    def _labels_find_their_records(self) -> UseCase:
        label, key = self.label, self.source.key
        if isinstance(label, LabelTable) and len(label.key) != len(key):
            raise ValueError(
                f"label.key has {len(label.key)} columns, source.key {len(key)}: a "
                "label finds its record by the same columns in the same order"
            )
        return self

    @field_validator("name")
    @classmethod
    def _is_plain(cls, name: str) -> str:
        if not re.fullmatch(NAME, name):
            raise ValueError(
                "must begin with a lower-case letter and go on with those, digits and "
                "'_', 40 characters in all"
            )
        return name

    @field_validator("schedule", mode="before")
    @classmethod
    def _is_text(cls, schedule: Any) -> Any:
        if schedule is False:  # what YAML makes of: off, no
            raise ValueError("valid: a cron expression, or null for none")
        return schedule

    @field_validator("schedule")
    @classmethod
    def _is_cron(cls, schedule: str | None) -> str | None:
        if schedule is not None and not croniter.is_valid(schedule):
            raise ValueError(
                f"{schedule!r} is no cron expression; "
                "valid: e.g. '0 2 * * *', '@hourly', null"
            )
        return schedule


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
            raise ConfigError("; ".join(_messages(error, cls, given))) from None


def files(folder: Path | None = None) -> list[Path]:
    """The use-case files of a folder, in a stable order."""
    folder = folder or settings.use_cases()
    return sorted(p for p in folder.glob("*.yaml") if p.is_file())


def load(path: Path) -> UseCase:
    """Raises `ConfigError` naming the file, every wrong field, its value and what
    would be valid."""
    raw = _read(path)
    try:
        use_case = UseCase.model_validate(raw)
    except ValidationError as error:
        problems = _messages(error, UseCase, raw)
        raise ConfigError("\n".join(f"{path}: {p}" for p in problems)) from None
    if use_case.name != path.stem:
        raise ConfigError(
            f"{path}: name: {use_case.name!r} must equal the file's name; "
            f"valid: {path.stem!r}, or rename the file to {use_case.name}.yaml"
        )
    return use_case


def path_of(name: str) -> Path:
    found = {p.stem: p for p in files()}
    if (other := settings.use_cases() / f"{name}.yml").exists():
        raise ConfigError(f"{other}: must be called {name}.yaml")
    if name not in found:
        valid = valid_choices(name, list(found)) if found else repr(name)
        raise ConfigError(f"no use case {valid} (in {settings.use_cases()})")
    return found[name]


def find(name: str) -> UseCase:
    return load(path_of(name))


class _StrictLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys in silence (yaml/pyyaml#165)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        seen = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key!r}", key_node.start_mark
                )
            seen.append(key)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        # _StrictLoader is a SafeLoader: it builds plain data only
        raw = yaml.load(path.read_text("utf-8"), _StrictLoader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: a date or a number that cannot be, or bytes that are no UTF-8
        raise ConfigError(f"{path}: is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: must be a mapping of fields; valid: "
            f"{', '.join(UseCase.model_fields)}"
        )
    return raw


def _messages(
    error: ValidationError, model: type[BaseModel], raw: object
) -> Iterator[str]:
    for problem in error.errors(include_input=False, include_url=False):
        loc = [p for p in problem["loc"] if not _is_tag(p)]
        where = ".".join(str(p) for p in loc)
        if problem["type"] == "extra_forbidden":
            yield (
                f"{'.'.join(map(str, loc[:-1])) or 'top level'}: unknown field "
                f"{valid_choices(loc[-1], _fields(model, loc[:-1]))}"
            )
        elif problem["type"] == "missing":
            yield f"{where}: required, but missing"
        else:
            message = _worded(problem, model, loc)
            yield f"{where}{': ' * bool(where)}{message}{_got(raw, loc) * bool(where)}"


def _worded(problem: Any, model: type[BaseModel], loc: list[int | str]) -> str:
    kind: str = problem["type"]
    if kind == "model_type":
        return f"must be a mapping; valid: {', '.join(_fields(model, loc))}"
    if kind.startswith(("datetime_", "date_")):
        return "is no date or time; valid: e.g. 2026-03-01 or 2026-03-01T06:00Z"
    if kind == "too_short":
        return "needs at least one column"
    message: str = problem["msg"].removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _is_tag(part: int | str) -> bool:
    """pydantic puts the chosen branch of a union into the path; a reader of the
    file does not know it."""
    return isinstance(part, str) and part.startswith(("~", "function-"))


def _got(raw: object, loc: Iterable[int | str]) -> str:
    for part in loc:
        if part == "dsn":  # may hold a password
            return ""
        try:
            raw = raw[part]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            return ""
    return "" if isinstance(raw, dict) else f", got {raw!r}"


def _fields(model: type[BaseModel], loc: Iterable[int | str]) -> list[str]:
    """The fields there may be at a place, of all the forms it may take."""
    models = [model]
    for part in loc:
        fields = [m.model_fields.get(str(part)) for m in models]
        models = [m for f in fields if f for m in _models(f.annotation)]
    return [name for m in models for name in m.model_fields]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models(argument)
