"""The application: transactions of any length, savepoints, rollbacks, deletes, keys
used again, times gone by, prepared transactions, and now and then a poison row."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import sql

from embedding_tasks.connections import Connection
from tests.chaos.scene import KEY_SPACE, Scene

POISON = "POISON"
APPLICATION = "application"
WAITED_IN_VAIN = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)

SENTENCES = (
    "the flight was late again and nobody said why",
    "thank you for the quick answer",
    "my bag is in Boston and I am in Lisbon",
    "how do I change the seat",
    "worst service ever",
    "great crew on the way home",
)
TAGS = ("O", "O", "B-place", "I-place", "B-thing")

OPERATIONS = {
    "upsert": 5.0,
    "edit": 5.0,
    "annotate": 2.0,
    "judge": 4.0,
    "delete": 3.0,
    "use again": 1.5,
    "blank": 0.7,
    "poison": 0.5,
    "truncate": 0.05,
}


class Writer:
    """One session of the application. `counts` is shared with the report."""

    def __init__(
        self,
        scene: Scene,
        conninfo: str,
        number: int,
        counts: Counter[str],
        stopped: threading.Event,
    ) -> None:
        self._scene = scene
        self._conninfo = conninfo
        self._number = number
        self._rng = random.Random(f"{scene.seed}/{number}")
        self._counts = counts
        self._stopped = stopped
        self._prepared: list[str] = []

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                with _session(self._conninfo) as connection:
                    while not self._stopped.is_set():
                        self._one_transaction(connection)
            except psycopg.OperationalError:  # the server went away under it
                time.sleep(0.1)

    def _one_transaction(self, connection: Connection) -> None:
        rng = self._rng
        try:
            connection.execute("BEGIN")
            for _ in range(rng.randint(1, 6)):
                if rng.random() < 0.3:
                    self._in_savepoint(connection)
                else:
                    self._operate(connection)
                self._stopped.wait(rng.choice((0, 0, 0.01, 0.05, rng.random() * 0.8)))
            self._end(connection)
        except psycopg.OperationalError as error:
            if connection.closed or connection.broken:
                raise
            # a lock that another session holds too long, or a deadlock
            if not isinstance(error, WAITED_IN_VAIN):
                raise
            connection.execute("ROLLBACK")
        self._stopped.wait(rng.random() * 0.1)

    def _in_savepoint(self, connection: Connection) -> None:
        connection.execute("SAVEPOINT here")
        self._operate(connection)
        end = self._rng.choice(("RELEASE", "RELEASE", "ROLLBACK TO"))
        connection.execute(f"{end} SAVEPOINT here")

    def _end(self, connection: Connection) -> None:
        rng = self._rng
        if rng.random() < 0.1:
            name = f"{self._number}-{rng.random()}"
            connection.execute(sql.SQL("PREPARE TRANSACTION {}").format(name))
            self._prepared.append(name)
            self._counts["prepared transactions"] += 1
        else:
            end = "ROLLBACK" if rng.random() < 0.1 else "COMMIT"
            connection.execute(end)
            self._counts["transactions"] += 1
        if self._prepared and rng.random() < 0.3:
            self._finish_prepared(connection)

    def _finish_prepared(self, connection: Connection) -> None:
        name = self._prepared[0]
        end = "COMMIT" if self._rng.random() < 0.7 else "ROLLBACK"
        with suppress(psycopg.errors.UndefinedObject):  # decided, but never told so
            connection.execute(sql.SQL(f"{end} PREPARED {{}}").format(name))
        del self._prepared[0]

    def _operate(self, connection: Connection) -> None:
        weights = dict(OPERATIONS)
        if self._scene.units == "words":  # which of them have a vector, labels say, too
            weights["judge"] *= 4
        if not self._scene.truncates:
            del weights["truncate"]
        (name,) = self._rng.choices([*weights], [*weights.values()])
        getattr(self, "_" + name.replace(" ", "_"))(connection)

    def _upsert(self, connection: Connection) -> None:
        self._insert(connection, self._key(), self._content())

    def _insert(self, connection: Connection, key: Any, content: Any) -> None:
        connection.execute(
            sql.SQL(
                "INSERT INTO records ({0}, body, words, tags, updated_at)"
                " VALUES ({1}, %s, %s, %s, {2}) ON CONFLICT ({0}) DO UPDATE SET"
                " body = EXCLUDED.body, words = EXCLUDED.words, tags = EXCLUDED.tags,"
                " updated_at = EXCLUDED.updated_at"
            ).format(
                self._scene.key_columns,
                sql.SQL(", ").join(map(sql.Literal, key)),
                self._now(),
            ),
            content,
        )

    def _edit(self, connection: Connection) -> None:
        self._update(connection, "body = %s, words = %s, tags = %s", *self._content())

    def _annotate(self, connection: Connection) -> None:
        """Of ten kinds of noise, one hides the record."""
        self._update(connection, "noise = %s", self._rng.randrange(10))

    def _judge(self, connection: Connection) -> None:
        verdict = self._rng.choice(("good", "bad", None))
        tags = self._tags(self._rng.randint(3, 9))
        if self._scene.labels == "column":
            self._update(connection, "verdict = %s, tags = %s", verdict, tags)
        elif self._rng.random() < 0.2:
            self._execute(connection, "DELETE FROM verdicts WHERE {where}")
        else:
            connection.execute(
                sql.SQL(
                    "INSERT INTO verdicts ({0}, verdict, tags, at)"
                    " VALUES ({1}, %s, %s, now()) ON CONFLICT ({0}) DO UPDATE SET"
                    " verdict = EXCLUDED.verdict, tags = EXCLUDED.tags, at = now()"
                ).format(
                    self._scene.key_columns,
                    sql.SQL(", ").join(map(sql.Literal, self._key())),
                ),
                [verdict, tags],
            )

    def _delete(self, connection: Connection) -> None:
        self._execute(connection, "DELETE FROM records WHERE {where}")

    def _use_again(self, connection: Connection) -> None:
        """Gone and back, sometimes word for word."""
        key = self._key()
        row = self._execute(
            connection, "DELETE FROM records WHERE {where} RETURNING body, words", key
        ).fetchone()
        content = self._content()
        if row and self._rng.random() < 0.5:
            content = (*row, content[2])
        self._insert(connection, key, content)

    def _blank(self, connection: Connection) -> None:
        self._update(connection, "body = NULL, words = NULL")

    def _poison(self, connection: Connection) -> None:
        words = [POISON, str(self._rng.random())]
        self._update(connection, "body = %s, words = %s", " ".join(words), words)
        self._counts["poison rows"] += 1

    def _truncate(self, connection: Connection) -> None:
        connection.execute("TRUNCATE records")

    def _update(self, connection: Connection, change: str, *values: Any) -> None:
        self._execute(
            connection,
            f"UPDATE records SET {change}, updated_at = {{now}} WHERE {{where}}",
            values=values,
        )

    def _execute(
        self, connection: Connection, statement: str, key: Any = None, values: Any = ()
    ) -> psycopg.Cursor[Any]:
        return connection.execute(
            sql.SQL(statement).format(  # type: ignore[arg-type]
                now=self._now(),
                where=sql.SQL("({}) = ({})").format(
                    self._scene.key_columns,
                    sql.SQL(", ").join(map(sql.Literal, key or self._key())),
                ),
            ),
            values,
        )

    def _key(self) -> Any:
        return self._scene.key_kind.value(self._rng.randrange(KEY_SPACE))

    def _content(self) -> tuple[str, list[str], list[str]]:
        words = [*self._rng.choice(SENTENCES).split(), str(self._rng.randrange(1000))]
        return " ".join(words), words, self._tags(len(words))

    def _tags(self, count: int) -> list[str]:
        return self._rng.choices(TAGS, k=count)

    def _now(self) -> sql.SQL:
        if self._scene.backdates and self._rng.random() < 0.1:
            hours = self._rng.uniform(-48, 2)
            self._counts["times gone by"] += 1
            return sql.SQL(f"now() + interval '{hours} hours'")  # type: ignore[arg-type]
        return sql.SQL("now()")


def first_rows(scene: Scene, conninfo: str) -> None:
    writer = Writer(scene, conninfo, 0, Counter(), threading.Event())
    with _session(conninfo) as connection, connection.transaction():
        for number in range(0, KEY_SPACE, 2):
            key = scene.key_kind.value(number)
            writer._insert(connection, key, writer._content())


def finish(conninfo: str) -> None:
    """Whatever was prepared and left behind is decided."""
    with _session(conninfo) as connection:
        names = connection.execute(
            "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
        ).fetchall()
        for place, (name,) in enumerate(names):
            end = ("COMMIT", "ROLLBACK")[place % 2]
            connection.execute(sql.SQL(f"{end} PREPARED {{}}").format(name))


def _session(conninfo: str) -> Connection:
    return psycopg.connect(
        conninfo,
        autocommit=True,
        application_name=APPLICATION,
        options="-c lock_timeout=500ms",
    )
