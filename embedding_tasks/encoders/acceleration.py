"""A loaded model made faster on CUDA without changing what it computes: modules whose
arithmetic is known are put in place of the library's own.

Whether the model still says the same is not decided here: whoever loads it holds its
vectors against the unchanged model's, and takes `undo` where they differ.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation
from transformers.modeling_layers import GradientCheckpointingLayer

log = logging.getLogger(__name__)

Undo = Callable[[], None]


def accelerate(model: nn.Module, device: torch.device) -> Undo:
    """Half precision on CUDA alone; elsewhere, and where Triton does not run, nothing
    is changed."""
    changed: list[tuple[nn.Module, str, nn.Module]] = []
    is_half = next(model.parameters()).dtype in (torch.float16, torch.bfloat16)
    if is_half and usable(device):
        for parent, name, child in list(_children(model)):
            if (fast := _faster(child)) is not None:
                setattr(parent, name, fast)
                changed.append((parent, name, child))

    def undo() -> None:
        for parent, name, child in changed:
            setattr(parent, name, child)

    return undo


@functools.cache
def usable(device: torch.device) -> bool:
    """Triton compiles for the card at first use and needs a C compiler for it."""
    if device.type != "cuda":
        return False
    try:
        from embedding_tasks.encoders import kernels

        kernels.gelu(torch.zeros(8, device=device, dtype=torch.float16))
    except Exception as error:
        log.warning(
            "running without fast kernels error=%s: %s; Triton and a C compiler make "
            "the forward about a fifth faster",
            *(type(error).__name__, str(error).split("\n")[0]),
        )
        return False
    return True


def compiled(model: nn.Module) -> None:
    """The model's layers through torch.compile, one for all: for inputs of one shape,
    where compiling takes seconds once."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile(dynamic=False)


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in model.modules():
        for name, child in parent.named_children():
            yield parent, name, child


def _faster(module: nn.Module) -> nn.Module | None:
    if isinstance(module, GELUActivation) and module.act is nn.functional.gelu:
        return Gelu()
    if isinstance(module, nn.GELU) and module.approximate == "none":
        return Gelu()
    if _is_post_norm(module):
        return PostNorm(module)
    if isinstance(module, nn.Conv2d) and _cuts_patches(module):
        return Patches(module)
    return None


class Gelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            opaque: Tensor = _gelu(x)
            return opaque
        from embedding_tasks.encoders import kernels

        return kernels.gelu(x)


class PostNorm(nn.Module):
    """`LayerNorm(dense(hidden) + residual)`, which ends each half of a BERT layer."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        children = dict(module.named_children())
        self.dense = children["dense"]
        self.LayerNorm = children["LayerNorm"]

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        from embedding_tasks.encoders import kernels

        hidden = self.dense(hidden_states)
        assert isinstance(self.LayerNorm, nn.LayerNorm)
        return kernels.sum_layer_norm(hidden, input_tensor, self.LayerNorm)


def _is_post_norm(module: nn.Module) -> bool:
    kind, children = type(module), dict(module.named_children())
    norm = children.get("LayerNorm")
    return (
        kind.__name__.endswith("Output")
        and kind.__module__.startswith("transformers.")
        and [*children] == ["dense", "LayerNorm", "dropout"]
        and isinstance(norm, nn.LayerNorm)
        and norm.bias is not None
    )


class Patches(nn.Module):
    """A convolution whose steps are as wide as its kernel, as the product of matrices
    it is: cuDNN's takes ten times as long."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.size = convolution.kernel_size
        self.weight = nn.Parameter(convolution.weight.flatten(1), requires_grad=False)
        self.bias = convolution.bias

    def forward(self, pixels: Tensor) -> Tensor:
        batch, channels, height, width = pixels.shape
        down, right = height // self.size[0], width // self.size[1]
        cut = pixels[..., : down * self.size[0], : right * self.size[1]]
        patches = cut.reshape(
            batch, channels, down, self.size[0], right, self.size[1]
        ).permute(0, 2, 4, 1, 3, 5)
        rows = patches.reshape(batch, down * right, -1)
        out = nn.functional.linear(rows, self.weight, self.bias)
        return out.transpose(1, 2).reshape(batch, -1, down, right)


def _cuts_patches(module: nn.Conv2d) -> bool:
    return (
        module.kernel_size == module.stride
        and module.kernel_size != (1, 1)
        and module.padding in ((0, 0), "valid")
        and module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
    )


@torch.library.custom_op("embedline::gelu", mutates_args=())
def _gelu(x: Tensor) -> Tensor:
    from embedding_tasks.encoders import kernels

    return kernels.gelu(x)


@_gelu.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("embedline::sdpa", mutates_args=())
def sdpa(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention the compiler does not look into: what it makes of it is three times
    slower. (batch, heads, tokens, size) to (batch, tokens, heads, size)."""
    out = nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)
    return out.transpose(1, 2).contiguous()


@sdpa.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    batch, heads, tokens, _ = query.shape
    return query.new_empty((batch, tokens, heads, value.shape[-1]))
