"""Where a model is wrong, in pandas: python examples/pandas_mistakes.py tweets"""

from __future__ import annotations

import sys

import numpy as np

import embedding_tasks


def main(use_case: str) -> None:
    wrong = embedding_tasks.read(
        use_case,
        filter={"misclassified": True},
        columns=["key", "embedding", "prediction", "label", "score"],
    )
    print(wrong.groupby(["label", "prediction"]).size().to_string())
    vectors = np.stack(wrong["embedding"])
    middle = vectors.mean(axis=0)
    nearest = np.linalg.norm(vectors - middle, axis=1).argmin()
    print(f"\nthe most typical of {len(wrong)} mistakes: {wrong['key'][nearest]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
