"""One validated description of a use case, read from `use_cases/<name>.yaml`.

Everything else in the package takes a `UseCase` and never looks at YAML again.
"""

from embedding_tasks.use_case.feature import (
    Feature,
    LayerMix,
    ObjectPooling,
    Template,
    WordPooling,
)
from embedding_tasks.use_case.model import (
    ONE_FEATURE,
    LabelTable,
    PredictionColumn,
    Retry,
    UseCase,
)
from embedding_tasks.use_case.part import Column
from embedding_tasks.use_case.reading import files, find, load, path_of
from embedding_tasks.use_case.source import DeleteGuard, Source
from embedding_tasks.use_case.window import Window

__all__ = [
    "ONE_FEATURE",
    "Column",
    "DeleteGuard",
    "Feature",
    "LabelTable",
    "LayerMix",
    "ObjectPooling",
    "PredictionColumn",
    "Retry",
    "Source",
    "Template",
    "UseCase",
    "Window",
    "WordPooling",
    "files",
    "find",
    "load",
    "path_of",
]
