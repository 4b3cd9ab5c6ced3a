"""A training that ends by SIGKILL, for `test_trained`: python -m tests.trained_run NAME
EPOCH. The process dies right after that epoch's checkpoint."""

from __future__ import annotations

import os
import signal
import sys

from embedding_tasks import run, use_case
from embedding_tasks.training import Epoch


def die(epoch: Epoch) -> None:
    if epoch.number == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    request = run.Request(
        use_case=use_case.find(sys.argv[1]), external_id="killed", kind="cli"
    )
    run.train_stage(request, progress=die)
