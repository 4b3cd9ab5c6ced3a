"""Fetching what a column names: a path, or any URL that fsspec opens."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import fsspec
from tenacity import (
    retry,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
)

from embedding_tasks import settings
from embedding_tasks.errors import InputError, ModelError, TransientError

CONNECT_SECONDS = 10
FETCH_SECONDS = 60
_BLOCK = 1 << 20
# What the libraries of the stores call it when they are not answered; they share no
# base class, and most of them are not installed here.
_AWAY = re.compile("Connect|Timeout|Disconnect")


@retry(
    retry=retry_if_exception_type(TransientError),
    stop=stop_after_attempt(3),
    wait=wait_exponential(multiplier=0.2, max=2),
    reraise=True,
)
def fetch(address: str, most: int) -> bytes:
    """The bytes behind an address; a path is relative to the project. Raises
    `InputError` where there is nothing, or more than `most` bytes, `TransientError`
    where the store itself is away, and `ModelError` where a package is missing."""
    if not address.strip():
        raise InputError("the address of the image is empty")
    try:
        with _open(address) as file:
            data = _at_most(file, most)
    except ImportError as error:
        raise ModelError(
            f"{shown(address)}: fsspec needs a package for such addresses: {error}"
        ) from error
    except Exception as error:
        raise _judged(address, error) from error
    if data is None:
        raise InputError(f"{shown(address)}: longer than {most} bytes")
    return data


def shown(address: str) -> str:
    """For a message: without a user, a password or a signature."""
    if address.startswith("data:"):
        return "a data: URI"
    if "://" not in address:
        return repr(address)
    return repr(re.sub(r"(://)[^/?#]*@|[?#].*", r"\1", address, flags=re.DOTALL))


@contextmanager
def _open(address: str) -> Iterator[Any]:
    if not re.match(r"[A-Za-z][\w+.-]*(://|::)|data:", address):
        with (settings.project() / address).open("rb") as file:
            yield file
        return
    options: dict[str, Any] = {}
    if is_http := address.startswith(("http://", "https://")):
        import aiohttp

        limits = aiohttp.ClientTimeout(FETCH_SECONDS, sock_connect=CONNECT_SECONDS)
        options = {"client_kwargs": {"timeout": limits}}
    filesystem, path = fsspec.core.url_to_fs(address, **options)
    # A stream from one GET: no HEAD first, and no ranges, which not all servers have.
    stream = {"block_size": 0, "size": 1} if is_http else {}
    # `filesystem` must outlive the file: an archive closes when it is let go
    with filesystem.open(path, "rb", **stream) as file:
        yield file


def _at_most(file: BinaryIO, most: int) -> bytes | None:
    data = bytearray()
    while block := file.read(_BLOCK):
        data += block
        if len(data) > most:
            return None
    return bytes(data)


def _judged(address: str, error: Exception) -> Exception:
    chain = list(_causes(error))
    status = next((s for e in chain if isinstance(s := _status(e), int)), None)
    if status is not None:
        reason = f"{shown(address)}: HTTP {status}"
        away = status >= 500 or status in (408, 429)
        return TransientError(reason) if away else InputError(reason)
    reason = f"{shown(address)}: {_reason(error)}"
    if any(_names_no_host(e) for e in chain):
        return InputError(f"{shown(address)}: no such host")
    if any(_AWAY.search(kind.__name__) for e in chain for kind in type(e).__mro__):
        return TransientError(reason)
    return InputError(reason)


def _reason(error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return "there is nothing"
        case IsADirectoryError():
            return "a folder, not a file"
        case PermissionError():
            return "not allowed to read it"
        case _:
            return f"cannot be opened ({type(error).__name__})"


def _status(error: BaseException) -> Any:
    return getattr(error, "status", None)


def _names_no_host(error: BaseException) -> bool:
    return isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        inner = getattr(error, "os_error", None)  # aiohttp keeps it beside
        if isinstance(inner, BaseException):
            yield inner
        error = error.__cause__ or error.__context__
