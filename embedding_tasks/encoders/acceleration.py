"""A loaded model made faster on CUDA without changing what it computes: modules whose
arithmetic is known do it in fewer passes over memory.

Whether the model still says the same is not decided here: whoever loads it holds its
vectors against those from before, and takes it back where they differ.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation

log = logging.getLogger(__name__)

Forward = Callable[..., Any]


def accelerate(model: nn.Module, device: torch.device) -> Callable[[], None]:
    """In half precision on CUDA; elsewhere, and where Triton does not run, nothing is
    changed. Returns what takes it back."""
    changed: list[nn.Module] = []
    is_half = next(model.parameters()).dtype in (torch.float16, torch.bfloat16)
    for module in model.modules() if is_half and usable(device) else ():
        if (faster := _faster(module)) is not None:
            # the module stays what it is, with its name, its hooks and its weights
            module.forward = functools.partial(faster, module)
            changed.append(module)

    def undo() -> None:
        while changed:
            del changed.pop().forward

    return undo


@functools.cache
def usable(device: torch.device) -> bool:
    """Triton compiles for the card at first use, for which it needs a C compiler."""
    if device.type != "cuda":
        return False
    try:
        from embedding_tasks.encoders import kernels

        kernels.gelu(torch.zeros(8, device=device, dtype=torch.float16))
    except Exception as error:
        log.warning(
            "no fast kernels, the forward takes about a fifth longer: Triton or a C "
            "compiler for it is missing error=%s: %s",
            *(type(error).__name__, str(error).split("\n")[0]),
        )
        return False
    return True


def _faster(module: nn.Module) -> Forward | None:
    if isinstance(module, GELUActivation) and module.act is nn.functional.gelu:
        return _gelu
    if isinstance(module, nn.GELU) and module.approximate == "none":
        return _gelu
    if isinstance(module, nn.Conv2d) and _cuts_patches(module):
        return _patches
    names = frozenset(dict(module.named_children())) - {"dropout"}
    ours = not type(module).__module__.startswith("transformers.")
    return None if ours or not _are_norms(module, names) else _LAYERS.get(names)


def _are_norms(module: nn.Module, names: frozenset[str]) -> bool:
    return all(
        isinstance(norm := getattr(module, name), nn.LayerNorm)
        and norm.bias is not None
        for name in names
        if "norm" in name.lower()
    )


def _gelu(module: nn.Module, x: Tensor) -> Tensor:
    from embedding_tasks.encoders import kernels

    return kernels.gelu(x)


def _post_norm(module: Any, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
    """`LayerNorm(dense(hidden) + residual)`, which ends each half of a BERT layer."""
    from embedding_tasks.encoders import kernels

    hidden = module.dense(hidden_states)
    return kernels.sum_layer_norm(hidden, input_tensor, module.LayerNorm)


def _vit_layer(module: Any, hidden_states: Tensor, *args: Any, **more: Any) -> Tensor:
    norms = module.layernorm_before, module.layernorm_after
    return _pre_norm(hidden_states, module.attention, module.mlp, *norms, *args, **more)


def _clip_layer(module: Any, hidden_states: Tensor, *args: Any, **more: Any) -> Tensor:
    norms = module.layer_norm1, module.layer_norm2
    return _pre_norm(hidden_states, module.self_attn, module.mlp, *norms, *args, **more)


def _pre_norm(
    hidden: Tensor,
    attention: nn.Module,
    mlp: nn.Module,
    before: nn.LayerNorm,
    after: nn.LayerNorm,
    *args: Any,
    **more: Any,
) -> Tensor:
    """A layer that adds what it makes of its normalised input to that input, twice."""
    from embedding_tasks.encoders import kernels

    attended = attention(before(hidden), *args, **more)[0]
    normalised = kernels.sum_layer_norm(attended, hidden, after, keep_sum=True)
    out: Tensor = mlp(normalised)
    return out.add_(attended)


# By the names of a layer's parts.
_LAYERS: dict[frozenset[str], Forward] = {
    frozenset({"dense", "LayerNorm"}): _post_norm,
    frozenset({"attention", "mlp", "layernorm_before", "layernorm_after"}): _vit_layer,
    frozenset({"self_attn", "mlp", "layer_norm1", "layer_norm2"}): _clip_layer,
}


def _patches(module: nn.Conv2d, pixels: Tensor) -> Tensor:
    """A convolution whose steps are as wide as its kernel, as the product of matrices
    that it is: measured ten times as fast as cuDNN's."""
    high, wide = module.kernel_size
    batch, channels, height, width = pixels.shape
    down, right = height // high, width // wide
    cut = pixels[..., : down * high, : right * wide]
    rows = (
        cut.reshape(batch, channels, down, high, right, wide)
        .permute(0, 2, 4, 1, 3, 5)
        .reshape(batch, down * right, -1)
    )
    out = nn.functional.linear(rows, module.weight.flatten(1), module.bias)
    return out.transpose(1, 2).reshape(batch, -1, down, right)


def _cuts_patches(module: nn.Conv2d) -> bool:
    return (
        module.kernel_size == module.stride
        and module.kernel_size != (1, 1)
        and module.padding in ((0, 0), "valid")
        and module.dilation == (1, 1)
        and module.groups == 1
    )
