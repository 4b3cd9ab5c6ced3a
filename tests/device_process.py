"""Holds a device, for `test_device_lock`: python -m tests.device_process NAME….

Prints the index it got and the names in its log; ends when it is told to by a line.
"""

from __future__ import annotations

import logging
import sys

from embedding_tasks import device_lock
from embedding_tasks.store.connection import open_store

if __name__ == "__main__":
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    names = dict(enumerate(sys.argv[1:]))
    with device_lock.hold(open_store, names, is_wanted=lambda: True) as held:
        assert held is not None
        print(held.index, flush=True)
        sys.stdin.readline()
