"""Texts through an OpenAI-compatible server: `POST <url>/embeddings`.

https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from embedding_tasks.connections import Resolve
from embedding_tasks.encoders import Runtime, memory
from embedding_tasks.encoders.encoded import Encoded, unit_length
from embedding_tasks.encoders.server import Server
from embedding_tasks.encoders.shape import MAX_DIMS, Shape
from embedding_tasks.errors import InputError, ModelError
from embedding_tasks.use_case import Feature
from embedding_tasks.use_case.feature import Endpoint

if TYPE_CHECKING:
    from openai import AsyncOpenAI

T = TypeVar("T")
Vector = npt.NDArray[np.float32]

# Tokens without a tokenizer: bytes of UTF-8 by this. English has four to five bytes a
# token, Chinese about three. A byte-level vocabulary never has more tokens than bytes,
# so that the default of 100,000 tokens a request keeps within OpenAI's 300,000.
_BYTES_PER_TOKEN = 3
_PROBE = "one, two, three"


def shape(feature: Feature, resolve: Resolve | None) -> Shape:
    """The size is part of what names the model: an endpoint may come to serve another
    one by the same name."""
    encoder = feature.encoder
    assert isinstance(encoder, Endpoint)

    def ask() -> int:
        probed = EndpointEncoder(feature.model_dump(), Runtime(resolve=resolve))
        return int(probed.probe().vectors.shape[1])

    dims = encoder.dimensions
    if dims is None:
        url = Server.of(encoder, resolve).url
        dims = memory.remembered("endpoints", _name(url, encoder), ask)
    if dims > MAX_DIMS:
        raise ModelError(
            f"encoder: {dims} dimensions are more than pgvector's {MAX_DIMS}; set "
            "encoder.dimensions where the model can shorten its vectors"
        )
    return Shape(dims, weights=f"endpoint:{encoder.model}:{dims}")


class EndpointEncoder:
    """`spec` is a model version's, of `dims` dimensions where that is known. Several
    requests are under way at once; a text that occurs twice is sent once."""

    shared = False

    def __init__(
        self, spec: dict[str, Any], runtime: Runtime, dims: int | None = None
    ) -> None:
        self._encoder = Endpoint.model_validate(spec["encoder"])
        self._normalize = bool(spec["normalize"])
        self._dims = self._encoder.dimensions or dims
        self._server = Server.of(self._encoder, runtime.resolve)
        self._answers_at_all = False
        # What came beside a refused input; the halves that are tried next need not
        # be paid for again.
        self._spared: dict[str, Vector] = {}
        _refuse_to_go_without_the_client()

    def encode(self, inputs: Sequence[str]) -> Encoded:
        unsent = {t: why for t in inputs if (why := self._known_to_fail(t))}
        known = self._spared.keys() | unsent.keys()
        refused = self._fetch([t for t in dict.fromkeys(inputs) if t not in known])
        if refused and not self._answers_at_all:
            self._refuse_a_server_that_refuses_all(refused[0])
        for error in (*unsent.values(), *refused):
            raise error
        vectors = np.stack([self._spared[text] for text in inputs])
        for text in set(inputs):
            del self._spared[text]
        return Encoded.of_records(unit_length(vectors) if self._normalize else vectors)

    def probe(self) -> Encoded:
        return self.encode([_PROBE])

    def surroundings(self) -> dict[str, str]:
        return {"server": urlsplit(self._server.url).hostname or ""}

    def _known_to_fail(self, text: str) -> InputError | None:
        if not text:
            return InputError("an empty text, which no endpoint embeds")
        limit, tokens = self._encoder.max_length, estimated_tokens(text)
        if limit is None or tokens <= limit:
            return None
        return InputError(
            f"a text of about {tokens} tokens is longer than encoder.max_length, "
            f"{limit}; it is never cut"
        )

    def _refuse_a_server_that_refuses_all(self, error: InputError) -> None:
        """Before a whole batch is halved for nothing."""
        if self._fetch([_PROBE]):
            raise ModelError(
                f"encoder: {self._server.url} refuses even a plain text: {error}"
            )
        del self._spared[_PROBE]

    def _fetch(self, texts: list[str]) -> list[InputError]:
        """Into `_spared`, but for what is refused."""
        batches = list(
            requests(
                texts, self._encoder.items_per_request, self._encoder.tokens_per_request
            )
        )
        refused: list[InputError] = []
        answers = apart(lambda: self._all(batches)) if batches else []
        for batch, answer in zip(batches, answers, strict=True):
            if isinstance(answer, InputError):
                refused.append(answer)
                continue
            self._answers_at_all = True
            finite = {
                text: vector
                for text, vector in zip(batch, answer, strict=True)
                if np.isfinite(vector).all()
            }
            self._spared |= finite
            if len(finite) < len(batch):
                refused.append(InputError("the endpoint's vector of it is not finite"))
        return refused

    async def _all(self, batches: list[list[str]]) -> list[Vector | InputError]:
        gate = asyncio.Semaphore(self._encoder.concurrency)

        async def ask(client: AsyncOpenAI, batch: list[str]) -> Vector | InputError:
            async with gate:
                return await self._ask(client, batch)

        async with self._client() as client:
            tasks = [asyncio.create_task(ask(client, batch)) for batch in batches]
            try:
                return await asyncio.gather(*tasks)
            finally:  # one that fails stops the others, before their connections close
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _client(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        return AsyncOpenAI(
            api_key=self._server.key,
            base_url=self._server.url,
            timeout=self._encoder.timeout_seconds,
            max_retries=self._encoder.max_retries,
        )

    async def _ask(self, client: AsyncOpenAI, batch: list[str]) -> Vector | InputError:
        from openai import OpenAIError, omit

        model, dimensions = self._encoder.model, self._encoder.dimensions
        try:
            answer = await client.embeddings.create(
                input=batch, model=model, dimensions=dimensions or omit
            )
            by_index = {item.index: item.embedding for item in answer.data}
            vectors = [np.array(by_index[i], np.float32) for i in range(len(batch))]
        except OpenAIError as error:
            explained = self._server.explain(error, model)
            if isinstance(explained, InputError):
                return explained
            raise explained from None
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            raise ModelError(
                f"encoder.url: {self._server.url} did not answer with a vector for "
                f"each of {len(batch)} inputs: {type(error).__name__}"
            ) from None
        self._refuse_what_does_not_fit(len(answer.data), vectors)
        return np.stack(vectors)

    def _refuse_what_does_not_fit(self, count: int, vectors: list[Vector]) -> None:
        if count != len(vectors):
            raise ModelError(
                f"encoder.url: {self._server.url} gave {count} vectors for "
                f"{len(vectors)} inputs"
            )
        wanted = self._dims or vectors[0].size
        odd = next((v for v in vectors if v.shape != (wanted,)), None)
        if odd is None:
            return
        memory.forget("endpoints", _name(self._server.url, self._encoder))
        raise ModelError(
            f"encoder.model: {self._encoder.model!r} at {self._server.url} gave "
            f"{odd.size} dimensions, not {wanted}; if it is another model by now, run "
            "the use case again to build a new version"
        )


def estimated_tokens(text: str) -> int:
    return -(-len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN)


def requests(texts: Sequence[str], items: int, tokens: int) -> Iterator[list[str]]:
    """In their order, as many to a request as both limits let in, and at least one."""
    batch: list[str] = []
    total = 0
    for text in texts:
        more = estimated_tokens(text)
        if batch and (len(batch) == items or total + more > tokens):
            yield batch
            batch, total = [], 0
        batch.append(text)
        total += more
    if batch:
        yield batch


def apart(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in an event loop of a thread of its own: the caller may have one
    already (a notebook), and an interrupt cancels what is under way at once."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = Future()
    done: Future[T] = Future()

    async def main() -> T:
        task = asyncio.ensure_future(work())
        started.set_result((asyncio.get_running_loop(), task))
        return await task

    def run() -> None:
        try:
            done.set_result(asyncio.run(main()))
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name="endpoint", daemon=True)
    thread.start()
    try:
        return done.result()
    except BaseException:
        with suppress(RuntimeError, TimeoutError):  # the loop may be closed by now
            loop, task = started.result(timeout=1)
            loop.call_soon_threadsafe(task.cancel)
        raise
    finally:
        thread.join(timeout=1)


def _name(url: str, encoder: Endpoint) -> str:
    return f"{url} {encoder.model} {encoder.dimensions or ''}".rstrip()


def _refuse_to_go_without_the_client() -> None:
    try:
        import openai  # noqa: F401
    except ImportError as error:
        raise ModelError(
            "encoder.type: 'openai' needs the openai client; "
            "pip install 'embedline[openai]'"
        ) from error
