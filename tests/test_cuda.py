"""What only a card can show: kernels equal torch's own arithmetic, and half precision
gives the vectors that float32 on a processor gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from embedding_tasks import encoders
from embedding_tasks.encoders import Runtime, acceleration, devices
from embedding_tasks.encoders.precision import HalfPrecision
from embedding_tasks.encoders.text import TextEncoder
from tests.fix_models import Family
from tests.test_precision import widened
from tests.test_text_encoder import recipe_of, use_case, version

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)
LENGTHS = np.array([1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 300])
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5}


def states(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


KINDS = [(dtype, size, None, False, 1) for dtype in TOLERANCE for size in (32, 80)]
KINDS += [
    (torch.float16, 64, window, causal, shared)
    for window in (None, 8)
    for causal in (False, True)
    for shared in (1, 2)
]


@pytest.mark.parametrize(("dtype", "size", "window", "causal", "shared"), KINDS)
def test_attention_is_that_of_each_text_alone(
    dtype: torch.dtype, size: int, window: int | None, causal: bool, shared: int
) -> None:
    from embedding_tasks.encoders import kernels

    total = int(LENGTHS.sum())
    query = states(total, 4, size, dtype=dtype)
    key, value = (states(total, 4 // shared, size, dtype=dtype) for _ in range(2))
    tiles = torch.from_numpy(kernels.tiles(LENGTHS)).cuda()
    got = kernels.attention(query, key, value, tiles, size**-0.5, window, causal)
    begin = 0
    for length in LENGTHS:
        own = slice(begin, begin + int(length))
        q, k, v = (x[own].transpose(0, 1).double() for x in (query, key, value))
        away = torch.arange(length)[None, :] - torch.arange(length)[:, None]
        seen = torch.ones(length, length, dtype=torch.bool)
        if window is not None:
            seen &= away.abs() <= window
        if causal:
            seen &= away <= 0
        wanted = functional.scaled_dot_product_attention(
            q,
            k.repeat_interleave(shared, 0),
            v.repeat_interleave(shared, 0),
            attn_mask=seen.cuda(),
        ).transpose(0, 1)
        assert (got[own].double() - wanted).abs().max() < TOLERANCE[dtype]
        begin += int(length)


def test_every_query_is_in_one_tile() -> None:
    from embedding_tasks.encoders import kernels

    tiles = kernels.tiles(LENGTHS)
    queries = [
        q
        for start, _, end in tiles
        for q in range(start, min(start + kernels.QUERIES, end))
    ]
    assert sorted(queries) == list(range(int(LENGTHS.sum())))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gelu_is_exact_to_the_type_s_rounding(dtype: torch.dtype) -> None:
    from embedding_tasks.encoders import kernels

    x = torch.cat([torch.linspace(-30, 30, 200_001), torch.randn(99_999)])
    x = x.cuda().to(dtype)
    wanted = functional.gelu(x.double())
    ours = (kernels.gelu(x).double() - wanted).abs()
    torchs = (functional.gelu(x).double() - wanted).abs()
    assert ours.max() <= 1.01 * torchs.max()
    assert ours.mean() <= 1.05 * torchs.mean() + 1e-6


@pytest.mark.parametrize("width", [32, 384, 768, 1000, 1024])
def test_the_norm_of_a_sum_is_layer_norm_s(width: int) -> None:
    from embedding_tasks.encoders import kernels

    norm = nn.LayerNorm(width).cuda().half()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, residual = states(1001, width), states(1001, width)
    got = kernels.sum_layer_norm(x, residual, norm)
    wanted = functional.layer_norm(
        x.double() + residual.double(),
        (width,),
        norm.weight.double(),
        norm.bias.double(),
        norm.eps,
    )
    assert (got.double() - wanted).abs().max() < 1e-2


@torch.inference_mode()
def test_patches_are_what_the_convolution_gives() -> None:
    convolution = nn.Conv2d(3, 64, 16, 16).cuda().half()
    pixels = states(5, 3, 224, 230)
    wanted = convolution(pixels)
    acceleration.accelerate(convolution, torch.device("cuda"))
    assert "forward" in vars(convolution)
    got = convolution(pixels)
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() < 1e-2


@pytest.mark.parametrize("kind", ["ViT", "CLIPVision", "SiglipVision", "Bert"])
@torch.inference_mode()
def test_an_accelerated_model_says_the_same_and_can_be_taken_back(kind: str) -> None:
    import transformers

    config = getattr(transformers, f"{kind}Config")(num_hidden_layers=2)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(config).cuda().half().train(False)
    given = (
        states(3, 3, config.image_size, config.image_size)
        if kind != "Bert"
        else (torch.randint(5, 900, (3, 40), device="cuda"))
    )
    wanted = model(given).last_hidden_state
    undo = acceleration.accelerate(model, torch.device("cuda"))
    changed = [m for m in model.modules() if "forward" in vars(m)]
    got = model(given).last_hidden_state
    assert changed
    assert 0 < (got - wanted).abs().max() < 2e-2 * wanted.abs().max()
    undo()
    assert torch.equal(model(given).last_hidden_state, wanted)


@pytest.mark.parametrize(
    "family",
    ["bert", "roberta", "electra", "distilbert", "modernbert", "mpnet", "deberta-v2"],
)
@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float32"])
def test_a_card_s_vectors_are_the_processor_s(
    family: str, dtype: str, make_family: Family, tweets: list[str]
) -> None:
    folder = make_family(family)
    wanted = made(folder, "cpu", "float32").encode(tweets).vectors
    got = made(folder, "cuda", dtype).encode(tweets).vectors
    cosine = (wanted * got).sum(1) / (
        np.linalg.norm(wanted, axis=1) * np.linalg.norm(got, axis=1)
    )
    least = {"auto": 0.9999, "bfloat16": 0.995, "float32": 0.999999}
    assert cosine.min() > least[dtype]


def made(folder: Path, device: str, dtype: str) -> Any:
    case = use_case(folder, encoder={"dtype": dtype})
    spec = recipe_of(case).spec
    return encoders.load(version(spec), Runtime(device))


@pytest.mark.usefixtures("own_memory")
def test_a_model_that_leaves_float16_is_loaded_again_in_bfloat16(
    make_family: Family, tweets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = widened(make_family("bert"))
    encoder = made(folder, "cuda", "auto")
    assert isinstance(encoder, HalfPrecision)
    assert encoder.surroundings()["dtype"] == "float16"
    vectors = encoder.encode(tweets).vectors
    assert np.isfinite(vectors).all()
    assert encoder.surroundings()["dtype"] == "bfloat16"
    # and from then on
    assert made(folder, "cuda", "auto").surroundings()["dtype"] == "bfloat16"


@pytest.mark.usefixtures("own_memory")
def test_memory_that_runs_out_costs_time_and_no_row(
    make_family: Family, tweets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = made(make_family("bert"), "cuda", "float32")
    assert isinstance(encoder, TextEncoder)
    wanted = encoder.encode(tweets).vectors
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(
        (torch.cuda.memory_reserved() + 24 * 2**20) / total
    )
    try:
        torch.cuda.empty_cache()
        got = encoder.encode(tweets).vectors
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert np.abs(got - wanted).max() < 1e-4
    assert len(got) == len(tweets)


def test_without_triton_the_packed_forward_still_runs(
    make_family: Family, tweets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_family("bert")
    wanted = made(folder, "cpu", "float32").encode(tweets[:200]).vectors
    monkeypatch.setattr(acceleration, "usable", lambda device: False)
    got = made(folder, "cuda", "auto").encode(tweets[:200]).vectors
    assert np.abs(got - wanted).max() < 1e-2


def test_the_budget_fits_what_is_free() -> None:
    model = nn.Linear(4, 4).cuda().half()
    budget = devices.Budget(None, model, torch.device("cuda"), "test-of-budget")
    assert 1 <= budget.tokens <= 131_072
