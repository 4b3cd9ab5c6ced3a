"""Image vectors equal the reference recipe, whatever company an image is in."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from embedding_tasks import encoders
from embedding_tasks.encoders import Runtime, image, recipe
from embedding_tasks.encoders.image import ImageEncoder
from embedding_tasks.encoders.preprocessing import PIXELS, Stack
from embedding_tasks.errors import InputError, ModelError, Stopped, TransientError
from embedding_tasks.isolation import isolate
from embedding_tasks.store.versions import ModelVersion, Recipe
from embedding_tasks.use_case import UseCase
from tests import image_models, image_references
from tests.image_models import encoded, photographs, pictures
from tests.image_references import REFERENCES, Plain


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = image_models.save(tmp_path_factory.mktemp(name), name)
        return made[name]

    return folder


def recipe_of(model: Path, **changes: Any) -> Recipe:
    case = UseCase.model_validate(
        {
            "name": "t",
            "source": {"connection": "c", "table": "t", "key": "id", "input": "x"},
            "encoder": {
                "type": "image",
                "model": str(model),
                **changes.pop("encoder", {}),
            },
            **changes,
        }
    )
    return recipe.all_of(case)["embedding"]


def encoder(model: Path, tokens: int = 4096, **changes: Any) -> ImageEncoder:
    return ImageEncoder(model, recipe_of(model, **changes).spec, Runtime("cpu", tokens))


def assert_same(got: np.ndarray, wanted: np.ndarray, what: str) -> None:
    left, right = got.astype(float), wanted.astype(float)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosine = np.einsum("ij,ij->i", left, right) / norms
    drift = np.abs(got - wanted).max() / np.abs(wanted).max()
    print(f"PARITY {what} rows={len(got)} cosine={cosine.min():.9f} diff={drift:.2e}")
    assert left.std(0).mean() > 1e-3 * np.abs(left).max()  # they are not all alike
    assert cosine.min() >= 0.999999
    assert drift <= 1e-4


@pytest.mark.parametrize(("name", "pooling"), [*REFERENCES])
def test_vectors_equal_a_plain_forward_one_by_one(
    saved: Callable[[str], Path], name: str, pooling: str
) -> None:
    folder = saved(name)
    wanted = image_references.of_pictures(folder, name, pooling, pictures())
    made = encoder(folder, tokens=64, pooling=pooling)
    got = made.encode(pictures())
    assert got.inputs.tolist() == [*range(len(pictures()))]
    assert got.vectors.shape[1] == recipe_of(folder, pooling=pooling).dims
    assert_same(got.vectors, wanted, f"{name}/{pooling}")


def test_normalized_vectors_are_the_same_at_unit_length(
    saved: Callable[[str], Path],
) -> None:
    plain = encoder(saved("clip"), pooling="features").encode(pictures()).vectors
    unit = encoder(saved("clip"), pooling="features", normalize=True).encode(pictures())
    wanted = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    assert np.abs(unit.vectors - wanted).max() < 1e-6


@pytest.mark.parametrize("name", ["vit", "clip", "registers", "siglip"])
@pytest.mark.parametrize(
    "layers", [-1, 1, 0, {"last": 2}, {"last": 3, "combine": "concat"}]
)
def test_layers_are_the_hidden_states_of_the_bare_encoder(
    saved: Callable[[str], Path], name: str, layers: Any
) -> None:
    folder = saved(name)
    plain = Plain(folder)
    if name in ("clip", "siglip"):
        plain.model = plain.model.vision_model
    wanted = []
    for x in pictures()[::7]:
        hidden = plain(x, output_hidden_states=True).hidden_states
        if isinstance(layers, int):
            chosen = hidden[layers][0]
        elif layers.get("combine") == "concat":
            chosen = torch.cat(hidden[-3:], -1)[0]
        else:
            chosen = torch.stack(hidden[-2:]).mean(0)[0]
        wanted.append(chosen.mean(0))
    made = encoder(folder, layers=layers)
    assert made.encode(pictures()[:1]).vectors.shape[1] == (
        recipe_of(folder, layers=layers).dims
    )
    got = made.encode(pictures()[::7]).vectors
    assert_same(got, torch.stack(wanted).numpy(), f"{name}/layers={layers}")


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        ("vit_head", "mean"),
        ("deit_head", "patches"),
        ("registers_head", "cls"),
        ("resnet_head", "mean"),
        ("convnext_head", "pooler"),
        ("clip_head", "mean"),
        ("siglip_head", "max"),
    ],
)
def test_predictions_are_those_of_the_models_own_head(
    saved: Callable[[str], Path], name: str, pooling: str
) -> None:
    folder = saved(name)
    plain = Plain(folder, transformers.AutoModelForImageClassification)
    made = encoder(folder, pooling=pooling, prediction="head", tokens=40)
    assert recipe_of(folder, prediction="head").classes == ["cat", "dog", "bird"]
    got = made.encode(pictures())
    assert_same(
        got.vectors,
        encoder(folder, pooling=pooling).encode(pictures()).vectors,
        f"{name}/{pooling} with and without head",
    )
    wanted = torch.stack([plain(x).logits[0].softmax(-1) for x in pictures()])
    rows = np.array([p.probabilities for p in got.predictions])
    assert np.abs(rows - wanted.numpy()).max() < 1e-5
    for prediction, row in zip(got.predictions, wanted, strict=True):
        assert prediction.score == pytest.approx(row.max().item(), abs=1e-5)
        assert prediction.prediction == image_models.CLASSES[int(row.argmax())]


# ------------------------------------------------------------------ detectors


@pytest.mark.parametrize("name", ["detr", "yolos"])
def test_queries_are_the_mean_of_the_last_hidden_state_of_a_detector(
    saved: Callable[[str], Path], name: str
) -> None:
    folder = saved(name)
    plain = Plain(folder, transformers.AutoModelForObjectDetection)
    queries = {"detr": 7, "yolos": 5}[name]
    wanted = [plain(x).last_hidden_state[0, -queries:].mean(0) for x in pictures()]
    got = encoder(folder, pooling="queries", tokens=100).encode(pictures())
    assert got.boxes is None
    assert not got.predictions
    assert_same(got.vectors, torch.stack(wanted).numpy(), f"{name}/queries")


@pytest.mark.parametrize("name", ["detr", "yolos"])
@pytest.mark.parametrize("least", [0.5, 0.7])
def test_objects_are_those_of_the_image_processors_own_post_processing(
    saved: Callable[[str], Path], name: str, least: float
) -> None:
    folder = saved(name)
    plain = Plain(folder, transformers.AutoModelForObjectDetection)
    case = {"pooling": {"objects": least}, "prediction": "head"}
    got = encoder(folder, tokens=100, **case).encode(pictures())
    assert got.boxes is not None
    shown = [Image.open(io.BytesIO(x)).size[::-1] for x in pictures()]
    hidden, place = [], 0
    for number, (x, size) in enumerate(zip(pictures(), shown, strict=True)):
        output = plain(x)
        theirs = plain.processor.post_process_object_detection(
            output, threshold=least, target_sizes=[size]
        )[0]
        ours = slice(place, place + len(theirs["scores"]))
        assert got.inputs[ours].tolist() == [number] * len(theirs["scores"])
        assert got.units[ours].tolist() == [*range(len(theirs["scores"]))]
        assert np.abs(got.boxes[ours] - theirs["boxes"].numpy()).max(initial=0) < 0.05
        predictions = got.predictions[ours]
        classes = [image_models.CLASSES[i] for i in theirs["labels"].tolist()]
        assert [p.prediction for p in predictions] == classes
        assert [p.score for p in predictions] == pytest.approx(
            theirs["scores"].tolist(), abs=1e-4
        )
        kept = output.logits[0].softmax(-1)[:, :-1].max(-1).values > least
        states = output.last_hidden_state[0, -len(kept) :]
        hidden += [*states[kept]]
        place = ours.stop
    assert place == len(got.vectors)
    counts = np.bincount(got.inputs, minlength=len(pictures()))
    assert len({*counts.tolist()}) > 2  # the model tells one image from another
    wanted = torch.stack(hidden).numpy()
    assert (wanted.std(0) > 1e-2).any()  # and one object
    assert_same(got.vectors, wanted, f"{name}/objects>={least}")


def test_an_image_without_objects_gives_no_vector(
    saved: Callable[[str], Path],
) -> None:
    case = {"pooling": {"objects": 1.0}, "prediction": "head"}
    got = encoder(saved("detr"), **case).encode(pictures()[:5])
    assert got.vectors.shape == (0, 32)
    assert got.boxes is not None
    assert got.boxes.shape == (0, 4)
    assert not got.predictions


def test_the_classes_of_objects_leave_out_no_object(
    saved: Callable[[str], Path],
) -> None:
    case = {"pooling": "objects", "prediction": "head"}
    made = recipe_of(saved("detr"), **case)
    assert made.classes == ["cat", "dog", "bird"]
    assert made.unit == "object"


def test_boxes_are_in_pixels_of_the_image_as_it_is_shown(
    saved: Callable[[str], Path],
) -> None:
    photo = photographs()[0].resize((160, 100))
    turned = photo.transpose(Image.Transpose.ROTATE_90)  # 90 counterclockwise
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned 90 clockwise
    case = {"pooling": {"objects": 0.5}, "prediction": "head"}
    made = encoder(saved("detr"), **case)
    plain, tagged = (
        made.encode([x]) for x in (encoded(photo), encoded(turned, exif=exif))
    )
    assert len(plain.vectors)
    assert plain.boxes is not None
    assert tagged.boxes is not None
    assert np.abs(plain.boxes - tagged.boxes).max() < 1e-3
    assert np.abs(plain.vectors - tagged.vectors).max() < 1e-5


# -------------------------------------------------------------------- company


COMPANY = [
    ("vit_head", "mean"),
    ("resnet_head", "mean"),
    ("clip", "features"),
    ("detr", "queries"),
    ("detr", {"objects": 0.5}),
]


@pytest.mark.parametrize(("name", "pooling"), COMPANY)
@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_company_order_and_batch_size_never_change_a_vector(
    saved: Callable[[str], Path], name: str, pooling: Any, data: st.DataObject
) -> None:
    places = data.draw(
        st.lists(st.integers(0, len(pictures()) - 1), min_size=1, max_size=16)
    )
    budget = data.draw(st.sampled_from([5, 60, 400]))
    some = [pictures()[i] for i in places]
    together = held(saved(name), budget, pooling).encode(some)
    for place, picture in enumerate(some):
        one = held(saved(name), 1, pooling).encode([picture])
        mine = together.only([place])
        assert one.vectors.shape == mine.vectors.shape
        size = np.abs(one.vectors).max(initial=1)
        assert np.abs(one.vectors - mine.vectors).max(initial=0) < 1e-5 * size
        assert [p.prediction for p in one.predictions] == [
            p.prediction for p in mine.predictions
        ]
        if one.boxes is not None and mine.boxes is not None:
            assert np.abs(one.boxes - mine.boxes).max(initial=0) < 1e-2


_held: dict[Any, ImageEncoder] = {}


def held(folder: Path, tokens: int, pooling: Any) -> ImageEncoder:
    """Loaded once for all examples."""
    key = (folder, tokens, str(pooling))
    if key not in _held:
        head = "_head" in folder.name or isinstance(pooling, dict)
        _held[key] = encoder(
            folder, tokens, pooling=pooling, prediction="head" if head else "none"
        )
    return _held[key]


def test_half_a_batch_may_be_broken(saved: Callable[[str], Path]) -> None:
    some = pictures()[:24]
    mixed = [x if i % 2 else x[: len(x) // 2] for i, x in enumerate(some)]
    made = encoder(saved("vit"), tokens=64)
    got, errors = isolate(made, mixed)
    assert sorted(errors) == [*range(0, 24, 2)]
    assert all("image" in error for error in errors.values())
    assert got.inputs.tolist() == [*range(1, 24, 2)]
    wanted = made.encode(some[1::2]).vectors
    assert np.abs(got.vectors - wanted).max() < 1e-5


def test_a_broken_image_costs_no_forward(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [x if i % 8 else b"broken" for i, x in enumerate(pictures()[:56])]
    made = encoder(saved("vit"), tokens=16)  # four images of 32 x 32
    passes: list[int] = []
    forward = ImageEncoder.forward

    def counted(self: ImageEncoder, batch: Any) -> Any:
        passes.append(len(batch))
        return forward(self, batch)

    monkeypatch.setattr(ImageEncoder, "forward", counted)
    got, errors = isolate(made, some)
    assert sorted(errors) == [*range(0, 56, 8)] == sorted(got.failed)
    assert passes == [4] * 12 + [1]
    assert got.only([8, 9]).failed == {0: errors[8]}


def test_a_batch_of_nothing_but_broken_images_has_no_vectors(
    saved: Callable[[str], Path],
) -> None:
    got, errors = isolate(encoder(saved("detr"), pooling="queries"), [b"", None, b"x"])
    assert sorted(errors) == [0, 2]
    assert not len(got.vectors)


def test_images_of_many_shapes_fill_their_batches(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(3)
    shown = [(64, 64), (64, 80), (96, 64)]
    sizes = [shown[i] for i in draw.integers(0, 3, 90)]
    some = [encoded(photographs()[0].resize(size)) for size in sizes]
    made = encoder(saved("detr"), tokens=160, pooling="queries")
    passes: list[tuple[int, int]] = []
    forward = ImageEncoder.forward

    def counted(self: ImageEncoder, batch: Any) -> Any:
        assert len({stack.shape for stack in batch.stacks}) == 1
        passes.append((len(batch), batch.tokens))
        return forward(self, batch)

    monkeypatch.setattr(ImageEncoder, "forward", counted)
    got = made.encode(some)
    assert got.inputs.tolist() == [*range(90)]
    assert all(count * tokens <= 160 for count, tokens in passes)
    full = [count for count, tokens in passes if count == 160 // tokens]
    assert len(passes) - len(full) <= 3  # the last of each shape
    monkeypatch.undo()
    for size in shown:
        places = [i for i, own in enumerate(sizes) if own == size]
        alone = made.encode([some[places[0]]]).vectors
        assert np.abs(got.vectors[places] - alone).max() < 1e-5


def test_images_that_wait_for_their_like_are_bounded() -> None:
    waiting = image.Waiting(100)
    most = 0
    for number in range(400):
        side = 16 * (1 + number % 7)
        pixels = np.zeros((1, 3, side, 16 * 7), np.uint8)
        stack = Stack([number], [(1, 1)], {PIXELS: pixels})
        for batch in waiting.add(stack):
            assert len(batch) * batch.tokens <= 100
        held = sum(len(b) * b.tokens for b in waiting.rest())
        most = max(most, held)
    assert most <= 400


@pytest.mark.parametrize("name", ["vit_head", "resnet", "detr"])
def test_processes_make_the_same_vectors_as_threads(
    saved: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    pooling = "queries" if name == "detr" else "mean"
    spec = recipe_of(saved(name), pooling=pooling).spec
    (tmp_path / "a.png").write_bytes(pictures()[0])
    some = [*pictures(), b"broken", str(tmp_path / "a.png")]
    apart = ImageEncoder(saved(name), spec, Runtime("cpu", 64), processes=2)
    got = apart.encode(some)
    wanted = encoder(saved(name), tokens=64, pooling=pooling).encode(some)
    assert np.abs(got.vectors - wanted.vectors).max() < 1e-5
    assert got.failed == wanted.failed
    assert [*got.failed] == [len(pictures())]


def test_several_threads_encode_at_once(saved: Callable[[str], Path]) -> None:
    made = encoder(saved("vit_head"), tokens=64, prediction="head")
    wanted = made.encode(pictures())
    with ThreadPoolExecutor(4) as lanes:
        for got in lanes.map(made.encode, [pictures()] * 8):
            assert (got.vectors == wanted.vectors).all()
            assert got.predictions == wanted.predictions


def test_a_stop_ends_it_between_batches(saved: Callable[[str], Path]) -> None:
    spec = recipe_of(saved("vit")).spec
    stopped = threading.Event()
    made = ImageEncoder(saved("vit"), spec, Runtime("cpu", 64, stopped=stopped))
    made.encode(pictures())
    stopped.set()
    with pytest.raises(Stopped):
        made.encode(pictures())
    with pytest.raises(Stopped):
        isolate(made, pictures())


def test_what_made_the_vectors_is_told(saved: Callable[[str], Path]) -> None:
    made = encoder(saved("vit"), encoder={"dtype": "bfloat16"})
    assert made.surroundings() == {"device": "cpu", "dtype": "bfloat16"}
    assert not made.shared


def test_a_store_that_is_away_charges_nobody(saved: Callable[[str], Path]) -> None:
    made = encoder(saved("vit"))
    with pytest.raises(TransientError):
        isolate(made, [pictures()[0], "http://127.0.0.1:9/a.png"])


@pytest.mark.usefixtures("own_memory")
def test_out_of_memory_halves_the_batch(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = encoder(saved("vit"))
    wanted = made.encode(pictures()[:40]).vectors
    forward = ImageEncoder.forward

    def scarce(self: ImageEncoder, images: Any) -> Any:
        if len(images) > 3:
            raise torch.OutOfMemoryError("no")
        return forward(self, images)

    monkeypatch.setattr(ImageEncoder, "forward", scarce)
    assert np.abs(made.encode(pictures()[:40]).vectors - wanted).max() < 1e-5

    def none(self: ImageEncoder, images: Any) -> Any:
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(ImageEncoder, "forward", none)
    with pytest.raises(InputError, match="does not fit the memory"):
        made.encode(pictures()[:1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_close(saved: Callable[[str], Path], dtype: str) -> None:
    full = encoder(saved("vit")).encode(pictures()[:30]).vectors
    half = encoder(saved("vit"), encoder={"dtype": dtype}).encode(pictures()[:30])
    cosine = (full * half.vectors).sum(1) / (
        np.linalg.norm(full, axis=1) * np.linalg.norm(half.vectors, axis=1)
    )
    assert cosine.min() > 0.999


# ------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("resnet", {"pooling": "cls"}, "no class token, it gives a feature map"),
        ("convnext", {"pooling": "cls"}, "no class token"),
        ("siglip", {"pooling": "cls"}, "no class token, it gives patches alone"),
        ("swin", {"pooling": "cls"}, "no class token"),
        ("resnet", {"layers": -2}, "stages that differ in width; valid: 'last'"),
        ("swin", {"layers": -2}, "stages that differ in width"),
        ("vit", {"layers": 4}, "valid: -4 to 3"),
        ("vit", {"pooling": "features"}, "models of images and texts like CLIP"),
        ("vit", {"pooling": "queries"}, "of object detectors"),
        ("detr", {"pooling": "mean"}, "valid for this model: queries, objects"),
        ("detr", {"pooling": "queries", "prediction": "head"}, "predicts objects"),
        ("vit", {"prediction": "head"}, "no trained head"),
        ("vit_head", {"pooling": "pooler"}, "lacks the weights pooler"),
        (
            "vit_head",
            {"pooling": "pooler", "prediction": "head"},
            "has no pooler; valid: mean",
        ),
        ("clip_head", {"pooling": "features"}, "lacks the weights visual_projection"),
    ],
)
def test_what_a_model_cannot_make_is_refused_with_what_it_can(
    saved: Callable[[str], Path], name: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelError) as caught:
        encoder(saved(name), **changes)
    assert says in str(caught.value)


def edited(folder: Path, target: Path, name: str, **changes: Any) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((target / name).read_text())
    (target / name).write_text(json.dumps({**config, **changes}))
    return target


def test_a_detector_that_needs_timm_says_so(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    changes = {"use_timm_backbone": True, "backbone": "resnet50"}
    folder = edited(saved("detr"), tmp_path / "m", "config.json", **changes)
    with pytest.raises(ModelError, match="pip install timm"):
        recipe_of(folder, pooling="queries")


def test_a_processor_of_another_size_than_the_model_is_refused(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    size = {"height": 40, "width": 40}
    name = "preprocessor_config.json"
    folder = edited(saved("vit"), tmp_path / "m", name, size=size)
    with pytest.raises(ModelError, match="does not take what its image processor"):
        encoder(folder)


def test_a_folder_without_an_image_processor_is_refused(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(saved("vit"), tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"no preprocessor_config\.json"):
        recipe_of(tmp_path / "m")


def test_a_model_that_masks_patches_by_chance_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.ViTMAEConfig(**image_models.VIT, mask_ratio=0.75)
    transformers.ViTMAEModel(config).save_pretrained(tmp_path)
    size = image_models.SQUARE
    transformers.ViTImageProcessorPil(size=size).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="changes from one time to the next"):
        encoder(tmp_path)


def test_a_nested_configuration_may_leave_out_its_defaults(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    nested = {"vision_config": {"model_type": "siglip_vision_model"}}
    folder = edited(saved("siglip"), tmp_path / "m", "config.json", **nested)
    assert recipe_of(folder, pooling="features").dims == 768


def test_the_image_processor_is_in_the_fingerprint_and_max_pixels_is_not(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, name = saved("vit"), "preprocessor_config.json"
    other = edited(folder, tmp_path / "m", name, image_mean=[0.1, 0.1, 0.1])
    base = recipe_of(folder).fingerprint
    assert recipe_of(folder, encoder={"max_pixels": 9}).fingerprint == base
    assert recipe_of(other).fingerprint != base


def test_load_gives_the_encoder_of_a_model_version(
    saved: Callable[[str], Path],
) -> None:
    spec = recipe_of(saved("vit")).spec
    version = ModelVersion(
        *(1, 1, "embedding", "record", 1, "", spec, 32),
        *("vector", "cosine", None, "t", "active"),
    )
    made = encoders.load(version, Runtime("cpu", 100))
    assert made.probe().vectors.shape == (1, 32)
