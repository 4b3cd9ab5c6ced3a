"""Arrays to the device and vectors back, without either side waiting for the copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_device(arrays: Sequence[npt.NDArray[Any]], device: torch.device) -> Tensor:
    """One after the other along their first axis."""
    if device.type != "cuda":
        whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return torch.from_numpy(whole).to(device)
    # torch keeps pinned memory for the next batch, and not before the copy is done
    shape = (sum(map(len, arrays)), *arrays[0].shape[1:])
    dtype = torch.from_numpy(arrays[0][:0]).dtype
    pinned = torch.empty(shape, dtype=dtype, pin_memory=True)
    start = 0
    for array in arrays:
        pinned[start : start + len(array)].copy_(torch.from_numpy(array))
        start += len(array)
    return pinned.to(device, non_blocking=True)


class Returning:
    """Tensors on their way to the host. The copy is behind the work that makes them,
    and before all that is launched later, so that a wait for it is for that alone."""

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self._event: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            with torch.cuda.device(tensors[0].device):
                # blocking: a core that spins prepares no input
                self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                self._event.record()

    def arrived(self) -> list[Tensor]:
        if self._event is not None:
            self._event.synchronize()
        return self._tensors
