"""A sampler that is guided by the gradient of a reward, to the tilted distribution."""

import math
from typing import NamedTuple, final

import torch
from torch import Tensor

from .entry import Check, Entry, Panel, curve, identity, monte_carlo, pair
from .students import scalar_propagator

__all__ = ["Guided"]

TICK, STEPS = 0.02, 200
MEAN, SHIFT, START = -1.0, 3.0, 2.0


@final
class System(NamedTuple):
    """dx = (m − x) dt + (c − kx) dt + √2 dW, the second part by the reward; `weight` of the reward's gradient is 1."""

    curvature: float  # k
    weight: float
    samples: int
    generator: torch.Generator


@final
class Observed(NamedTuple):
    """Moments of the samples, and sums over the propagator of the same steps."""

    means: Tensor  # [t]
    variances: Tensor  # [t]
    propagator: Tensor  # [200, 200]
    singular: Tensor  # [200], its singular values


@final
class Predicted(NamedTuple):
    """Of the diffusion, and of its steps."""

    means: Tensor
    variances: Tensor
    stepped: tuple[Tensor, Tensor]
    gains: Tensor  # [200], singular values of dt P


@final
class Guided(Entry[System, Observed, Predicted]):
    """Sampling N(m, 1) with the gradient of the reward r(x) = cx − ½kx² added to the drift gives ∝ N(m, 1) e^r.

    That is N((m + c)/(1 + k), 1/(1 + k)); before, mean and variance come to it at the rates 1 + k and 2(1 + k).
    """

    name = "guided"
    title = "Sampling guided by a reward"
    paper = "Zhong et al. 2026, Euphonium, arXiv 2602.04928"
    kernels = (
        "The samples' mean moves with c by the gain of the propagator at rest, dt Σ P = 1/(1 + k), and their "
        "covariance is 2 dt P Pᵀ: guidance lowers the singular values of P; no parameter learns, so K has no part."
    )
    omits = "Video models, rewards of a process, and learned scores: a sampler is no learner."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False, curvature: float = 1.5) -> System:
        if not 1 <= curvature <= 2.5:
            raise ValueError(
                f"`curvature` must be between 1 and 2.5; got {curvature!r}: with less the sampler is not at rest "
                f"in time, and below -1 the tilted density cannot be normalised; with more its steps are too long."
            )
        generator = torch.Generator().manual_seed(seed)
        return System(curvature, 0.8 if broken else 1.0, 20_000 if short else 100_000, generator)

    def run(self, system: System) -> Observed:
        x = torch.full((system.samples,), START, dtype=torch.float64)
        means, variances = [x.mean()], [x.var()]
        for _ in range(STEPS):
            drift = MEAN - x + system.weight * (SHIFT - system.curvature * x)
            noise = torch.randn(x.shape, generator=system.generator, dtype=torch.float64)
            x = x + TICK * drift + math.sqrt(2 * TICK) * noise
            means.append(x.mean())
            variances.append(x.var())
        memory = scalar_propagator(1 - TICK * (1 + system.weight * system.curvature), STEPS)
        return Observed(torch.stack(means), torch.stack(variances), memory, torch.linalg.svdvals(memory))

    def predict(self, system: System) -> Predicted:
        rate = 1 + system.curvature
        rest = (MEAN + SHIFT) / rate
        ticks = torch.arange(STEPS + 1, dtype=torch.float64)
        gone, kept = torch.exp(-rate * TICK * ticks), (1 - rate * TICK) ** ticks
        stepped = (rest + (START - rest) * kept, (1 - kept.square()) / (rate * (1 - rate * TICK / 2)))
        return Predicted(rest + (START - rest) * gone, (1 - gone.square()) / rate, stepped, _gains(rate))

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        rate = 1 + system.curvature
        covariance = 2 * TICK * observed.propagator.square().sum(dim=1)
        late, gain = slice(STEPS // 2, None), TICK * observed.propagator[-1].sum()
        return [
            monte_carlo.close(
                "mean in the end is (m + c)/(1 + k)", (MEAN + SHIFT) / rate, observed.means[late].mean(), 0.02
            ),
            monte_carlo.close(
                "variance in the end is 1/(1 + k)", 1 / rate, observed.variances[late].mean(), 0.05, relative=True
            ),
            monte_carlo.close("mean at every step", predicted.stepped[0], observed.means, 0.03),
            monte_carlo.close("variance at every step", predicted.stepped[1], observed.variances, 0.03),
            identity.close("gain of P: (1 − aⁿ)/(1 + k)", (1 - (1 - TICK * rate) ** STEPS) / rate, gain, 1e-12),
            identity.close("singular values of dt P", predicted.gains, TICK * observed.singular, 1e-10),
            identity.close("diagonal of 2 dt P Pᵀ", predicted.stepped[1][1:], covariance, 1e-12),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        times, number = TICK * torch.arange(STEPS + 1), range(1, STEPS + 1)
        moments = (
            *pair("mean", times, predicted.means, observed.means, every=8),
            *pair("variance", times, predicted.variances, observed.variances, 1, every=8),
        )
        gains = (
            *pair("guided, from 1/(1 + k) on", number, predicted.gains, TICK * observed.singular, every=4),
            curve("without, from 1 on", number, _gains(1.0), group=1),
        )
        return (
            Panel.of("Moments of the samples", "time", "", *moments),
            Panel.of("Singular values of dt P", "number", "σ", *gains, log="xy"),
        )


def _gains(rate: float) -> Tensor:
    """dt/√(1 + a² − 2a cos θ) for a = 1 − dt·rate, at the θ with sin (n + 1)θ = a sin nθ, by iteration."""
    a, order = 1 - TICK * rate, torch.pi * torch.arange(1, STEPS + 1, dtype=torch.float64)
    angle = order / (STEPS + 1)
    for _ in range(50):
        angle = (order - torch.atan2(a * angle.sin(), 1 - a * angle.cos())) / (STEPS + 1)
    return TICK / (1 + a**2 - 2 * a * angle.cos()).sqrt()
