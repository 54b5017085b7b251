"""Langevin dynamics whose average over time knows more than its last state."""

import itertools
import math
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from kpflow._checks import check_range

from .entry import Check, Entry, Panel, curve, formula, identity, monte_carlo, points
from .students import scalar_propagator

__all__ = ["Langevin"]

RATE, HEAT, TICK = 1.0, 1.0, 0.1  # of dx = −λx dt + √(2T) dW
TIMES = torch.tensor([10, 20, 40, 80, 140, 200])  # in ticks
SIZE, SIGNAL, HOP = 24, 14.0, 2e-3  # of the sphere
FREQUENCIES = torch.logspace(-2, math.log10(math.pi), 12, dtype=torch.float64)


@final
class System(NamedTuple):
    """A spiked tensor T = λ v⊗v⊗v + W; `rate` of what pulls the free particle back is λ."""

    spike: Tensor  # v, [24]
    tensor: Tensor  # T, [24, 24, 24], symmetric
    strength: float  # b, of exp(b T[x, x, x])
    rate: float
    chains: int
    steps: int
    samples: int
    generator: torch.Generator


@final
class Observed(NamedTuple):
    """Of chains, and of the propagator of the same equation."""

    last: Tensor  # [t], variances
    averaged: Tensor  # [t]
    tilted: Tensor  # [24], mean under weights exp(b T[x, x, x])
    mean: Tensor  # [24], over time and chains
    overlap: float  # mean |⟨x, v⟩| at the end
    exponents: list[float]  # of escape times
    propagator: Tensor  # [200, 200]


@final
class Predicted(NamedTuple):
    """Closed forms."""

    averaged: Tensor
    tilted: Tensor
    gains: Tensor


@final
class Langevin(Entry[System, Observed, Predicted]):
    """Averaging leaves the variance (2T/λ²t) [1 − (1 − e^{−λt})/(λt)] of dx = −λx dt + √(2T) dW, the last state T/λ.

    On a sphere, under exp(b T[x, x, x]), the mean is 3b/(d(d+2)) times the partial trace Σⱼ Tᵢⱼⱼ to first order: a
    direction with signal that the average finds, where no single state shows it and escape from the equator takes long.
    """

    name = "langevin"
    title = "Langevin dynamics and averaging"
    paper = "Langevin dynamics with averaging for tensor PCA and single-index models, 2026, arXiv 2603.06028"
    kernels = (
        "The average over time reads P at frequency zero, where its gain 1/|1 − ρe^{−iω}| is largest, and K is that "
        "of the noise: a low pass that noise does not survive and the drift's first harmonic does."
    )
    omits = "How many samples are needed, n ≳ d^{k/2}, and single-index models."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False, strength: float = 0.4) -> System:
        check_range("strength", strength, 0.05)
        if strength > 0.5:
            raise ValueError(
                f"`strength` must be at most 0.5; got {strength!r}: the mean is predicted to first order in it only."
            )
        generator = torch.Generator().manual_seed(seed)
        spike = torch.randn(SIZE, generator=generator, dtype=torch.float64)
        spike = spike / torch.linalg.vector_norm(spike)
        noise = torch.randn(SIZE, SIZE, SIZE, generator=generator, dtype=torch.float64)
        noise = torch.stack([noise.permute(order) for order in itertools.permutations(range(3))]).mean(dim=0)
        return System(
            spike,
            SIGNAL * torch.einsum("i,j,k->ijk", spike, spike, spike) + noise,
            strength,
            0.8 * RATE if broken else RATE,
            800 if short else 1500,
            500 if short else 1500,
            60_000 if short else 400_000,
            generator,
        )

    def run(self, system: System) -> Observed:
        last, averaged = _free(system)
        mean, overlap = _sphere(system)
        return Observed(
            last,
            averaged,
            _tilted(system),
            mean,
            overlap,
            [_escape(k) for k in (2, 3, 4)],
            scalar_propagator(math.exp(-RATE * TICK), 200),
        )

    def predict(self, system: System) -> Predicted:
        passed = RATE * TICK * TIMES
        averaged = 2 * HEAT / (RATE * passed) * (1 - (1 - torch.exp(-passed)) / passed)
        trace = system.tensor.diagonal(dim1=1, dim2=2).sum(dim=1)
        turned = torch.exp(-1j * FREQUENCIES)
        return Predicted(
            averaged,
            3 * system.strength / (SIZE * (SIZE + 2)) * trace,
            1 / (1 - math.exp(-RATE * TICK) * turned).abs(),
        )

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        scale = torch.linalg.vector_norm(predicted.tilted)
        along = predicted.tilted / scale
        mean = observed.mean / torch.linalg.vector_norm(observed.mean)
        cosine = float(mean @ along)
        kicks = torch.full((200,), HEAT / RATE * -math.expm1(-2 * RATE * TICK), dtype=torch.float64)
        kicks[0] = HEAT / RATE  # at rest from the first state on
        covariance = observed.propagator * kicks @ observed.propagator.mT
        # seven seeds, short: at most 4.3 %, 4.9 %, 4.5 %, cosine ≥ 0.93, 0.04 and 0.32
        return [
            monte_carlo.close("variance of the last state is T/λ", HEAT / RATE, observed.last, 7e-2, relative=True),
            monte_carlo.close("variance of the average", predicted.averaged, observed.averaged, 7e-2, relative=True),
            identity.close("diag P Σ Pᵀ is T/λ", HEAT / RATE, covariance.diagonal(), 1e-12),
            formula.close(
                "the average's variance by P", predicted.averaged[-1], covariance.mean(), 1e-2, relative=True
            ),
            formula.close("gain of P at each frequency", predicted.gains, _gains(observed), 1e-6, relative=True),
            monte_carlo.close(
                "mean under exp(b T[x, x, x]) along the partial trace", 1.0, observed.tilted @ along / scale, 0.1
            ),
            monte_carlo.at_least("cosine of the chains' average with the partial trace", 0.9, cosine),
            monte_carlo.close("its overlap with v", along @ system.spike, mean @ system.spike, 0.1),
            monte_carlo.at_most(
                "overlap of last states with v over that", 0.5, observed.overlap / float(mean @ system.spike)
            ),
            formula.close(
                "exponent of escape times over d, k = 3 and 4; over ½ ln d, k = 2",
                [1.0, 0.5, 1.0],
                observed.exponents,
                0.02,
                relative=True,
            ),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        times, fine = TICK * TIMES, torch.logspace(0, math.log10(20), 50, dtype=torch.float64)
        passed = RATE * fine
        averaged = 2 * HEAT / (RATE * passed) * (1 - (1 - torch.exp(-passed)) / passed)
        return (
            Panel.of(
                "Variance of a particle, and of its average",
                "time",
                "variance",
                curve("last state, T/λ", [1.0, 20.0], [HEAT / RATE] * 2),
                points("", times, observed.last),
                curve("average", fine, averaged, group=1),
                points("", times, observed.averaged, group=1),
                log="xy",
            ),
            Panel.of(
                "Gain of the propagator",
                "frequency per step",
                "gain",
                curve("1 / |1 − ρe^{−iω}|", FREQUENCIES, predicted.gains),
                points("P of 200 steps", FREQUENCIES, _gains(observed)),
                log="xy",
            ),
        )


def _free(system: System) -> tuple[Tensor, Tensor]:
    """Variances of dx = −λx dt + √(2T) dW and of its average, at rest from the start, by its exact steps."""
    kept = math.exp(-system.rate * TICK)
    kick = math.sqrt(HEAT / system.rate * (1 - kept**2))
    noise = torch.randn(201, 6000, generator=system.generator, dtype=torch.float64)
    state = math.sqrt(HEAT / system.rate) * noise[0]
    total, last, averaged = torch.zeros_like(state), [], []
    for tick in range(1, 201):
        before, state = state, kept * state + kick * noise[tick]
        total = total + 0.5 * (before + state)
        if tick in TIMES:
            last.append(state.square().mean())
            averaged.append((total / tick).square().mean())
    return torch.stack(last), torch.stack(averaged)


def _sphere(system: System) -> tuple[Tensor, float]:
    """Mean over chains and times of dx = 3b T[x, x, ·] dt + √2 dW on the sphere, and the last overlap with v."""
    flat = system.tensor.float().reshape(SIZE, -1)  # in float32: the noise is larger by far
    states = torch.randn(system.chains, SIZE, generator=system.generator)
    states = states / torch.linalg.vector_norm(states, dim=1, keepdim=True)
    total = torch.zeros(SIZE)
    for step in range(system.steps):
        pull = torch.einsum("njk,nj->nk", (states @ flat).view(-1, SIZE, SIZE), states)
        noise = torch.randn(states.shape, generator=system.generator)
        moved = states + 3 * system.strength * HOP * pull + math.sqrt(2 * HOP) * noise
        states = moved / torch.linalg.vector_norm(moved, dim=1, keepdim=True)
        if 10 * step >= system.steps:  # by then the start is forgotten: a harmonic of order 1 decays at the rate d − 1
            total = total + states.mean(dim=0)
    return total.double(), float((states @ system.spike.float()).abs().mean())


def _tilted(system: System) -> Tensor:
    """Mean under exp(b T[x, x, x]) of points on the sphere, in pairs ±x."""
    points = torch.randn(system.samples, SIZE, generator=system.generator)
    points = points / torch.linalg.vector_norm(points, dim=1, keepdim=True)
    flat = system.tensor.float().reshape(SIZE, -1)
    pulls = torch.cat([torch.einsum("njk,nj,nk->n", (x @ flat).view(-1, SIZE, SIZE), x, x) for x in points.split(4096)])
    tilt = system.strength * pulls.double()
    return torch.sinh(tilt) @ points.double() / torch.cosh(tilt).sum()


def _escape(order: int) -> float:
    """Exponent over d of the time from m = d^{−½} to ½ by ṁ = m^{k−1}(1 − m²); its ratio to ½ ln d where k = 2."""

    def velocity(height: float) -> float:  # of u = ln m, in time that runs as m^{2−k}
        return 1 - math.exp(2 * height)

    sizes, times = [1e7, 1e9], []
    for size in sizes:
        height, time = -0.5 * math.log(size), 0.0
        while height < math.log(0.5):
            first = velocity(height)
            middle = height + 0.005 * first
            time += 0.01 * math.exp((2 - order) * middle)
            height += 0.01 * velocity(middle)
        times.append(time)
    if order == 2:
        return (times[1] - times[0]) / (0.5 * math.log(sizes[1] / sizes[0]))
    return float(np.log(times[1] / times[0]) / math.log(sizes[1] / sizes[0]))


def _gains(observed: Observed) -> Tensor:
    """Size of the last state under a wave of each frequency."""
    waves = torch.exp(1j * FREQUENCIES[:, None] * torch.arange(200))
    return (waves @ observed.propagator[-1].to(waves.dtype)).abs()
