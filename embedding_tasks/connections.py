"""From a connection's name to an open connection.

Connections are Airflow's: the DAGs look them up in Airflow, the command line reads
the same `AIRFLOW_CONN_<ID>` variables and the same JSON file that
`airflow connections import` takes (`<home>/connections.json`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from embedding_tasks import settings
from embedding_tasks.errors import ConfigError, DatabaseAway, EmbedlineError
from embedding_tasks.use_case import Source

# The other side is given up two minutes after the network has lost it, and with it the
# locks it holds; by default that takes hours. A pooler or a socket of this machine has
# no use for it.
_KEEPALIVES = {
    "keepalives_idle": 60,
    "keepalives_interval": 10,
    "keepalives_count": 6,
    "tcp_user_timeout": 120_000,
}
_KEEPALIVES_OF_SERVER = {
    name if name.startswith("tcp_") else f"tcp_{name}": str(value)
    for name, value in _KEEPALIVES.items()
}
# Of a transaction that holds locks alone: see `keep`.
KEEPER = "embedline-lock"

Connection = psycopg.Connection[tuple[Any, ...]]
Resolve = Callable[[str], Mapping[str, Any]]
"""Takes a connection id, returns what Airflow keeps of it: conn_type, host, port,
login, password, schema, extra; raises `KeyError`."""

_FORMS = (
    "postgres://user:password@host:port/database, or JSON with conn_type, host, port, "
    "login, password, schema"
)
_LIBPQ = {
    option.keyword.decode(): option.envvar and option.envvar.decode()
    for option in pq.Conninfo.get_defaults()
}


def connect(conninfo: str, *, role: str, options: str = "") -> Connection:
    """`role` ('store', 'source') names the connection in errors and in
    `pg_stat_activity`; `options` are settings of the session, which a pooler may
    refuse: it is connected to without. Raises `DatabaseAway`, or `ConfigError` for a
    database, user or password that is wrong."""
    try:
        return psycopg.connect(
            conninfo,
            autocommit=True,
            application_name=f"embedline-{role}",
            client_encoding="UTF8",
            **_unless_given(conninfo),
            # a pooler gives each transaction another session, which has not prepared it
            prepare_threshold=None,
            options=_beside_given(conninfo, options),
        )
    except psycopg.ProgrammingError:  # whose text may quote a password
        raise ConfigError(
            f"the {role} database's connection string cannot be read; valid: e.g. "
            "'host=db.example dbname=app user=me', 'postgresql://me@db.example/app'"
        ) from None
    except psycopg.OperationalError as error:
        if options and re.search("option|startup parameter", str(error)):
            return connect(conninfo, role=role)
        raise _refused(error)(
            f"cannot connect to the {role} database "
            f"({describe(conninfo)}): {_first_line(error)}"
        ) from error


def _unless_given(conninfo: str) -> dict[str, Any]:
    given = conninfo_to_dict(conninfo)
    defaults = {"connect_timeout": 10, **_KEEPALIVES}
    return {name: given.get(name) or value for name, value in defaults.items()}


def _beside_given(conninfo: str, options: str) -> str | None:
    """Those of the connection string, or else of the environment, come first."""
    if not options:
        return None
    given = conninfo_to_dict(conninfo).get("options") or os.environ.get("PGOPTIONS")
    return f"{given or ''} {options}".strip()


def take_time(connection: Connection) -> None:
    """For the rest of the transaction no limit of the role or the database ends a long
    statement, or a session that waits for the other database: only one whose client is
    gone."""
    limits = ["statement_timeout", "idle_in_transaction_session_timeout"]
    if connection.info.server_version >= 170_000:
        limits.append("transaction_timeout")
    _set_local(connection, {**dict.fromkeys(limits, "0"), **_keepalives(connection)})


def notice_loss(connection: Connection) -> None:
    """For the rest of the transaction the server gives a client up that the network has
    lost, as the client does with a server; unless `options` say when. Takes no
    snapshot."""
    _set_local(connection, _keepalives(connection))


def _keepalives(connection: Connection) -> dict[str, str]:
    given = connection.info.options
    return {n: v for n, v in _KEEPALIVES_OF_SERVER.items() if n not in given}


def _set_local(connection: Connection, settings: Mapping[str, str]) -> None:
    statement = sql.SQL("SET LOCAL {} = {}")
    connection.execute(
        sql.SQL("; ").join(
            statement.format(sql.Identifier(name), sql.Literal(value))
            for name, value in settings.items()
        )
    )


def keep(connection: Connection, lock: sql.Composable) -> bool:
    """Begins a transaction that holds a lock and nothing else, for hours maybe; False
    where somebody has it. `lock`: what asks for it, in SQL.

    It keeps no snapshot: a vacuum, and a CREATE INDEX CONCURRENTLY, would wait for its
    end. So READ COMMITTED, whatever the role's default is, and no parameters: these
    leave a portal open, with its snapshot. Its name says that it never writes, to
    strategy `timestamp`; as of the transaction, since a pooler may give the session to
    somebody who does."""
    connection.autocommit = False
    connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ ONLY")
    take_time(connection)
    connection.execute("SELECT set_config('application_name', %s, true)", [KEEPER])
    row = connection.execute(sql.SQL("SELECT {}").format(lock)).fetchone()
    if row is not None and row[0]:
        return True
    connection.rollback()
    return False


def look(connection: Connection) -> None:
    """Raises `psycopg.Error` where it is lost. Takes no snapshot."""
    connection.execute("SHOW application_name")


@contextmanager
def blame(**connections: Connection) -> Iterator[None]:
    """Turn trouble of a server or a connection into `DatabaseAway` that says whose it
    was (`store=…`, `source=…`); errors of a statement itself pass."""
    try:
        yield
    except psycopg.errors.ProgramLimitExceeded:
        raise  # the statement's own, though psycopg calls it operational
    except psycopg.Error as error:
        lost = [role for role, c in connections.items() if c.broken or c.closed]
        of_server = (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction)
        if not (lost or isinstance(error, of_server)):
            raise
        failed = [role for role, c in connections.items() if _has_failed(c)]
        role = next(iter([*lost, *failed, *connections]))
        verb = "lost the" if lost else "trouble in the"
        raise DatabaseAway(
            f"{verb} {role} database: {_first_line(error)}{_advice(error)}"
        ) from error


def _advice(error: psycopg.Error) -> str:
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return (
            "; is it a standby? Give all hosts, as host=a,b "
            "target_session_attrs=read-write"
        )
    if "statement timeout" in str(error):
        return (
            "; the server, database or role sets statement_timeout: raise it for this "
            "role (ALTER ROLE … SET statement_timeout), or in the connection by "
            "options=-cstatement_timeout=…"
        )
    return ""


def _has_failed(connection: Connection) -> bool:
    return connection.info.transaction_status == pq.TransactionStatus.INERROR


@contextmanager
def usable(
    connection: Connection, open_another: Callable[[], Connection]
) -> Iterator[Connection]:
    """This connection, or another in its place: an interrupt can leave one in the
    middle of a command, where it can neither go on nor let its locks go."""
    if connection.info.transaction_status == pq.TransactionStatus.IDLE:
        yield connection
        return
    connection.close()
    with open_another() as fresh:
        yield fresh


def for_source(source: Source, resolve: Resolve | None = None) -> str:
    """Raises `ConfigError` when the connection or a variable is not defined."""
    if source.dsn is not None:
        return _expand(source.dsn)
    assert source.connection is not None
    with _defined(source.connection):
        return lookup(source.connection, resolve)


def defined(connection_id: str, resolve: Resolve | None = None) -> Mapping[str, Any]:
    """Any connection, not only to Postgres. Raises `ConfigError` where it is not
    defined."""
    with _defined(connection_id):
        return _find(connection_id, resolve)[1]


def lookup(connection_id: str, resolve: Resolve | None = None) -> str:
    """For libpq; of Airflow where it can be asked, else as the command line knows it.
    Raises `KeyError` where it is not known, and `ConfigError` for one that cannot be
    read."""
    place, value = _find(connection_id, resolve)
    with _naming(place):
        return from_airflow(value)


def _find(connection_id: str, resolve: Resolve | None) -> tuple[str, Mapping[str, Any]]:
    """Where it is defined, for messages, and the connection."""
    if resolve is not None:
        return f"connection {connection_id!r}", resolve(connection_id)
    variable = _variable(connection_id)
    if value := os.environ.get(variable):
        with _naming(variable):
            return variable, _mapping(value)
    saved = settings.home() / "connections.json"
    if not saved.exists():
        raise KeyError(connection_id)
    with _naming(f"{saved}"):
        connections = _json(saved.read_text())
    place = f"{saved}: {connection_id}"
    with _naming(place):
        return place, _mapping(connections[connection_id])


@contextmanager
def _defined(connection_id: str) -> Iterator[None]:
    try:
        yield
    except KeyError:
        raise ConfigError(
            f"connection {connection_id!r} is not defined; DAGs find it in Airflow "
            f"(Admin, Connections), the command line in {_variable(connection_id)} "
            f"or {settings.home() / 'connections.json'}"
        ) from None


def from_airflow(value: str | Mapping[str, Any]) -> str:
    """Airflow's URI, JSON or mapping form of a Postgres connection, for libpq. What its
    `extra` says comes first, as with Airflow's own hook. Raises `ConfigError`, which
    never repeats what it was given: it may hold a password."""
    value = _mapping(value)
    kind = value.get("conn_type") or "postgres"
    if kind not in ("postgres", "postgresql"):
        raise ConfigError(f"is a connection of type {kind!r}; valid: 'postgres'")
    extra = value.get("extra") or {}
    if isinstance(extra, str):
        extra = _json(extra)
    known = {k: v for k, v in extra.items() if k in _LIBPQ}
    named = {
        "host": value.get("host"),
        "port": value.get("port"),
        "user": value.get("login"),
        "password": value.get("password"),
        "dbname": value.get("schema"),
    }
    return make_conninfo("", **{**{k: v for k, v in named.items() if v}, **known})


def _mapping(value: str | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(value, str):
        value = _json(value) if value.lstrip().startswith("{") else _parts(value)
    if not isinstance(value, Mapping):
        raise ConfigError(f"is no connection; valid: {_FORMS}")
    return value


@contextmanager
def _naming(place: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None


def _json(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError("is no JSON object")
    return value


def describe(conninfo: str) -> str:
    """Database and host, and never a password, for people."""
    parts = conninfo_to_dict(conninfo)
    database = parts.get("dbname", "no database named")
    return f"{database} at {parts.get('host', 'localhost')}"


def place(conninfo: str) -> tuple[str, str, str]:
    """Which database it is, whoever asks it."""
    parts = conninfo_to_dict(conninfo)
    host, port = str(parts.get("host", "")), str(parts.get("port") or 5432)
    return host, port, str(parts.get("dbname") or parts.get("user") or "")


def is_conninfo(text: str) -> bool:
    """And not a connection's name."""
    return "=" in text or "://" in text


def as_environment(conninfo: str) -> dict[str, str]:
    """The variables libpq's programs read in place of a connection string."""
    parts = conninfo_to_dict(conninfo)
    return {v: str(parts[k]) for k, v in _LIBPQ.items() if v and k in parts}


def _parts(uri: str) -> dict[str, Any]:
    split = urlsplit(uri)
    if not split.scheme or "://" not in uri:
        raise ConfigError(f"is no connection; valid: {_FORMS}")
    place = re.fullmatch(
        r"(?P<host>\[[^]]*\]|[^:]*)(:(?P<port>\d*))?", split.netloc.rpartition("@")[2]
    )
    if place is None:
        raise ConfigError(
            "its URI names no single host and port; give several hosts by the JSON form"
        )
    return {
        "conn_type": split.scheme,
        "host": unquote(place["host"].strip("[]")),
        "port": place["port"],
        "login": unquote(split.username or ""),
        "password": unquote(split.password or ""),
        "schema": unquote(split.path.lstrip("/")),
        "extra": _extra(dict(parse_qsl(split.query))),
    }


def _extra(query: dict[str, str]) -> Mapping[str, Any]:
    """Airflow writes an `extra` that is more than texts as one JSON value."""
    whole = query.pop("__extra__", None)
    return {**query, **(_json(whole) if whole else {})}


def _variable(connection_id: str) -> str:
    return f"AIRFLOW_CONN_{connection_id.upper()}"


def _expand(dsn: str) -> str:
    """Variables go into the parsed values: whatever they hold, they are one value."""
    parts = {k: _filled_in(str(v)) for k, v in conninfo_to_dict(dsn).items()}
    return make_conninfo("", **parts)


def _filled_in(value: str) -> str:
    def variable(match: re.Match[str]) -> str:
        try:
            return os.environ[match[1]]
        except KeyError:
            raise ConfigError(
                f"source.dsn: environment variable {match[1]!r} is not set"
            ) from None

    return re.sub(r"\$\{(\w+)\}", variable, value)


def _refused(error: psycopg.OperationalError) -> type[EmbedlineError]:
    """libpq reports a server that is away and one that says no alike."""
    says_no = ("authentication failed", "does not exist", "no password supplied")
    return ConfigError if any(s in str(error) for s in says_no) else DatabaseAway


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
