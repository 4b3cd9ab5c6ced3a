"""A generative adversarial network (Goodfellow et al. 2014, arXiv:1406.2661, with the
non-saturating loss): the vector is what the discriminator judges by, its features
before the last layer (as in Radford et al. 2016, arXiv:1511.06434, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from embedding_tasks.encoders.trained.networks import Shape, inwards, outwards

_LATENT = 64
# One-sided: real rows are 0.9 real (Salimans et al. 2016, arXiv:1606.03498).
_REAL = 0.9
_TEMPERATURE = 0.2

_leaky = partial(nn.LeakyReLU, 0.2)


class Discriminator(nn.Module):
    """`features` is (batch, size), after their activation. There is no batch norm: a
    row is judged alone."""

    def __init__(self, shape: Shape, size: int) -> None:
        super().__init__()
        self.features = nn.Sequential(inwards(shape, size, _leaky), _leaky())
        self.score = nn.Linear(size, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        score: Tensor = self.score(self.features(inputs))
        return score


class Generator(nn.Module):
    """Of a table `choices` are the inputs [start, stop) that are one-hot together, or
    0 or 1 where it is a single one."""

    def __init__(self, shape: Shape, choices: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.layers = outwards(shape, _LATENT, nn.ReLU)
        self._is_image = len(shape) == 3
        self._choices = choices

    def forward(self, latent: Tensor, uniform: Tensor) -> Tensor:
        out: Tensor = self.layers(latent)
        if self._is_image:
            return out.tanh()
        return torch.cat([*self._spread(out, uniform)], dim=1)

    def _spread(self, out: Tensor, uniform: Tensor) -> list[Tensor]:
        """Nearly one-hot, by the Gumbel-softmax (arXiv:1611.01144): a soft choice
        would be told from a real one at sight."""
        parts, at = [], 0
        for start, stop in self._choices:
            parts.append(out[:, at:start])
            logits, u = out[:, start:stop], uniform[:, start:stop]
            if stop - start == 1:
                parts.append(((logits + u.logit()) / _TEMPERATURE).sigmoid())
            else:
                parts.append(((logits - (-u.log()).log()) / _TEMPERATURE).softmax(1))
            at = stop
        return [*parts, out[:, at:]]


class GanTraining:
    """Neither side's loss says which epoch is best: the last one is kept."""

    keeps_best = False

    def __init__(
        self,
        shape: Shape,
        size: int,
        learning_rate: float,
        device: torch.device,
        choices: Sequence[tuple[int, int]],
    ) -> None:
        self._width = 1 if len(shape) == 3 else shape[0]
        self._device = device
        self.kept: nn.Module = Discriminator(shape, size).to(device)
        self._generator = Generator(shape, choices).to(device)
        adam = partial(torch.optim.Adam, lr=learning_rate, betas=(0.5, 0.999))
        self._judges = adam(self.kept.parameters())
        self._makes = adam(self._generator.parameters())
        self.parts = {
            "discriminator": self.kept,
            "generator": self._generator,
            "judges": self._judges,
            "makes": self._makes,
        }

    def step(self, batch: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
        made = self._make(len(batch), noise)
        judged = self._judge(batch, made.detach())
        _descend(self._judges, judged)
        fooled = _is(self.kept(made), 1.0)
        _descend(self._makes, fooled)
        return {"training": judged.detach(), "generator": fooled.detach()}

    def loss(self, batch: Tensor, noise: torch.Generator) -> Tensor:
        """The discriminator's."""
        return self._judge(batch, self._make(len(batch), noise))

    def _judge(self, real: Tensor, made: Tensor) -> Tensor:
        return _is(self.kept(real), _REAL) + _is(self.kept(made), 0.0)

    def _make(self, rows: int, noise: torch.Generator) -> Tensor:
        latent = torch.randn(rows, _LATENT, generator=noise)
        uniform = torch.rand(rows, self._width, generator=noise).clamp(1e-6, 1 - 1e-6)
        made: Tensor = self._generator(
            latent.to(self._device), uniform.to(self._device)
        )
        return made


def _is(score: Tensor, real: float) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(
        score, torch.full_like(score, real)
    )


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
