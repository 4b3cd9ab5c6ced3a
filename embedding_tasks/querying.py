"""A use case's own model, for the texts that other tools search by."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from embedding_tasks import search
from embedding_tasks.store import versions
from embedding_tasks.store.connection import open_store

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from embedding_tasks.connections import Connection


class QueryModel:
    """The model of the version that serves, loaded once. Compare its vectors with those
    of `model_version` only: the view has another one as soon as that is promoted."""

    def __init__(
        self,
        use_case: str,
        feature: str | None = None,
        *,
        device: str = "auto",
        store: Connection | None = None,
    ) -> None:
        """Raises `SearchError` for a use case or feature that has no vectors,
        `ModelError` when its model files are gone or have changed."""
        if store is None:
            with closing(open_store()) as opened:
                self._version = versions.active(opened, use_case, feature)
        else:
            self._version = versions.active(store, use_case, feature)
        self._encoder = search.encoder_of(self._version, device)

    def __repr__(self) -> str:
        return (
            f"QueryModel(feature={self._version.feature!r}, "
            f"model_version={self.model_version}, dims={self.dims})"
        )

    @property
    def model_version(self) -> int:
        """As the column `model_version` has it."""
        return self._version.version

    @property
    def dims(self) -> int:
        return self._version.dims

    @property
    def storage(self) -> str:
        """'vector' or 'halfvec'."""
        return self._version.storage

    @property
    def distance(self) -> str:
        """'cosine', 'l2' or 'inner_product'."""
        return self._version.distance

    def embed(self, text: str) -> npt.NDArray[np.float32]:
        """The vector of a text, (dims,), made as those of the records are."""
        return search.vector_of(self._encoder, self._version, text)
