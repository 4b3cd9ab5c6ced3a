"""Vectors equal the reference recipe, whatever company a text is in."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from embedding_tasks import encoders
from embedding_tasks.encoders import Encoder, Runtime, packed, recipe
from embedding_tasks.encoders.text import TextEncoder
from embedding_tasks.encoders.tokenizing import Tokens
from embedding_tasks.errors import DeviceError, InputError, ModelError, Stopped
from embedding_tasks.isolation import isolate
from embedding_tasks.store.versions import ModelVersion, Recipe
from embedding_tasks.use_case import UseCase
from tests.fix_models import Family, poison


def use_case(model: Path, **changes: Any) -> UseCase:
    return UseCase.model_validate(
        {
            "name": "t",
            "source": {"connection": "c", "table": "t", "key": "id", "input": "x"},
            "encoder": {"model": str(model), **changes.pop("encoder", {})},
            **changes,
        }
    )


def recipe_of(case: UseCase) -> Recipe:
    return recipe.all_of(case)["embedding"]


def encoder(model: Path, tokens: int = 4096, **changes: Any) -> Encoder:
    case = use_case(model, **changes)
    spec = recipe_of(case).spec
    return TextEncoder(model, spec, Runtime("cpu", tokens))


@pytest.fixture(scope="module")
def reference(minilm: Path, tweets: list[str]) -> dict[str, np.ndarray]:
    """A thousand tweets through plain transformers one at a time: no padding at all."""
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    plain = AutoModel.from_pretrained(minilm).eval()
    made: dict[str, list[torch.Tensor]] = {"cls": [], "mean": []}
    with torch.inference_mode():
        for text in tweets[:1000]:
            tokens = tokenizer(text, truncation=True, return_tensors="pt")
            hidden = plain(**tokens).last_hidden_state[0]
            made["cls"].append(hidden[0])
            made["mean"].append(hidden.mean(0))
    return {name: torch.stack(vectors).numpy() for name, vectors in made.items()}


def cosine(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.einsum("ij,ij->i", left.astype(float), right.astype(float)) / norms


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_vectors_equal_a_plain_forward_in_any_batch_and_order(
    minilm: Path, tweets: list[str], reference: dict[str, np.ndarray], pooling: str
) -> None:
    texts = tweets[:1000]
    order = random.Random(0)
    wanted = reference[pooling]
    made = encoder(minilm, tokens=order.choice([700, 3000]), pooling=pooling)
    got = np.zeros_like(wanted)
    places = order.sample(range(len(texts)), len(texts))
    while places:
        batch = [places.pop() for _ in range(min(len(places), order.randint(1, 200)))]
        got[batch] = made.encode([texts[i] for i in batch]).vectors
    assert cosine(got, wanted).min() >= 0.99999
    assert np.abs(got - wanted).max() < 1e-4


def test_mean_and_normalize_equal_sentence_transformers(
    minilm: Path, tweets: list[str]
) -> None:
    from sentence_transformers import SentenceTransformer

    texts = tweets[:300]
    theirs = SentenceTransformer(str(minilm), device="cpu").encode(texts)
    case = {"max_length": 256}  # theirs cuts at 256, the model takes 512
    ours = encoder(minilm, pooling="mean", normalize=True, encoder=case)
    vectors = ours.encode(texts).vectors
    assert cosine(vectors, theirs).min() >= 0.99999
    assert np.abs(vectors - theirs).max() < 1e-5


@pytest.mark.parametrize(
    "layers",
    [
        "last",
        -1,
        1,
        0,
        {"last": 2, "combine": "mean"},
        {"last": 2, "combine": "concat"},
    ],
)
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_company_order_and_batch_size_never_change_a_vector(
    tiny: Path, tweets: list[str], layers: Any, data: st.DataObject
) -> None:
    texts = data.draw(st.lists(st.sampled_from(tweets[:200]), min_size=1, max_size=40))
    budget = data.draw(st.integers(1, 2000))
    alone = encoder(tiny, tokens=1, layers=layers, prediction="head")
    together = encoder(tiny, tokens=budget, layers=layers, prediction="head")
    one, many = alone.encode(texts), together.encode(texts)
    assert np.abs(one.vectors - many.vectors).max() < 1e-5
    assert [p.prediction for p in one.predictions] == [
        p.prediction for p in many.predictions
    ]
    scores = [[p.score for p in e.predictions] for e in (one, many)]
    assert np.abs(np.subtract(*scores)).max() < 1e-5


def test_predictions_are_those_of_the_models_own_head(
    tiny: Path, tweets: list[str]
) -> None:
    texts = tweets[:100]
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = AutoModelForSequenceClassification.from_pretrained(tiny).eval()
    made = encoder(tiny, prediction="head").encode(texts)
    bare = encoder(tiny, prediction="none").encode(texts)
    assert np.abs(made.vectors - bare.vectors).max() < 1e-6
    for text, got in zip(texts, made.predictions, strict=True):
        tokens = tokenizer(text, truncation=True, max_length=128, return_tensors="pt")
        with torch.inference_mode():
            wanted = model(**tokens).logits.softmax(-1)[0]
        assert got.prediction == model.config.id2label[int(wanted.argmax())]
        assert got.score == pytest.approx(wanted.max().item(), abs=1e-5)
        assert got.probabilities == pytest.approx(wanted.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        (
            {"problem_type": "multi_label_classification"},
            lambda p, z: (
                p.probabilities == pytest.approx(z.sigmoid().tolist(), abs=1e-5)
            ),
        ),
        (
            {"num_labels": 1, "id2label": {"0": "stars"}, "label2id": {"stars": 0}},
            lambda p, z: (
                p.score == pytest.approx(z.item(), abs=1e-5) and p.probabilities == ()
            ),
        ),
    ],
)
def test_other_heads_are_read_as_their_configuration_says(
    make_model: Callable[..., Path],
    tmp_path: Path,
    changes: dict[str, Any],
    check: Callable[[Any, Any], bool],
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(make_model(), folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(
        AutoModel.from_pretrained(folder).config.__class__(**config)
    )
    model.save_pretrained(folder)
    got = encoder(folder, prediction="head").encode(["a word"]).predictions[0]
    tokens = AutoTokenizer.from_pretrained(folder)("a word", return_tensors="pt")
    with torch.inference_mode():
        logits = model.eval()(**tokens).logits[0]
    assert check(got, logits)


AWKWARD = [
    "",
    " ",
    "\x01\x02\x7f",
    "🙂" * 50,
    "👩‍👩‍👧‍👦 e\u0301 \u202eabc",
    "word " * 20_000,
    "x" * 100_000,
    "\ufeff\u200b",
    "日本語のテキスト",
]


def test_awkward_texts_are_embedded_and_leave_their_company_alone(tiny: Path) -> None:
    made = encoder(tiny, prediction="head")
    plain = made.encode(["a plain text"]).vectors[0]
    mixed = made.encode([*AWKWARD, "a plain text"])
    assert np.isfinite(mixed.vectors).all()
    assert np.abs(mixed.vectors[-1] - plain).max() < 1e-5
    assert mixed.truncated is not None
    cut = [i for i, text in enumerate(AWKWARD) if text.startswith("word")]
    # x * 100,000 is one unknown word
    assert np.flatnonzero(mixed.truncated).tolist() == cut


@pytest.mark.parametrize(
    ("family", "forward"), [("bert", packed.Packed), ("mpnet", packed.Padded)]
)
def test_it_is_said_which_texts_were_cut_whatever_batches_they_run_in(
    make_family: Family,
    family: str,
    forward: type,
    tweets: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = encoder(make_family(family), tokens=100, encoder={"max_length": 32})
    assert isinstance(made, TextEncoder)
    assert isinstance(made.forward, forward)
    cut = [i % 7 == 3 for i in range(100)]
    texts: list[Any] = [
        tweet * 30 if long else "short " * (i % 20 + 1)
        for i, (tweet, long) in enumerate(zip(tweets, cut, strict=False))
    ]
    monkeypatch.setattr("embedding_tasks.encoders.text.TEXTS_AT_A_TIME", 8)
    assert made.encode(texts).truncated.tolist() == cut

    launch = TextEncoder._launch

    def scarce(self: TextEncoder, tokens: Tokens) -> Any:
        if len(tokens.lengths) > 1:
            raise torch.OutOfMemoryError("no")
        return launch(self, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "_launch", scarce)
        assert made.encode(texts).truncated.tolist() == cut

    poison(monkeypatch, "poison")
    texts[17], texts[40], texts[0] = texts[17] + " poison", "poison", None
    encoded, errors = isolate(made, texts)
    assert {*errors} == {17, 40}
    good = [i for i in range(1, 100) if i not in errors]
    kept = encoded.only(good).truncated
    assert kept is not None
    assert kept.tolist() == [cut[i] for i in good]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_close_and_in_the_fingerprint(
    minilm: Path, tweets: list[str], dtype: str
) -> None:
    texts = tweets[:50]
    full = encoder(minilm).encode(texts).vectors
    half = encoder(minilm, encoder={"dtype": dtype}).encode(texts).vectors
    assert cosine(full, half).min() > 0.999
    prints = {
        recipe_of(use_case(minilm, encoder={"dtype": d})).fingerprint
        for d in ("float32", dtype)
    }
    assert len(prints) == 2


def test_a_model_without_a_trained_head_is_refused(
    minilm: Path, make_model: Callable[..., Path]
) -> None:
    with pytest.raises(ModelError, match="no trained head for pooling"):
        recipe_of(use_case(minilm, prediction="head"))


def test_a_head_whose_weights_are_missing_is_refused(
    make_model: Callable[..., Path],
) -> None:
    folder = make_model(head=False)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"lacks the weights .*classifier"):
        encoder(folder, prediction="head")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"encoder": {"max_length": 129}}, "valid: at most 128"),
        ({"layers": 3}, "valid: -3 to 2"),
        ({"layers": {"last": 4}}, "not among the model's 2 layers"),
    ],
)
def test_what_the_model_cannot_do_is_refused(
    tiny: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelError) as caught:
        encoder(tiny, **changes)
    assert says in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        recipe_of(use_case(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 8}')
    with pytest.raises(ModelError):
        recipe_of(use_case(tmp_path))


def test_a_device_that_is_not_there_is_transient(tiny: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    case = use_case(tiny, encoder={"device": "cuda"})
    with pytest.raises(DeviceError, match="no CUDA"):
        TextEncoder(tiny, recipe_of(case).spec, Runtime("cuda", 100))


def test_out_of_memory_halves_the_batch_and_spares_every_other_input(
    tiny: Path, tweets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = sorted(tweets[:64], key=len)
    made = encoder(tiny)
    wanted = made.encode(texts).vectors
    launch = TextEncoder._launch
    sizes = []

    def scarce(self: TextEncoder, tokens: Tokens) -> Any:
        if len(tokens.lengths) > 5:
            raise torch.OutOfMemoryError("no")
        sizes.append(len(tokens.lengths))
        return launch(self, tokens)

    monkeypatch.setattr(TextEncoder, "_launch", scarce)
    assert np.abs(made.encode(texts).vectors - wanted).max() < 1e-5
    assert max(sizes) <= 5

    def none(self: TextEncoder, tokens: Tokens) -> Any:
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(TextEncoder, "_launch", none)
    with pytest.raises(InputError, match="does not fit the memory"):
        made.encode(texts[:1])


def test_a_stop_is_heeded_between_two_batches(
    tiny: Path, tweets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime("cpu", 50)
    made = TextEncoder(tiny, recipe_of(use_case(tiny)).spec, runtime)
    launch = TextEncoder._launch
    launched = []

    def stopping(self: TextEncoder, tokens: Tokens) -> Any:
        runtime.stopped.set()
        launched.append(tokens)
        return launch(self, tokens)

    monkeypatch.setattr(TextEncoder, "_launch", stopping)
    with pytest.raises(Stopped):
        made.encode(tweets[:50])
    assert len(launched) == 1


def version(spec: dict[str, Any]) -> ModelVersion:
    return ModelVersion(
        *(1, 1, "embedding", "record", 1, "", spec, 32),
        *("vector", "cosine", None, "t", "active"),
    )


def test_files_that_have_changed_are_refused(
    make_model: Callable[..., Path],
) -> None:
    folder = make_model(seed=1)
    spec = recipe_of(use_case(folder)).spec
    encoders.load(version(spec), Runtime("cpu", 100))
    other = make_model(seed=2)
    shutil.copy(other / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(ModelError, match="not those that model version 1"):
        encoders.load(version(spec), Runtime("cpu", 100))


def test_the_fingerprint_follows_what_shapes_the_vectors_and_nothing_else(
    tiny: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    base = recipe_of(use_case(tiny)).fingerprint
    moved = tmp_path / "moved"
    shutil.copytree(tiny, moved)
    (moved / "README.md").write_text("notes")
    same = [
        use_case(moved),
        use_case(tiny, encoder={"device": "cpu"}),
        use_case(tiny, schedule=None),
        use_case(tiny, storage={"data": 10, "distance": "l2"}),
    ]
    assert {recipe_of(case).fingerprint for case in same} == {base}
    others = [
        use_case(make_model(seed=3)),
        use_case(tiny, pooling="mean"),
        use_case(tiny, layers=-2),
        use_case(tiny, normalize=True),
        use_case(tiny, prediction="head"),
        use_case(tiny, encoder={"max_length": 16}),
        use_case(tiny, encoder={"dtype": "bfloat16"}),
        use_case(tiny, storage={"type": "halfvec"}),
    ]
    prints = {recipe_of(case).fingerprint for case in others}
    assert len(prints) == len(others)
    assert base not in prints


def test_the_first_release_s_fingerprints_still_hold() -> None:
    """What could be said then, and is said now, names the same vectors."""
    then = {
        "encoder": {"dtype": "float32", "max_length": None},
        "head": True,
        "input": ["body"],
        "layers": "last",
        "normalize": False,
        "pooling": "cls",
        "recipe": 1,
        "separator": "\n",
        "storage": "vector",
        "weights": "abc",
    }
    now = {
        **then,
        "template": None,
        "encoder": {
            **{"type": "text", "model": "m", "revision": "main"},
            **{"dtype": "float32", "max_length": None},
        },
    }
    wanted = hashlib.sha256(json.dumps(then, sort_keys=True).encode()).hexdigest()
    assert recipe._fingerprint(now) == wanted
