"""Self-supervised learning without negative pairs: a linear predictor keeps the representation from collapse."""

import math
from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor

from .draws import orthogonal
from .entry import Check, Entry, Panel, curve, formula, identity, pair
from .flows import rk4
from .students import map_jacobian

__all__ = ["DirectPred"]

SPREAD = 0.5  # σ² of the augmentation, X′ = σ² I, with X = I
SPEED = 1.5  # α_p, of the predictor
STEP = 0.02


@final
class System(NamedTuple):
    """W [5, 8] with the eigenvectors of Wp [5, 5]; `factor` of the gradient is 1."""

    weights: Tensor  # [5, 8]
    aligned: Tensor  # [5, 5]
    free: Tensor  # [5, 5], symmetric, with other eigenvectors
    basis: Tensor  # [5, 5]
    decay: float
    factor: float
    steps: int


@final
class Observed(NamedTuple):
    """Modes (p, s, τ) on the way of the matrix flow, and what the thresholds are found to be."""

    modes: Tensor  # [t, 3, 5], with τ = 1
    averaged: Tensor  # [t, 3, 5], with the moving average
    commutator: float
    rests: tuple[float, float]
    fold: float
    collapsed: tuple[float, float]  # ‖W‖ without stop-gradient, and with it, over the start
    plain: Tensor  # [t], ‖W‖ with Wp = I
    spectra: Tensor  # [3, 40], of the effective kernel at first, after a quarter and in the end


@final
class Predicted(NamedTuple):
    """Flow of the modes, and where they rest."""

    modes: Tensor
    averaged: Tensor
    rests: tuple[float, float]  # p₋ and p₊
    fold: float
    spectra: Tensor


@final
class DirectPred(Entry[System, Observed, Predicted]):
    """Ẇp = α_p (−Wp W (X + X′) + Wa X) Wᵀ − η Wp and Ẇ = Wpᵀ (−Wp W (X + X′) + Wa X) − η W decouple into modes.

    ṗ = α_p s [τ − (1 + σ²) p] − ηp, ṡ = 2ps [τ − (1 + σ²) p] − 2ηs, with s = p²/α_p + c e^{−2ηt}: p rests at
    p± = [τ ± √(τ² − 4η(1 + σ²))] / 2(1 + σ²), collapses from below p₋, and always if η > τ²/4(1 + σ²).
    """

    name = "directpred"
    title = "Self-supervised learning without pairs"
    paper = "Tian, Chen, Ganguli 2021, arXiv 2102.06810"
    kernels = (
        "Stopping the gradient makes the effective kernel a product of two different Jacobians, which need not be "
        "symmetric: collapse is the saddle-node at which its leading mode loses stability."
    )
    omits = "The DirectPred algorithm itself, deep encoders, and data that are not white."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False, decay: float = 0.1) -> System:
        if not 0.005 <= decay < 1 / (4 * (1 + SPREAD)):
            raise ValueError(
                f"`decay` must be at least 0.005 and below τ²/4(1 + σ²) = {1 / (4 * (1 + SPREAD)):.4g}; got {decay:g}: "
                "with less the start is not forgotten, and beyond the fold all collapses: there is no edge p₋ to find."
            )
        generator = torch.Generator().manual_seed(seed)
        basis, other, right = (orthogonal(generator, size) for size in (5, 5, 8))
        strengths = torch.tensor([0.05, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)
        sizes = strengths.square() + torch.tensor([0.02, 0.1, 0.05, 0.1, 0.0], dtype=torch.float64)
        weights = basis * sizes.sqrt() @ right[:, :5].mT
        aligned, free = basis * strengths @ basis.mT, other * (strengths + 0.2) @ other.mT
        return System(weights, aligned, free, basis, decay, 1.2 if broken else 1.0, 1000 if short else 2000)

    def run(self, system: System) -> Observed:
        W, norm, flow = system.weights, torch.linalg.vector_norm, _matrix_flow(system, 0.0)
        still = rk4(flow, torch.cat([W, system.aligned, W], dim=1), STEP, system.steps, every=50)
        average = torch.cat([W, system.aligned, 0.8 * W], dim=1)
        opened = rk4(_without_stop, torch.cat([W, system.aligned], dim=1), 0.05, 600)[-1]
        late, predictor, _ = rk4(flow, torch.cat([W, system.free, W], dim=1), 0.2, 500)[-1].split((8, 5, 8), dim=1)
        gram, decays = late @ late.mT, torch.linspace(0.16, 0.175, 151, dtype=torch.float64)
        bracket = norm(predictor @ gram - gram @ predictor) / (norm(predictor) * norm(gram))
        settled = _settled(torch.full_like(decays, 0.5), decays, system.factor, 700)
        plain = rk4(lambda W: system.factor * (W - (1 + SPREAD) * W), W, STEP, system.steps, every=50)
        return Observed(
            _modes_of(system, still),
            _modes_of(system, rk4(_matrix_flow(system, 0.5), average, STEP, system.steps, every=50)),
            float(bracket),
            _rests(system),
            float(decays[int((settled < 0.2).int().argmax())]),
            (float(norm(opened[:, :8]) / norm(W)), float(norm(still[-1, :, :8]) / norm(W))),
            norm(plain, dim=(1, 2)) / norm(W),
            torch.stack([torch.linalg.eigvals(_kernel(state)).real.sort().values for state in still[_seen(still)]]),
        )

    def predict(self, system: System) -> Predicted:
        start = _modes_of(system, torch.cat([system.weights, system.aligned, system.weights], dim=1)[None])[0]
        modes, averaged = (
            rk4(_mode_flow(system.decay, rate), torch.cat([start[:2], tau * start[2:]]), STEP, system.steps, every=50)
            for rate, tau in ((0.0, 1.0), (0.5, 0.8))
        )
        p, s, _ = modes[_seen(modes)].unbind(dim=1)
        pairs = (p.square() - p)[:, :, None] + torch.cat([s, s.new_zeros(3, 3)], dim=1)[:, None]
        root, twice = math.sqrt(1 - 4 * system.decay * (1 + SPREAD)), 2 * (1 + SPREAD)
        return Predicted(
            modes,
            averaged,
            ((1 - root) / twice, (1 + root) / twice),
            1 / (2 * twice),
            pairs.flatten(1).sort(dim=1).values,
        )

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        times = STEP * 50 * torch.arange(len(observed.modes))
        invariant = observed.modes[:, 1] - observed.modes[:, 0].square() / SPEED
        decayed = invariant[:1] * torch.exp(-2 * system.decay * times)[:, None]
        without, with_ = observed.collapsed
        return [
            identity.close("modes of the matrix flow", predicted.modes, observed.modes, 1e-9),
            identity.close("s − p²/α_p decays as e^{−2ηt}", decayed, invariant, 1e-8),
            identity.close("modes with a moving average", predicted.averaged[:, :2], observed.averaged[:, :2], 1e-9),
            identity.close("and its τ", predicted.averaged[:, 2], observed.averaged[:, 2], 1e-9),
            formula.close("[Wp, WWᵀ] over the sizes, from any symmetric Wp", 0.0, observed.commutator, 1e-10),
            formula.close("p₋, edge of the basin of collapse, and p₊", predicted.rests, observed.rests, 1e-6),
            formula.close("decay at the fold: τ²/4(1 + σ²)", predicted.fold, observed.fold, 2e-3, relative=True),
            formula.at_most("‖W‖ without stopping the gradient, over the start", 1e-2, without),
            formula.at_least("the same with it", 0.3, with_),
            formula.close("‖W‖ without a predictor: e^{−σ²t}", torch.exp(-SPREAD * times), observed.plain, 1e-8),
            identity.close("spectrum of (J − J_target) Jᵀ: pᵢ² − pᵢ + sⱼ", predicted.spectra, observed.spectra, 1e-8),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        times = STEP * 50 * torch.arange(len(observed.modes))
        modes = [
            line
            for i, (known, seen) in enumerate(zip(predicted.modes[:, 0].mT, observed.modes[:, 0].mT, strict=True))
            for line in pair(f"p₀ = {float(seen[0]):.2f}", times, known, seen, i)
        ]
        edge = curve("p₋", [0.0, STEP * system.steps], [predicted.rests[0]] * 2, group=7)
        spectra = [
            line
            for i, when in enumerate(("at first", "after a quarter", "in the end"))
            for line in pair(when, range(1, 41), predicted.spectra[i], observed.spectra[i], i)
        ]
        return (
            Panel.of("Modes of the predictor", "time", "p", *modes, edge),
            Panel.of("Spectrum of (J − J_target) Jᵀ: pᵢ² − pᵢ + sⱼ", "number", "eigenvalue", *spectra),
        )


def _matrix_flow(system: System, rate: float) -> Callable[[Tensor], Tensor]:
    """Wa follows W at a rate, or is W where there is none."""

    def field(state: Tensor) -> Tensor:
        W, predictor, target = state.split((8, 5, 8), dim=1)
        pull = system.factor * ((target if rate else W) - (1 + SPREAD) * predictor @ W)
        moved = predictor.mT @ pull - system.decay * W
        follows = rate * (W - target) if rate else moved
        return torch.cat([moved, SPEED * pull @ W.mT - system.decay * predictor, follows], dim=1)

    return field


def _without_stop(state: Tensor) -> Tensor:
    """Descent of ½ E ‖Wp W x₁ − W x₂‖² in both branches, without decay."""
    W, predictor = state.split((8, 5), dim=1)
    pull = W - (1 + SPREAD) * predictor @ W
    back = predictor @ W - (1 + SPREAD) * W
    return torch.cat([predictor.mT @ pull + back, pull @ W.mT], dim=1)


def _modes_of(system: System, path: Tensor) -> Tensor:
    """p, s and τ, `[t, 3, 5]`."""
    W, predictor, target = (system.basis.mT @ part for part in path.split((8, 5, 8), dim=2))
    p, s = (predictor @ system.basis).diagonal(dim1=1, dim2=2), W.square().sum(dim=2)
    return torch.stack([p, s, (target * W).sum(dim=2) / s], dim=1)


def _seen(path: Tensor) -> list[int]:
    """Places on a path whose kernel is looked at."""
    return [0, len(path) // 4, len(path) - 1]


def _mode_flow(decay: float | Tensor, rate: float = 0.0, factor: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Of p, s and τ, `[3, *]`."""

    def field(state: Tensor) -> Tensor:
        p, s, tau = state
        gap = factor * (tau - (1 + SPREAD) * p)
        growth = 2 * p * s * gap - 2 * decay * s
        follows = rate * (1 - tau) - tau * growth / (2 * s) if rate else torch.zeros_like(tau)
        return torch.stack([SPEED * s * gap - decay * p, growth, follows])

    return field


def _settled(p: Tensor, decay: float | Tensor, factor: float, steps: int) -> Tensor:
    """Where p goes, begun with s = p²/α_p."""
    start = torch.stack([p, p.square() / SPEED, torch.ones_like(p)])
    return rk4(_mode_flow(decay, factor=factor), start, 1.0, steps)[-1, 0]


def _rests(system: System) -> tuple[float, float]:
    """The least p₀ from which p does not collapse, by three rounds of a grid, and where p goes from others."""
    low, high, rest = 0.0, 0.4, 0.0
    for _ in range(3):
        p = torch.linspace(low, high, 101, dtype=torch.float64)
        last = _settled(p, system.decay, system.factor, 250)
        first = int((last > p).int().argmax())
        low, high, rest = float(p[max(first - 1, 0)]), float(p[first]), max(rest, float(last[-1]))
    return (low + high) / 2, rest


def _kernel(state: Tensor) -> Tensor:
    """(J − J_target) Jᵀ, where J is that of Wp W x and J_target that of W x, at whitened inputs."""
    W, predictor, _ = state.split((8, 5, 8), dim=1)
    inputs, weights = torch.eye(8, dtype=torch.float64), {"W": W, "Wp": predictor}
    J = map_jacobian(lambda x, p: x @ p["W"].mT @ p["Wp"].mT, inputs, weights)
    return (J - map_jacobian(lambda x, p: x @ p["W"].mT, inputs, weights)) @ J.mT
