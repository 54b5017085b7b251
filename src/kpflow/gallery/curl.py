"""Curl descent: some synapses learn with the wrong sign, and the solutions stay stable up to a critical number."""

import math
from collections.abc import Callable
from statistics import fmean
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor
from torch.func import jacrev

from kpflow.estimate import extreme_eigenvalues, inertia
from kpflow.operators import Dense, Gram

from .draws import normal
from .entry import Check, Entry, Panel, curve, formula, identity, monte_carlo, points
from .flows import rk4
from .students import linear_ntk

__all__ = ["Curl"]

SQUARES = torch.tensor([0.5, 1.0, 1.5, 2.5, 3.0, 4.0], dtype=torch.float64)  # ρ², at T = 1: three on either side of 2
SHARES = (0.05, 0.1, 0.15, 0.2, 0.3)  # of flipped read-outs
FLIPS = (0, 2, 5, 8)  # of 20


@final
class System(NamedTuple):
    """Random matrices of N = 2M units, and a net on its manifold of solutions; `sign` of what is flipped is −1."""

    matrices: Tensor  # [k, 2M, M]
    first: Tensor  # [20, 10]
    second: Tensor  # [20], ‖w₂‖ = 1
    residual: Tensor  # [10]
    sign: float


@final
class Observed(NamedTuple):
    """Of the minimal model, of the net, and of the random matrices."""

    radii: Tensor  # ρ² along a path, over what it was
    periods: list[float]
    limits: Tensor
    rates: Tensor
    threshold: float
    origin: Tensor  # eigenvalues of the field there, as pairs of numbers
    kernel: Tensor
    shrinkage: list[float]  # of ‖r‖ in 500 steps, by number of flips, from any r and from the least mode of A
    spectra: Tensor  # [k, share, M], of W₁ᵀD₂W₁
    least: Tensor  # [share, 2], λ_min of the first, from products with J and D alone, and its bound
    inputs: list[Tensor]  # λ_min under flipped inputs: N < M with more flips than N, with one; N ≫ M with all


@final
class Predicted(NamedTuple):
    """Closed forms, and powers of I − ηA."""

    periods: Tensor
    limits: Tensor
    kernel: Tensor
    shrinkage: list[float]
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
    paper = "Ninou, Kadmon, Cayco-Gajic 2025, arXiv 2510.02765"
    kernels = (
        "Any rule with signs or metric D on the parameters is the NTK J D Jᵀ: whether learning is stable is the "
        "inertia of that operator, here A."
    )
    omits = "Nonlinear networks, and their chaos."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False) -> System:
        generator, count = torch.Generator().manual_seed(seed), 3 if short else 5
        matrices, first = normal(generator, count, 800, 400) / 20, normal(generator, 20, 10) / math.sqrt(10)
        second, residual = normal(generator, 20), 1e-7 * normal(generator, 10)
        return System(matrices, first, second / second.norm(), residual, -0.8 if broken else -1.0)

    def run(self, system: System) -> Observed:
        field, near = _pair(system.sign), torch.linspace(1.95, 2.05, 101, dtype=torch.float64)
        paths = rk4(field, torch.stack([SQUARES.sqrt(), 0 * SQUARES]), 0.005, 5000)  # [t, 2, 6]
        squares, times = paths.square(), 0.005 * np.arange(len(paths))
        gap = squares[:, 0, 3:] - squares[:, 1, 3:]
        late = (gap - gap[-1]).abs()
        at = (late < 1e-7).int().argmax(dim=0, keepdim=True)
        turns = _angles(rk4(field, torch.stack([near.sqrt(), 0 * near]), 0.05, 2400, every=8))[-1] > 2 * math.pi
        origin = torch.linalg.eigvals(jacrev(field)(torch.zeros(2, dtype=torch.float64)))
        metric = torch.cat([_signs(10, 2, system.sign).repeat(20), _signs(20, 4, system.sign)])
        narrow, wide = system.first.mT[:5], math.sqrt(5.0) * system.first[:, :2]
        bent = [torch.diag(_signs(W.shape[1], k)) + W.mT @ W for W, k in ((narrow, 6), (narrow, 1), (wide, 2))]
        return Observed(
            squares.sum(dim=1) / squares[:1].sum(dim=1),
            [float(np.interp(2 * math.pi, angle, times)) for angle in _angles(paths[:, :, :3]).T],
            gap[-1],
            (late.gather(0, at - 200) / late.gather(0, at)).log()[0],
            float(near[int(turns.argmin())]),
            torch.view_as_real(origin[origin.imag.argsort()]).flatten(),
            linear_ntk([system.first, system.second[None]], torch.eye(10, dtype=torch.float64), metric),
            [_descended(system, flips, start) for flips, _, start in _cases(system)],
            torch.stack(
                [torch.linalg.eigvalsh(torch.stack([_flipped(W, part) for part in SHARES])) for W in system.matrices]
            ),
            torch.tensor([_least(system.matrices[0], part) for part in SHARES], dtype=torch.float64),
            [torch.linalg.eigvalsh(A)[0] for A in bent],
        )

    def predict(self, system: System) -> Predicted:
        left = [(torch.eye(10) - 0.005 * A).matrix_power(500) @ start / start.norm() for _, A, start in _cases(system)]
        shares = np.linspace(0.01, 0.3, 300)
        return Predicted(
            2 * math.pi / (4 - SQUARES[:3].square()).sqrt(),
            (SQUARES[3:].square() - 4).sqrt(),
            torch.diag(_signs(10, 2)) + _flipped(system.first, 0.2),
            [float(vector.norm()) for vector in left],
            float(np.interp(1.0, [-_edge(share) for share in shares], shares)),
        )

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        edges, resolvent = observed.spectra[:, :, 0], (1 / (observed.spectra[:, 3] - _axis(0.2, 0.2))).mean()
        critical = [float(np.interp(1.0, -found, SHARES)) for found in edges.numpy()]
        least, bounds = observed.least.T
        decays = [bool(inertia(Dense(A)).positive_definite) for _, A, _ in _cases(system)[1::2]]
        decayed = [value < 1 for value in observed.shrinkage[1::2]]
        free = float(np.interp(1.0, -least.numpy(), SHARES))
        most, first, every = observed.inputs
        return [
            identity.close("ρ² along the path", 1.0, observed.radii, 1e-9),
            formula.close("period below ρ² = 2", predicted.periods, observed.periods, 1e-4, relative=True),
            formula.close("w₁² − w₂² at rest above it", predicted.limits, observed.limits, 1e-8),
            formula.close("rate of the approach", predicted.limits, observed.rates, 1e-3, relative=True),
            formula.close("ρ² from which it rests", 2.0, observed.threshold, 1e-2),
            identity.close("the origin is a centre: ±iT", [0.0, -1.0, 0.0, 1.0], observed.origin, 1e-12),
            identity.close("A is the NTK J D Jᵀ of the signs D", predicted.kernel, observed.kernel, 1e-12),
            formula.close("‖r‖ after 500 steps", predicted.shrinkage, observed.shrinkage, 1e-3, relative=True),
            identity.close("decay if and only if A's inertia is that of I", decays, decayed, 0.0),
            monte_carlo.close("resolvent of W₁ᵀD₂W₁ at m = 0.2", 0.2, resolvent, 3e-3, relative=True),
            monte_carlo.close("its edge, 30 % flipped", _edge(0.3), edges[:, -1].mean(), 0.06, relative=True),
            monte_carlo.close("share of flips at which λ_min = 0", predicted.critical, fmean(critical), 0.025),
            identity.close("the same by Lanczos on J D Jᵀ, one matrix", critical[0], free, 1e-4),
            identity.at_most("Lanczos' λ_min: error over its bound", 1.0, ((least - edges[0]).abs() / bounds).max()),
            identity.close("flipped inputs, N < M and more flips than N: λ_min = −‖w₂‖²", -1.0, most, 1e-12),
            formula.at_most("N < M: unstable from the first flip", 0.0, first),
            formula.at_least("N ≫ M: stable with all inputs flipped", 0.0, every),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        below, beyond = torch.linspace(0.0, 1.95, 100), torch.linspace(2.0, 4.0, 100)
        shares = np.linspace(0.02, 0.32, 61).tolist()
        pair = (
            curve("period 2π/√(4T² − ρ⁴)", below, 2 * math.pi / (4 - below.square()).sqrt()),
            points("", SQUARES[:3], observed.periods),
            curve("rate √(ρ⁴ − 4T²)", beyond, (beyond.square() - 4).sqrt(), group=1),
            points("", SQUARES[3:], observed.rates, group=1),
        )
        least = (
            curve("infinite width", shares, [1 + _edge(share) for share in shares]),
            *(points("", SHARES, 1 + found) for found in observed.spectra[:, :, 0]),
            curve("unstable below", [0.02, 0.32], [0.0, 0.0], group=7),
        )
        return (
            Panel.of("One pair of weights: it rotates, or rests", "ρ²", "", *pair),
            Panel.of("Least eigenvalue of J D Jᵀ", "share of flipped read-outs", "λ_min", *least),
        )


def _pair(sign: float) -> Callable[[Tensor], Tensor]:
    """ẇ₁ = w₂ r, ẇ₂ = ∓w₁ r of states `[2, *]`, r = w₁w₂ − 1."""

    def field(weights: Tensor) -> Tensor:
        first, second = weights
        miss = first * second - 1
        return torch.stack([second * miss, sign * first * miss])

    return field


def _angles(paths: Tensor) -> np.ndarray:
    """2·angle, unwrapped."""
    return 2 * np.unwrap(torch.atan2(paths[:, 1], paths[:, 0]).numpy(), axis=0)


def _signs(size: int, flips: int, sign: float = -1.0) -> Tensor:
    return torch.cat([torch.full((flips,), sign), torch.ones(size - flips)]).double()


def _flipped(W: Tensor, share: float) -> Tensor:
    """WᵀDW."""
    return W.mT @ (_signs(len(W), round(share * len(W)))[:, None] * W)


def _least(W: Tensor, share: float) -> tuple[float, float]:
    """λ_min of W₁ᵀD₂W₁ = J D Jᵀ and its bound, with J = W₁ᵀ of the read-outs; the matrix is not formed."""
    found = extreme_eigenvalues(Gram(Dense(W.mT), _signs(len(W), round(share * len(W)))), tol=1e-3).least
    return found.value, found.standard_error


def _cases(system: System) -> list[tuple[int, Tensor, Tensor]]:
    """Numbers of flips, A = ‖w₂‖² I + W₁ᵀD₂W₁, and residuals to start with: any, and the least mode of A."""
    stable = [torch.eye(10) + _flipped(system.first, flips / 20) for flips in FLIPS]
    starts = [(system.residual, 1e-7 * torch.linalg.eigh(A).eigenvectors[:, 0]) for A in stable]
    return [(flips, A, r) for flips, A, both in zip(FLIPS, stable, starts, strict=True) for r in both]


def _descended(system: System, flips: int, residual: Tensor) -> float:
    """‖r‖ after 500 steps of the net over ‖r‖ at first."""
    first, second, signs = system.first, system.second, _signs(20, flips, system.sign)
    target = second @ first - residual
    for _ in range(500):
        miss = second @ first - target
        first, second = first - 0.005 * second[:, None] * miss, second - 0.005 * signs * (first @ miss)
    return float((second @ first - target).norm() / residual.norm())


def _axis(m: float | np.ndarray, share: float) -> float | np.ndarray:
    """z(m) = −1/m + α₊/(1 + m) − α₋/(1 − m) for N = 2M, on which (1/M) tr (W₁ᵀD₂W₁ − z)⁻¹ = m."""
    return -1 / m + 2 * (1 - share) / (1 + m) - 2 * share / (1 - m)


def _edge(share: float) -> float:
    return float(np.max(_axis(np.linspace(1e-3, 1 - 1e-3, 4001), share)))
