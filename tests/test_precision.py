"""Half precision where it is enough, and bfloat16 where a model leaves its range."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from embedding_tasks.encoders import Runtime
from embedding_tasks.encoders.precision import HalfPrecision
from embedding_tasks.encoders.text import TextEncoder
from tests.fix_models import Family
from tests.test_text_encoder import recipe_of, use_case

pytestmark = pytest.mark.usefixtures("own_memory")
Load = Callable[[str], TextEncoder]


@pytest.fixture
def loads() -> list[str]:
    return []


@pytest.fixture
def load_from(loads: list[str]) -> Callable[[Path], Load]:
    def of(folder: Path) -> Load:
        def load(dtype: str) -> TextEncoder:
            loads.append(dtype)
            spec = recipe_of(use_case(folder, encoder={"dtype": dtype})).spec
            return TextEncoder(folder, spec, Runtime("cpu"))

        return load

    return of


def widened(folder: Path) -> Path:
    """Hidden values beyond 65,504, on their way to a norm that makes them small."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    for name in weights:
        if name.endswith("output.dense.weight") and "attention" not in name:
            weights[name] = weights[name] * 1e5
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def test_a_model_that_stays_in_range_stays_in_half_precision(
    make_family: Family,
    tweets: list[str],
    load_from: Callable[[Path], Load],
    loads: list[str],
) -> None:
    made = HalfPrecision(load_from(make_family("bert")), "weights")
    assert np.isfinite(made.encode(tweets[:50]).vectors).all()
    assert made.surroundings()["dtype"] == "float16"
    assert loads == ["float16"]


def test_a_model_that_leaves_it_is_loaded_again_in_bfloat16_for_good(
    make_family: Family,
    tweets: list[str],
    load_from: Callable[[Path], Load],
    loads: list[str],
) -> None:
    load = load_from(widened(make_family("bert")))
    assert not np.isfinite(load("float16").encode(tweets[:50]).vectors).all()
    loads.clear()
    made = HalfPrecision(load, "weights")
    assert np.isfinite(made.encode(tweets[:50]).vectors).all()
    assert made.surroundings()["dtype"] == "bfloat16"
    assert np.isfinite(made.encode(tweets[50:99]).vectors).all()
    assert loads == ["float16", "bfloat16"]
    # and by whoever loads it next
    loads.clear()
    assert HalfPrecision(load, "weights").surroundings()["dtype"] == "bfloat16"
    assert loads == ["bfloat16"]


def test_what_bfloat16_cannot_help_changes_nothing(
    make_family: Family,
    tweets: list[str],
    load_from: Callable[[Path], Load],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A text without a finite vector in any precision is not the precision's fault."""
    encode = TextEncoder.encode

    def lost(self: TextEncoder, inputs: Any) -> Any:
        made = encode(self, inputs)
        made.vectors[[text == "lost" for text in inputs]] = np.nan
        return made

    monkeypatch.setattr(TextEncoder, "encode", lost)
    made = HalfPrecision(load_from(make_family("bert")), "weights")
    finite = np.isfinite(made.encode([*tweets[:5], "lost"]).vectors).all(axis=1)
    assert finite.tolist() == [True] * 5 + [False]
    assert made.surroundings()["dtype"] == "float16"
