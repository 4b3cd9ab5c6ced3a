"""One process for each accelerator: whoever holds an advisory lock in the store on a
device's name has the device. It is held by a transaction that does nothing else, which
keeps its session even where a pooler gives sessions to transactions. A process that is
killed loses the session, and with it the device, at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from embedding_tasks.connections import Connection, blame, keep, look

log = logging.getLogger(__name__)

# Any number, as long as nobody else hashes with it: 'device' in letters.
_SEED = 0x646576696365
_PAUSE_SECONDS = 1.0
# Without one of these there is no NVIDIA driver, and no need to import torch to ask it.
_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))


class Held:
    """A device that is this process's own, by its `index` on this machine."""

    def __init__(
        self, index: int, name: str, open_store: Callable[[], Connection]
    ) -> None:
        self.index = index
        self._lock = sql.SQL(
            "pg_try_advisory_xact_lock(hashtextextended({}, {}))"
        ).format(name, _SEED)
        self._open_store = open_store
        self._connection: Connection | None = None

    def take(self) -> bool:
        """Raises `DatabaseAway`."""
        self._connection = self._open_store()
        taken = False
        try:
            with blame(store=self._connection):
                taken = keep(self._connection, self._lock)
        finally:
            if not taken:
                self.let_go()
        return taken

    def look(self) -> None:
        """The work goes on without the lock: at worst two processes share a device
        until one of them ends. Whether it can be had again is tried each time."""
        if self._connection is not None:
            try:
                look(self._connection)
                return
            except psycopg.Error as error:
                self.let_go()
                log.warning("device lock lost device=%d error=%s", self.index, error)
        try:
            taken = self.take() or self._take_a_little_later()
        except Exception as error:
            log.warning("device lock not taken again error=%s", error)
            return
        if taken:
            log.info("device lock taken again device=%d", self.index)
        else:
            log.warning("device=%d is another process's, too, by now", self.index)

    def _take_a_little_later(self) -> bool:
        """The session that was lost may still be on its way out."""
        time.sleep(_PAUSE_SECONDS)
        return self.take()

    def let_go(self) -> None:
        """With the session goes its lock."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextmanager
def hold(
    open_store: Callable[[], Connection],
    names: Mapping[int, str],
    is_wanted: Callable[[], bool],
) -> Iterator[Held | None]:
    """The first of these devices that is free, by index and by a name that no other
    device anywhere has. Where all are taken, waits for one, or, with None, for the
    moment it is not wanted any more."""
    held = _first_free(open_store, names)
    if held is None:
        log.warning("waiting devices=%s: other processes hold them", [*names])
    while held is None and is_wanted():
        time.sleep(_PAUSE_SECONDS)
        held = _first_free(open_store, names)
    try:
        yield held
    finally:
        if held is not None:
            held.let_go()


def candidates(asked: str) -> dict[int, str]:
    """The names of the GPUs that `encoder.device` may mean, by index; none on a
    machine without. Imports torch only where there is a driver."""
    if asked == "cpu" or not any(driver.exists() for driver in _DRIVERS):
        return {}
    import torch

    if not torch.cuda.is_available():
        return {}
    every = {
        index: str(torch.cuda.get_device_properties(index).uuid)
        for index in range(torch.cuda.device_count())
    }
    _, colon, number = asked.partition(":")
    return {i: n for i, n in every.items() if not colon or i == int(number)}


def _first_free(
    open_store: Callable[[], Connection], names: Mapping[int, str]
) -> Held | None:
    for index, name in names.items():
        held = Held(index, name, open_store)
        if held.take():
            return held
    return None
