"""People, who ask for backfills and change the use case's file in the middle of it."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

from embedding_tasks.use_case import Everything, Keys, Scope, Window
from tests.chaos import scene as scenes
from tests.chaos.scene import KEY_SPACE, Scene
from tests.chaos.tasks import FRESH, Tasks

SECONDS_BETWEEN = (1.0, 4.0)


@dataclass
class People:
    scene: Scene
    tasks: Tasks
    source: str
    models: Path

    def __post_init__(self) -> None:
        self._rng = random.Random(f"{self.scene.seed}/people")

    def run(self) -> None:
        for number in count():
            if self.tasks.stopped.wait(self._rng.uniform(*SECONDS_BETWEEN)):
                return
            if self._rng.random() < 0.25:
                self._change_recipe(number)
            else:
                self._backfill(f"backfill__{number}")

    def _backfill(self, external_id: str) -> None:
        """Half of them with `reembed`; of everything, half into a fresh table; some are
        only enqueued."""
        scope = self._scope()
        external_id += "+" * self._rng.randrange(2)
        if isinstance(scope, Everything) and self._rng.random() < 0.5:
            external_id += FRESH
        done = self.tasks.together(external_id, ["sync"], scope)
        if done and self._rng.random() < 0.5:
            self.tasks.together(external_id, ["embed"], scope)
            if external_id.endswith(FRESH):
                self.tasks.together(external_id, ["publish"], scope)
        self.tasks.counts["fresh tables"] += done and external_id.endswith(FRESH)
        self.tasks.counts["backfills"] += 1

    def _scope(self) -> Scope:
        numbers = self._rng.sample(range(KEY_SPACE), 10)
        keys = (self._written(self.scene.key_kind.value(n)) for n in numbers)
        since = datetime.now(UTC) - timedelta(seconds=self._rng.uniform(1, 20))
        return self._rng.choice(
            (Everything(), Keys(keys=tuple(keys)), Window(since=since))
        )

    def _written(self, key: scenes.Key) -> str:
        parts = [str(part) for part in key]
        return parts[0] if len(parts) == 1 else json.dumps(parts)

    def _change_recipe(self, number: int) -> None:
        """To and fro between two: the second time a retired version comes back."""
        scenes.write_use_case(
            self.scene, self.tasks.orders.folder, self.source, self.models, number % 2
        )
        self.tasks.counts["recipes changed"] += 1
