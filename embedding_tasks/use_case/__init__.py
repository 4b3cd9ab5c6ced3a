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
    Index,
    LabelTable,
    PredictionColumn,
    Retry,
    UseCase,
)
from embedding_tasks.use_case.part import Column
from embedding_tasks.use_case.reading import files, find, load, path_of
from embedding_tasks.use_case.scope import (
    Everything,
    Keys,
    Scope,
    Window,
    kind_of,
    scope_of,
)
from embedding_tasks.use_case.source import DeleteGuard, Source

__all__ = [
    "ONE_FEATURE",
    "Column",
    "DeleteGuard",
    "Everything",
    "Feature",
    "Index",
    "Keys",
    "LabelTable",
    "LayerMix",
    "ObjectPooling",
    "PredictionColumn",
    "Retry",
    "Scope",
    "Source",
    "Template",
    "UseCase",
    "Window",
    "WordPooling",
    "files",
    "find",
    "kind_of",
    "load",
    "path_of",
    "scope_of",
]
