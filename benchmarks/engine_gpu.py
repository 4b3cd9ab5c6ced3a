"""Texts to vectors on a card: the model alone, tokenizing alone, and both at once.

    make bench-gpu            all sizes; the images, and row to row, follow

GEMM is a product of matrices of 8192 in half precision. A card slows down under load:
`burst` is 30 ms of it on a card at rest, `sustained` as long as a round of the model
and in turn with it. MFU is the model's own floating-point operations for real tokens,
per second, over the rate of either. `model` runs batches whose tokens are on the host;
`tokenize` is the preparation alone, on as many processes as the engine uses;
`together` is `encode` of texts, called by as many threads as a worker has lanes.
sentence-transformers runs in bfloat16 on the same texts, at the best of its batch
sizes.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import harness, sized_models
from embedding_tasks import encoders
from embedding_tasks.encoders import Runtime
from embedding_tasks.encoders.tokenizing import Tokens

SEED = 3
COUNTS = {"minilm": 150_000, "bert-base": 80_000, "bert-large": 30_000}
BATCH_SIZES = (64, 256, 1024)
OTHERS_TEXTS = 6_000
LANES = 3
RESULTS = Path(__file__).parent / "results" / "engine_gpu.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=[*COUNTS])
    parser.add_argument("--texts", type=int, help="for every size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, default=RESULTS)
    asked = parser.parse_args()
    logging.getLogger("embedding_tasks").addHandler(logging.StreamHandler())
    print(f"{harness.machine()}\n\n{HEAD}", flush=True)
    found = {}
    for size in asked.sizes:
        with tempfile.TemporaryDirectory() as folder:
            model = sized_models.save(size, Path(folder))
            texts = sized_models.texts(asked.texts or COUNTS[size], SEED)
            found[size] = measure(model, texts, asked.rounds, asked.device)
            show(size, found[size])
    harness.save(asked.json, {"sizes": found}, seed=SEED)


def measure(
    folder: Path, texts: Sequence[str], rounds: int, device: str
) -> dict[str, Any]:
    case = sized_models.use_case(folder)
    encoder: Any = encoders.load(sized_models.version(case), Runtime(device))
    inner = getattr(encoder, "encoder", encoder)
    tokens = Tokens.joined(list(inner.tokenized(texts)))
    batches = [
        tokens.only(batch)
        for batch in inner.forward.batches(tokens.lengths.tolist(), inner.budget.tokens)
    ]
    ways: dict[str, Callable[[], object]] = {
        "model": lambda: run_model(inner, batches),
        "tokenize": lambda: deque(inner.tokenized(texts), maxlen=0),
        "together": lambda: encode(encoder, texts),
    }
    for way in ways.values():
        way()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    gemm: list[float] = []
    for _ in range(rounds):
        for name, way in ways.items():
            took = harness.seconds(way)
            rates[name].append(len(texts) / took)
            if name == "model":
                gemm.append(harness.gemm_rate(took))
    burst = harness.gemm_burst()
    flops = sized_models.flops(folder, tokens.lengths) / len(texts)
    medians = {name: statistics.median(rate) for name, rate in rates.items()}
    others = sentence_transformers(folder, texts[:OTHERS_TEXTS], device)
    best = max(others, key=others.__getitem__)
    return {
        **encoder.surroundings(),
        "texts": len(texts),
        "mean_tokens": float(tokens.lengths.mean()),
        "most_tokens": int(tokens.lengths.max()),
        "texts_per_second": rates,
        "gemm_sustained": [rate / 1e12 for rate in gemm],
        "gemm_burst": [rate / 1e12 for rate in burst],
        "mfu": medians["model"] * flops / statistics.median(gemm),
        "mfu_of_burst": medians["model"] * flops / statistics.median(burst),
        "share_of_slowest": medians["together"]
        / min(medians["model"], medians["tokenize"]),
        "sentence_transformers": others,
        "best_batch": best,
        "times": medians["together"] / others[best],
        "quality": quality(folder, encoder, texts[:500]),
    }


def run_model(encoder: Any, batches: Sequence[Any]) -> None:
    for batch in batches:
        encoder.forward(batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def encode(encoder: Any, texts: Sequence[str]) -> None:
    """In leases of a worker's size."""
    size = 8192
    parts = [texts[i : i + size] for i in range(0, len(texts), size)]
    with ThreadPoolExecutor(LANES if encoder.shared else 1) as lanes:
        for _ in lanes.map(encoder.encode, parts):
            pass


def sentence_transformers(
    folder: Path, texts: Sequence[str], device: str
) -> dict[int, float]:
    """Texts a second by batch size."""
    from sentence_transformers import SentenceTransformer, models

    model = models.Transformer(str(folder), model_args={"dtype": torch.bfloat16})
    model.max_seq_length = 512
    pooled = models.Pooling(
        model.get_embedding_dimension()
        if hasattr(model, "get_embedding_dimension")
        else model.get_word_embedding_dimension(),
        "mean",
    )
    made = SentenceTransformer(
        modules=[model, pooled], device=None if device == "auto" else device
    )
    rates = {}
    for size in BATCH_SIZES:
        made.encode(texts[:1000], batch_size=size, show_progress_bar=False)
        took = harness.seconds(
            lambda size=size: made.encode(
                texts, batch_size=size, show_progress_bar=False
            )
        )
        rates[size] = len(texts) / took
    return rates


def quality(folder: Path, encoder: Any, texts: Sequence[str]) -> dict[str, float]:
    """Against float32, text by text."""
    case = sized_models.use_case(
        folder, encoder={"model": str(folder), "dtype": "float32"}
    )
    exact: Any = encoders.load(sized_models.version(case), Runtime("auto"))
    wanted = np.concatenate([exact.encode([text]).vectors for text in texts])
    got = encoder.encode(texts).vectors
    cosine = (wanted * got).sum(1)
    return {
        "least_cosine": float(cosine.min()),
        "mean_cosine": float(cosine.mean()),
        "top10_overlap": overlap(wanted, got),
    }


def overlap(wanted: np.ndarray, got: np.ndarray, count: int = 10) -> float:
    """Of the nearest neighbours of each, itself left out."""
    shares = []
    for vectors in (wanted, got):
        near = vectors @ vectors.T
        np.fill_diagonal(near, -np.inf)
        shares.append(np.argsort(-near, axis=1)[:, :count])
    return float(
        np.mean([len({*a} & {*b}) / count for a, b in zip(*shares, strict=True)])
    )


HEAD = (
    "| model | texts | model alone/s | GEMM TFLOP/s sustained, burst |"
    " MFU of sustained, of burst | tokenize alone/s |"
    " together/s | of the slowest | sentence-transformers/s (batch) | times |"
    " cosine least, mean | top 10 |\n" + "|---" * 12 + "|"
)


def show(size: str, found: dict[str, Any]) -> None:
    rates, quality = found["texts_per_second"], found["quality"]
    best = found["best_batch"]
    print(
        f"| {size} {found['dtype']} | {found['texts']:,} of"
        f" {found['mean_tokens']:.0f} tokens |"
        f" {harness.spread(rates['model'], '.0f')} |"
        f" {harness.spread(found['gemm_sustained'], '.0f')},"
        f" {harness.spread(found['gemm_burst'], '.0f')} |"
        f" {found['mfu']:.3f}, {found['mfu_of_burst']:.3f} |"
        f" {harness.spread(rates['tokenize'], '.0f')} |"
        f" {harness.spread(rates['together'], '.0f')} |"
        f" {found['share_of_slowest']:.2f} |"
        f" {found['sentence_transformers'][best]:,.0f} ({best}) |"
        f" {found['times']:.1f} | {quality['least_cosine']:.6f},"
        f" {quality['mean_cosine']:.6f} | {quality['top10_overlap']:.3f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
