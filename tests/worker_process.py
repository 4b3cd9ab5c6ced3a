"""One more worker, for tests: python -m tests.worker_process [N] [--devices NAME…].

With N it dies by SIGKILL when it has encoded its N-th batch, and holds its leases. With
devices it is on a machine that has these GPUs, prints which one its model is asked to
run on, waits for a line, and runs it on the processor.
"""

from __future__ import annotations

import argparse
import sys

from embedding_tasks import device_lock, encoders, run, use_case
from embedding_tasks.cli.running import external_id
from embedding_tasks.encoders import Encoder, Runtime
from embedding_tasks.store.versions import ModelVersion
from tests.killed_run import die_at


def have(devices: dict[int, str]) -> None:
    load = encoders.load

    def told(version: ModelVersion, runtime: Runtime) -> Encoder:
        print(runtime.device, flush=True)
        sys.stdin.readline()
        return load(version, Runtime(device="cpu"))

    encoders.load = told
    device_lock.candidates = lambda asked: devices


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("dies_at", type=int, nargs="?")
    parser.add_argument("--devices", nargs="*", default=[])
    asked = parser.parse_args()
    if asked.devices:
        have(dict(enumerate(asked.devices)))
    if asked.dies_at:
        die_at("embedding_tasks.pipeline.isolate", asked.dies_at, "after")
    case = use_case.find("messages")
    run.work(run.Request(case, external_id=external_id(), kind="work"))
