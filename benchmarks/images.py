"""JPEG bytes to vectors, against the slower of its two halves.

    python -m benchmarks.images                       ViT-B/16, 256 pictures
    python -m benchmarks.images --images 12000 --dtype float16 --lanes 3

Pictures are crops of 500 x 375 of scikit-learn's two photographs; the model has random
weights, which its speed does not depend on, unless a folder is given. `decode` takes
bytes to pixels of the model's size, `model` such pixels in memory to vectors in memory,
`together` bytes to vectors; each in turn, `--rounds` times. The CPU time of an image is
this process's own, without that of processes that decode. No Postgres is needed.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from benchmarks import harness
from embedding_tasks import __version__
from embedding_tasks.encoders import Runtime, pictures, preparing, preprocessing, recipe
from embedding_tasks.encoders.image import Batch, ImageEncoder
from embedding_tasks.encoders.preprocessing import Library
from embedding_tasks.use_case import UseCase

SEED = 11
WIDTH, HEIGHT = 500, 375
RESULTS = Path(__file__).parent / "results" / "images.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a folder; ViT-B/16 if none")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, help="of one pass; as suits if none")
    parser.add_argument("--processes", type=int, help="that decode; 0: threads")
    parser.add_argument("--lanes", type=int, default=1, help="threads that encode")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=RESULTS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = asked.model or vit_base(Path(folder))
        found = measure(
            model,
            jpegs(asked.images),
            asked.device,
            dtype=asked.dtype,
            tokens=asked.tokens,
            processes=asked.processes,
            lanes=asked.lanes,
            rounds=asked.rounds,
        )
    show(found)
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(found, indent=1))


def measure(
    model_folder: Path,
    images: Sequence[bytes],
    device: str = "auto",
    *,
    dtype: str = "float32",
    tokens: int | None = None,
    processes: int | None = None,
    lanes: int = 1,
    rounds: int = 3,
) -> dict[str, Any]:
    """Images a second, and what one core decodes, now and by the whole processor."""
    spec = spec_of(model_folder, dtype)
    encoder = ImageEncoder(
        model_folder, spec, Runtime(device, tokens), processes=processes
    )
    batch = next(encoder.batches(images, {}))
    ways: dict[str, Callable[[], object]] = {
        "decode": lambda: decode(encoder, images),
        "model": lambda: forward(encoder, batch, len(images)),
        "together": lambda: encode(encoder, images, lanes),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    own: dict[str, list[float]] = {name: [] for name in ways}
    gemm: list[float] = []
    encoder.encode(images[: len(images) // 4 + 1])  # starts processes, loads kernels
    for _ in range(rounds):
        for name, way in ways.items():
            began, used = time.perf_counter(), time.process_time()
            way()
            seconds[name].append(time.perf_counter() - began)
            own[name].append((time.process_time() - used) / len(images) * 1e3)
            if name == "model":
                gemm.append(harness.gemm_rate(seconds[name][-1]) / 1e12)
    rates = {n: [len(images) / s for s in taken] for n, taken in seconds.items()}
    slower = min(statistics.median(rates[name]) for name in ("decode", "model"))
    return {
        **machine(encoder),
        **{"images": len(images), "dtype": dtype, "tokens": tokens, "lanes": lanes},
        "jpeg_bytes": round(statistics.mean(map(len, images))),
        "images_per_second": rates,
        "cpu_ms": own,
        "gemm_sustained": gemm,
        "share_of_slower": statistics.median(rates["together"]) / slower,
        "core": core(model_folder, spec, images),
    }


def decode(encoder: ImageEncoder, images: Sequence[bytes]) -> None:
    for _ in encoder.prepared(images):
        pass


def forward(encoder: ImageEncoder, batch: Batch, count: int) -> None:
    """One batch again and again, until it is so many images."""
    waiting: deque[Callable[[], object]] = deque()
    for _ in range(0, count, len(batch)):
        waiting.append(encoder.forward(batch))
        if len(waiting) > 1:
            waiting.popleft()()
    for later in waiting:
        later()


def encode(encoder: ImageEncoder, images: Sequence[bytes], lanes: int) -> None:
    places = [len(images) * lane // lanes for lane in range(lanes + 1)]
    shares = [images[start:stop] for start, stop in pairwise(places)]
    with ThreadPoolExecutor(lanes) as threads:
        for encoded in threads.map(encoder.encode, shares):
            assert not encoded.failed


def core(
    folder: Path, spec: dict[str, Any], images: Sequence[bytes]
) -> dict[str, float]:
    """Milliseconds of one core for an image: what it takes to decode and resize it,
    of that Pillow's own work, and what the model's whole processor takes."""
    wants = ("pixel_values",)
    chosen, _ = preprocessing.choose(folder, wants)
    prepare, whole = chosen.ready(), Library(folder, wants).ready()
    some = images[:64]
    opened = [pictures.read(image, WIDTH * HEIGHT) for image in some]
    size = prepare(opened[0])[preprocessing.PIXELS].shape[:0:-1]
    resample = getattr(chosen, "resample", Image.Resampling.BILINEAR)
    read = cpu(lambda: [pictures.read(image, WIDTH * HEIGHT) for image in some])
    pillow = cpu(lambda: [Image.open(io.BytesIO(image)).load() for image in some])
    pillow += cpu(lambda: [image.resize(size, resample) for image in opened])
    now = read + cpu(lambda: [stacked(prepare(image)) for image in opened])
    before = read + cpu(lambda: [whole(image) for image in opened])
    return {
        "ms": now / len(some) * 1e3,
        "ms_by_whole_processor": before / len(some) * 1e3,
        "ms_of_pillow": pillow / len(some) * 1e3,
        "bytes_to_device": stacked(prepare(opened[0])).nbytes,
        "bytes_by_whole_processor": whole(opened[0])[preprocessing.PIXELS].nbytes,
    }


def stacked(arrays: preprocessing.Arrays) -> np.ndarray:
    return np.ascontiguousarray(arrays[preprocessing.PIXELS])


def cpu(work: Callable[[], object]) -> float:
    """Seconds, the best of five: a core is shared with whatever else runs."""
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best


def jpegs(count: int) -> list[bytes]:
    """So many different ones, of quality 90."""
    from sklearn.datasets import load_sample_images

    draw = np.random.default_rng(SEED)
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    made = []
    for number in range(count):
        photo = photographs[number % len(photographs)]
        left = int(draw.integers(0, photo.width - WIDTH))
        top = int(draw.integers(0, photo.height - HEIGHT))
        buffer = io.BytesIO()
        crop = photo.crop((left, top, left + WIDTH, top + HEIGHT))
        crop.save(buffer, "JPEG", quality=90)
        made.append(buffer.getvalue())
    return made


def vit_base(folder: Path) -> Path:
    torch.manual_seed(SEED)
    transformers.ViTModel(transformers.ViTConfig()).save_pretrained(folder)
    transformers.ViTImageProcessorPil().save_pretrained(folder)
    return folder


def spec_of(folder: Path, dtype: str) -> dict[str, Any]:
    case = {
        "name": "images",
        "source": {"connection": "c", "table": "t", "key": "id", "input": "x"},
        "encoder": {"type": "image", "model": str(folder), "dtype": dtype},
    }
    return recipe.all_of(UseCase.model_validate(case))["embedding"].spec


def machine(encoder: ImageEncoder) -> dict[str, Any]:
    device = encoder.surroundings()["device"]
    return {
        "embedline": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cores": preparing.cores(),
        "device": torch.cuda.get_device_name() if "cuda" in device else device,
        "seed": SEED,
    }


def show(found: dict[str, Any]) -> None:
    print(f"{found['device']}, {found['cores']} cores, {found['dtype']}")
    print("| | images/s | lowest to highest | CPU ms of this process |")
    print("|---|---|---|---|")
    for name, rates in found["images_per_second"].items():
        low, high = min(rates), max(rates)
        print(
            f"| {name} | {statistics.median(rates):,.1f} | {low:,.1f} to {high:,.1f} |"
            f" {statistics.median(found['cpu_ms'][name]):.2f} |"
        )
    if found["gemm_sustained"][0] > 0:
        print(
            "GEMM of 8192, sustained in turn with the model, TFLOP/s:"
            f" {harness.spread(found['gemm_sustained'], '.0f')}"
        )
    print(f"together at {found['share_of_slower']:.2f} of the slower of the two")
    own = found["core"]
    print(
        f"one core: {1e3 / own['ms']:,.0f} images/s decoded and resized "
        f"({own['ms_of_pillow'] / own['ms']:.0%} of it Pillow's own work), "
        f"{own['bytes_to_device']:,} bytes each to the device; by the whole processor "
        f"{1e3 / own['ms_by_whole_processor']:,.0f}, "
        f"{own['bytes_by_whole_processor']:,}"
    )


if __name__ == "__main__":
    main()
