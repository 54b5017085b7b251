"""Optimisation by the consensus of random particles, which is a gradient step in disguise."""

import math
from collections.abc import Callable
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from .entry import Check, Entry, Panel, curve, formula, identity, monte_carlo, points
from .students import linear_network, output_ntk

__all__ = ["Consensus"]

SIZE, HEAT, SPREAD = 4, 2.0, 0.5  # particles N(x, s²I) weigh e^{−αE}: α and s
STEP = HEAT * SPREAD**2  # τ = αs²
DRIFT, TICK = 1.0, 0.01
RIPPLE = 2.5  # of Rastrigin's function


@final
class System(NamedTuple):
    """E(θ) = ½‖Xθ − y‖² from θ₀, and the numbers of particles; `spread` of the particles is s."""

    design: Tensor  # [4, 4], its squared singular values are 0.25, 0.5, 1 and 2
    target: Tensor  # [4]
    start: Tensor  # [4]
    spread: float
    noise: float
    counts: tuple[int, ...]
    hoppers: int
    swarms: int
    generator: torch.Generator


@final
class Observed(NamedTuple):
    """Of the particles."""

    one: Tensor  # [repeats, 4], consensus of the most particles
    exponent: float  # of its error over their number
    order: float  # of what the gradient step misses, over τ
    path: Tensor  # [26, 4], each the consensus about the last
    spreads: Tensor  # mean ‖x‖² at each time
    trapped: Tensor  # [2]
    found: int  # swarms that end at the global minimum
    kernel: Tensor  # [4, 4], NTK of the predictions


@final
class Predicted(NamedTuple):
    """By the resolvent."""

    one: Tensor
    path: Tensor
    decay: float
    trapped: Tensor


@final
class Consensus(Entry[System, Observed, Predicted]):
    """The mean of particles N(x, s²I) that weigh e^{−αE} is x − τ∇E(x) + O(τ²), τ = αs²: no gradient is taken.

    Where E is quadratic it is the proximal point (I + τH)⁻¹ of implicit Euler. A swarm dx = −λ(x − v) dt + σ‖x − v‖ dW
    about its consensus v contracts at the rate 2λ − dσ², and leaves minima in which gradient descent stays.
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
        if not 0 <= noise**2 * SIZE < 2 * DRIFT:
            raise ValueError(
                f"`noise` must be below √(2λ/d) = {math.sqrt(2 * DRIFT / SIZE):.3g}; got {noise!r}: "
                f"at 2λ ≤ dσ² the swarm does not contract."
            )
        generator = torch.Generator().manual_seed(seed)
        left, right = (
            torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)).Q for _ in range(2)
        )
        scales = torch.tensor([2.0, 1.0, 0.5, 0.25], dtype=torch.float64).sqrt()
        best = torch.randn(SIZE, generator=generator, dtype=torch.float64)
        design = left * scales @ right.mT
        start = best + 0.6 * torch.linalg.solve(design, left.sum(dim=1))  # every mode of the residual is 0.6
        counts = (1000, 5000, 25_000) if short else (1000, 10_000, 100_000)
        return System(
            design,
            design @ best,
            start,
            SPREAD * (1.25 if broken else 1.0),
            noise,
            counts,
            20_000 if short else 80_000,
            5 if short else 20,
            generator,
        )

    def run(self, system: System) -> Observed:
        def loss(points: Tensor) -> Tensor:
            return 0.5 * (points @ system.design.mT - system.target).square().sum(dim=-1)

        def hop(center: Tensor, count: int) -> Tensor:
            noise = torch.randn(count, SIZE, generator=system.generator, dtype=torch.float64)
            return _consensus(loss, center + system.spread * noise)

        ones = [torch.stack([hop(system.start, count) for _ in range(20)]) for count in system.counts]
        errors = [float((one - _proximal(system, system.start)).square().sum(dim=1).mean().sqrt()) for one in ones]
        path = [system.start]
        for _ in range(25):
            path.append(hop(path[-1], system.hoppers))
        return Observed(
            ones[-1],
            float(np.polyfit(np.log(system.counts), np.log(errors), 1)[0]),
            _order(),
            torch.stack(path),
            _swarm(system),
            _descend(torch.tensor([2.8, -2.1], dtype=torch.float64)),
            sum(_search(system.generator) for _ in range(system.swarms)),
            output_ntk(linear_network([system.start[None]]), system.design),
        )

    def predict(self, system: System) -> Predicted:
        path = [system.start]
        for _ in range(25):
            path.append(_proximal(system, path[-1]))
        trapped = torch.tensor([3.0, -2.0], dtype=torch.float64)
        for _ in range(20):  # Newton's method on ∂E/∂x = 2x + 2πa sin 2πx
            wave = 2 * math.pi * trapped
            slope, bend = 2 * trapped + 2 * math.pi * RIPPLE * wave.sin(), 2 + 4 * math.pi**2 * RIPPLE * wave.cos()
            trapped = trapped - slope / bend
        return Predicted(path[1], torch.stack(path), 2 * DRIFT - SIZE * system.noise**2, trapped)

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        factors, values = _filters(system, observed)
        times = TICK * np.arange(len(observed.spreads))
        decay = -float(np.polyfit(times, observed.spreads.log().numpy(), 1)[0])
        rms = (observed.one - predicted.one).square().mean().sqrt()
        # eight seeds, short: at most 4e-3, 4e-2, 2e-2, 1.3 %, all swarms, and 3e-3
        return [
            monte_carlo.close("consensus is the proximal point: root mean square", 0.0, rms, 2e-2),
            monte_carlo.close("its error over the number of particles: exponent", -0.5, observed.exponent, 0.15),
            formula.close("what −τ∇E misses, over τ: exponent", 2.0, observed.order, 0.05),
            monte_carlo.close("hopping is implicit Euler", predicted.path, observed.path, 3e-2),
            monte_carlo.close("the swarm's variance decays", predicted.decay, decay, 0.06, relative=True),
            formula.close("gradient descent stays at", predicted.trapped, observed.trapped, 1e-9),
            monte_carlo.at_least("share of swarms at the global minimum", 1.0, observed.found / system.swarms),
            identity.close("modes of the NTK", [0.25, 0.5, 1.0, 2.0], values, 1e-12),
            monte_carlo.close("residual of each mode after a hop", 1 / (1 + STEP * values), factors, 1e-2),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        factors, values = _filters(system, observed)
        eigenvalues = torch.linspace(0, 2.2, 45, dtype=torch.float64)
        steps = torch.arange(26)
        lines = [
            points(f"θ{'₁₂₃₄'[i]}" if not seen else "", steps, path[:, i], group=i, observed=seen)
            for i in range(SIZE)
            for seen, path in ((False, predicted.path), (True, observed.path))
        ]
        return (
            Panel.of("Hops of the consensus on implicit Euler", "hop", "θ", *lines),
            Panel.of(
                "What one hop leaves of each NTK mode",
                "eigenvalue",
                "share of the residual",
                curve("1 / (1 + τλ)", eigenvalues, 1 / (1 + STEP * eigenvalues)),
                points("particles", values, factors),
                curve("gradient step, 1 − τλ", eigenvalues, 1 - STEP * eigenvalues, group=1),
            ),
        )


def _consensus(loss: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Mean of the points along the last axis but one, each weighing e^{−αE}."""
    return (-HEAT * loss(points)).softmax(dim=-1)[..., None, :].matmul(points).squeeze(-2)


def _proximal(system: System, center: Tensor) -> Tensor:
    """argmin of E(z) + ‖z − x‖²/(2τ)."""
    curved = torch.eye(SIZE, dtype=torch.float64) + STEP * system.design.mT @ system.design
    return torch.linalg.solve(curved, center + STEP * system.design.mT @ system.target)


def _filters(system: System, observed: Observed) -> tuple[Tensor, Tensor]:
    """Share of the residual that a hop leaves, in the eigenvectors of the NTK, and its eigenvalues."""
    values, vectors = torch.linalg.eigh(observed.kernel)
    before = vectors.mT @ (system.design @ system.start - system.target)
    after = vectors.mT @ (system.design @ observed.one.mean(dim=0) - system.target)
    return after / before, values


def _order() -> float:
    """Exponent over τ of consensus + τE′ − x at x = 0.7 for E = x⁴/4 + sin x, by Gauss and Hermite's rule."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    steps, gaps = [1e-2, 5e-3, 2.5e-3, 1.25e-3], []
    for step in steps:
        points = 0.7 + math.sqrt(step / HEAT) * nodes
        mass = weights * np.exp(-HEAT * (points**4 / 4 + np.sin(points)))
        gaps.append(abs(float(mass @ points / mass.sum()) - 0.7 + step * (0.7**3 + math.cos(0.7))))
    return float(np.polyfit(np.log(steps), np.log(gaps), 1)[0])


def _swarm(system: System) -> Tensor:
    """Mean ‖x‖² of 4000 particles about their consensus, E = ½‖x‖², to time 1."""
    points = torch.randn(4000, SIZE, generator=system.generator, dtype=torch.float64)
    kept = [points.square().sum(dim=1).mean()]
    for _ in range(100):
        away = points - _consensus(lambda x: 0.5 * x.square().sum(dim=-1), points)
        noise = torch.randn(points.shape, generator=system.generator, dtype=torch.float64)
        length = torch.linalg.vector_norm(away, dim=1, keepdim=True)
        points = points - DRIFT * TICK * away + system.noise * math.sqrt(TICK) * length * noise
        kept.append(points.square().sum(dim=1).mean())
    return torch.stack(kept)


def _rastrigin(points: Tensor) -> Tensor:
    return (points.square() + RIPPLE * (1 - torch.cos(2 * math.pi * points))).sum(dim=-1)


def _descend(point: Tensor) -> Tensor:
    """Where gradient descent on Rastrigin's function ends."""
    for _ in range(2000):
        point = point - 5e-3 * (2 * point + 2 * math.pi * RIPPLE * torch.sin(2 * math.pi * point))
    return point


def _search(generator: torch.Generator) -> bool:
    """Whether 200 particles, started about (3, −2), find the minimum of Rastrigin's function at 0."""
    center = torch.tensor([3.0, -2.0], dtype=torch.float64)
    points = center + 2 * torch.randn(200, 2, generator=generator, dtype=torch.float64)
    for _ in range(500):
        away = points - _consensus(lambda x: 15 * _rastrigin(x), points)
        noise = torch.randn(points.shape, generator=generator, dtype=torch.float64)
        length = torch.linalg.vector_norm(away, dim=1, keepdim=True)
        points = points - 0.02 * away + 0.7 * math.sqrt(0.02) * length * noise
    return bool(_consensus(lambda x: 15 * _rastrigin(x), points).abs().max() < 0.25)
