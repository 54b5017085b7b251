"""Langevin dynamics whose average over time knows more than its last state."""

import itertools
import math
from typing import NamedTuple, final

import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from torch import Tensor
from torch.nn.functional import normalize

from kpflow.estimate import spectrum
from kpflow.operators import Dense

from .draws import normal
from .entry import Check, Entry, Panel, curve, formula, identity, monte_carlo, pair, points
from .exponents import exponent
from .students import scalar_propagator

__all__ = ["Langevin"]

RATE, HEAT, TICK = 1.0, 1.0, 0.1  # of dx = −λx dt + √(2T) dW
TIMES = torch.tensor([10, 20, 40, 80, 140, 200])  # in ticks
SIZE, SIGNAL, HOP = 24, 14.0, 2e-3  # of the sphere
SIZES = (1e7, 1e9)  # d, of escape from the equator
COUNT = 200  # steps of P


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
    """Of chains, and of the propagator P of the same equation."""

    last: Tensor  # [t], variances
    averaged: Tensor  # [t]
    tilted: Tensor  # [24], mean under weights exp(b T[x, x, x])
    mean: Tensor  # [24], over time and chains, of length 1
    overlap: float  # mean |⟨x, v⟩| at the end
    escapes: list[list[float]]  # times, of k = 2, 3 and 4 at each size
    covariance: Tensor  # [200, 200], P Σ Pᵀ
    gains: Tensor  # [200], singular values of P


@final
class Predicted(NamedTuple):
    """Closed forms."""

    averaged: Tensor
    tilted: Tensor
    frequencies: Tensor  # [200], of the singular vectors of P
    gains: Tensor


@final
class Langevin(Entry[System, Observed, Predicted]):
    """Averaging leaves the variance (2T/λ²t) [1 − (1 − e^{−λt})/(λt)] of dx = −λx dt + √(2T) dW, the last state T/λ.

    On a sphere, under exp(b T[x, x, x]), the mean is 3b/(d(d+2)) times the partial trace Σⱼ Tᵢⱼⱼ to first order: a
    direction with signal that the average finds, where no single state shows it and escape from the equator takes long.
    """

    name = "langevin"
    title = "Langevin dynamics and averaging"
    paper = "Wei, Damian, Lee 2026, Langevin dynamics and stochastic weight averaging, arXiv 2603.06028"
    kernels = (
        "The average over time reads P at frequency zero, where its gain 1/|1 − ρe^{−iω}| is largest, and K is that "
        "of the noise: a low pass that noise does not survive and the drift's first harmonic does."
    )
    omits = "How many samples are needed, n ≳ d^{k/2}, and single-index models."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False, strength: float = 0.4) -> System:
        if not 0.3 <= strength <= 0.5:
            raise ValueError(
                f"`strength` must be between 0.3 and 0.5; got {strength!r}: the mean is predicted to first order in it "
                "only, and with less it is not seen above the chains' noise."
            )
        generator = torch.Generator().manual_seed(seed)
        spike = normalize(normal(generator, SIZE), dim=0)
        noise = normal(generator, SIZE, SIZE, SIZE)
        noise = torch.stack([noise.permute(order) for order in itertools.permutations(range(3))]).mean(dim=0)
        tensor = SIGNAL * torch.einsum("i,j,k->ijk", spike, spike, spike) + noise
        chains, steps, samples = (800, 500, 60_000) if short else (1500, 1500, 400_000)
        return System(spike, tensor, strength, 0.8 * RATE if broken else RATE, chains, steps, samples, generator)

    def run(self, system: System) -> Observed:
        last, averaged = _free(system)
        mean, overlap = _sphere(system)
        propagator = scalar_propagator(math.exp(-system.rate * TICK), COUNT)
        kicks = torch.full((COUNT,), -HEAT / RATE * math.expm1(-2 * RATE * TICK), dtype=torch.float64)
        kicks[0] = HEAT / RATE  # at rest from the first state on
        return Observed(
            last,
            averaged,
            _tilted(system),
            mean,
            overlap,
            [[_escape(system, order, size) for size in SIZES] for order in (2, 3, 4)],
            propagator * kicks @ propagator.mT,
            spectrum(Dense(propagator)),
        )

    def predict(self, system: System) -> Predicted:
        trace = system.tensor.diagonal(dim1=1, dim2=2).sum(dim=1)
        kept, frequencies = math.exp(-RATE * TICK), _frequencies(math.exp(-RATE * TICK))
        gains = 1 / (1 - kept * torch.exp(-1j * frequencies)).abs()
        return Predicted(_averaged(TICK * TIMES), 3 * system.strength / (SIZE * (SIZE + 2)) * trace, frequencies, gains)

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        scale = torch.linalg.vector_norm(predicted.tilted)
        along = predicted.tilted / scale
        tilted, overlap = observed.tilted @ along / scale, float(observed.mean @ system.spike)
        two, *more = observed.escapes
        powers = [(two[1] - two[0]) / math.log(SIZES[1] / SIZES[0]), *(exponent(SIZES, times) for times in more)]
        by_p = observed.covariance
        return [
            monte_carlo.close("variance of the last state is T/λ", HEAT / RATE, observed.last, 7e-2, relative=True),
            monte_carlo.close("variance of the average", predicted.averaged, observed.averaged, 7e-2, relative=True),
            identity.close("diag P Σ Pᵀ is T/λ", HEAT / RATE, by_p.diagonal(), 1e-12),
            formula.close("the average's variance by P", predicted.averaged[-1], by_p.mean(), 1e-2, relative=True),
            formula.close("singular values of P: its gains", predicted.gains, observed.gains, 1e-10, relative=True),
            monte_carlo.close("mean under exp(b T[x, x, x]) along the partial trace", 1.0, tilted, 0.1),
            monte_carlo.at_least("cosine of the chains' average with the partial trace", 0.9, observed.mean @ along),
            monte_carlo.close("its overlap with v", along @ system.spike, overlap, 0.1),
            monte_carlo.at_most("overlap of last states with v over that", 0.5, observed.overlap / overlap),
            formula.close("escape: over ln d, k = 2; powers of d, 3 and 4", [0.5, 0.5, 1], powers, 0.02, relative=True),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        fine = torch.logspace(0, math.log10(20), 50, dtype=torch.float64)
        variances = (
            curve("last state, T/λ", [1.0, 20.0], [HEAT / RATE] * 2),
            points("", TICK * TIMES, observed.last),
            curve("average", fine, _averaged(fine), group=1),
            points("", TICK * TIMES, observed.averaged, group=1),
        )
        gains = pair("1 / |1 − ρe^{−iω}|", predicted.frequencies, predicted.gains, observed.gains, every=5)
        return (
            Panel.of("Variance of a particle, and of its average", "time", "variance", *variances, log="xy"),
            Panel.of("Singular values of P, and its gain", "frequency per step", "gain", *gains, log="xy"),
        )


def _averaged(times: Tensor) -> Tensor:
    """(2T/λ²t) [1 − (1 − e^{−λt})/(λt)]."""
    passed = RATE * times
    return 2 * HEAT / (RATE * passed) * (1 - (1 - torch.exp(-passed)) / passed)


def _frequencies(kept: float) -> Tensor:
    """The ω of 0 < ω < π with sin (n+1)ω = ρ sin nω, at which P of n steps has its singular values."""
    ends = itertools.pairwise([1e-9, *(math.pi * k / (COUNT + 1) for k in range(1, COUNT + 1))])  # one between each two
    crossings = [brentq(lambda w: math.sin((COUNT + 1) * w) - kept * math.sin(COUNT * w), *two) for two in ends]
    return torch.tensor(crossings, dtype=torch.float64)


def _free(system: System) -> tuple[Tensor, Tensor]:
    """Variances of dx = −λx dt + √(2T) dW and of its average, at rest from the start, by its exact steps."""
    kept = math.exp(-system.rate * TICK)
    noise = math.sqrt(HEAT / system.rate) * normal(system.generator, 201, 6000)
    path = [noise[0]]
    for kick in noise[1:]:
        path.append(kept * path[-1] + math.sqrt(1 - kept**2) * kick)
    states = torch.stack(path)
    averages = torch.cumulative_trapezoid(states, dim=0)[TIMES - 1] / TIMES[:, None]
    return states[TIMES].square().mean(dim=1), averages.square().mean(dim=1)


def _pull(system: System, states: Tensor) -> Tensor:
    """T[x, x, ·] of each state, in float32: the noise is larger by far."""
    flat = system.tensor.float().view(SIZE, -1)
    return torch.einsum("njk,nj->nk", (states @ flat).view(-1, SIZE, SIZE), states)


def _sphere(system: System) -> tuple[Tensor, float]:
    """Mean over chains and times of dx = 3b T[x, x, ·] dt + √2 dW on the sphere, and the last overlap with v."""
    states = normalize(torch.randn(system.chains, SIZE, generator=system.generator), dim=1)
    total = torch.zeros(SIZE)
    for step in range(system.steps):
        noise = torch.randn(states.shape, generator=system.generator)
        drift = 3 * system.strength * HOP * _pull(system, states)
        states = normalize(states + drift + math.sqrt(2 * HOP) * noise, dim=1)
        if 10 * step >= system.steps:  # by then the start is forgotten: a harmonic of order 1 decays at the rate d − 1
            total = total + states.mean(dim=0)
    return normalize(total.double(), dim=0), float((states @ system.spike.float()).abs().mean())


def _tilted(system: System) -> Tensor:
    """Mean under exp(b T[x, x, x]) of points on the sphere, in pairs ±x."""
    states = normalize(torch.randn(system.samples, SIZE, generator=system.generator), dim=1)
    pulls = torch.cat([(_pull(system, x) * x).sum(dim=1) for x in states.split(4096)])
    tilt = system.strength * pulls.double()
    return torch.sinh(tilt) @ states.double() / torch.cosh(tilt).sum()


def _escape(system: System, order: int, size: float) -> float:
    """Time from m = v₁ √(24/d), that of a fixed start, to ½ by ṁ = λ m^{k−1}(1 − m²), an integral over ln m."""

    def slowness(log: float) -> float:
        return math.exp((2 - order) * log) / (1 - math.exp(2 * log)) / system.rate

    return quad(slowness, math.log(abs(float(system.spike[0])) * math.sqrt(SIZE / size)), math.log(0.5))[0]
