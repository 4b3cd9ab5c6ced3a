"""Images as a person sees them, and an error that names the address for all others."""

from __future__ import annotations

import socket
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedding_tasks.encoders import addresses, pictures
from embedding_tasks.errors import InputError, TransientError
from tests.image_models import encoded, photographs

MAX = 50_000_000


def small() -> Image.Image:
    return photographs()[0].resize((60, 40))


def array(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_exif_says(orientation: int) -> None:
    flips = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = small()
    if orientation in flips:
        stored = stored.transpose(flips[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = pictures.read(encoded(stored, exif=exif), MAX)
    assert (array(got) == array(small())).all()


def test_broken_exif_is_no_broken_image() -> None:
    data = encoded(small(), exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
    assert (array(pictures.read(data, MAX)) == array(small())).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB"])
def test_grey_and_palettes_become_rgb(mode: str) -> None:
    image = small().convert(mode)
    got = pictures.read(encoded(image), MAX)
    assert (array(got) == array(image.convert("RGB"))).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_white(mode: str) -> None:
    image = small().convert("RGBA")
    image.paste((200, 10, 10, 0), (0, 0, 30, 40))  # red, if one could see it
    got = pictures.read(encoded(image.convert(mode)), MAX)
    assert (array(got)[:, :30] == 255).all()
    assert (array(got)[:, 40:] < 255).any()


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_colour_of_a_palette_is_white(kind: str) -> None:
    image = Image.new("P", (4, 2), 1)
    image.putpalette([200, 10, 10, 0, 0, 200])
    image.putpixel((0, 0), 0)
    got = array(pictures.read(encoded(image, kind, transparency=0), MAX))
    assert (got[0, 0] == 255).all()
    assert (got[1, 0] == [0, 0, 200]).all()


def test_half_transparent_is_half_white() -> None:
    got = pictures.read(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128))), MAX)
    assert np.abs(array(got) - 127).max() <= 1


def test_a_transparent_colour_of_a_grey_image_is_white() -> None:
    got = pictures.read(encoded(Image.new("L", (4, 4), 7), transparency=7), MAX)
    assert (array(got) == 255).all()


def test_cmyk_is_as_pillow_shows_it() -> None:
    data = encoded(small().convert("CMYK"), "JPEG", quality=95)
    assert np.abs(array(pictures.read(data, MAX)) - array(small())).mean() < 12


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_high_byte(kind: str) -> None:
    grey = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    got = pictures.read(encoded(Image.fromarray(grey), kind), MAX)
    assert (array(got)[..., 0] == grey >> 8).all()


def test_an_image_that_does_not_say_what_is_white_is_refused() -> None:
    floats = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    wide = encoded(Image.fromarray(np.full((4, 4), 1 << 20, np.int32)), "TIFF")
    for data in (floats, wide):
        with pytest.raises(InputError, match="does not say what is white"):
            pictures.read(data, MAX)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_counts(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in ("#ff0000", "#00ff00")]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (array(pictures.read(data, MAX)) == [255, 0, 0]).all()


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", packed)
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8_000, 10_000, 60_000])  # Pillow warns at 9,459
def test_bombs_are_refused_by_their_header_and_without_a_warning(side: int) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(InputError, match=f"{side} x {side} pixels; valid: at most"):
            pictures.read(bomb(side, side), MAX)
    assert not seen
    assert Image.MAX_IMAGE_PIXELS is not None


def test_a_limit_beyond_pillows_own_is_kept() -> None:
    data = encoded(Image.new("1", (14_000, 14_000)))
    assert pictures.read(data, 200_000_000).size == (14_000, 14_000)
    with pytest.raises(InputError, match=r"valid: at most encoder.max_pixels=1000"):
        pictures.read(data, 1000)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no image"),
        (b"secret text", "no image"),
        (encoded(small())[:700], "truncated"),
        (encoded(small(), "JPEG")[:700], "truncated"),
        (encoded(small(), "GIF")[:200], "no image|truncated|broken"),
        (encoded(small())[:300] + b"secret" * 200, "broken|truncated"),
    ],
)
def test_a_broken_image_is_an_input_error_that_holds_none_of_it(
    data: bytes, says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        pictures.read(data, MAX)
    assert "secret" not in str(caught.value)
    assert "0x" not in str(caught.value)


def test_any_flipped_bytes_are_an_image_or_an_input_error() -> None:
    draw = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = encoded(small().resize((20, 20)), kind)
        for _ in range(40):
            data = bytearray(whole)
            for place in draw.integers(0, len(data), 4):
                data[place] = draw.integers(0, 256)
            try:
                assert pictures.read(bytes(data), 1_000_000).mode == "RGB"
            except InputError:
                continue


# ------------------------------------------------------------------ addresses


class Handler(BaseHTTPRequestHandler):
    """No ranges, no HEAD: the least a server may do."""

    seen: list[str]
    failures = 0

    def do_GET(self) -> None:
        kind = type(self)
        kind.seen.append(self.path)
        name = self.path.split("?")[0]
        if name == "/once" and kind.failures == 0:
            kind.failures += 1
            self.send_error(503)
        elif name.startswith("/status/"):
            self.send_error(int(name.rpartition("/")[2]))
        elif name == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
        elif name == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                return
        elif name == "/slow":
            self.send_response(200)
            self.end_headers()
            time.sleep(3)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(encoded(small()))

    def log_message(self, *args: Any) -> None:
        return


@pytest.fixture
def server() -> Iterator[str]:
    handler = type("Fresh", (Handler,), {"seen": [], "failures": 0})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        host = f"http://127.0.0.1:{made.server_address[1]}"
        yield host
        made.shutdown()


def test_an_image_comes_over_http(server: str) -> None:
    for address in (f"{server}/a.png", f"{server}/moved", f"{server}/once"):
        assert (array(pictures.read(address, MAX)) == array(small())).all()


def test_paths_and_uris_name_files_and_a_relative_one_is_the_projects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDLINE_PROJECT", str(tmp_path))
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / "a b#1.png"
    path.write_bytes(encoded(small()))
    for address in ("images/a b#1.png", str(path), f"file://{path}"):
        assert (array(pictures.read(address, MAX)) == array(small())).all()


def test_any_filesystem_of_fsspec_is_read(tmp_path: Path) -> None:
    import zipfile

    import fsspec

    with fsspec.open("memory://bucket/a.png", "wb") as file:
        file.write(encoded(small()))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("a.png", encoded(small()))
    for address in ("memory://bucket/a.png", f"zip://a.png::{tmp_path}/all.zip"):
        assert (array(pictures.read(address, MAX)) == array(small())).all()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_what_a_server_refuses_is_the_rows_fault(server: str, status: int) -> None:
    address = f"{server}/status/{status}?signature=secret"
    with pytest.raises(InputError) as caught:
        pictures.read(address, MAX)
    assert f"/status/{status}" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_server_in_trouble_is_transient(server: str, status: int) -> None:
    with pytest.raises(TransientError, match=f"HTTP {status}"):
        pictures.read(f"{server}/status/{status}", MAX)


def test_a_server_that_is_not_there_is_transient() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(TransientError, match=f"127.0.0.1:{port}/a.png"):
        pictures.read(f"http://user:secret@127.0.0.1:{port}/a.png", MAX)


def test_a_server_that_is_too_slow_is_transient(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "FETCH_SECONDS", 0.3)
    with pytest.raises(TransientError):
        pictures.read(f"{server}/slow", MAX)


def test_a_download_without_end_is_cut_off(server: str) -> None:
    with pytest.raises(InputError, match=r"/endless': longer than \d+ bytes"):
        pictures.read(f"{server}/endless", 1000)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("nowhere/a.png", "'nowhere/a.png': there is nothing"),
        ("file:///nowhere/a.png", "there is nothing"),
        ("/", "a folder"),
        ("gopher://x/a.png", "cannot be opened"),
        ("http://[broken/a.png", "cannot be opened|no such host"),
        ("memory://none/a.png", "there is nothing"),
        ("a\x00b", "cannot be opened"),
    ],
)
def test_an_address_of_nothing_is_named(
    address: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDLINE_PROJECT", str(tmp_path))
    with pytest.raises(InputError, match=says):
        pictures.read(address, MAX)


def test_a_broken_file_is_named_by_its_address(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"secret")
    with pytest.raises(InputError, match=r"a.png': no image") as caught:
        pictures.read(str(path), MAX)
    assert "secret" not in str(caught.value)


def test_a_data_uri_is_an_image_and_is_never_repeated() -> None:
    import base64

    whole = base64.b64encode(encoded(small())).decode()
    got = pictures.read(f"data:image/png;base64,{whole}", MAX)
    assert (array(got) == array(small())).all()
    with pytest.raises(InputError, match="a data: URI") as caught:
        pictures.read(f"data:image/png;base64,{whole[:400]}", MAX)
    assert whole[:10] not in str(caught.value)


def test_images_are_read_in_many_threads_at_once(server: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        read = pool.map(lambda i: pictures.read(f"{server}/{i}", MAX), range(40))
        assert all((array(image) == array(small())).all() for image in read)
    assert Image.MAX_IMAGE_PIXELS is not None
