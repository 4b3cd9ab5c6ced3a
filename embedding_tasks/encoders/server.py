"""Where an endpoint is, its key, and what its refusals mean."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from embedding_tasks import connections
from embedding_tasks.connections import Resolve
from embedding_tasks.errors import (
    ConfigError,
    EmbedlineError,
    InputError,
    ModelError,
    TransientError,
)
from embedding_tasks.use_case.feature import Endpoint

if TYPE_CHECKING:
    from openai import OpenAIError

OPENAI_VARIABLE = "OPENAI_API_KEY"
# What a client sends that must send something to a server that asks for nothing.
_NO_KEY = "no-key"
# Of a server's own words: more would repeat the input.
_SAID = 200


@dataclass(frozen=True)
class Server:
    """`key_from` says, for messages, where the key is set."""

    url: str
    key: str = field(repr=False)
    key_from: str

    @classmethod
    def of(cls, encoder: Endpoint, resolve: Resolve | None) -> Server:
        """Raises `ConfigError` for a connection or a key that is not there."""
        if encoder.connection is not None:
            return _of_connection(encoder.connection, encoder.url, resolve)
        variable = encoder.key_variable
        if variable is None and _is_openai(encoder.url):
            variable = OPENAI_VARIABLE
        if variable is None:
            hint = "encoder.connection, or encoder.key_variable"
            return cls(encoder.url, _NO_KEY, hint)
        if not (key := os.environ.get(variable, "").strip()):
            raise ConfigError(
                f"encoder: the environment variable {variable!r} is not set, which "
                f"holds the key for {encoder.url}; set it, or name an Airflow "
                "connection in encoder.connection"
            )
        return cls(encoder.url, key, f"the environment variable {variable!r}")

    def explain(self, error: OpenAIError, model: str) -> EmbedlineError:
        """The same trouble as this package knows it. Never the key, nor more of the
        server's words than its one message: some repeat all they were sent."""
        import openai

        if isinstance(error, openai.APIConnectionError):
            why = type(error.__cause__ or error).__name__
            return TransientError(f"encoder.url: {self.url} cannot be reached: {why}")
        if not isinstance(error, openai.APIStatusError):
            return ModelError(f"encoder.url: {self.url}: {type(error).__name__}")
        status, said = error.status_code, self._said(error)
        if status in (400, 413, 422) and error.param not in ("dimensions", "model"):
            return InputError(f"the endpoint refuses it ({status}){said}")
        if status in (408, 409, 429) or status >= 500:
            return self._away(error, said)
        return ModelError(f"encoder: {self._refusal(status, model)}{said}")

    def _away(self, error: Any, said: str) -> EmbedlineError:
        if error.code == "insufficient_quota":
            return ModelError(f"encoder: the quota at {self.url} is used up{said}")
        wait = error.response.headers.get("retry-after")
        hint = f"; it asks to wait until {wait!r}" if wait else ""
        return TransientError(
            f"encoder.url: {self.url} answers {error.status_code} after all "
            f"encoder.max_retries{hint}{said}"
        )

    def _refusal(self, status: int, model: str) -> str:
        match status:
            case 401 | 403:
                return f"{self.url} refuses the key ({status}); set {self.key_from}"
            case 404:
                return (
                    f"{self.url} has no model {model!r}, or no /embeddings (404); set "
                    "encoder.model or encoder.url, which usually ends in /v1"
                )
            case _:
                return f"{self.url} refuses {model!r} ({status})"

    def _said(self, error: Any) -> str:
        message = error.body.get("message") if isinstance(error.body, dict) else None
        if not isinstance(message, str):
            return ""
        line = message.strip().split("\n")[0].replace(self.key, "***")
        return f": {line[:_SAID]}"


def _of_connection(connection_id: str, url: str, resolve: Resolve | None) -> Server:
    found = connections.defined(connection_id, resolve)
    kind = found.get("conn_type")
    if kind not in (None, "", "openai", "http", "https", "generic"):
        raise ConfigError(
            f"encoder.connection: {connection_id!r} is a connection of type {kind!r}; "
            "valid: 'openai', 'http', 'https', 'generic'"
        )
    return Server(
        url=_url(found) if found.get("host") else url,
        key=found.get("password") or _NO_KEY,
        key_from=f"the password of connection {connection_id!r}",
    )


def _url(found: Mapping[str, Any]) -> str:
    """As Airflow's HttpHook reads it: the host may be a whole URL; else the schema, or
    the type, is http or https. What the URI form has as its path is one here, too."""
    host, schema = str(found["host"]), found.get("schema") or ""
    if "://" not in host:
        kind = found.get("conn_type")
        scheme = kind if kind in ("http", "https") else "https"
        host = f"{schema if schema in ('http', 'https') else scheme}://{host}"
    if "@" in host:
        raise ConfigError("encoder.connection: its host holds a user; give it a login")
    split = urlsplit(host)
    if split.port is None and found.get("port"):
        split = split._replace(netloc=f"{split.netloc}:{found['port']}")
    path = split.path.strip("/") or ("" if schema in ("http", "https") else schema)
    return f"{split.scheme}://{split.netloc}/{path.strip('/') or 'v1'}"


def _is_openai(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == "api.openai.com" or host.endswith(".api.openai.com")
