"""An autoencoder: the vector is its bottleneck."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from embedding_tasks.encoders.trained.networks import Shape, inwards, outwards


class Autoencoder(nn.Module):
    """`features` is the bottleneck, (batch, size), without an activation."""

    def __init__(self, shape: Shape, size: int) -> None:
        super().__init__()
        self.features = inwards(shape, size, nn.ReLU)
        self.reconstruct = outwards(shape, size, nn.ReLU)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.reconstruct(self.features(inputs))
        return out


class AutoencoderTraining:
    """Least squares; the best epoch is kept."""

    keeps_best = True

    def __init__(
        self, shape: Shape, size: int, learning_rate: float, device: torch.device
    ) -> None:
        self.kept: nn.Module = Autoencoder(shape, size).to(device)
        self._optimizer = torch.optim.Adam(self.kept.parameters(), lr=learning_rate)
        self.parts = {"model": self.kept, "optimizer": self._optimizer}

    def step(self, batch: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
        loss = self.loss(batch, noise)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return {"training": loss.detach()}

    def loss(self, batch: Tensor, noise: torch.Generator) -> Tensor:
        return nn.functional.mse_loss(self.kept(batch), batch)
