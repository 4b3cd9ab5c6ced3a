"""No secret is written down, and what protects one on its way is passed on."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from embedding_tasks import connections, use_case
from embedding_tasks.connections import Connection, connect
from embedding_tasks.errors import DatabaseAway, EmbedlineError
from tests.embedding_server import EmbeddingServer, serving
from tests.fix_cli import Command
from tests.fix_project import Project
from tests.fix_servers import encrypted

STORE, SOURCE, KEY = "store-hunter2-ä", "source hunter2'\\", "sk-hunter2-0123456789"
SECRETS = [STORE, SOURCE, KEY, "hunter2"]


@pytest.fixture
def secretive(
    full_use_case: Project,
    store_dsn: str,
    source_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Project]:
    """Every connection has a password, the encoder is an endpoint with a key."""
    parts = conninfo_to_dict(source_dsn)
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", make_conninfo(store_dsn, password=STORE))
    monkeypatch.setenv(
        "AIRFLOW_CONN_CRM",
        json.dumps(
            {
                "conn_type": "postgres",
                "host": parts["host"],
                "login": parts["user"],
                "password": SOURCE,
                "schema": parts["dbname"],
            }
        ),
    )
    monkeypatch.setenv("MY_KEY", KEY)
    del full_use_case.raw["source"]["dsn"]
    full_use_case.raw["prediction"] = "none"

    def embed(texts: list[str]) -> np.ndarray:
        return np.array([[len(t), 1.0, 2.0] for t in texts], np.float32)

    with serving(EmbeddingServer(embed, key=KEY)) as server:
        full_use_case.raw["encoder"] = {
            "type": "openai",
            "model": "minilm",
            "url": server.url,
            "key_variable": "MY_KEY",
            "max_retries": 0,
        }
        full_use_case.use_case(source={"connection": "crm"})
        yield full_use_case


def everything_in(store: Connection) -> str:
    """Every row of every table, view definition and comment."""
    tables = store.execute(
        "SELECT n.nspname, c.relname FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname IN ('embedline', 'embeddings') AND relkind IN ('r', 'v')"
    ).fetchall()
    said = [
        str(row)
        for table in tables
        for row in store.execute(
            sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(*table))
        )
    ]
    return "\n".join(said)


def refuse_secrets(text: str) -> None:
    assert not [secret for secret in SECRETS if secret in text]


def test_a_run_writes_no_secret_down(
    secretive: Project,
    store: Connection,
    embedline: Command,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    said = embedline("--verbose", "check", "messages")
    said += embedline("--verbose", "run", "messages")
    said += embedline("status") + embedline("explain", "messages", "7")
    said += embedline("search", "messages", "message", "-k", "2")
    written = everything_in(store)
    assert "message number 7" in written
    refuse_secrets(said + written + caplog.text)


def test_trouble_tells_no_secret(
    secretive: Project,
    store: Connection,
    embedline: Command,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    said = embedline("run", "messages")
    monkeypatch.setenv("MY_KEY", KEY + "-wrong")
    secretive.use_case(encoder={"dimensions": 3})
    said += embedline("run", "messages", code=1)
    assert "refuses the key" in said
    monkeypatch.setenv("MY_KEY", KEY)
    crm = {"conn_type": "postgres", "login": "me", "password": SOURCE}
    for broken in (
        json.dumps({**crm, "host": "127.0.0.1", "port": 1}),
        json.dumps({**crm, "conn_type": "mysql"}),
        json.dumps(crm)[:-1],
        f"postgres://me:{SOURCE}@db1:1,db2:2/app",
        f"me:{SOURCE}@db",
        f"host=db password={SOURCE}",
    ):
        monkeypatch.setenv("AIRFLOW_CONN_CRM", broken)
        for command in ("check", "run"):
            said += embedline("--verbose", command, "messages", code=1)
    for dsn in (
        f"host=127.0.0.1 port=1 password='{STORE}'",
        f"postgres://me:{STORE}@127.0.0.1:1/store",
        f"postgres://me:{STORE}@127.0.0.1:one/store",
        f"password={STORE} nonsense",
        STORE,
    ):
        monkeypatch.setenv("EMBEDLINE_STORE_DSN", dsn)
        for command in (("init",), ("run", "messages"), ("status",)):
            said += embedline("--verbose", *command, code=1)
    refuse_secrets(said + everything_in(store) + caplog.text)


def test_a_traceback_tells_no_secret(
    secretive: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a task's log has it: with the causes, and with every local variable that a
    formatter may show by its repr."""
    import traceback

    parts = make_conninfo(host="127.0.0.1", port=1, user="me", password=STORE)
    for dsn in (parts, f"postgres://me:{STORE}@127.0.0.1:one/store"):
        monkeypatch.setenv("EMBEDLINE_STORE_DSN", dsn)
        with pytest.raises(EmbedlineError) as caught:
            secretive.run()
        refuse_secrets("".join(traceback.format_exception(caught.value)))


def test_a_process_says_no_secret_to_its_neighbours(secretive: Project) -> None:
    """Anybody on a machine may list the arguments of programs: psql gets none."""
    done = subprocess.run(
        [sys.executable, "-m", "embedding_tasks", "psql", "-Atc", r"\! ps -eo args"],
        capture_output=True,
        text=True,
        cwd=secretive.folder,
    )
    assert "psql" in done.stdout
    refuse_secrets(done.stdout + done.stderr)


@pytest.mark.parametrize(
    "url",
    [
        "https://me:hunter2@models.example/v1",
        "https://models.example/v1?key=hunter2",
    ],
)
def test_an_endpoints_address_holds_no_secret(project: Project, url: str) -> None:
    with pytest.raises(EmbedlineError, match=r"encoder\.url") as caught:
        project.use_case(
            encoder={"type": "openai", "model": "m", "url": url, "device": None}
        )
    refuse_secrets(str(caught.value))


@pytest.mark.parametrize(
    "line",
    [
        "  dsn: host=db password=hunter2",
        "  dsn: 'host=db password=hunter2",
        "  dsn: {password: hunter2",
        "  dsn: postgres://me:hunter2@db:x/app",
        "  dsn: a\n  dsn: host=db password=hunter2",
        "  dsn: [hunter2]",
    ],
)
def test_a_file_that_is_refused_is_not_quoted_where_a_secret_may_be(
    project: Project, line: str
) -> None:
    path = project.folder / "use_cases" / "messages.yaml"
    path.write_text(f"name: messages\nsource:\n{line}\n  table: t\n  key: id\n")
    with pytest.raises(EmbedlineError) as caught:
        use_case.load(path)
    refuse_secrets(str(caught.value))


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Make an authority of this name: the paths of its own certificate, and of a
    certificate and key that it has given to `localhost`."""
    pytest.importorskip("cryptography")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def make(name: str, host: str = "localhost") -> tuple[Path, Path, Path]:
        folder = tmp_path_factory.mktemp(name)
        now = datetime.now(UTC)

        def named(common: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])

        def certificate(subject: str, key: Any, by: Any, is_ca: bool) -> Any:
            return (
                x509.CertificateBuilder()
                .subject_name(named(subject))
                .issuer_name(named(name))
                .public_key(key.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - timedelta(days=1))
                .not_valid_after(now + timedelta(days=1))
                .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
                .add_extension(
                    x509.SubjectAlternativeName([x509.DNSName(subject)]), False
                )
                .sign(by, hashes.SHA256())
            )

        root, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        paths = folder / "root.crt", folder / "server.crt", folder / "server.key"
        pem = serialization.Encoding.PEM
        paths[0].write_bytes(certificate(name, root, root, True).public_bytes(pem))
        paths[1].write_bytes(certificate(host, own, root, False).public_bytes(pem))
        paths[2].write_bytes(
            own.private_bytes(
                pem,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return paths

    return make


def test_a_run_goes_over_tls_that_is_verified(
    full_use_case: Project,
    authority: Callable[..., Any],
    store_dsn: str,
    source_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store's settings stand in its connection string, the source's in the extra
    of an Airflow connection, or in its URI's query."""
    root, certificate, key = authority("ours")
    tls = {"sslmode": "verify-full", "sslrootcert": str(root)}
    with (
        encrypted(store_dsn, certificate, key) as store,
        encrypted(source_dsn, certificate, key) as source,
    ):
        monkeypatch.setenv("EMBEDLINE_STORE_DSN", make_conninfo(store, **tls))
        parts = conninfo_to_dict(source)
        hostaddr = {"hostaddr": parts["hostaddr"]}
        monkeypatch.setenv(
            "AIRFLOW_CONN_CRM",
            json.dumps(
                {
                    "conn_type": "postgres",
                    "host": parts["host"],
                    "port": parts["port"],
                    "login": parts["user"],
                    "schema": parts["dbname"],
                    "extra": {**tls, **hostaddr},
                }
            ),
        )
        del full_use_case.raw["source"]["dsn"]
        full_use_case.use_case(source={"connection": "crm"})
        assert full_use_case.run()["embedded"] == 120
        with connect(connections.lookup("crm"), role="source") as connection:
            assert connection.pgconn.ssl_in_use
        monkeypatch.setenv(
            "AIRFLOW_CONN_CRM",
            f"postgres://{parts['user']}@localhost:{parts['port']}/{parts['dbname']}"
            f"?sslmode=verify-full&sslrootcert={root}&hostaddr=127.0.0.1",
        )
        assert full_use_case.run()["embedded"] == 0


@pytest.mark.parametrize("host", ["localhost", "elsewhere"])
def test_a_server_that_is_not_the_one_is_refused_and_said_why(
    authority: Callable[..., Any], store_dsn: str, host: str
) -> None:
    ours, _, _ = authority("ours")
    root, certificate, key = authority("theirs", host)
    trusted = ours if host == "localhost" else root
    tls = {"sslmode": "verify-full", "sslrootcert": str(trusted)}
    reason = "certificate verify failed" if host == "localhost" else "does not match"
    with (
        encrypted(store_dsn, certificate, key) as dsn,
        pytest.raises(DatabaseAway, match=reason),
    ):
        connect(make_conninfo(dsn, **tls), role="store")


def test_a_certificate_of_ones_own_is_passed_on() -> None:
    extra = {
        "sslmode": "verify-ca",
        "sslrootcert": "/certs/root.crt",
        "sslcert": "/certs/me.crt",
        "sslkey": "/certs/me.key",
        "sslcrl": "/certs/gone.crl",
        "ssl_min_protocol_version": "TLSv1.3",
        "channel_binding": "require",
    }
    given = {"conn_type": "postgres", "host": "db", "extra": json.dumps(extra)}
    parts = conninfo_to_dict(connections.from_airflow(given))
    assert parts == {"host": "db", **extra}
    assert connections.as_environment(make_conninfo("", **extra))["PGSSLKEY"]
