"""Means of word vectors equal gensim's own, whatever the file they come from."""

from __future__ import annotations

import bz2
import gzip
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_tasks import search
from embedding_tasks.connections import Connection
from embedding_tasks.encoders import Runtime, recipe, weights, word_files
from embedding_tasks.encoders.words import WORD, WordsEncoder
from embedding_tasks.errors import InputError, ModelError
from embedding_tasks.store.versions import Recipe
from embedding_tasks.use_case import UseCase
from tests.fix_project import Project
from tests.test_text_encoder import cosine

Write = Callable[..., None]
DIMS = 24


@dataclass
class Trained:
    """`word` and `fast` are gensim's vectors, trained on tweets; `folder` has them in
    every form."""

    word: Any
    fast: Any
    folder: Path


@pytest.fixture(scope="session")
def trained(tweets: list[str], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from gensim.models import FastText, Word2Vec
    from gensim.models.fasttext import save_facebook_model

    folder = tmp_path_factory.mktemp("words")
    # half of the tweets: some words of the others are new
    sentences = [WORD.findall(t.lower()) for t in tweets[::2]]
    options = {"vector_size": DIMS, "min_count": 2, "epochs": 2, "seed": 1}
    word = Word2Vec(sentences, workers=1, **options).wv
    fast = FastText(sentences, workers=1, bucket=5000, **options)
    for name, binary in (("w.txt", False), ("w.bin", True), ("w.txt.gz", False)):
        word.save_word2vec_format(folder / name, binary=binary)
    word.save_word2vec_format(folder / "glove.txt", write_header=False)
    for packed, by in ((gzip.compress, "w.bin.gz"), (bz2.compress, "w.bin.bz2")):
        (folder / by).write_bytes(packed((folder / "w.bin").read_bytes()))
    # as the C tool writes it, a newline after each vector
    with (folder / "c.bin").open("wb") as file:
        file.write(f"{len(word)} {DIMS}\n".encode())
        for name in word.index_to_key:
            file.write(name.encode() + b" " + word[name].tobytes() + b"\n")
    # as fastText does, a space at the end of each line
    text = (folder / "w.txt").read_text().replace("\n", " \n").replace(" \n", "\n", 1)
    (folder / "fast.vec").write_text(text)
    word.save(str(folder / "small.kv"))
    word.save(str(folder / "large.kv"), sep_limit=0, separately=["vectors"])
    fast.wv.save(str(folder / "fast.kv"))
    save_facebook_model(fast, str(folder / "fast.bin"))
    return Trained(word, fast.wv, folder)


WORD_FILES = [
    *("w.txt", "w.bin", "w.txt.gz", "w.bin.gz", "w.bin.bz2", "glove.txt", "c.bin"),
    *("fast.vec", "small.kv", "large.kv"),
]


def use_case(model: Path, **changes: Any) -> UseCase:
    return UseCase.model_validate(
        {
            "name": "t",
            "source": {"connection": "c", "table": "t", "key": "id", "input": "x"},
            "encoder": {"type": "words", "model": str(model), **changes},
        }
    )


def recipe_of(model: Path, **changes: Any) -> Recipe:
    return recipe.all_of(use_case(model, **changes))["embedding"]


def encoder(model: Path, normalize: bool = False, **changes: Any) -> WordsEncoder:
    spec = use_case(model, **changes).first_feature.model_dump()
    return WordsEncoder(model, {**spec, "normalize": normalize}, Runtime())


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDLINE_HOME", str(tmp_path / "home"))


def with_words(tweets: list[str], vectors: Any) -> list[str]:
    """A thousand that have at least one word of the vocabulary."""
    known = vectors.key_to_index
    return [t for t in tweets if any(w in known for w in WORD.findall(t.lower()))][
        :1000
    ]


@pytest.mark.parametrize("name", WORD_FILES)
def test_the_mean_is_gensims_whatever_the_file(
    trained: Trained, tweets: list[str], name: str
) -> None:
    texts = with_words(tweets, trained.word)
    made = encoder(trained.folder / name, lowercase=True).encode(texts)
    assert len(texts) == 1000
    assert made.unknown is not None
    wanted, unknown = [], []
    for text in texts:
        words = WORD.findall(text.lower())
        wanted.append(trained.word.get_mean_vector(words, pre_normalize=False))
        unknown.append(np.mean([w not in trained.word.key_to_index for w in words]))
    far = np.abs(made.vectors - np.array(wanted)).max()
    print(name, cosine(made.vectors, np.array(wanted)).min(), far)
    assert far < 1e-6
    assert cosine(made.vectors, np.array(wanted)).min() > 0.999999
    assert made.unknown == pytest.approx(unknown)
    assert 0 < np.mean(unknown) < 0.5


@pytest.mark.parametrize("name", ["fast.bin", "fast.kv"])
def test_fasttext_makes_vectors_of_new_words_and_counts_them_as_unknown(
    trained: Trained, tweets: list[str], name: str
) -> None:
    texts = [t for t in tweets if WORD.findall(t)][:1000]
    made = encoder(trained.folder / name, lowercase=True).encode(texts)
    wanted = np.array(
        [
            np.mean([trained.fast[w] for w in WORD.findall(t.lower())], axis=0)
            for t in texts
        ]
    )
    print(name, cosine(made.vectors, wanted).min(), np.abs(made.vectors - wanted).max())
    assert np.abs(made.vectors - wanted).max() < 1e-5
    assert made.unknown is not None
    assert 0 < made.unknown.mean() < 0.5
    alone = encoder(trained.folder / name).encode(["unheardofword"])
    assert alone.unknown == pytest.approx([1])
    assert alone.vectors[0] == pytest.approx(trained.fast["unheardofword"], abs=1e-6)


@pytest.mark.parametrize("name", [*WORD_FILES, "fast.bin", "fast.kv"])
def test_the_size_and_a_probe_come_from_every_file(trained: Trained, name: str) -> None:
    path = trained.folder / name
    made = recipe_of(path)
    assert made.dims == DIMS
    assert encoder(path).probe().vectors.shape == (1, DIMS)
    assert recipe_of(path) == made


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, it\u2019s 2026!", ["Don't", "stop", "it\u2019s", "2026"]),
        ("snake_case #tag @name", ["snake", "case", "tag", "name"]),
        ("e\u0301te\u0301 हिन्दी مُحَمَّد", ["e\u0301te\u0301", "हिन्दी", "مُحَمَّد"]),
        ("❤️ :-) '' …", []),
        ("'quoted' rock'n'roll", ["quoted", "rock'n'roll"]),
    ],
)
def test_a_word_is_letters_digits_marks_and_inner_apostrophes(
    text: str, words: list[str]
) -> None:
    assert WORD.findall(text) == words


def test_case_is_kept_unless_it_is_to_be_lowered(tmp_path: Path) -> None:
    path = tmp_path / "v.txt"
    path.write_text("Paris 1 0\nparis 0 1\nthe 1 1\n")
    kept = encoder(path).encode(["Paris"]).vectors
    lowered = encoder(path, lowercase=True).encode(["Paris"]).vectors
    assert kept.tolist() == [[1, 0]]
    assert lowered.tolist() == [[0, 1]]
    unit = encoder(path, normalize=True).encode(["the"]).vectors
    assert np.linalg.norm(unit) == pytest.approx(1)
    prints = {recipe_of(path, lowercase=low).fingerprint for low in (True, False)}
    assert len(prints) == 2


def test_every_occurrence_counts_and_what_is_unknown_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "v.txt"
    path.write_text("a 1 0\nb 0 1\n")
    made = encoder(path).encode(["a a a b", "a what", "b"])
    assert made.vectors.tolist() == [[0.75, 0.25], [1, 0], [0, 1]]
    assert made.unknown is not None
    assert made.unknown.tolist() == [0, 0.5, 0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("what is that", "none of its 3 words is in the vocabulary"),
        ("", "a text without a single word"),
        (":-)", "a text without a single word"),
    ],
)
def test_a_text_without_a_known_word_is_refused(
    tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "v.txt"
    path.write_text("a 1 0\nb 0 1\n")
    with pytest.raises(InputError, match=says):
        encoder(path).encode([text])


def test_words_with_spaces_and_numbers_for_words_are_read(tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    path.write_text("the 1 0\n1 0 1\n. . . 2 2\nat name@domain.com 3 3\na 4 4\na 5 5\n")
    assert recipe_of(path).dims == 2
    assert encoder(path).encode(["1", "a"]).vectors.tolist() == [[0, 1], [4, 4]]


class Evil:
    def __reduce__(self) -> Any:
        return print, ("called",)


def bad_files(folder: Path, trained: Trained) -> dict[str, bytes]:
    good = trained.folder
    return {
        "notes.txt": b"These are no vectors.\nAt all.\n",
        "table.csv": b"id,text\n1,hello\n",
        "empty.txt": b"",
        "picture.bin": bytes(range(256)) * 40,
        "cut.txt": (good / "w.txt").read_bytes()[:3000],
        "cut.bin": (good / "w.bin").read_bytes()[:3000],
        "cut.txt.gz": (good / "w.txt.gz").read_bytes()[:900],
        "cut_fast.bin": (good / "fast.bin").read_bytes()[:3000],
        "packed.txt": (good / "w.txt.gz").read_bytes(),
        "ragged.txt": b"a 1 2\nb 1 2\nc 1\n",
        "evil.kv": pickle.dumps(Evil()),
        "dict.kv": pickle.dumps({"a": 1}),
    }


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("notes.txt", "is no file of word vectors; valid: word2vec"),
        ("table.csv", "is no file of word vectors"),
        ("empty.txt", "is no file of word vectors"),
        ("picture.bin", "is no file of word vectors"),
        ("cut.txt", "numbers, not|of its first line; is it cut off"),
        ("cut.bin", "cannot be read as a binary file"),
        ("cut.txt.gz", "ended before"),
        ("cut_fast.bin", "is it cut off"),
        ("packed.txt", r"is compressed; let its name end in \.gz"),
        ("ragged.txt", "line 3 of .* has 1 numbers, not 2"),
        ("evil.kv", r"a pickle with builtins\.print in it, which is not loaded"),
        ("dict.kv", "holds no word vectors"),
    ],
)
def test_what_holds_no_word_vectors_is_refused(
    trained: Trained,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    says: str,
) -> None:
    path = tmp_path / name
    path.write_bytes(bad_files(tmp_path, trained)[name])
    with pytest.raises(ModelError, match=says):
        encoder(path)
    assert "called" not in capsys.readouterr().out


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no file or folder"):
        recipe_of(tmp_path / "nothing.bin")
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        recipe_of(tmp_path)


def test_the_fingerprint_follows_the_files_and_not_their_place(
    trained: Trained, tmp_path: Path
) -> None:
    for name in ("large.kv", "large.kv.vectors.npy", "w.txt"):
        shutil.copy(trained.folder / name, tmp_path / name)
    for name in ("large.kv", "w.txt"):
        there = recipe_of(trained.folder / name).fingerprint
        assert recipe_of(tmp_path / name).fingerprint == there
    beside = tmp_path / "large.kv.vectors.npy"
    changed = np.load(beside)
    changed[0] += 1
    np.save(beside, changed)
    other = recipe_of(tmp_path / "large.kv").fingerprint
    assert other != recipe_of(trained.folder / "large.kv").fingerprint


def test_large_arrays_are_mapped_and_not_read(trained: Trained) -> None:
    from embedding_tasks.encoders.word_vectors import load

    table = load(word_files.identify(trained.folder / "large.kv"))
    assert isinstance(table.vectors, np.memmap)


@pytest.fixture(scope="session")
def static(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders: `whole` and `unit` as a SentenceTransformer saves them, `alone` as
    StaticEmbedding does, `half`, and `m2v` with model2vec's mapping and weights."""
    import torch
    from safetensors.numpy import save_file
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import (
        Normalize,
        StaticEmbedding,
    )
    from transformers import AutoModel, AutoTokenizer

    folder = tmp_path_factory.mktemp("static")
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    table = AutoModel.from_pretrained(minilm).embeddings.word_embeddings.weight.detach()

    def made(dtype: torch.dtype = torch.float32) -> StaticEmbedding:
        return StaticEmbedding(tokenizer, embedding_weights=table.to(dtype).clone())

    SentenceTransformer(modules=[made()], device="cpu").save(str(folder / "whole"))
    SentenceTransformer(modules=[made(), Normalize()], device="cpu").save(
        str(folder / "unit")
    )
    for name in ("alone", "half", "m2v"):
        (folder / name).mkdir()
    made().save(str(folder / "alone"))
    made(torch.float16).save(str(folder / "half"))
    # older versions of sentence-transformers put it into a folder of its own
    shutil.copytree(folder / "alone", folder / "older" / "0_StaticEmbedding")
    (folder / "older" / "modules.json").write_text(
        json.dumps(
            [
                {
                    "idx": 0,
                    "name": "0",
                    "path": "0_StaticEmbedding",
                    "type": "sentence_transformers.models.StaticEmbedding",
                }
            ]
        )
    )
    shutil.copy(folder / "alone" / "tokenizer.json", folder / "m2v")
    chance = np.random.default_rng(0)
    save_file(
        {
            "embeddings": table.numpy()[:5000, :64].copy(),
            "mapping": chance.integers(0, 5000, len(table)),
            "weights": chance.random(len(table)),
        },
        folder / "m2v" / "model.safetensors",
    )
    config = {"model_type": "model2vec", "normalize": True}
    (folder / "m2v" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", ["whole", "unit", "alone", "older", "half", "m2v"])
def test_static_models_equal_sentence_transformers(
    static: Path, tweets: list[str], name: str
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import (
        Normalize,
        StaticEmbedding,
    )

    texts, path = tweets[:1000], static / name
    if name in ("whole", "unit", "older"):
        theirs = SentenceTransformer(str(path), device="cpu")
    else:
        modules = [StaticEmbedding.load(str(path))]
        modules += [Normalize()] if name == "m2v" else []
        theirs = SentenceTransformer(modules=modules, device="cpu")
    wanted = theirs.encode(texts).astype(np.float32)
    got = encoder(path).encode(texts)
    far = np.abs(got.vectors - wanted).max()
    print(name, cosine(got.vectors, wanted).min(), far)
    assert cosine(got.vectors, wanted).min() > (0.99999 if name == "half" else 0.999999)
    assert far < (1e-3 if name == "half" else 1e-6)
    assert (
        recipe_of(path).dims == got.vectors.shape[1] == (64 if name == "m2v" else 384)
    )
    assert encoder(path).probe().vectors.shape == (1, got.vectors.shape[1])


def test_the_unknown_of_a_static_model_are_its_unk_tokens(static: Path) -> None:
    made = encoder(static / "alone").encode(["hello world", "hello 🙂"])
    assert made.unknown is not None
    assert made.unknown.tolist() == [0, 0.5]
    with pytest.raises(InputError, match="none of its 1 tokens"):
        encoder(static / "alone").encode(["🙂"])
    with pytest.raises(InputError, match="without a single token"):
        encoder(static / "alone").encode([""])


def test_it_is_said_what_the_tokenizer_cuts(static: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    shutil.copytree(static / "alone", tmp_path / "m")
    path = str(tmp_path / "m" / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.enable_truncation(4)
    tokenizer.save(path)
    made = encoder(tmp_path / "m").encode(["one two", "one two three four five"])
    assert made.truncated is not None
    assert made.truncated.tolist() == [False, True]


def test_other_models_than_static_ones_are_refused(
    static: Path, minilm: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"made of Transformer.*encoder\.type: text"):
        recipe_of(minilm)
    shutil.copytree(static / "alone", tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match="is no safetensors file"):
        recipe_of(tmp_path / "m")


def test_whole_and_alone_are_one_model_and_unit_length_another(static: Path) -> None:
    prints = {n: recipe_of(static / n).fingerprint for n in ("whole", "alone", "unit")}
    assert prints["whole"] == prints["alone"] != prints["unit"]


def test_a_run_shows_the_unknown_words_and_a_text_without_any_costs_its_row(
    project: Project,
    write_messages: Write,
    db: Connection,
    store: Connection,
    tmp_path: Path,
) -> None:
    words = ["message", "number", *map(str, range(50))]
    lines = [f"{word} {i} {i % 7} 1\n" for i, word in enumerate(words)]
    (tmp_path / "v.txt").write_text("".join(lines))
    project.raw["encoder"] = {"type": "words", "model": "./v.txt"}
    project.use_case(retry={"max_attempts": 1}, thresholds={"undone_rows": 1})
    write_messages(range(100))
    db.execute("UPDATE messages SET body = 'nothing known' WHERE id = 3")
    counts = project.run()
    assert (counts["stored"], counts["failed"]) == (99, 1)
    dead = store.execute(
        "SELECT key, error FROM embedline.ledger WHERE dead_at IS NOT NULL"
    ).fetchall()
    says = "InputError: none of its 2 words is in the vocabulary"
    assert dead == [("3", says)]
    rows = store.execute(
        "SELECT key, unknown_words, truncated FROM embeddings.messages"
    )
    shown = {key: said for key, *said in rows}
    assert shown["7"] == [0, False]
    assert shown["70"] == [pytest.approx(1 / 3), False]
    found = search.by_text(store, "messages", "message number 7", 1)
    assert found[0]["key"] == "7"


def test_files_that_have_changed_are_refused(
    project: Project, write_messages: Write, store: Connection, tmp_path: Path
) -> None:
    path = tmp_path / "v.txt"
    path.write_text("message 1 2\nnumber 2 1\n")
    project.raw["encoder"] = {"type": "words", "model": "./v.txt"}
    project.use_case()
    write_messages(range(3))
    project.run()
    path.write_text("message 1 3\nnumber 2 1\n")
    assert weights.file_digest(path)
    with pytest.raises(ModelError, match="not those that model version 1"):
        search.by_text(store, "messages", "message", 1)
