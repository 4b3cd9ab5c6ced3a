"""Entity-level F1 of the demo's tagger: from the rows that SQL gives, and from the raw
data through plain transformers.

    make demo && .venv/bin/python -m benchmarks.entity_f1
"""

from __future__ import annotations

import torch
from seqeval.metrics import f1_score
from transformers import AutoModelForTokenClassification, AutoTokenizer

from embedding_tasks import settings
from embedding_tasks.connections import connect
from embedding_tasks.demo import production
from embedding_tasks.local import postgres
from embedding_tasks.store.connection import open_store

Tagged = dict[str, list[str]]


def main() -> None:
    with connect(postgres.conninfo(production.DATABASE), role="source") as source:
        posts = source.execute(
            "SELECT post_id::text, words, tags FROM posts WHERE tags IS NOT NULL"
        ).fetchall()
    words = {key: given for key, given, _ in posts}
    labels = {key: tags for key, _, tags in posts}
    raw = score(labels, tagged(words))
    labelled, predicted = from_sql(words)
    print(f"posts {len(words)}, raw F1 {raw:.15f}")
    print(f"from SQL    F1 {score(labelled, predicted):.15f}")


def from_sql(words: dict[str, list[str]]) -> tuple[Tagged, Tagged]:
    """What the view does not show is O on both sides."""
    labelled = {key: ["O"] * len(given) for key, given in words.items()}
    predicted = {key: ["O"] * len(given) for key, given in words.items()}
    with open_store() as store:
        for key, unit, prediction, label in store.execute(
            "SELECT key, unit, prediction, label FROM embeddings.entities"
            " WHERE label IS NOT NULL"
        ):
            labelled[key][unit] = label
            predicted[key][unit] = prediction
    return labelled, predicted


@torch.inference_mode()
def tagged(words: dict[str, list[str]]) -> Tagged:
    folder = settings.home() / "models" / "entities"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    found = {}
    for key, given in words.items():
        tokens = tokenizer(given, is_split_into_words=True, return_tensors="pt")
        best = model(**tokens).logits[0].argmax(-1).tolist()
        numbers = tokens.word_ids()
        found[key] = [
            model.config.id2label[best[numbers.index(n)]] for n in range(len(given))
        ]
    return found


def score(labelled: Tagged, predicted: Tagged) -> float:
    return float(f1_score([*labelled.values()], [predicted[k] for k in labelled]))


if __name__ == "__main__":
    main()
