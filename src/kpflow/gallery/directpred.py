"""Self-supervised learning without negative pairs: a linear predictor keeps the representation from collapse."""

import math
from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor

from kpflow.flow import Ntk
from kpflow.operators import to_dense
from kpflow.states import linearise

from .entry import Check, Entry, Panel, curve, formula, identity, points
from .flows import rk4
from .students import linear_network

__all__ = ["DirectPred"]

SPREAD = 0.5  # σ² of the augmentation, X′ = σ² I, with X = I
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
    time: float


@final
class Observed(NamedTuple):
    """Eigenvalues on the way of the matrix flow, and what the thresholds are found to be."""

    times: Tensor
    modes: Tensor  # [t, 2, 5], of p and s
    targets: Tensor  # [t, 5], τ of the moving average
    averaged: Tensor  # [t, 2, 5]
    commutator: float
    edge: float
    fold: float
    collapsed: tuple[float, float]  # ‖W‖ without stop-gradient, and with it, over the start
    plain: Tensor  # [t], ‖W‖ with Wp = I
    spectrum: Tensor  # [40], of the effective kernel in the end


@final
class Predicted(NamedTuple):
    """Flow of the eigenvalues, its invariant, and the fold."""

    modes: Tensor  # [t, 2, 5]
    targets: Tensor
    averaged: Tensor
    edge: float
    fold: float


@final
class DirectPred(Entry[System, Observed, Predicted]):
    """Ẇp = (−Wp W (X + X′) + Wa X) Wᵀ − η Wp and Ẇ = Wpᵀ (−Wp W (X + X′) + Wa X) − η W decouple into modes.

    ṗ = s [τ − (1 + σ²) p] − ηp, ṡ = 2ps [τ − (1 + σ²) p] − 2ηs, with s = p² + c e^{−2ηt}: p rests at
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
        if not 0 < decay < 1 / (4 * (1 + SPREAD)):
            raise ValueError(
                f"`decay` must be between 0 and τ²/4(1 + σ²) = {1 / (4 * (1 + SPREAD)):.4g}; got {decay:g}: beyond the "
                "fold everything collapses, and there is no edge p₋ to find."
            )
        generator = torch.Generator().manual_seed(seed)
        basis, other, right = (
            torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q for size in (5, 5, 8)
        )
        strengths = torch.tensor([0.05, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)
        sizes = strengths.square() + torch.tensor([0.02, 0.1, 0.05, 0.1, 0.0], dtype=torch.float64)
        weights = basis @ torch.diag(sizes.sqrt()) @ right[:, :5].mT
        free = other @ torch.diag(strengths + 0.2) @ other.mT
        aligned = basis @ torch.diag(strengths) @ basis.mT
        return System(weights, aligned, free, basis, decay, 1.2 if broken else 1.0, 20.0 if short else 40.0)

    def run(self, system: System) -> Observed:
        start = torch.cat([system.weights, system.aligned, 0.8 * system.weights], dim=1)  # [5, 8 + 5 + 8]
        count = round(system.time / STEP)
        still = rk4(_matrix_flow(system, 0.0), _with_target(start, 1.0), STEP, count, every=50)
        moving = rk4(_matrix_flow(system, 0.5), start, STEP, count, every=50)
        free = _with_target(torch.cat([system.weights, system.free, system.weights], dim=1), 1.0)
        late = rk4(_matrix_flow(system, 0.0), free, 0.1, 1000)[-1]
        plain = rk4(lambda W: system.factor * (W - (1 + SPREAD) * W), system.weights, STEP, count, every=50)
        norm = torch.linalg.vector_norm
        open_ = rk4(_without_stop, start[:, :13], STEP, 1500)[-1]
        return Observed(
            STEP * 50 * torch.arange(len(still)),
            _modes_of(system, still),
            ((system.basis.mT @ moving[:, :, 13:]) * (system.basis.mT @ moving[:, :, :8])).sum(2)
            / _modes_of(system, moving)[:, 1],
            _modes_of(system, moving),
            _commutator(late),
            _edge(system),
            _fold(system),
            (float(norm(open_[:, :8]) / norm(system.weights)), float(norm(still[-1, :, :8]) / norm(system.weights))),
            norm(plain, dim=(1, 2)) / norm(system.weights),
            torch.linalg.eigvals(_kernel(still[-1])),
        )

    def predict(self, system: System) -> Predicted:
        start = _modes_of(system, torch.cat([system.weights, system.aligned], dim=1)[None])[0]
        count = round(system.time / STEP)

        def averaged(state: Tensor) -> Tensor:
            p, s, target = state
            gap = target - (1 + SPREAD) * p
            growth = 2 * p * s * gap - 2 * system.decay * s
            return torch.stack([s * gap - system.decay * p, growth, 0.5 * (1 - target) - target * growth / (2 * s)])

        moving = rk4(averaged, torch.cat([start, torch.full_like(start[:1], 0.8)]), STEP, count, every=50)
        root = math.sqrt(1 - 4 * system.decay * (1 + SPREAD))
        return Predicted(
            rk4(_mode_flow(system.decay, 1.0), start, STEP, count, every=50),
            moving[:, 2],
            moving[:, :2],
            (1 - root) / (2 * (1 + SPREAD)),
            1 / (4 * (1 + SPREAD)),
        )

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        invariant = observed.modes[:, 1] - observed.modes[:, 0].square()
        decayed = invariant[:1] * torch.exp(-2 * system.decay * observed.times)[:, None]
        p, s = predicted.modes[-1]
        pairs = (p.square() - p)[:, None] + torch.cat([s, s.new_zeros(3)])
        spectrum = observed.spectrum.real.sort().values
        return [
            identity.close("modes of the matrix flow", predicted.modes, observed.modes, 1e-9),
            identity.close("s − p² decays as e^{−2ηt}", decayed, invariant, 1e-8),
            identity.close("modes with a moving average", predicted.averaged, observed.averaged, 1e-9),
            identity.close("and its τ", predicted.targets, observed.targets, 1e-9),
            formula.close("[Wp, WWᵀ] over the sizes, from any symmetric Wp", 0.0, observed.commutator, 1e-10),
            formula.close("edge of the basin of collapse: p₋", predicted.edge, observed.edge, 1e-6),
            formula.close("decay at the fold: τ²/4(1 + σ²)", predicted.fold, observed.fold, 2e-3, relative=True),
            formula.at_most("‖W‖ without stopping the gradient, over the start", 1e-2, observed.collapsed[0]),
            formula.at_least("the same with it", 0.3, observed.collapsed[1]),
            formula.close(
                "‖W‖ without a predictor: e^{−σ²t}", torch.exp(-SPREAD * observed.times), observed.plain, 1e-8
            ),
            identity.close(
                "spectrum of (J − J_target) Jᵀ: pᵢ² − pᵢ + sⱼ", pairs.flatten().sort().values, spectrum, 1e-8
            ),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        lines = [
            line
            for i in range(5)
            for line in (
                curve(f"p₀ = {float(observed.modes[0, 0, i]):.2f}", observed.times, predicted.modes[:, 0, i], group=i),
                points("", observed.times, observed.modes[:, 0, i], group=i),
            )
        ]
        edge = curve("p₋", [0.0, system.time], [predicted.edge] * 2, group=7)
        p, s = predicted.modes[-1]
        pairs = ((p.square() - p)[:, None] + torch.cat([s, s.new_zeros(3)])).flatten().sort().values
        order = torch.arange(1, 41)
        return (
            Panel.of("Modes of the predictor", "time", "p", *lines, edge),
            Panel.of(
                "Spectrum of (J − J_target) Jᵀ in the end",
                "number",
                "eigenvalue",
                curve("pᵢ² − pᵢ + sⱼ", order, pairs),
                points("", order, observed.spectrum.real.sort().values),
            ),
        )


def _matrix_flow(system: System, rate: float) -> Callable[[Tensor], Tensor]:
    """Of states (W, Wp, Wa), `[5, 21]`; Wa = W without a rate of its moving average."""

    def field(state: Tensor) -> Tensor:
        W, predictor, target = state.split((8, 5, 8), dim=1)
        seen = target if rate else W
        pull = system.factor * (seen - (1 + SPREAD) * predictor @ W)
        moved = predictor.mT @ pull - system.decay * W
        follows = rate * (W - target) if rate else moved
        return torch.cat([moved, pull @ W.mT - system.decay * predictor, follows], dim=1)

    return field


def _with_target(state: Tensor, share: float) -> Tensor:
    return torch.cat([state[:, :13], share * state[:, :8]], dim=1)


def _without_stop(state: Tensor) -> Tensor:
    """Descent of ½ E ‖Wp W x₁ − W x₂‖² in both branches, without decay."""
    W, predictor = state.split((8, 5), dim=1)
    pull = W - (1 + SPREAD) * predictor @ W
    back = predictor @ W - (1 + SPREAD) * W
    return torch.cat([predictor.mT @ pull + back, pull @ W.mT], dim=1)


def _modes_of(system: System, path: Tensor) -> Tensor:
    """p and s, `[t, 2, 5]`."""
    turned = system.basis.mT @ path[:, :, :8]
    predictor = system.basis.mT @ path[:, :, 8:13] @ system.basis
    return torch.stack([predictor.diagonal(dim1=1, dim2=2), turned.square().sum(dim=2)], dim=1)


def _mode_flow(decay: float | Tensor, factor: float) -> Callable[[Tensor], Tensor]:
    """Of p and s, `[2, *]`."""

    def field(state: Tensor) -> Tensor:
        p, s = state
        gap = factor * (1 - (1 + SPREAD) * p)
        return torch.stack([s * gap - decay * p, 2 * p * s * gap - 2 * decay * s])

    return field


def _commutator(state: Tensor) -> float:
    W, predictor = state[:, :8], state[:, 8:13]
    gram = W @ W.mT
    norm = torch.linalg.matrix_norm
    return float(norm(predictor @ gram - gram @ predictor) / (norm(predictor) * norm(gram)))


def _edge(system: System) -> float:
    """The least p₀ with s₀ = p₀² from which p does not collapse, by three rounds of a grid."""
    low, high = 0.0, 0.4
    for _ in range(3):
        p = torch.linspace(low, high, 101, dtype=torch.float64)
        last = rk4(_mode_flow(system.decay, system.factor), torch.stack([p, p.square()]), 0.25, 1000)[-1, 0]
        first = int((last > p).int().argmax())
        low, high = float(p[max(first - 1, 0)]), float(p[first])
    return (low + high) / 2


def _fold(system: System) -> float:
    """The least decay at which p collapses from 0.5."""
    decays = torch.linspace(0.16, 0.175, 151, dtype=torch.float64)
    start = torch.full((2, 151), 0.5, dtype=torch.float64)
    start[1] = 0.25
    last = rk4(_mode_flow(decays, system.factor), start, 0.5, 1400)[-1, 0]
    return float(decays[int((last < 0.2).int().argmax())])


def _kernel(state: Tensor) -> Tensor:
    """(J − J_target) Jᵀ, where J is that of Wp W x and J_target that of W x, at whitened inputs."""
    W, predictor = state[:, :8], state[:, 8:13]
    inputs = torch.eye(8, dtype=torch.float64)
    online, target = (
        to_dense(Ntk(linearise(linear_network(layers), inputs), readout="outputs").jacobian)
        for layers in ((W, predictor), (W,))
    )
    target = torch.cat([target, target.new_zeros(len(target), 25)], dim=1)
    return (online - target) @ online.mT
