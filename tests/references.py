"""Each recipe written plainly, over transformers alone, one input at a time and without
any padding. Tests and the parity table hold ours against these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer


@dataclass(frozen=True)
class Place:
    """Where, and with what numbers, a reference is computed."""

    device: str = "cpu"
    dtype: str = "float32"

    def put(self, module: Any) -> Any:
        return module.to(self.device, getattr(torch, self.dtype)).eval()


CPU = Place()

POOLINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "cls": lambda hidden: hidden[0],
    "mean": lambda hidden: hidden.mean(0),
    "max": lambda hidden: hidden.amax(0),
    "last": lambda hidden: hidden[-1],
}


def of_texts(
    folder: Path,
    texts: list[str],
    pools: str,
    layers: Any = "last",
    place: Place = CPU,
) -> np.ndarray:
    """(texts, dims)"""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = place.put(AutoModel.from_pretrained(folder))
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    made = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=128, return_tensors="pt")
        tokens.pop("token_type_ids", None)
        with torch.inference_mode():
            output = model(**tokens.to(place.device), output_hidden_states=True)
        if pools == "pooler":
            made.append(output.pooler_output[0].float())
            continue
        hidden = output.last_hidden_state[0].float()
        if isinstance(layers, int):
            hidden = output.hidden_states[layers][0].float()
        elif isinstance(layers, dict):
            chosen = [h[0].float() for h in output.hidden_states[-layers["last"] :]]
            is_concat = layers.get("combine") == "concat"
            hidden = torch.cat(chosen, -1) if is_concat else torch.stack(chosen).mean(0)
        made.append(POOLINGS[pools](hidden))
    return torch.stack(made).cpu().numpy()


def of_words(
    folder: Path, sentences: list[list[str]], which: str, place: Place = CPU
) -> Iterator[np.ndarray]:
    """(words, dims) of each sentence: the first token of each word, or their mean."""
    for words, numbers, hidden in _read(folder, sentences, place):
        made = []
        for number in range(len(words)):
            own = [i for i, n in enumerate(numbers) if n == number]
            made.append(hidden[own[:1] if which == "first" else own].mean(0))
        yield torch.stack(made).cpu().numpy()


def of_spans(
    folder: Path, sentences: list[list[str]], made: Any, place: Place = CPU
) -> np.ndarray:
    """(spans, dims): the mean of the tokens of the words that each span of `made`
    (an `Encoded`) covers."""
    vectors = []
    for position, (words, numbers, hidden) in enumerate(
        _read(folder, sentences, place)
    ):
        starts = np.cumsum([0, *(len(w) + 1 for w in words)])
        for begin, end in made.spans[made.inputs == position]:
            covered = [n for n in range(len(words)) if begin <= starts[n] < end]
            own = [i for i, n in enumerate(numbers) if n in covered]
            vectors.append(hidden[own].mean(0))
    return torch.stack(vectors).cpu().numpy()


def _read(
    folder: Path, sentences: list[list[str]], place: Place
) -> Iterator[tuple[list[str], list[int | None], torch.Tensor]]:
    """Of each sentence its words, the word of each token, and the hidden states."""
    tokenizer = AutoTokenizer.from_pretrained(folder, add_prefix_space=True)
    model = place.put(AutoModel.from_pretrained(folder))
    for words in sentences:
        tokens = tokenizer(
            words, is_split_into_words=True, truncation=True, return_tensors="pt"
        )
        numbers = tokens.word_ids()
        tokens.pop("token_type_ids", None)
        with torch.inference_mode():
            output = model(**tokens.to(place.device))
        yield words, numbers, output.last_hidden_state[0].float()
