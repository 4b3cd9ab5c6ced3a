"""Training the encoders of a use case that learn from its own rows.

No model library is imported where there is nothing to train.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg import sql

from embedding_tasks import forgetting, settings
from embedding_tasks.connections import Connection, blame, for_source, keep
from embedding_tasks.encoders import recipe
from embedding_tasks.errors import ModelError
from embedding_tasks.inputs import Form
from embedding_tasks.source import sample, snapshot
from embedding_tasks.store import trained, versions
from embedding_tasks.use_case import Feature, UseCase
from embedding_tasks.use_case.feature import Trained

if TYPE_CHECKING:
    from embedding_tasks.encoders.trained.model import Rows
    from embedding_tasks.request import Request

log = logging.getLogger(__name__)

_PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class Epoch:
    """How far the training of a feature's encoder has come."""

    feature: str
    number: int
    of: int
    losses: dict[str, float]


Progress = Callable[[Epoch], None]


def wanted(store: Connection, use_case: UseCase, retrain: bool = False) -> list[str]:
    """The features a run would train: those that have no model of their settings."""
    known = {} if retrain else trained.digests(store, use_case)
    return recipe.untrained(use_case, known)


def train(
    store: Connection,
    request: Request,
    *,
    retrain: bool = False,
    progress: Progress = lambda epoch: None,
    run_id: int | None = None,
) -> dict[str, int]:
    """Returns counts. Raises `ModelError` where there are too few rows. What is killed
    goes on from its last epoch when it is called again on this machine."""
    use_case = request.use_case
    counts = {"trained": 0, "training_rows": 0}
    with blame(store=store):
        use_case_id = versions.register(store, use_case.name)
        with _alone(request, use_case_id):
            for name in wanted(store, use_case, retrain):
                rows = _train(store, request, use_case_id, name, progress, run_id)
                counts["trained"] += 1
                counts["training_rows"] += rows
    return counts


def _train(
    store: Connection,
    request: Request,
    use_case_id: int,
    name: str,
    progress: Progress,
    run_id: int | None,
) -> int:
    from embedding_tasks.encoders.trained import model
    from embedding_tasks.encoders.trained.train import Trace

    use_case, feature = request.use_case, request.use_case.all_features[name]
    encoder = trained.features(use_case)[name]
    folder = settings.home() / "training" / use_case.name / name

    def tell(trace: Trace) -> None:
        losses = trace.losses[-1]
        log.info(
            "trained use_case=%s feature=%s epoch=%d %s",
            *(use_case.name, name, len(trace.losses), _facts(losses)),
        )
        progress(Epoch(name, len(trace.losses), encoder.epochs, losses))

    try:
        rows = _rows(request, feature, forgetting.hashes(store, use_case_id))
        made, checkpoint = model.make(feature, rows, folder, tell)
    except ModelError as error:
        where = "" if len(use_case.all_features) == 1 else f" {name}"
        raise ModelError(f"{use_case.name}{where}: {error}") from error
    trained.insert(store, use_case_id, name, feature, made, run_id)
    _forget(checkpoint)
    log.info(
        "trained use_case=%s feature=%s rows=%d epoch=%d digest=%s",
        *(use_case.name, name, made.rows, made.epoch, made.digest[:12]),
    )
    return made.rows


def _rows(request: Request, feature: Feature, forgotten: set[bytes]) -> Rows:
    from embedding_tasks.encoders.trained import model

    use_case, form = request.use_case, Form.of(feature.model_dump())
    with snapshot.take(for_source(use_case.source, request.resolve)) as source:
        types, taken = sample.take(source, use_case, feature, forgotten)
        inputs = map(form.input, taken)
        if types == ["bytea"]:  # opened one by one, since they are large
            return _told(use_case, model.of_images(feature, inputs))
        given = list(inputs)
    if feature.reads_images:  # addresses, with no transaction open
        return _told(use_case, model.of_images(feature, given))
    rows, left_out = model.of_table(feature, types, given)
    for reason in left_out:
        log.warning("left out use_case=%s: %s", use_case.name, reason)
    (width,) = rows.shape
    if feature.encoder.type == "autoencoder" and width <= _size(feature):
        log.warning(
            "use_case=%s: encoder.size %d is no bottleneck for rows of %d numbers",
            *(use_case.name, _size(feature), width),
        )
    return rows


def _size(feature: Feature) -> int:
    assert isinstance(feature.encoder, Trained)
    return feature.encoder.size


def _told(use_case: UseCase, rows: Rows) -> Rows:
    if rows.unusable:
        log.warning(
            "left out use_case=%s images=%d: they do not open",
            *(use_case.name, rows.unusable),
        )
    return rows


@contextmanager
def _alone(request: Request, use_case: int) -> Iterator[None]:
    """One training of a use case at a time; another waits, and then finds what this one
    has made. What is lost with the lock is at worst a training done twice, so it does
    not matter how its connection ends."""
    lock = sql.SQL(
        "pg_try_advisory_xact_lock(hashtext('embedline.training'), {})"
    ).format(use_case)
    with closing(request.open_store()) as keeper:
        with blame(store=keeper):
            # not in one statement, which would hold a snapshot
            while not keep(keeper, lock):
                time.sleep(_PAUSE_SECONDS)
        yield


def _forget(checkpoint: Path) -> None:
    """And those of trainings that were given up for other rows."""
    with suppress(OSError):
        for left in checkpoint.parent.iterdir():
            left.unlink()


def _facts(losses: dict[str, float]) -> str:
    return " ".join(f"{name}={loss:.4g}" for name, loss in losses.items())
