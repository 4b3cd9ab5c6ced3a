"""The other side of `process`, and how both speak.

It is run by its path and imports the standard library alone, so that it holds what its
callable needs and nothing else. multiprocessing's fresh starts would run the parent's
main module again, which may be Airflow's.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

# The length of a pickle, and how many buffers come beside it; then their lengths.
_HEAD = struct.Struct("!QI")
# What is smaller costs less within the pickle.
_LARGE = 1 << 16
_ALIGNED = 64
_CAN_SHARE = hasattr(os, "memfd_create")


def send(link: socket.socket, message: object) -> None:
    """Large arrays go in memory without a name, which is gone with the last process
    that holds it, whatever ends that. Where there is none, they are pickled."""
    large: list[memoryview] = []

    def within(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if not _CAN_SHARE or view.nbytes < _LARGE:
            return True
        large.append(view)
        return False

    data = pickle.dumps(message, protocol=5, buffer_callback=within)
    sizes = [view.nbytes for view in large]
    head = _HEAD.pack(len(data), len(sizes))
    if not large:
        link.sendall(head)
    else:
        shared = os.memfd_create("embedline")
        try:
            _fill(shared, large)
            socket.send_fds(link, [head], [shared])
        finally:
            os.close(shared)
        link.sendall(struct.pack(f"!{len(sizes)}Q", *sizes))
    link.sendall(data)


def receive(link: socket.socket) -> Any:
    """Raises `EOFError` when the other side is gone."""
    head, fds, _, _ = socket.recv_fds(link, _HEAD.size, 1)
    try:
        head += _exactly(link, _HEAD.size - len(head)) if head else b""
        if not head:
            raise EOFError
        length, count = _HEAD.unpack(head)
        sizes = struct.unpack(f"!{count}Q", _exactly(link, 8 * count))
        data = _exactly(link, length)
        buffers = _mapped(fds[0], sizes) if fds else []
    finally:
        for fd in fds:
            os.close(fd)
    return pickle.loads(data, buffers=buffers)


def _fill(shared: int, views: Sequence[memoryview]) -> None:
    for start, view in zip(_starts([v.nbytes for v in views]), views, strict=True):
        written = 0
        while written < view.nbytes:
            written += os.pwrite(shared, view[written:], start + written)


def _mapped(fd: int, sizes: Sequence[int]) -> list[memoryview]:
    starts = list(_starts(sizes))
    whole = memoryview(mmap.mmap(fd, starts[-1] + sizes[-1]))
    return [whole[s : s + size] for s, size in zip(starts, sizes, strict=True)]


def _starts(sizes: Sequence[int]) -> Iterator[int]:
    start = 0
    for size in sizes:
        yield start
        start += -(-size // _ALIGNED) * _ALIGNED


def _exactly(link: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        if not (got := link.recv_into(view)):
            raise EOFError
        view = view[got:]
    return data


def serve(link: socket.socket) -> None:
    """Answers (True, result) or (False, error) to each call, until the parent is
    gone, or interrupts what may be."""
    paths, task, interruptible = receive(link)
    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[:] = paths  # before anything of it is unpickled
    made: list[Callable[[Any], Any]] = []

    def outcome(given: Any) -> tuple[bool, Any]:
        try:
            if not made:
                build, args = pickle.loads(task)
                made.append(build(*args))
            return True, made[0](given)
        except Exception as error:
            return False, portable(error)

    with suppress(EOFError, ConnectionError, KeyboardInterrupt):
        while True:
            answer = outcome(receive(link))
            try:
                send(link, answer)
            except (pickle.PicklingError, TypeError, AttributeError) as error:
                send(link, (False, portable(error)))


def portable(error: Exception) -> Exception:
    """The error, or one that says the same where it does not survive pickling."""
    error.add_note("in a process of its own:\n" + traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with_the_parent() -> None:
    """Whatever the callable is at: the parent holds the other end of stdin."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    # Ctrl-C reaches all that run in a terminal: the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    with socket.socket(fileno=int(sys.argv[1])) as the_link:
        serve(the_link)
