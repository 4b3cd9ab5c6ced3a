"""A run that ends by SIGKILL: python -m tests.killed_run POINT N KEEP [OPTION...].

POINT is a function of the package; the process dies right after its N-th call. With
KEEP 'before' it dies right before. OPTIONs are of the request: reembed, fresh.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from itertools import count
from typing import Any

from embedding_tasks import run, use_case


def die_at(point: str, number: int, when: str) -> None:
    module_name, name = point.rsplit(".", 1)
    module = importlib.import_module(module_name)
    original = getattr(module, name)
    calls = count(1)  # several lanes may be in it

    def deadly(*args: Any, **kwargs: Any) -> Any:
        call = next(calls)
        if call == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if call == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, name, deadly)


if __name__ == "__main__":
    die_at(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    run.run(
        run.Request(
            use_case=use_case.find("messages"),
            external_id="killed",
            kind="cli",
            **dict.fromkeys(sys.argv[4:], True),  # type: ignore[arg-type]
        )
    )
