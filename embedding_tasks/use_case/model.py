"""A use case, whole."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated, Any, Literal

from croniter import croniter
from pydantic import (
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from embedding_tasks.use_case.feature import Encoder, Feature, Layers, Pooling
from embedding_tasks.use_case.monitoring import BY_PREDICTION, Monitoring
from embedding_tasks.use_case.part import Column, Columns, Part, or_else
from embedding_tasks.use_case.source import Source

# A use case names a view, a table and a DAG; 40 characters leave room in
# Postgres' 63 for `vector_…_v123` and the names of its indexes.
NAME = r"[a-z][a-z0-9_]{0,39}"
FEATURE_NAME = r"[a-z][a-z0-9_]{0,15}"
# What the vectors are called of a use case that declares no features.
ONE_FEATURE = "embedding"


class PredictionColumn(Part):
    column: str = Field(min_length=1)
    score: str | None = None


Prediction = Annotated[
    Annotated[Literal["none", "head"], Tag("~word")]
    | Annotated[PredictionColumn, Tag("~column")],
    Discriminator(
        lambda v: "~column" if isinstance(v, dict | PredictionColumn) else "~word"
    ),
    or_else("'none', 'head', or {column: …, score: …}"),
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
    or_else("{column: …}, or {table: …, key: …, label: …, time: …}"),
]


class Index(Part):
    """An HNSW index is built once there are `min_rows` vectors and the backlog is
    drained, or has lasted `max_wait_hours`. Below, a scan is exact and fast."""

    type: Literal["hnsw", "none"] = "hnsw"
    min_rows: int = Field(20_000, ge=1)
    m: int = Field(16, ge=2, le=100)
    ef_construction: int = Field(64, ge=4, le=1000)
    max_wait_hours: float = Field(24, ge=0)

    @model_validator(mode="after")
    def _is_wide_enough(self) -> Index:
        if self.ef_construction < 2 * self.m:
            raise ValueError(
                f"ef_construction must be at least 2 * m, {2 * self.m}, not "
                f"{self.ef_construction}"
            )
        return self


class Storage(Part):
    """`data` is what is kept beside the vector: all of the input, its first N
    characters, or nothing."""

    type: Literal["vector", "halfvec"] = "vector"
    distance: Literal["cosine", "l2", "inner_product"] = "cosine"
    data: Annotated[
        Annotated[Literal["all", "none"], Tag("~word")]
        | Annotated[int, Field(ge=1), Tag("~count")],
        Discriminator(lambda v: "~count" if isinstance(v, int) else "~word"),
        or_else("'all', 'none', or a number of characters"),
    ] = "all"
    index: Index = Index()


class Batch(Part):
    tokens: int | None = Field(
        None,
        ge=1,
        description="in one forward pass; null: as suits the device and its memory",
    )
    claim: int = Field(8192, ge=1, description="most records of one lease")
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


class FeatureFields(Part):
    """One of several kinds of vectors of a record. What it does not say is as the use
    case says it."""

    input: Columns
    separator: str | None = None
    template: str | None = None
    encoder: Encoder | None = None
    pooling: Pooling | None = None
    layers: Layers | None = None
    normalize: bool | None = None


class UseCase(Part):
    name: str
    description: str = ""
    source: Source
    encoder: Encoder | None = None
    pooling: Pooling | None = None
    layers: Layers = "last"
    normalize: bool = False
    features: dict[str, FeatureFields] = Field(default_factory=dict)
    prediction: Prediction = "none"
    label: Label | None = None
    storage: Storage = Storage()
    schedule: str | None = "@daily"
    auto_promote: bool = True
    keep_retired_days: float | None = Field(30, ge=0, le=36_500)
    batch: Batch = Batch()
    retry: Retry = Retry()
    thresholds: Thresholds = Thresholds()
    monitoring: Monitoring | None = None

    @cached_property
    def all_features(self) -> dict[str, Feature]:
        """By name, the first one first; one called `embedding` where the use case
        declares none. `prediction: head` is the first one's."""
        declared = self.features or {
            ONE_FEATURE: FeatureFields(input=self.source.input)
        }
        return {
            name: self._whole(fields, head=self.prediction == "head" and place == 0)
            for place, (name, fields) in enumerate(declared.items())
        }

    @property
    def first_feature(self) -> Feature:
        return next(iter(self.all_features.values()))

    def kept(self, text: str | None) -> str | None:
        """What of it is kept beside the vector."""
        keep = self.storage.data
        if text is None or keep == "none":
            return None
        return text if keep == "all" else text[:keep]

    def _whole(self, fields: FeatureFields, *, head: bool) -> Feature:
        own = {k: v for k, v in dict(fields).items() if v is not None}
        inherited = {
            "separator": self.source.separator,
            "template": self.source.template,
            "encoder": self.encoder,
            "pooling": self.pooling,
            "layers": self.layers,
            "normalize": self.normalize,
        }
        if own.get("encoder", self.encoder) is None:
            raise ValueError("encoder: required, but missing")
        return Feature.model_validate({**inherited, **own, "head": head})

    @model_validator(mode="after")
    def _features_are_possible(self) -> UseCase:
        if self.features and self.source.input:
            raise ValueError("source.input: leave it out, each of `features` names its")
        if not self.features and not self.source.input:
            raise ValueError("source.input: required, but missing")
        for name in self.features:
            if not re.fullmatch(FEATURE_NAME, name) or name == ONE_FEATURE:
                raise ValueError(
                    f"features: the name {name!r} must begin with a lower-case letter "
                    "and go on with those, digits and '_', 16 characters in all, and "
                    f"not be {ONE_FEATURE!r}"
                )
        try:
            features = self.all_features
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            raise ValueError(first["msg"].removeprefix("Value error, ")) from None
        for name, feature in features.items():
            self._has_something_to_keep(name, feature)
        return self

    def _has_something_to_keep(self, name: str, feature: Feature) -> None:
        where = f"features.{name}." if self.features else ""
        is_labelled = self.label and feature.unit == self.first_feature.unit
        label_or_head = feature.head or is_labelled
        if feature.unit == "entity" and not label_or_head:
            raise ValueError(
                f"{where}pooling: 'entities' come from `prediction: head` or from a "
                "`label`; give one of them"
            )
        if feature.keeps_classified and not label_or_head:
            raise ValueError(
                f"{where}pooling: without `prediction: head` or a `label` no word is "
                "classified; valid: {words: first, keep: all}"
            )
        if feature.unit in ("word", "entity") and isinstance(
            self.prediction, PredictionColumn
        ):
            raise ValueError(
                f"{where}pooling: a prediction column says nothing of single "
                "words; valid: `prediction: head` or none"
            )

    @model_validator(mode="after")
    def _labels_find_their_records(self) -> UseCase:
        label, key = self.label, self.source.key
        if isinstance(label, LabelTable) and len(label.key) != len(key):
            raise ValueError(
                f"label.key has {len(label.key)} columns, source.key {len(key)}: a "
                "label finds its record by the same columns in the same order"
            )
        return self

    @model_validator(mode="after")
    def _slices_are_tags(self) -> UseCase:
        for tag in self.monitoring.tags if self.monitoring else ():
            if tag not in self.source.tags:
                valid = ", ".join([*self.source.tags, BY_PREDICTION])
                raise ValueError(
                    f"monitoring.slices: {tag!r} is not in source.tags; valid: {valid}"
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
        if "__" in name:
            raise ValueError("must not contain '__', which sets off a feature's view")
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
