"""The recipes whose reference is another library than transformers. CPU, fp32."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from embedding_tasks.encoders import Runtime
from embedding_tasks.encoders.endpoint import EndpointEncoder
from embedding_tasks.encoders.words import WordsEncoder
from embedding_tasks.use_case import UseCase
from tests.embedding_server import EmbeddingServer, serving

Compared = tuple[str, str, str, np.ndarray, np.ndarray]
"""Recipe, models, reference, ours, theirs."""

WORD = re.compile(r"[a-z]+")


def compared(folder: Path, minilm: Path, texts: list[str]) -> Iterator[Compared]:
    yield from of_an_endpoint(minilm, texts)
    yield from of_word_vectors(folder, texts)
    yield from of_static_models(folder, minilm, texts)


def of_an_endpoint(minilm: Path, texts: list[str]) -> Iterator[Compared]:
    """A server on loopback with the real MiniLM behind it."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm), device="cpu")
    with serving(EmbeddingServer(model.encode)) as api:
        settings = {"type": "openai", "model": "minilm", "url": api.url}
        ours = EndpointEncoder(_spec(settings), Runtime(), None).encode(texts).vectors
    theirs = model.encode(texts)
    yield "endpoint", "MiniLM (real), by HTTP", "sentence-transformers", ours, theirs


def of_word_vectors(folder: Path, texts: list[str]) -> Iterator[Compared]:
    from gensim.models import FastText, Word2Vec
    from gensim.models.fasttext import save_facebook_model

    sentences = [WORD.findall(text.lower()) for text in texts]
    options: dict[str, Any] = {"vector_size": 64, "min_count": 1, "epochs": 1}
    word = Word2Vec(sentences, workers=1, seed=1, **options).wv
    fast = FastText(sentences, workers=1, seed=1, bucket=5000, **options)
    word.save_word2vec_format(folder / "word2vec.bin", binary=True)
    word.save_word2vec_format(folder / "glove.txt", write_header=False)
    save_facebook_model(fast, str(folder / "fasttext.bin"))
    known = [text for text in texts if WORD.findall(text.lower())]
    plain = [" ".join(WORD.findall(text.lower())) for text in known]
    for name, vectors in (
        ("word2vec.bin", word),
        ("glove.txt", word),
        ("fasttext.bin", fast.wv),
    ):
        settings = {"type": "words", "model": str(folder / name)}
        encoder = WordsEncoder(folder / name, _spec(settings), Runtime())
        theirs = [
            vectors.get_mean_vector(t.split(), pre_normalize=False) for t in plain
        ]
        ours = encoder.encode(plain).vectors
        yield "word vectors, mean", name, "gensim", ours, np.stack(theirs)


def of_static_models(
    folder: Path, minilm: Path, texts: list[str]
) -> Iterator[Compared]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm)
    table = AutoModel.from_pretrained(minilm).embeddings.word_embeddings.weight.detach()
    module = StaticEmbedding(tokenizer, embedding_weights=table.clone())
    model = SentenceTransformer(modules=[module], device="cpu")
    path = folder / "static"
    model.save(str(path))
    settings = {"type": "words", "model": str(path)}
    ours = WordsEncoder(path, _spec(settings), Runtime()).encode(texts).vectors
    theirs = model.encode(texts)
    yield (
        "static model, mean",
        "MiniLM's own table",
        "sentence-transformers",
        ours,
        theirs,
    )


def _spec(encoder: dict[str, Any]) -> dict[str, Any]:
    case = UseCase.model_validate(
        {
            "name": "parity",
            "source": {"connection": "c", "table": "t", "key": "k", "input": "x"},
            "encoder": encoder,
        }
    )
    return case.first_feature.model_dump()
