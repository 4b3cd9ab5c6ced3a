"""How vectors are made: an encoder, its pooling, and what it reads.

Which pooling goes with which encoder stands in `POOLINGS`; what depends on the model
itself is checked where the model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from embedding_tasks.errors import valid_choices
from embedding_tasks.use_case.part import Columns, Part, or_else


class LayerMix(Part):
    """Mean or concatenation of the last `last` hidden layers."""

    last: int = Field(ge=1)
    combine: Literal["mean", "concat"] = "mean"


Layers = Annotated[
    Annotated[Literal["last"], Tag("~word")]
    | Annotated[int, Tag("~index")]
    | Annotated[LayerMix, Tag("~mix")],
    Discriminator(
        lambda v: (
            "~mix"
            if isinstance(v, dict | LayerMix)
            else "~index"
            if isinstance(v, int) and not isinstance(v, bool)
            else "~word"
        )
    ),
    or_else("'last', a layer's number, or {last: N, combine: mean or concat}"),
]


class OnDevice(Part):
    """`model` is a Hugging Face id, or a folder when it starts with `.`, `/` or `~`
    (relative to the project)."""

    model: str = Field(min_length=1)
    revision: str = "main"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: str = "auto"

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError("valid: 'auto', 'cpu', 'cuda', 'cuda:0' and so on")
        return device


class TextModel(OnDevice):
    type: Literal["text"] = "text"
    max_length: int | None = Field(None, ge=4)


class ImageModel(OnDevice):
    """The input column is `bytea`, or text: a path or any URL that fsspec opens."""

    type: Literal["image"]
    max_pixels: int = Field(50_000_000, ge=1, description="larger images are refused")


class Endpoint(Part):
    """An OpenAI-compatible server. Its key comes from an Airflow connection, whose
    host then gives the URL, or from an environment variable: $OPENAI_API_KEY for
    OpenAI's own server, for any other the one that is named."""

    type: Literal["openai"]
    model: str = Field(min_length=1)
    url: str = "https://api.openai.com/v1"
    connection: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]+$")
    key_variable: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    dimensions: int | None = Field(None, ge=1)
    max_length: int | None = Field(
        None, ge=1, description="tokens, by estimate; a longer input is refused"
    )
    items_per_request: int = Field(256, ge=1, le=2048)
    tokens_per_request: int = Field(100_000, ge=1, description="by estimate")
    concurrency: int = Field(8, ge=1, le=256)
    timeout_seconds: float = Field(60, gt=0)
    max_retries: int = Field(6, ge=0)

    @field_validator("url")
    @classmethod
    def _is_plain(cls, url: str) -> str:
        # the use case is kept in the store, where no key may be
        if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", url):
            raise ValueError(
                "valid: e.g. 'https://api.openai.com/v1', without user, password or "
                "query; a key comes from `connection` or `key_variable`"
            )
        return url.rstrip("/")


class WordVectors(Part):
    """A file of word vectors, or a folder with a static sentence model."""

    type: Literal["words"]
    model: str = Field(min_length=1)
    revision: str = "main"
    lowercase: bool = False


class Trained(Part):
    """Trained on the use case's own rows: the columns of `source.input`, or images."""

    size: int = Field(ge=1, le=4096, description="dimensions of the vectors")
    data: Literal["table", "image"] = "table"
    image_size: int = Field(28, ge=8, le=256)
    environment: Literal["training", "validation", "production"] | None = None
    max_rows: int = Field(50_000, ge=1)
    min_rows: int = Field(200, ge=2)
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(128, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    seed: int = Field(0, ge=0)
    device: str = "auto"


class Autoencoder(Trained):
    type: Literal["autoencoder"]
    size: int = Field(32, ge=1, le=4096)


class Gan(Trained):
    type: Literal["gan"]
    size: int = Field(64, ge=1, le=4096)


KINDS: dict[str, type[Part]] = {
    "text": TextModel,
    "image": ImageModel,
    "openai": Endpoint,
    "words": WordVectors,
    "autoencoder": Autoencoder,
    "gan": Gan,
}

AnyEncoder = TextModel | ImageModel | Endpoint | WordVectors | Autoencoder | Gan


def _kind(value: Any) -> Any:
    return value.get("type", "text") if isinstance(value, dict) else value.type


def _known_kind(value: Any) -> Any:
    if isinstance(value, dict) and _kind(value) not in KINDS:
        raise ValueError(f"type {valid_choices(_kind(value), list(KINDS))}")
    if not isinstance(value, dict | Part):
        raise ValueError("must be a mapping; valid: e.g. {model: …}")
    return value


Encoder = Annotated[
    Annotated[TextModel, Tag("~text")]
    | Annotated[ImageModel, Tag("~image")]
    | Annotated[Endpoint, Tag("~openai")]
    | Annotated[WordVectors, Tag("~words")]
    | Annotated[Autoencoder, Tag("~autoencoder")]
    | Annotated[Gan, Tag("~gan")],
    Discriminator(lambda v: f"~{_kind(v)}"),
    BeforeValidator(_known_kind),
]


class WordPooling(Part):
    """One vector per word: of its first sub-token, or the mean of all of them. `keep`
    'classified' drops words that are O both in prediction and label."""

    words: Literal["first", "mean"] = "first"
    keep: Literal["classified", "all"] = "classified"


class ObjectPooling(Part):
    """One vector per object detected with at least this score."""

    objects: float = Field(0.5, gt=0, le=1)


# The first is the default.
POOLINGS: dict[str, tuple[str, ...]] = {
    "text": ("cls", "mean", "max", "last", "pooler", "words", "entities"),
    "image": (
        *("mean", "patches", "cls", "max", "pooler", "features"),
        *("queries", "objects"),
    ),
    "openai": ("endpoint",),
    "words": ("mean",),
    "autoencoder": ("bottleneck",),
    "gan": ("discriminator",),
}
_NAMES = list(dict.fromkeys(name for names in POOLINGS.values() for name in names))


def _known_pooling(value: Any) -> Any:
    if isinstance(value, str) and value not in _NAMES:
        raise ValueError(f"no pooling {valid_choices(value, _NAMES)}")
    if isinstance(value, str) and value in ("words", "objects"):
        return {"words": WordPooling, "objects": ObjectPooling}[value]()
    return value


Pooling = Annotated[
    Annotated[str, Tag("~name")]
    | Annotated[WordPooling, Tag("~words")]
    | Annotated[ObjectPooling, Tag("~objects")],
    Discriminator(
        lambda v: (
            "~name"
            if isinstance(v, str)
            else "~objects"
            if isinstance(v, ObjectPooling) or "objects" in dict(v)
            else "~words"
        )
    ),
    or_else(
        "a pooling's name, {words: first or mean, keep: classified or all}, or "
        "{objects: least score}"
    ),
    BeforeValidator(_known_pooling),
]


class Feature(Part):
    """One kind of vector of a record. `head`: predictions of the same pass."""

    input: Columns
    encoder: Encoder
    separator: str = "\n"
    template: str | None = Field(None, min_length=1)
    pooling: Pooling = ""
    layers: Layers = "last"
    normalize: bool = False
    head: bool = False

    @property
    def pools(self) -> str:
        """The pooling's name."""
        match self.pooling:
            case WordPooling():
                return "words"
            case ObjectPooling():
                return "objects"
            case _:
                return self.pooling

    @property
    def unit(self) -> Literal["record", "word", "entity", "object"]:
        """What one vector stands for."""
        match self.pools:
            case "words":
                return "word"
            case "entities":
                return "entity"
            case "objects":
                return "object"
            case _:
                return "record"

    @property
    def reads_images(self) -> bool:
        encoder = self.encoder
        return isinstance(encoder, ImageModel) or (
            isinstance(encoder, Trained) and encoder.data == "image"
        )

    @property
    def device(self) -> str:
        return getattr(self.encoder, "device", "auto")

    @property
    def keeps_classified(self) -> bool:
        """Only words that are something else than O, in prediction or label."""
        pooling = self.pooling
        return isinstance(pooling, WordPooling) and pooling.keep == "classified"

    @model_validator(mode="before")
    @classmethod
    def _default_pooling(cls, raw: Any) -> Any:
        if raw.get("pooling") in (None, ""):
            kind = _kind(raw["encoder"])
            return {**raw, "pooling": POOLINGS.get(kind, ("cls",))[0]}
        return raw

    @model_validator(mode="after")
    def _is_possible(self) -> Feature:
        kind, pools = self.encoder.type, self.pools
        if pools not in POOLINGS[kind]:
            raise ValueError(
                f"pooling: an encoder of type {kind!r} gives no {pools!r}; "
                f"valid: {', '.join(POOLINGS[kind])}"
            )
        if self.layers != "last" and not self._has_layers():
            raise ValueError(
                f"layers: {kind!r} with pooling {pools!r} has one layer to give; "
                "valid: 'last'"
            )
        if self.head and kind not in ("text", "image"):
            raise ValueError(
                f"prediction: an encoder of type {kind!r} has no head; valid: 'none', "
                "or {column: …}"
            )
        if self.unit == "object" and not self.head:
            raise ValueError("pooling: 'objects' needs `prediction: head`")
        if self.reads_images and len(self.input) != 1:
            raise ValueError("source.input: an image is one column")
        if self.unit in ("word", "entity") and self.template is not None:
            raise ValueError(
                "template: words are counted in a column, not in a text made of several"
            )
        if self.template is not None:
            Template(self.template, self.input)
        return self

    def _has_layers(self) -> bool:
        return self.encoder.type in ("text", "image") and self.pools not in (
            *("pooler", "features", "queries", "objects"),
        )


class Template:
    """A text with columns filled in. Where it names `{column}` and `{value}`, it is
    said of each input column that is not null in turn, and the sentences are joined
    by the separator; else it names input columns, and null is nothing."""

    def __init__(self, text: str, columns: tuple[str, ...]) -> None:
        try:
            self.pieces = [
                (literal, name) for literal, name, *_ in Formatter().parse(text)
            ]
        except ValueError as error:
            raise ValueError(f"template: {text!r}: {error}") from None
        if any(spec or conversion for *_, spec, conversion in Formatter().parse(text)):
            raise ValueError(
                f"template: {text!r} has a format; valid: {{column}} alone"
            )
        names = [name for _, name in self.pieces if name is not None]
        self.each = {*names} == {"column", "value"} and "column" not in columns
        unknown = [n for n in names if n not in columns and not self.each]
        if unknown or not names:
            raise ValueError(
                f"template: no input column "
                f"{valid_choices((unknown or [text])[0], [*columns])}; or {{column}} "
                "and {value}, said of each"
            )
        self.columns = columns

    def fill(self, values: tuple[str | None, ...], separator: str) -> str:
        if not self.each:
            row = dict(zip(self.columns, values, strict=True))
            return self._said(lambda name: row[name] or "")
        return separator.join(
            self._said({"column": column, "value": value}.__getitem__)
            for column, value in zip(self.columns, values, strict=True)
            if value is not None
        )

    def _said(self, value: Callable[[str], str]) -> str:
        return "".join(
            literal + (value(name) if name is not None else "")
            for literal, name in self.pieces
        )
