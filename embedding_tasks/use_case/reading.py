"""Use cases from their YAML files, and every mistake in them in words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from embedding_tasks import settings
from embedding_tasks.errors import ConfigError, valid_choices
from embedding_tasks.use_case.feature import KINDS
from embedding_tasks.use_case.model import UseCase


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
        problems = messages(error, UseCase, raw)
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
        raise ConfigError(f"{path}: is not valid YAML: {_found_at(error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: must be a mapping of fields; valid: "
            f"{', '.join(UseCase.model_fields)}"
        )
    return raw


def _found_at(error: Exception) -> str:
    """Without the line itself, which may hold a password."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error)
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def messages(
    error: ValidationError, model: type[BaseModel], raw: object
) -> Iterator[str]:
    for problem in error.errors(include_input=False, include_url=False):
        tagged = problem["loc"]
        loc = [p for p in tagged if not _is_tag(p)]
        where = ".".join(str(p) for p in loc)
        if problem["type"] == "extra_forbidden":
            yield (
                f"{'.'.join(map(str, loc[:-1])) or 'top level'}: unknown field "
                f"{valid_choices(loc[-1], _fields(model, tagged[:-1]))}"
            )
        elif problem["type"] == "missing":
            yield f"{where}: required, but missing"
        else:
            message = _worded(problem, model, tagged)
            yield f"{where}{': ' * bool(where)}{message}{_got(raw, loc) * bool(where)}"


def _worded(problem: Any, model: type[BaseModel], loc: Sequence[int | str]) -> str:
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
    if isinstance(raw, str) and "://" in raw:  # the same
        raw = re.sub(r"\?.*", "?***", re.sub(r"//[^/]*@", "//***@", raw))
    return "" if isinstance(raw, dict) else f", got {raw!r}"


def _fields(model: type[BaseModel], loc: Iterable[int | str]) -> list[str]:
    """The fields there may be at a place, of all the forms it may take that the path
    does not rule out."""
    models = [model]
    for part in loc:
        if _is_tag(part):
            kind = KINDS.get(str(part).removeprefix("~"))
            models = [kind] if kind in models else models
            continue
        if isinstance(part, str) and any(part in m.model_fields for m in models):
            fields = [m.model_fields.get(part) for m in models]
            models = [m for f in fields if f for m in _models(f.annotation)]
        # else the key of a mapping, or a place in a list
    return [name for m in models for name in m.model_fields]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models(argument)
