"""Vectors of an OpenAI-compatible server: exact, in order, and nothing paid twice."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_tasks import run, search
from embedding_tasks.connections import Connection
from embedding_tasks.encoders import Runtime, endpoint, recipe
from embedding_tasks.encoders.endpoint import EndpointEncoder
from embedding_tasks.encoders.server import Server
from embedding_tasks.errors import (
    ConfigError,
    InputError,
    ModelError,
    TransientError,
)
from embedding_tasks.isolation import isolate
from embedding_tasks.use_case import UseCase
from embedding_tasks.use_case.feature import Endpoint
from tests.embedding_server import EmbeddingServer, serving
from tests.fix_project import Project
from tests.test_text_encoder import cosine

Write = Callable[..., None]
SECRET = "sk-very-secret-1234567890"


@pytest.fixture(scope="session")
def model(minilm: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(minilm), device="cpu")


@pytest.fixture
def api(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EmbeddingServer]:
    monkeypatch.setenv("EMBEDLINE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(EmbeddingServer(model.encode)) as served:
        yield served


@pytest.fixture
def numbers(api: EmbeddingServer) -> EmbeddingServer:
    """The same with numbers in place of a model, where vectors are not the matter."""

    def embed(texts: list[str]) -> np.ndarray:
        return np.array([[len(t), sum(t.encode()), 1, 2] for t in texts], np.float32)

    api.embed = embed
    return api


def settings(api: EmbeddingServer, **changes: Any) -> dict[str, Any]:
    return {"type": "openai", "model": "minilm", "url": api.url, **changes}


def use_case(api: EmbeddingServer, normalize: bool = False, **encoder: Any) -> Any:
    return UseCase.model_validate(
        {
            "name": "t",
            "source": {"connection": "c", "table": "t", "key": "id", "input": "x"},
            "encoder": settings(api, **encoder),
            "normalize": normalize,
        }
    )


def encoder(
    api: EmbeddingServer, dims: int | None = None, **changes: Any
) -> EndpointEncoder:
    spec = use_case(api, **changes).first_feature.model_dump()
    return EndpointEncoder(spec, Runtime(), dims)


@pytest.mark.parametrize("floats_only", [False, True])
def test_vectors_equal_those_of_the_model_behind_it(
    api: EmbeddingServer, model: Any, tweets: list[str], floats_only: bool
) -> None:
    texts = tweets[:500]
    wanted = model.encode(texts)
    api.floats_only = floats_only
    api.spoil = lambda texts, answer: answer["data"].reverse()
    got = encoder(api, items_per_request=50).encode(texts).vectors
    print("cosine", cosine(got, wanted).min(), "abs", np.abs(got - wanted).max())
    assert cosine(got, wanted).min() >= 0.999999
    assert np.abs(got - wanted).max() < 1e-6
    assert api.most_at_once > 1


def test_dimensions_are_asked_for_and_shorten_the_vectors(
    api: EmbeddingServer, model: Any, tweets: list[str]
) -> None:
    wanted = model.encode(tweets[:50])[:, :64]
    got = encoder(api, dimensions=64).encode(tweets[:50]).vectors
    assert got.shape == (50, 64)
    assert cosine(got, wanted).min() >= 0.999999
    assert np.allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    assert {body["dimensions"] for body in api.asked} == {64}
    encoder(api).encode(tweets[:5])
    assert "dimensions" not in api.asked[-1]


def test_normalize_gives_unit_length(numbers: EmbeddingServer) -> None:
    made = encoder(numbers, normalize=True).encode(["a", "longer"]).vectors
    assert np.linalg.norm(made, axis=1) == pytest.approx([1, 1])


def test_requests_keep_to_their_limits_and_a_text_is_sent_once(
    numbers: EmbeddingServer, tweets: list[str]
) -> None:
    numbers.delay = 0.05
    limits = {"items_per_request": 20, "tokens_per_request": 300, "concurrency": 3}
    texts = [*tweets[:200], *tweets[:50], "x" * 3000]
    got = encoder(numbers, **limits).encode(texts).vectors
    assert (got == numbers.embed(texts)).all()
    assert sorted(numbers.texts()) == sorted(set(texts))
    for body in numbers.asked:
        total = sum(endpoint.estimated_tokens(t) for t in body["input"])
        assert len(body["input"]) <= 20
        assert total <= 300 or len(body["input"]) == 1
    assert numbers.most_at_once == 3


@pytest.mark.parametrize("header", ["seconds", "date"])
def test_a_rate_limit_is_waited_for_as_long_as_the_server_says(
    numbers: EmbeddingServer, header: str
) -> None:
    value = "2" if header == "seconds" else formatdate(time.time() + 3, usegmt=True)
    numbers.failures.append((429, {"Retry-After": value}))
    got = encoder(numbers).encode(["a"]).vectors
    assert (got == numbers.embed(["a"])).all()
    waited = numbers.times[1] - numbers.times[0]
    print("waited", waited)
    assert 1.9 <= waited <= 3.5


def test_trouble_of_the_server_is_tried_again(numbers: EmbeddingServer) -> None:
    numbers.failures.extend([(500, {}), (503, {})])
    assert len(encoder(numbers).encode(["a"]).vectors) == 1
    assert len(numbers.asked) == 3


@pytest.mark.parametrize(
    ("always", "says"),
    [
        ((429, {"Retry-After": "0.01"}), "answers 429 after all"),
        ((500, {"retry-after-ms": "1"}), "answers 500 after all"),
        ((429, {"Retry-After": "3600"}), "asks to wait until '3600'"),
    ],
)
def test_trouble_that_stays_is_transient(
    numbers: EmbeddingServer, always: Any, says: str
) -> None:
    numbers.always = always
    with pytest.raises(TransientError, match=says):
        encoder(numbers, max_retries=2).encode(["a"])
    assert len(numbers.asked) == (1 if "3600" in says else 3)


def test_a_server_that_is_away_or_slow_is_transient(numbers: EmbeddingServer) -> None:
    numbers.delay = 1
    with pytest.raises(TransientError, match=r"cannot be reached: .*Timeout"):
        encoder(numbers, max_retries=0, timeout_seconds=0.2).encode(["a"])
    with pytest.raises(TransientError, match="cannot be reached"):
        encoder(numbers, max_retries=0, url="http://127.0.0.1:9/v1").encode(["a"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "other"}, "no model 'other'.*set encoder.model or encoder.url"),
        ({"url": "{}/nowhere"}, "no /embeddings"),
    ],
)
def test_a_model_or_path_that_is_not_there_is_terminal(
    numbers: EmbeddingServer, changes: dict[str, Any], says: str
) -> None:
    changes = {k: v.format(numbers.url) for k, v in changes.items()}
    with pytest.raises(ModelError, match=says):
        encoder(numbers, **changes).encode(["a"])


def test_a_wrong_key_is_terminal_and_never_repeated(
    numbers: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers.key = "another"
    monkeypatch.setenv("MY_KEY", SECRET)
    with pytest.raises(ModelError, match="variable 'MY_KEY'") as caught:
        encoder(numbers, key_variable="MY_KEY").encode(["a"])
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    with pytest.raises(ModelError, match=r"encoder\.connection, or encoder\.key_var"):
        encoder(numbers).encode(["a"])


def test_a_bad_input_is_refused_alone_and_the_others_are_not_paid_for_twice(
    numbers: EmbeddingServer,
) -> None:
    numbers.longest = 50
    texts = [f"text {i}" for i in range(100)]
    texts[37], texts[80] = "x" * 60, ""
    made = encoder(numbers, items_per_request=10)
    made.encode(["first"])
    encoded, errors = isolate(made, texts)
    assert set(errors) == {37, 80}
    assert "refuses it (400): an input is empty or too long" in errors[37]
    assert "an empty text" in errors[80]
    good = [p for p in range(100) if p not in errors]
    assert (encoded.only(good).vectors == numbers.embed([texts[p] for p in good])).all()
    sent = numbers.texts()
    beside = {
        t for body in numbers.asked if texts[37] in body["input"] for t in body["input"]
    }
    assert max(sent.count(t) for t in texts if t not in beside) <= 1
    assert len(sent) < 150


def test_a_request_that_is_too_large_for_the_server_is_halved(
    numbers: EmbeddingServer,
) -> None:
    numbers.most_items = 16
    texts = [f"text {i}" for i in range(100)]
    encoded, errors = isolate(encoder(numbers), texts)
    assert not errors
    assert (encoded.only(range(100)).vectors == numbers.embed(texts)).all()


def test_a_long_input_is_refused_by_estimate_and_never_cut(
    numbers: EmbeddingServer,
) -> None:
    made = encoder(numbers, max_length=100)
    assert len(made.encode(["x" * 300]).vectors) == 1
    with pytest.raises(InputError, match=r"about 101 tokens .* 100; it is never cut"):
        made.encode(["x" * 301])
    assert numbers.texts() == ["x" * 300]


def test_a_server_that_refuses_every_text_is_terminal(numbers: EmbeddingServer) -> None:
    numbers.always = (400, {})
    with pytest.raises(ModelError, match=r"refuses even a plain text: .*told to fail"):
        isolate(encoder(numbers), [f"text {i}" for i in range(100)])
    assert len(numbers.asked) == 2


def one_short(texts: list[str], answer: dict[str, Any]) -> None:
    answer["data"].pop()


def one_more(texts: list[str], answer: dict[str, Any]) -> None:
    answer["data"].append({**answer["data"][0], "index": len(texts)})


def twice_the_first(texts: list[str], answer: dict[str, Any]) -> None:
    answer["data"][1]["index"] = 0


def of_another_size(texts: list[str], answer: dict[str, Any]) -> None:
    answer["data"][1]["embedding"] = [1.0, 2.0]


def words_in_place(texts: list[str], answer: dict[str, Any]) -> None:
    answer["data"][0]["embedding"] = [None, "x"]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (one_short, "each of 3 inputs"),
        (one_more, "gave 4 vectors for 3 inputs"),
        (twice_the_first, "each of 3 inputs"),
        (of_another_size, "gave 2 dimensions, not 4"),
        (words_in_place, "each of 3 inputs"),
        (lambda texts, answer: answer.clear(), "each of 3 inputs"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(
    numbers: EmbeddingServer, spoil: Any, says: str
) -> None:
    numbers.spoil = spoil
    with pytest.raises(ModelError, match=says):
        encoder(numbers, dims=4).encode(["a", "b", "c"])


def test_a_vector_that_is_not_finite_costs_its_own_row(
    numbers: EmbeddingServer,
) -> None:
    def spoil(texts: list[str], answer: dict[str, Any]) -> None:
        if "bad" in texts:
            answer["data"][texts.index("bad")]["embedding"] = [float("nan")] * 4

    numbers.spoil = spoil
    texts = ["a", "b", "bad", "c"]
    encoded, errors = isolate(encoder(numbers), texts)
    assert list(errors) == [2]
    assert "not finite" in errors[2]
    assert len(encoded.vectors) == 3
    assert numbers.texts().count("a") == 1


def test_the_size_is_asked_for_once_and_is_part_of_the_fingerprint(
    numbers: EmbeddingServer,
) -> None:
    case = use_case(numbers)
    first = recipe.all_of(case)["embedding"]
    again = recipe.all_of(case)["embedding"]
    assert (first.dims, first.spec["weights"]) == (4, "endpoint:minilm:4")
    assert first == again
    assert len(numbers.asked) == 1
    told = recipe.all_of(use_case(numbers, dimensions=3))["embedding"]
    assert told.dims == 3
    assert len(numbers.asked) == 1
    same = use_case(numbers, concurrency=2, max_retries=1, max_length=7)
    assert recipe.all_of(same)["embedding"].fingerprint == first.fingerprint
    assert told.fingerprint != first.fingerprint


def test_another_model_by_the_same_name_is_refused_and_then_asked_for_anew(
    numbers: EmbeddingServer,
) -> None:
    case = use_case(numbers)
    first = recipe.all_of(case)["embedding"]
    numbers.embed = lambda texts: np.ones((len(texts), 6), np.float32)
    made = EndpointEncoder(first.spec, Runtime(), first.dims)
    with pytest.raises(ModelError, match="gave 6 dimensions, not 4"):
        made.encode(["a"])
    assert recipe.all_of(case)["embedding"].dims == 6


@pytest.mark.parametrize(
    ("connection", "url"),
    [
        ({"host": "https://x.example/v1"}, "https://x.example/v1"),
        ({"host": "x.example", "schema": "http", "port": 81}, "http://x.example:81/v1"),
        ({"host": "x.example", "conn_type": "openai"}, "https://x.example/v1"),
        ("http://:{}@x.example:81/some/v2", "http://x.example:81/some/v2"),
        ("openai://:{}@/", "http://as-the-use-case-says/v1"),
    ],
)
def test_a_connection_gives_the_key_and_the_url(
    monkeypatch: pytest.MonkeyPatch, connection: Any, url: str
) -> None:
    if isinstance(connection, dict):
        connection = json.dumps({"password": SECRET, **connection})
    monkeypatch.setenv("AIRFLOW_CONN_MODELS", connection.replace("{}", SECRET))
    encoder = Endpoint(
        type="openai",
        model="m",
        connection="models",
        url="http://as-the-use-case-says/v1",
    )
    found = Server.of(encoder, None)
    assert (found.url, found.key) == (url, SECRET)
    assert SECRET not in repr(found)


def test_a_key_that_is_missing_says_where_to_put_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EMBEDLINE_HOME", str(tmp_path))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="variable 'OPENAI_API_KEY' is not set"):
        Server.of(Endpoint(type="openai", model="m"), None)
    with pytest.raises(ConfigError, match="connection 'x' is not defined"):
        Server.of(Endpoint(type="openai", model="m", connection="x"), None)
    monkeypatch.setenv("AIRFLOW_CONN_X", f"postgres://me:{SECRET}@db/app")
    with pytest.raises(ConfigError, match="of type 'postgres'; valid: 'openai'"):
        Server.of(Endpoint(type="openai", model="m", connection="x"), None)


def test_openais_key_goes_to_no_other_server(
    numbers: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    local = Endpoint(type="openai", model="m", url=numbers.url)
    assert Server.of(local, None).key != SECRET
    assert Server.of(Endpoint(type="openai", model="m"), None).key == SECRET


@pytest.mark.parametrize(
    "url", ["https://me:pw@x/v1", "x.example/v1", "ftp://x/", "https://x/v1?key=k"]
)
def test_a_url_with_a_secret_or_without_a_scheme_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"valid: e\.g\."):
        Endpoint(type="openai", model="m", url=url)


@pytest.fixture
def remote(project: Project, numbers: EmbeddingServer) -> Project:
    project.raw["encoder"] = settings(numbers, max_retries=1)
    project.use_case()
    return project


def test_a_run_embeds_searches_and_keeps_the_key_to_itself(
    remote: Project,
    api: EmbeddingServer,
    model: Any,
    write_messages: Write,
    store: Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    api.embed, api.key = model.encode, SECRET
    monkeypatch.setenv("AIRFLOW_CONN_MODELS", f"openai://:{SECRET}@/")
    remote.use_case(encoder={"connection": "models", "items_per_request": 64})
    write_messages(range(200))
    with caplog.at_level(logging.DEBUG):
        counts = remote.run()
        api.key = "changed"
        write_messages(range(200, 210))
        with pytest.raises(ModelError, match="password of connection 'models'"):
            remote.run()
        api.key = SECRET
        remote.run()
    assert (counts["embedded"], counts["stored"]) == (200, 200)
    found = search.by_text(store, "messages", "message number 7", 1)
    assert found[0]["key"] == "7"
    assert SECRET not in caplog.text
    kept = store.execute(
        "SELECT (SELECT jsonb_agg(to_jsonb(v)) FROM embedline.model_version v)::text"
        " || (SELECT jsonb_agg(to_jsonb(r)) FROM embedline.run r)::text"
        " || (SELECT jsonb_agg(to_jsonb(l)) FROM embedline.ledger l)::text"
    ).fetchone()
    assert kept is not None
    assert SECRET not in kept[0]
    for path in remote.folder.rglob("*.json"):
        assert SECRET not in path.read_text()


def ledger(store: Connection) -> tuple[int, int]:
    row = store.execute(
        "SELECT coalesce(sum(attempts), 0), count(*) FILTER (WHERE pending)"
        " FROM embedline.ledger"
    ).fetchone()
    assert row is not None
    return row[0], row[1]


@pytest.mark.parametrize("always", [(429, {"Retry-After": "0.01"}), (503, {})])
def test_a_server_in_trouble_charges_no_row(
    remote: Project,
    numbers: EmbeddingServer,
    write_messages: Write,
    store: Connection,
    always: Any,
) -> None:
    write_messages(range(50))
    request = remote.request()
    run.sync_stage(request)
    numbers.always = always
    with pytest.raises(TransientError, match="after all"):
        run.embed_stage(request, 0)
    assert ledger(store) == (0, 50)
    numbers.always = None
    assert remote.run()["stored"] == 50


def test_one_row_the_server_refuses_costs_that_row(
    remote: Project,
    numbers: EmbeddingServer,
    db: Connection,
    write_messages: Write,
    store: Connection,
) -> None:
    numbers.longest = 100
    remote.use_case(retry={"max_attempts": 1}, thresholds={"undone_rows": 2})
    write_messages(range(100))
    db.execute("UPDATE messages SET body = repeat('x', 200) WHERE id = 41")
    db.execute("UPDATE messages SET body = '' WHERE id = 42")
    counts = remote.run()
    assert (counts["stored"], counts["failed"]) == (98, 2)
    errors = store.execute(
        "SELECT key, error FROM embedline.ledger WHERE dead_at IS NOT NULL ORDER BY key"
    ).fetchall()
    assert [key for key, _ in errors] == ["41", "42"]
    assert "the endpoint refuses it (400)" in errors[0][1]
    assert "empty text" in errors[1][1]


def test_it_works_where_an_event_loop_runs_already(numbers: EmbeddingServer) -> None:
    import asyncio

    async def notebook() -> int:
        return len(encoder(numbers).encode(["a", "b"]).vectors)

    assert asyncio.run(notebook()) == 2
    assert not [t for t in threading.enumerate() if t.name == "endpoint"]


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job may ignore it
from embedding_tasks.encoders import Runtime
from embedding_tasks.encoders.endpoint import EndpointEncoder
encoder = {"type": "openai", "model": "minilm", "url": sys.argv[1], "concurrency": 4,
           "items_per_request": 1}
made = EndpointEncoder({"encoder": encoder, "normalize": False}, Runtime())
print("ready", flush=True)
made.encode([str(i) for i in range(50)])
"""


@pytest.mark.parametrize(
    "slow", [{"delay": 30.0}, {"always": (429, {"Retry-After": "60"})}]
)
def test_ctrl_c_ends_it_at_once(numbers: EmbeddingServer, slow: dict[str, Any]) -> None:
    for name, value in slow.items():
        setattr(numbers, name, value)
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, numbers.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            deadline = time.monotonic() + 20
            while len(numbers.asked) < 4 and time.monotonic() < deadline:
                time.sleep(0.05)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert time.monotonic() - began < 3
    assert "KeyboardInterrupt" in errors
    assert "pending" not in errors
