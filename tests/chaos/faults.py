"""The adversary: kills what runs, cuts what is connected, turns the clocks."""

from __future__ import annotations

import random
import threading
from collections import Counter

import psycopg
from psycopg import sql
from psycopg.errors import Diagnostic

from tests.chaos.servers import Server, Servers
from tests.chaos.tasks import Alive
from tests.chaos.writers import APPLICATION

# How often each, beside the others.
FAULTS = {
    "task killed": 5.0,
    "connection cut": 3.0,
    "cut in COPY": 3.0,
    "clock jumped": 1.0,
    "application cut": 1.0,
    "server killed": 0.25,
}
PAUSE_SECONDS = 0.25

LIE_IN_WAIT = """
DO $$
DECLARE
    until timestamptz := clock_timestamp() + interval '1 second';
BEGIN
    WHILE clock_timestamp() < until LOOP
        PERFORM pg_stat_clear_snapshot();
        PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE application_name LIKE 'embedline-%' AND state = 'active'
            AND query LIKE 'COPY %' LIMIT 1;
        IF FOUND THEN
            RAISE NOTICE 'cut';
            RETURN;
        END IF;
        PERFORM pg_sleep(0.0005);
    END LOOP;
END
$$
"""


class Adversary:
    def __init__(
        self,
        seed: int,
        servers: Servers,
        store: str,
        alive: Alive,
        counts: Counter[str],
        stopped: threading.Event,
        *,
        heals: bool,
    ) -> None:
        self._faults = dict(FAULTS)
        self._pause = PAUSE_SECONDS
        if not heals:
            del self._faults["server killed"]
            self._pause *= 10
        self._rng = random.Random(f"{seed}/adversary")
        self._servers = servers
        self._store = store
        self._alive = alive
        self._counts = counts
        self._stopped = stopped

    def run(self) -> None:
        while not self._stopped.wait(self._rng.random() * self._pause):
            (fault,) = self._rng.choices([*self._faults], [*self._faults.values()])
            try:
                done = getattr(self, "_" + fault.replace(" ", "_").lower())()
            except psycopg.OperationalError:  # the server is just coming back
                done = False
            self._counts[fault] += done

    def _task_killed(self) -> bool:
        task = self._alive.any(self._rng)
        if task is None or not task.is_alive():
            return False
        task.kill()
        return True

    def _connection_cut(self) -> bool:
        return self._cut("application_name LIKE 'embedline-%'")

    def _cut_in_copy(self) -> bool:
        """Lies in wait for one, a second at most."""
        with psycopg.connect(self._shuffled()[0].conninfo, autocommit=True) as admin:
            notices: list[Diagnostic] = []
            admin.add_notice_handler(notices.append)
            admin.execute(LIE_IN_WAIT)
            return bool(notices)

    def _application_cut(self) -> bool:
        return self._cut(f"application_name = '{APPLICATION}'")

    def _cut(self, which: str) -> bool:
        for server in self._shuffled():
            with psycopg.connect(server.conninfo, autocommit=True) as admin:
                cut = admin.execute(
                    sql.SQL(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        f" WHERE {which} ORDER BY random() LIMIT 1"  # type: ignore[arg-type]
                    )
                ).fetchone()
            if cut is not None:
                return True
        return False

    def _clock_jumped(self) -> bool:
        """The store's clock: what it remembers of moments moves the other way. It is
        set right again by a later jump."""
        minutes = self._rng.uniform(-90, 90)
        with psycopg.connect(self._store, autocommit=True) as store:
            store.execute(
                "UPDATE embedline.ledger SET"
                " lease_until = lease_until - make_interval(mins => %(m)s),"
                " queued_at = queued_at - make_interval(mins => %(m)s),"
                " dead_at = dead_at - make_interval(mins => %(m)s)",
                {"m": int(minutes)},
            )
        return True

    def _server_killed(self) -> bool:
        self._shuffled()[0].restart()
        return True

    def _shuffled(self) -> list[Server]:
        return self._rng.sample(self._servers.both, 2)
