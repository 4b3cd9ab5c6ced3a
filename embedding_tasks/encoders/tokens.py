"""Words and entities of texts through a transformer: many vectors of one text.

A text longer than the model is read in windows that overlap, and every token is taken
from the window in which it has most context on both sides (Devlin et al. 2018, for
SQuAD). Words are those the source gives, else those the tokenizer finds; both, and the
labels, meet in characters of the text.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForTokenClassification, AutoTokenizer

from embedding_tasks import pooling
from embedding_tasks.encoders import Runtime, devices, packed, text, transformer
from embedding_tasks.encoders.encoded import Encoded, Prediction, joined
from embedding_tasks.encoders.preparing import Preparation
from embedding_tasks.encoders.tags import OUTSIDE, entities
from embedding_tasks.encoders.tokenizing import Tokens as Ids
from embedding_tasks.encoders.tokenizing import ranges
from embedding_tasks.encoders.windows import Tokenizer, Tokens, Window, Word, reader
from embedding_tasks.errors import Stopped
from embedding_tasks.inputs import Sentence, sentence_of

# Texts are worked off in groups of this many batches, whose hidden states are held at
# a time: enough to fill batches with texts of one length, and no more.
BATCHES_AT_A_TIME = 8
# Texts that a process reads at a time.
_CHUNK = 64


@dataclass(frozen=True)
class Unit:
    """What becomes a vector: the mean of tokens [first, stop), which are characters
    [begin, end)."""

    number: int
    first: int
    stop: int
    begin: int
    end: int
    prediction: Prediction | None


class TokenEncoder:
    """`spec` is a model version's, with pooling `words` or `entities`."""

    def __init__(self, folder: Path, spec: dict[str, Any], runtime: Runtime) -> None:
        self._pooling = spec["pooling"]
        self._normalize = bool(spec["normalize"])
        self._stopped = runtime.stopped
        self.device = devices.choose(runtime.device)
        kind = AutoModelForTokenClassification if spec["head"] else AutoModel
        model = text.load(kind, folder, spec, self.device)
        self._head = transformer.Head(model.config) if spec["head"] else None
        tokenizer = AutoTokenizer.from_pretrained(folder)
        asked = spec["encoder"]["max_length"]
        most = text.usable_length(tokenizer, model, asked)
        self._preparation: Preparation[list[Tokens]] = Preparation(
            *(reader, folder, most),
            processes=devices.processes_beside(self.device),
            stopped=runtime.stopped,
        )
        self._dtype = model.dtype
        self._launching = threading.Lock()
        samples = Tokenizer(folder, tokenizer, most).read(
            [sentence_of(sample.split()) for sample in transformer.samples()]
        )
        self._forward = packed.forward_of(
            model,
            packed.Wanted(
                transformer.layers(spec["layers"]), "token" if self._head else None
            ),
            tokenizer.pad_token_id,
            _ids([window for own in samples for window in own.windows]),
        )
        self._dims = self._forward(_ids(samples[0].windows)).hidden.shape[-1]
        weights: str = spec["weights"]
        self._budget = devices.Budget(runtime.tokens, model, self.device, weights)

    def encode(self, inputs: Sequence[Sentence]) -> Encoded:
        chunk = _CHUNK if self.shared else len(inputs)
        read = self._preparation.run(inputs, chunk)
        tokens = [own for _, some in read for own in some]
        parts = [
            (
                group,
                self._encode([inputs[p] for p in group], [tokens[p] for p in group]),
            )
            for group in self._groups(tokens)
        ]
        return joined(parts, len(inputs))

    def probe(self) -> Encoded:
        return self.encode([replace(sentence_of(["one"]), labelled_spans=((0, 3),))])

    @property
    def shared(self) -> bool:
        return self.device.type != "cpu"

    def surroundings(self) -> dict[str, str]:
        return devices.described(self.device, self._dtype)

    def _groups(self, tokens: list[Tokens]) -> Iterator[list[int]]:
        group: list[int] = []
        size = 0
        for position, own in enumerate(tokens):
            group.append(position)
            size += sum(len(w.ids) for w in own.windows)
            if size >= BATCHES_AT_A_TIME * self._budget.tokens:
                yield group
                group, size = [], 0
        if group:
            yield group

    def _encode(self, sentences: list[Sentence], tokens: list[Tokens]) -> Encoded:
        hidden, spread = self._run([w for own in tokens for w in own.windows])
        inputs: list[int] = []
        units: list[Unit] = []
        starts: list[int] = []
        offset = 0
        for position, (sentence, own) in enumerate(zip(sentences, tokens, strict=True)):
            count = len(own.characters)
            tagged = None if spread is None else spread[offset : offset + count]
            found = self._units(sentence, own, tagged)
            units += found
            inputs += [position] * len(found)
            starts += [offset] * len(found)
            offset += count
        vectors = pooling.spans(
            hidden,
            [start + u.first for start, u in zip(starts, units, strict=True)],
            [start + u.stop for start, u in zip(starts, units, strict=True)],
        )
        if self._normalize:
            vectors = pooling.normalized(vectors)
        return Encoded(
            vectors=vectors.cpu().numpy(),
            inputs=np.array(inputs, np.int32),
            units=np.array([u.number for u in units], np.int32),
            spans=np.array([(u.begin, u.end) for u in units], np.int32).reshape(-1, 2),
            predictions=[u.prediction for u in units if u.prediction is not None],
        )

    def _units(
        self, sentence: Sentence, tokens: Tokens, spread: Tensor | None
    ) -> list[Unit]:
        words = tokens.words
        predicted: list[Prediction] | None = None
        if self._head is not None and spread is not None:
            predicted = self._head.of_probabilities(spread[[w.first for w in words]])
        if self._pooling == "entities":
            return self._entities(sentence, tokens, predicted, spread)
        return [
            Unit(
                w.number,
                w.first,
                w.first + 1 if self._pooling["words"] == "first" else w.stop,
                *(w.begin, w.end),
                predicted[i] if predicted is not None else None,
            )
            for i, w in enumerate(words)
            if self._pooling["keep"] == "all"
            or (predicted is not None and predicted[i].prediction != OUTSIDE)
            or _is_labelled(sentence, w)
        ]

    def _entities(
        self,
        sentence: Sentence,
        tokens: Tokens,
        predicted: list[Prediction] | None,
        spread: Tensor | None,
    ) -> list[Unit]:
        """Those predicted and those labelled, by place; one where both agree on it."""
        words = tokens.words
        found: dict[tuple[int, int], tuple[int, int, Prediction | None]] = {}
        for kind, first, stop in entities([p.prediction for p in predicted or ()]):
            assert predicted is not None
            score = float(np.mean([p.score for p in predicted[first:stop]]))
            place = (words[first].begin, words[stop - 1].end)
            inside = (words[first].first, words[stop - 1].stop)
            found[place] = (*inside, Prediction(kind, score))
        for begin, end in {*sentence.labelled_spans} - found.keys():
            if (touched := _tokens_of(tokens, begin, end)) is not None:
                found[begin, end] = (*touched, self._unpredicted(spread, *touched))
        return [
            Unit(number, first, stop, begin, end, prediction)
            for number, ((begin, end), (first, stop, prediction)) in enumerate(
                sorted(found.items())
            )
        ]

    def _unpredicted(
        self, spread: Tensor | None, first: int, stop: int
    ) -> Prediction | None:
        """A labelled entity the head has not found: how sure it is that it is none."""
        if self._head is None or spread is None:
            return None
        outside = [i for i, name in enumerate(self._head.names) if name == OUTSIDE]
        score = float(spread[first:stop, outside].sum(1).mean())
        return Prediction(OUTSIDE, score)

    def _run(self, windows: list[Window]) -> tuple[Tensor, Tensor | None]:
        """Hidden states, and the head's probabilities, of every token that is taken,
        window after window. Hidden states stay on the device."""
        if not windows:
            return torch.empty((0, self._dims), device=self.device), None
        tokens = _ids(windows)
        order: list[int] = []
        made: list[tuple[Tensor, Tensor | None]] = []
        for batch in self._forward.batches(
            tokens.lengths.tolist(), self._budget.tokens
        ):
            if self._stopped.is_set():
                raise Stopped("stopped between two batches")
            order += batch
            with self._launching:
                made += self._budget.run_tokens(
                    lambda chosen: self._taken(
                        tokens.only(chosen), [windows[i] for i in chosen]
                    ),
                    *(batch, tokens.lengths, "window"),
                )
        back = torch.from_numpy(_back([windows[i].count for i in order], order))
        hidden = torch.cat([h for h, _ in made])[back.to(self.device)]
        if self._head is None:
            return hidden, None
        return hidden, torch.cat([s for _, s in made if s is not None]).cpu()[back]

    @torch.inference_mode()
    def _taken(
        self, tokens: Ids, windows: list[Window]
    ) -> tuple[Tensor, Tensor | None]:
        rows = self._forward(tokens)
        begins = tokens.lengths.cumsum() - tokens.lengths
        begins += [window.at for window in windows]
        with devices.errors():
            taken = torch.from_numpy(
                ranges(begins, np.array([window.count for window in windows]))
            ).to(self.device)
            hidden = rows.hidden.index_select(0, taken)
            if rows.logits is None:
                return hidden, None
            logits = rows.logits.index_select(0, taken)
            return hidden, logits.to(torch.float32).softmax(-1)


def _ids(windows: Sequence[Window]) -> Ids:
    return Ids.of([window.ids for window in windows])


def _back(counts: list[int], order: list[int]) -> npt.NDArray[np.int64]:
    """Where the rows of windows 0, 1, 2, … are among those of windows in `order`, which
    have so many rows each."""
    sizes = np.array(counts)
    begins = sizes.cumsum() - sizes
    sorted_ = np.argsort(order)
    return ranges(begins[sorted_], sizes[sorted_])


def _is_labelled(sentence: Sentence, word: Word) -> bool:
    return word.number in sentence.labelled_words or any(
        begin < word.end and word.begin < end for begin, end in sentence.labelled_spans
    )


def _tokens_of(tokens: Tokens, begin: int, end: int) -> tuple[int, int] | None:
    """The run of tokens that these characters touch, or None outside of the text."""
    touched = [i for i, (b, e) in enumerate(tokens.characters) if b < end and begin < e]
    return (touched[0], touched[-1] + 1) if touched else None
