"""Pixels are the processor's own, however they are made, and go as bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from embedding_tasks.encoders import preprocessing
from embedding_tasks.encoders.image import scaled_on
from embedding_tasks.encoders.preprocessing import PIXELS, Library, Plain, Preparer
from embedding_tasks.errors import ModelError, TransientError
from tests.image_models import pictures

NEAREST = {"resample": 0}
# By the processor and what it is told: the way that is taken.
WAYS: list[tuple[str, dict[str, Any], str]] = [
    ("ViT", {}, "plain"),
    ("ViT", NEAREST, "plain"),
    ("ViT", {"size": {"height": 40, "width": 60}, "image_mean": 0.3}, "plain"),
    ("ViT", {"do_normalize": False}, "plain"),
    ("CLIP", {}, "plain"),
    ("CLIP", {"size": {"shortest_edge": 40}, "crop_size": 50}, "plain"),
    ("CLIP", {"size": {"shortest_edge": 41}, "crop_size": [33, 20]}, "plain"),
    ("Bit", {}, "plain"),
    ("DeiT", {}, "plain"),
    ("Siglip", {}, "plain"),
    ("ConvNext", {"size": {"shortest_edge": 224}}, "plain"),
    ("ConvNext", {}, "plain"),
    ("Detr", {"size": {"shortest_edge": 64, "longest_edge": 96}}, "apart"),
    ("Yolos", {"size": {"shortest_edge": 64, "longest_edge": 96}}, "apart"),
    ("Levit", {}, "apart"),
    ("MobileViT", {}, "apart"),  # turns the channels round
    ("EfficientNet", {}, "whole"),  # normalizes twice
    ("ViT", {"rescale_factor": 1.0, "do_resize": False}, "plain"),
]


def saved(folder: Path, name: str, settings: dict[str, Any]) -> Path:
    getattr(transformers, f"{name}ImageProcessorPil")(**settings).save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize(("name", "settings", "way"), WAYS)
def test_pixels_and_values_are_the_processors_own(
    tmp_path: Path, name: str, settings: dict[str, Any], way: str
) -> None:
    folder = saved(tmp_path, name, settings)
    recipe, scale = preprocessing.choose(folder, ("pixel_values", "pixel_mask"))
    taken = "plain"
    if isinstance(recipe, Library):
        taken = "whole" if recipe.whole else "apart"
    assert taken == way
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    prepare = recipe.ready()
    for picture in pictures():
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        wanted = processor(images=image, return_tensors="pt")
        made = prepare(image)
        assert made.keys() == wanted.keys()
        pixels = torch.from_numpy(made[PIXELS].copy())
        if scale is not None:
            assert pixels.dtype == torch.uint8
            pixels = scaled_on(torch.device("cpu"), scale)(pixels)
        assert pixels.shape == wanted[PIXELS][0].shape
        most = max(1.0, float(wanted[PIXELS].abs().max()))
        assert (pixels - wanted[PIXELS][0]).abs().max() <= 2e-6 * most
        if "pixel_mask" in made:
            assert (made["pixel_mask"] == wanted["pixel_mask"][0].numpy()).all()


def test_a_processor_of_its_own_settings_is_taken_whole(tmp_path: Path) -> None:
    class Odd(transformers.ViTImageProcessorPil):
        def resize(self, image: Any, **settings: Any) -> Any:
            return super().resize(image=image[:, 1:], **settings)

    class Odder(transformers.ViTImageProcessorPil):
        def normalize(self, image: Any, *settings: Any, **more: Any) -> Any:
            return np.tanh(image)

    for kind, plain in ((Odd, False), (Odder, None)):
        transformers.ViTImageProcessorPil().save_pretrained(tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(preprocessing, "load", lambda folder, kind=kind: kind())
            recipe, scale = preprocessing.choose(tmp_path, ("pixel_values",))
        assert isinstance(recipe, Library)
        assert recipe.whole is (plain is None)
        assert (scale is None) is (plain is None)


def test_a_processor_that_cuts_an_image_into_several_is_refused() -> None:
    def several(images: Any, return_tensors: str, **options: Any) -> dict[str, Any]:
        return {PIXELS: np.zeros((3, 3, 8, 8), np.uint8)}

    prepare = Library(Path(), (PIXELS,)).by(several)
    with pytest.raises(ModelError, match="several of one image"):
        prepare(Image.new("RGB", (9, 9)))


def test_images_of_one_shape_come_in_one_piece_of_bytes() -> None:
    prepare = Preparer(Plain(shortest=16), 10**6)
    turned = [picture for picture in pictures()[40:50]]
    made = prepare(turned)
    assert not made.failed
    assert sorted(p for stack in made.stacks for p in stack.places) == [*range(10)]
    for stack in made.stacks:
        assert stack.arrays[PIXELS].dtype == np.uint8
        assert stack.arrays[PIXELS].shape == (len(stack), *stack.shape)
        for place, array in zip(stack.places, stack.arrays[PIXELS], strict=True):
            alone = prepare([turned[place]]).stacks[0].arrays[PIXELS][0]
            assert (array == alone).all()


def test_what_cannot_be_read_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    prepare = Preparer(Plain(size=(8, 8)), 100 * 100)
    good = pictures()[0]
    (tmp_path / "good").write_bytes(good)
    made = prepare([b"none", good, good[:50], str(tmp_path / "lost"), b"", good])
    assert made.stacks[0].places == [1, 5]
    assert sorted(made.failed) == [0, 2, 3, 4]
    assert made.failed[0].startswith("InputError: no image")
    assert made.failed[3].endswith("lost': there is nothing")
    addresses = prepare([str(tmp_path / "good")] * 9)
    assert [*addresses.stacks[0].places] == [*range(9)]


def test_a_store_that_is_away_is_nobodys_fault() -> None:
    prepare = Preparer(Plain(size=(8, 8)), 100 * 100)
    with pytest.raises(TransientError):
        prepare([pictures()[0], "http://127.0.0.1:9/a.png"])
