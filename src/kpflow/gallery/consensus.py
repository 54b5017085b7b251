"""Optimisation by the consensus of random particles, which is a gradient step in disguise."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy import ndarray
from scipy.optimize import brentq
from torch import Tensor

from .draws import normal, orthogonal
from .entry import Check, Entry, Line, Panel, formula, identity, monte_carlo, pair
from .exponents import exponent
from .students import linear_network, output_ntk

__all__ = ["Consensus"]

SIZE, HEAT, SPREAD = 4, 2.0, 0.5  # particles N(x, s²I) weigh e^{−αE}: α and s
STEP = HEAT * SPREAD**2  # τ = αs²
SCALES = torch.tensor([2.0, 1.0, 0.5, 0.25], dtype=torch.float64)  # of the quadratic E
TICK = 0.01
RIPPLE = 2.5  # of Rastrigin's function
FINE = (1e-2, 5e-3, 2.5e-3, 1.25e-3)  # τ where E is not quadratic


@final
class System(NamedTuple):
    """E(θ) = ½‖Xθ − y‖² from θ₀, and the numbers of particles; `spread` of the particles is s."""

    design: Tensor  # [4, 4]
    target: Tensor  # [4]
    start: Tensor  # [4]
    place: Tensor  # where a step is taken on an E that is not quadratic
    trap: ndarray  # [2], near a local minimum of Rastrigin's function
    spread: float
    noise: float
    counts: tuple[int, ...]
    hoppers: int
    swarms: int
    generator: torch.Generator


@final
class Observed(NamedTuple):
    """Of the particles."""

    ones: Tensor  # [counts, repeats, 4], consensus about the start
    gaps: list[float]  # what the gradient step misses, by τ
    path: Tensor  # [26, 4], each the consensus about the last
    spreads: Tensor  # mean ‖x‖² at each time
    trapped: ndarray  # [2]
    found: Tensor  # [swarms], whether they end at the global minimum
    values: Tensor  # [4], eigenvalues of the NTK of the predictions
    factors: Tensor  # [4], share of the residual that a hop leaves in each of its eigenvectors


@final
class Predicted(NamedTuple):
    """By the resolvent."""

    path: Tensor
    decay: float
    trapped: list[float]


@final
class Consensus(Entry[System, Observed, Predicted]):
    """The mean of particles N(x, s²I) that weigh e^{−αE} is x − τ∇E(x) + O(τ²), τ = αs²: no gradient is taken.

    Where E is quadratic it is the proximal point (I + τH)⁻¹ of implicit Euler. A swarm dx = −λ(x − v) dt + σ‖x − v‖ dW
    about its consensus v, λ = 1, contracts at the rate 2λ − dσ², and leaves minima in which gradient descent stays.
    """

    name = "consensus"
    title = "Consensus-based optimisation"
    paper = "Riedl, Klock, Geldhauser, Fornasier 2023, Gradient is All You Need?, arXiv 2306.09778"
    kernels = (
        "One consensus step moves the predictions by −τK(I + τK)⁻¹ times the residual, K their NTK: the filter of "
        "ridge regression, which no step size can make unstable."
    )
    omits = "Convergence in the mean field, noise of each coordinate apart, and training of networks."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False, noise: float = 0.3) -> System:
        if not 0 <= noise <= 0.5:
            raise ValueError(
                f"`noise` must be at least 0 and at most 0.5; got {noise!r}: σ is a size, and near √(2λ/d) = "
                f"{math.sqrt(2 / SIZE):.3g}, where the swarm does not contract, few particles carry its variance."
            )
        generator = torch.Generator().manual_seed(seed)
        left, right = (orthogonal(generator, SIZE) for _ in range(2))
        design, best = left * SCALES.sqrt() @ right.mT, normal(generator, SIZE)
        start = best + 0.6 * torch.linalg.solve(design, left.sum(dim=1))  # every mode of the residual is 0.6
        counts = (1000, 5000, 25_000) if short else (1000, 10_000, 100_000)
        spread, hoppers, swarms = SPREAD * (1.25 if broken else 1.0), 20_000 if short else 80_000, 5 if short else 20
        place, trap = 1 + 0.5 * torch.rand(1, generator=generator).double(), normal(generator, 2).numpy() / 10
        trap += np.array([2.8, -2.1])
        return System(design, design @ best, start, place, trap, spread, noise, counts, hoppers, swarms, generator)

    def run(self, system: System) -> Observed:
        def loss(points: Tensor) -> Tensor:
            return 0.5 * (points @ system.design.mT - system.target).square().sum(dim=-1)

        def hop(center: Tensor, count: int) -> Tensor:
            return _consensus(loss, center + system.spread * normal(system.generator, count, SIZE))

        ones = torch.stack([torch.stack([hop(system.start, count) for _ in range(20)]) for count in system.counts])
        path = [system.start]
        for _ in range(25):
            path.append(hop(path[-1], system.hoppers))
        cloud = normal(system.generator, 4000, SIZE)
        swarm = _swarm(lambda x: 0.5 * x.square().sum(dim=-1), cloud, TICK, 100, system.noise, system.generator)
        kernel = output_ntk(linear_network([system.start[None]]), system.design)
        values, vectors = torch.linalg.eigh(kernel)
        before, after = ((system.design @ at - system.target) @ vectors for at in (system.start, ones[-1].mean(dim=0)))
        return Observed(
            ones,
            [_beyond_gradient(system, step) for step in FINE],
            torch.stack(path),
            torch.stack([points.square().sum(dim=1).mean() for points in swarm]),
            _descend(system.trap),
            _search(system),
            values,
            after / before,
        )

    def predict(self, system: System) -> Predicted:
        curved = torch.eye(SIZE, dtype=torch.float64) + STEP * system.design.mT @ system.design
        path = [system.start]
        for _ in range(25):  # argmin of E(z) + ‖z − x‖²/(2τ)
            path.append(torch.linalg.solve(curved, path[-1] + STEP * system.design.mT @ system.target))
        roots: list[Any] = [brentq(_slope, low, low + 0.25) for low in (2.75, 1.75)]
        return Predicted(torch.stack(path), 2 - SIZE * system.noise**2, [roots[0], -roots[1]])

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        errors = (observed.ones - predicted.path[1]).square().mean(dim=(1, 2)).sqrt()
        fall = exponent(system.counts, errors)
        decay = -np.polyfit(TICK * np.arange(len(observed.spreads)), observed.spreads.log().numpy(), 1)[0]
        share = observed.found.double().mean()
        left = 1 / (1 + STEP * observed.values)
        return [
            monte_carlo.close("consensus is the proximal point: root mean square", 0.0, errors[-1], 1e-2),
            monte_carlo.close("its error over the number of particles: exponent", -0.5, fall, 0.15),
            formula.close("what −τ∇E misses, over τ: exponent", 2.0, exponent(FINE, observed.gaps), 0.05),
            monte_carlo.close("hopping is implicit Euler", predicted.path, observed.path, 3e-2),
            monte_carlo.close("the swarm's variance decays", predicted.decay, decay, 0.05, relative=True),
            formula.close("gradient descent stays at", predicted.trapped, observed.trapped, 1e-9),
            monte_carlo.at_least("share of swarms at the global minimum", 1.0, share),
            identity.close("modes of the NTK", SCALES.flip(0), observed.values, 1e-12),
            monte_carlo.close("residual of each mode after a hop", left, observed.factors, 1e-2),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        steps, hops, modes = range(len(observed.path)), list[Line](), list[Line]()
        _, vectors = torch.linalg.eigh(system.design @ system.design.mT)
        left, law = (
            ((path @ system.design.mT - system.target) @ vectors).abs() for path in (observed.path, predicted.path)
        )
        for i in range(SIZE):
            hops += pair(f"θ{'₁₂₃₄'[i]}", steps, predicted.path[:, i], observed.path[:, i], i)
            modes += pair(f"λ = {float(observed.values[i]):.3g}", steps, law[:, i], left[:, i], i)
        return (
            Panel.of("Hops of the consensus on implicit Euler", "hop", "θ", *hops),
            Panel.of("Modes of the NTK: (1 + τλ) less at every hop", "hop", "residual", *modes),
        )


def _consensus(loss: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Mean of the points along the last axis but one, each weighing e^{−αE}."""
    return (-HEAT * loss(points)).softmax(dim=-1)[..., None, :].matmul(points).squeeze(-2)


def _beyond_gradient(system: System, step: float) -> float:
    """|consensus + τE′ − x| for E = x⁴/4 + sin x; the particles are the nodes of Gauss and Hermite's rule."""
    nodes, mass = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(60))
    x, width = system.place, math.sqrt(step / HEAT) * system.spread / SPREAD

    def loss(points: Tensor) -> Tensor:
        return points[:, 0] ** 4 / 4 + points[:, 0].sin() - mass.log() / HEAT

    return float((_consensus(loss, (x + width * nodes)[:, None]) - x + step * (x**3 + x.cos())).abs())


def _swarm(
    loss: Callable[[Tensor], Tensor], points: Tensor, tick: float, count: int, noise: float, generator: torch.Generator
) -> Iterator[Tensor]:
    """Particles dx = −(x − v) dt + σ‖x − v‖ dW at each time, v their consensus."""
    yield points
    for _ in range(count):
        away = points - _consensus(loss, points)[..., None, :]
        kicks = torch.linalg.vector_norm(away, dim=-1, keepdim=True) * normal(generator, *points.shape)
        points = points - tick * away + noise * math.sqrt(tick) * kicks
        yield points


def _slope(x: Any) -> Any:
    """Of Rastrigin's function Σ x² + a (1 − cos 2πx)."""
    return 2 * x + 2 * math.pi * RIPPLE * np.sin(2 * math.pi * x)


def _descend(x: ndarray) -> ndarray:
    """Where gradient descent on Rastrigin's function ends."""
    for _ in range(2000):
        x = x - 5e-3 * _slope(x)
    return x


def _search(system: System) -> Tensor:
    """Whether swarms of 200 particles, started about (3, −2), find the minimum of Rastrigin's function at 0."""

    def loss(points: Tensor) -> Tensor:
        return 15 * (points.square() + RIPPLE * (1 - torch.cos(2 * math.pi * points))).sum(dim=-1)

    start = torch.tensor([3.0, -2.0], dtype=torch.float64) + 2 * normal(system.generator, system.swarms, 200, 2)
    *_, last = _swarm(loss, start, 0.02, 500, 0.7, system.generator)
    return _consensus(loss, last).abs().amax(dim=-1) < 0.25
