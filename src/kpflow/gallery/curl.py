"""Curl descent: some synapses learn with the wrong sign, and the solutions stay stable up to a critical number."""

import math
from collections.abc import Callable
from typing import NamedTuple, final

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor
from torch.func import jacrev

from .entry import Check, Entry, Panel, curve, formula, identity, monte_carlo, points
from .flows import rk4
from .students import linear_network, output_ntk

__all__ = ["Curl"]

BELOW = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)  # ρ², at T = 1
ABOVE = torch.tensor([2.5, 3.0, 4.0], dtype=torch.float64)
SHARES = (0.05, 0.1, 0.15, 0.3)  # of flipped read-outs
FLIPS = (0, 2, 5, 8)  # of 20


@final
class System(NamedTuple):
    """Random matrices of N = 2M units, and a net on its manifold of solutions; `sign` of what is flipped is −1."""

    matrices: Tensor  # [k, 2M, M]
    first: Tensor  # [20, 10]
    second: Tensor  # [20]
    residual: Tensor  # [10]
    sign: float


@final
class Observed(NamedTuple):
    """Of the minimal model, of the net, and of the random matrices."""

    radii: Tensor  # ρ² along a path, over what it was
    periods: Tensor
    limits: Tensor
    rates: Tensor
    threshold: float
    origin: Tensor
    kernel: Tensor
    shrinkage: Tensor  # of ‖r‖ in 500 steps, by number of flips
    turned: Tensor  # the same, begun along the least eigenvector of A
    least: Tensor  # λ_min of A by number of flips
    edges: Tensor  # [k, share]
    resolvent: float
    critical: float
    inputs: Tensor  # λ_min under flipped inputs: N < M with more flips than N, with one; N ≫ M with all


@final
class Predicted(NamedTuple):
    """Closed forms, and powers of I − ηA."""

    periods: Tensor
    limits: Tensor
    kernel: Tensor
    shrinkage: Tensor
    edges: Tensor
    critical: float


@final
class Curl(Entry[System, Observed, Predicted]):
    """Weights with flipped signs of learning leave y = w₂ᵀW₁x solvable while A = ‖w₂‖²D₁ + W₁ᵀD₂W₁ is positive.

    One pair, ẇ₁ = w₂ r, ẇ₂ = −w₁ r with r = w₁w₂ − T: ρ² is conserved, and 2·angle obeys θ̇ = 2T − ρ² sin θ, which
    rotates for ρ² < 2|T| and rests above. Random W₁ (N × M, variance 1/M), a share of read-outs flipped: the edge of
    W₁ᵀD₂W₁ is the largest −1/m + α₊/(1 + m) − α₋/(1 − m) for m in (0, 1).
    """

    name = "curl"
    title = "Curl descent"
    paper = "Curl Descent: non-gradient learning with sign-diverse plasticity, 2025, arXiv 2510.02765"
    kernels = (
        "Any rule with signs or metric D on the parameters is the NTK J D Jᵀ: whether learning is stable is the "
        "inertia of that operator, here A."
    )
    omits = "Nonlinear networks, and their chaos."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False) -> System:
        generator = torch.Generator().manual_seed(seed)
        size, count = 400, 3 if short else 5
        drawn = [
            torch.randn(*shape, generator=generator, dtype=torch.float64)
            for shape in ((count, 2 * size, size), (20, 10), (20,), (10,))
        ]
        matrices, first, second, residual = drawn
        return System(
            matrices / math.sqrt(size),
            first / math.sqrt(10),
            second / torch.linalg.vector_norm(second),
            1e-7 * residual,
            -0.8 if broken else -1.0,
        )

    def run(self, system: System) -> Observed:
        paths = rk4(_pair(system.sign), _on_circle(torch.cat([BELOW, ABOVE])), 0.005, 5000)  # [t, 2, 6]
        squares = paths.square()
        gap = squares[:, 0, 3:] - squares[:, 1, 3:]
        late = (gap - gap[-1]).abs()
        at = [int((miss < 1e-7).nonzero()[0]) for miss in late.mT]
        signs = _signs(20, 4, system.sign)
        metric = torch.cat([_signs(10, 2, system.sign).repeat(20), signs])
        edges = torch.stack([_edges_of(W) for W in system.matrices])
        layers = linear_network([system.first, system.second[None]])
        return Observed(
            squares.sum(dim=1) / squares[:1].sum(dim=1),
            _periods(paths[:, :, :3]),
            gap[-1],
            torch.stack([(late[k - 200, i] / late[k, i]).log() for i, k in enumerate(at)]),
            _threshold(system.sign),
            torch.linalg.eigvals(jacrev(_pair(system.sign))(torch.zeros(2, dtype=torch.float64))),
            output_ntk(layers, torch.eye(10, dtype=torch.float64), metric),
            torch.tensor([_descended(system, flips, system.residual) for flips in FLIPS]),
            torch.tensor([_descended(system, flips, 1e-7 * _modes(system, flips)[1][:, 0]) for flips in FLIPS]),
            torch.stack([_modes(system, flips)[0][0] for flips in FLIPS]),
            edges,
            float(torch.stack([_resolvent(W, _axis(0.2, 0.2)) for W in system.matrices]).mean()),
            float(np.mean([np.interp(1.0, -found, SHARES) for found in edges.numpy()])),
            _of_inputs(system.first),
        )

    def predict(self, system: System) -> Predicted:
        metric = [torch.diag(_signs(size, flips, -1.0)) for size, flips in ((10, 2), (20, 4))]
        shares = np.linspace(0.01, 0.3, 300)
        return Predicted(
            2 * math.pi / (4 - BELOW.square()).sqrt(),
            (ABOVE.square() - 4).sqrt(),
            metric[0] * system.second.square().sum() + system.first.mT @ metric[1] @ system.first,
            torch.stack([_powers(system, flips) for flips in FLIPS]),
            torch.tensor([_edge(share) for share in SHARES]),
            float(np.interp(1.0, [-_edge(share) for share in shares], shares)),
        )

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        poles = observed.origin[observed.origin.imag.argsort()]
        mean = observed.edges.mean(dim=0)
        signs = -observed.least.sign()
        return [
            identity.close("ρ² along the path", 1.0, observed.radii, 1e-9),
            formula.close("period below ρ² = 2", predicted.periods, observed.periods, 1e-4, relative=True),
            formula.close("w₁² − w₂² at rest above it", predicted.limits, observed.limits, 1e-8),
            formula.close("rate of the approach", predicted.limits, observed.rates, 1e-3, relative=True),
            formula.close("ρ² from which it rests", 2.0, observed.threshold, 1e-2),
            identity.close("the origin is a centre: ±iT", [-1.0, 1.0], poles.imag, 1e-12),
            identity.close("and does not decay", 0.0, poles.real, 1e-12),
            identity.close("A is the NTK J D Jᵀ of the signs D", predicted.kernel, observed.kernel, 1e-12),
            formula.close(
                "‖r‖ after 500 steps, on both sides", predicted.shrinkage, observed.shrinkage, 1e-3, relative=True
            ),
            identity.close("growth or decay by the sign of λ_min(A)", signs, observed.turned.log().sign(), 0.0),
            # by 8 seeds: resolvent 1e-3, the edge of one matrix 0.033 ± 0.016, the share 0.010 ± 0.003 above
            monte_carlo.close("resolvent of W₁ᵀD₂W₁ at m = 0.2", 0.2, observed.resolvent, 1e-2, relative=True),
            monte_carlo.close("its edge, 30 % flipped", predicted.edges[-1], mean[-1], 0.06, relative=True),
            monte_carlo.close("share of flips at which λ_min = 0", predicted.critical, observed.critical, 0.025),
            identity.close(
                "flipped inputs, N < M and more flips than N: λ_min = −‖w₂‖²", -1.0, observed.inputs[0], 1e-12
            ),
            formula.at_most("N < M: unstable from the first flip", 0.0, observed.inputs[1]),
            formula.at_least("N ≫ M: stable with all inputs flipped", 0.0, observed.inputs[2]),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        squares = torch.linspace(0.0, 1.95, 100, dtype=torch.float64)
        beyond = torch.linspace(2.0, 4.0, 100, dtype=torch.float64)
        shares = np.linspace(0.02, 0.32, 61)
        return (
            Panel.of(
                "One pair of weights: it rotates, or rests",
                "ρ²",
                "",
                curve("period 2π/√(4T² − ρ⁴)", squares, 2 * math.pi / (4 - squares.square()).sqrt()),
                points("", BELOW, observed.periods),
                curve("rate √(ρ⁴ − 4T²)", beyond, (beyond.square() - 4).sqrt(), group=1),
                points("", ABOVE, observed.rates, group=1),
            ),
            Panel.of(
                "Least eigenvalue of J D Jᵀ",
                "share of flipped read-outs",
                "λ_min",
                curve("infinite width", shares, [1 + _edge(share) for share in shares.tolist()]),
                *(points("", SHARES, 1 + found) for found in observed.edges),
                curve("unstable below", [0.02, 0.32], [0.0, 0.0], group=7),
            ),
        )


def _pair(sign: float) -> Callable[[Tensor], Tensor]:
    """ẇ₁ = w₂ r, ẇ₂ = ∓w₁ r of states `[2, *]`, r = w₁w₂ − 1."""

    def field(weights: Tensor) -> Tensor:
        first, second = weights
        miss = first * second - 1
        return torch.stack([second * miss, sign * first * miss])

    return field


def _on_circle(squares: Tensor) -> Tensor:
    return torch.stack([squares.sqrt(), torch.zeros_like(squares)])


def _angles(paths: Tensor) -> ndarray:
    """2·angle, unwrapped."""
    return 2 * np.unwrap(torch.atan2(paths[:, 1], paths[:, 0]).numpy(), axis=0)


def _periods(paths: Tensor) -> Tensor:
    """Time in which 2·angle goes once round, of steps of 0.005."""
    times = 0.005 * np.arange(len(paths))
    return torch.tensor([float(np.interp(2 * math.pi, angle, times)) for angle in _angles(paths).T])


def _threshold(sign: float) -> float:
    """The least ρ² for which 2·angle does not go round in a time of 120."""
    squares = torch.linspace(1.95, 2.05, 101, dtype=torch.float64)
    round_ = _angles(rk4(_pair(sign), _on_circle(squares), 0.05, 2400, every=8))[-1] > 2 * math.pi
    return float(squares[int(round_.argmin())])


def _signs(size: int, flips: int, sign: float) -> Tensor:
    signs = torch.ones(size, dtype=torch.float64)
    signs[:flips] = sign
    return signs


def _modes(system: System, flips: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of A = ‖w₂‖² I + W₁ᵀD₂W₁."""
    bent = system.first.mT @ (_signs(20, flips, -1.0)[:, None] * system.first)
    return torch.linalg.eigh(system.second.square().sum() * torch.eye(10, dtype=torch.float64) + bent)


def _powers(system: System, flips: int) -> Tensor:
    """‖(I − ηA)⁵⁰⁰ r₀‖ / ‖r₀‖."""
    values, vectors = _modes(system, flips)
    kept = (1 - 0.005 * values) ** 500 * (vectors.mT @ system.residual)
    return torch.linalg.vector_norm(kept) / torch.linalg.vector_norm(system.residual)


def _descended(system: System, flips: int, residual: Tensor) -> float:
    """The same, by 500 steps of the net itself."""
    first, second, signs = system.first, system.second, _signs(20, flips, system.sign)
    target = second @ first - residual
    for _ in range(500):
        miss = second @ first - target
        first, second = first - 0.005 * second[:, None] * miss, second - 0.005 * signs * (first @ miss)
    return float(torch.linalg.vector_norm(second @ first - target) / torch.linalg.vector_norm(residual))


def _axis(m: float | ndarray, share: float) -> float | ndarray:
    """z(m) = −1/m + α₊/(1 + m) − α₋/(1 − m) for N = 2M, on which (1/M) tr (W₁ᵀD₂W₁ − z)⁻¹ = m."""
    return -1 / m + 2 * (1 - share) / (1 + m) - 2 * share / (1 - m)


def _edge(share: float) -> float:
    return float(np.max(_axis(np.linspace(1e-3, 1 - 1e-3, 4001), share)))


def _flipped(W: Tensor, share: float) -> Tensor:
    return W.mT @ (_signs(len(W), round(share * len(W)), -1.0)[:, None] * W)


def _edges_of(W: Tensor) -> Tensor:
    return torch.stack([torch.linalg.eigvalsh(_flipped(W, share))[0] for share in SHARES])


def _resolvent(W: Tensor, z: float | ndarray) -> Tensor:
    return torch.linalg.inv(_flipped(W, 0.2) - float(z) * torch.eye(W.shape[1], dtype=W.dtype)).diagonal().mean()


def _of_inputs(first: Tensor) -> Tensor:
    """λ_min of D₁ + W₁ᵀW₁: 5 × 20 with six flips, with one; 20 × 2 with both inputs flipped."""
    narrow, wide = first.mT[:5], math.sqrt(5.0) * first[:, :2]
    cases = [(narrow, 6), (narrow, 1), (wide, 2)]
    return torch.stack(
        [torch.linalg.eigvalsh(torch.diag(_signs(W.shape[1], flips, -1.0)) + W.mT @ W)[0] for W, flips in cases]
    )
