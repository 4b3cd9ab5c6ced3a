"""One more worker, for `test_workers`: python -m tests.worker_process [N].

With N it dies by SIGKILL when it has encoded its N-th batch, and holds its leases.
"""

from __future__ import annotations

import sys

from embedding_tasks import run, use_case
from embedding_tasks.cli.running import external_id
from tests.killed_run import die_at

if __name__ == "__main__":
    if len(sys.argv) > 1:
        die_at("embedding_tasks.pipeline.isolate", int(sys.argv[1]), "after")
    case = use_case.find("messages")
    run.work(run.Request(case, external_id=external_id(), kind="work"))
