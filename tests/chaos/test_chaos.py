"""A few short storms, and the mutants. `make chaos` has the long ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import models, scene
from tests.chaos.servers import Servers, started
from tests.chaos.storm import storm

SECONDS = 5.0
# The seed in whose scene each mutant soon does harm.
WHERE = {
    "watermark": 8,
    "no fence": 9,
    "no lease token": 12,
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with started(tmp_path_factory.mktemp("storm")) as made:
        yield made


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.make(tmp_path_factory.mktemp("models"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_storm_leaves_the_store_as_a_fresh_full_run_does(
    servers: Servers, heads: Path, tmp_path: Path, seed: int
) -> None:
    report = storm(scene.of_seed(seed), servers, tmp_path, heads, SECONDS)
    assert report.faults > 5
    assert report.is_clean, report


@pytest.mark.slow
@pytest.mark.parametrize("mutant", WHERE)
def test_a_broken_build_is_found(
    servers: Servers, heads: Path, tmp_path: Path, mutant: str
) -> None:
    where = scene.of_seed(WHERE[mutant])
    report = storm(where, servers, tmp_path, heads, SECONDS, mutant=mutant, rounds=30)
    assert report.verdict.wrong
