"""A real server of `/v1/embeddings` on loopback, with a real model behind it, that can
be told to misbehave."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

Embed = Callable[[list[str]], np.ndarray]


@dataclass
class EmbeddingServer:
    """`failures` are answered first, one to a request: status and headers. `spoil`
    changes an answer before it is sent. What was asked is in `asked`."""

    embed: Embed
    url: str = ""
    model: str = "minilm"
    key: str | None = None
    longest: int = 10_000  # characters
    most_items: int = 10_000
    delay: float = 0
    floats_only: bool = False
    failures: deque[tuple[int, dict[str, str]]] = field(default_factory=deque)
    always: tuple[int, dict[str, str]] | None = None
    spoil: Callable[[list[str], dict[str, Any]], None] = lambda texts, answer: None
    asked: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def texts(self) -> list[str]:
        return [text for body in self.asked for text in body["input"]]

    def answer(self, body: dict[str, Any], key: str | None) -> tuple[int, Any, Any]:
        with self.lock:
            self.asked.append(body)
            self.times.append(time.monotonic())
            failure = self.failures.popleft() if self.failures else self.always
        time.sleep(self.delay)
        if failure:
            return (failure[0], failure[1], error("told to fail"))
        if self.key is not None and key != f"Bearer {self.key}":
            return 401, {}, error(f"Incorrect API key provided: {key}")
        if body["model"] != self.model:
            return 404, {}, error(f"The model {body['model']!r} does not exist")
        texts = body["input"]
        if len(texts) > self.most_items:
            return 422, {}, error(f"batch size {len(texts)} > {self.most_items}")
        if not all(texts) or any(len(t) > self.longest for t in texts):
            return 400, {}, error("an input is empty or too long")
        answer = self._embedded(texts, body)
        self.spoil(texts, answer)
        return 200, {}, answer

    def _embedded(self, texts: list[str], body: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            vectors = self.embed(texts)
        if wanted := body.get("dimensions"):  # as Matryoshka models shorten theirs
            vectors = vectors[:, :wanted]
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        encoded = body.get("encoding_format") == "base64" and not self.floats_only
        data = [
            {
                "object": "embedding",
                "index": i,
                "embedding": base64.b64encode(v.astype("<f4").tobytes()).decode()
                if encoded
                else [float(x) for x in v],
            }
            for i, v in enumerate(vectors)
        ]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return {"object": "list", "data": data, "model": self.model, "usage": usage}


def error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error"}}


@contextmanager
def serving(server: EmbeddingServer) -> Iterator[EmbeddingServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            with server.lock:
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            try:
                self._answer()
            finally:
                with server.lock:
                    server.at_once -= 1

        def _answer(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/embeddings":
                status, headers, answer = 404, {}, error("no such path")
            else:
                status, headers, answer = server.answer(
                    body, self.headers.get("Authorization")
                )
            sent = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(sent)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(sent)
            except OSError:  # who asked has gone
                self.close_connection = True

        def log_message(self, *args: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, *args: Any) -> None:
            pass

    http = Quiet(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
