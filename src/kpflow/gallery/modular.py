"""Modular addition: Fourier features, the lottery of frequencies, and an energy whose maxima are single frequencies."""

import math
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from .entry import Check, Entry, Line, Panel, curve, formula, identity, monte_carlo, points
from .flows import rk4
from .students import output_ntk

__all__ = ["ModularAddition"]

P, NEURONS, RATE = 23, 64, 2.0
GROWN = 0.5
"""Amplitude from which a neuron counts as grown."""


@final
class System(NamedTuple):
    """f(x, y)_j = Σ_m ξ_m[j] (θ_m[x] + θ_m[y])² at a small centred start; features and starts for the energy."""

    inner: Tensor  # [m, p], θ
    outer: Tensor  # [m, p], ξ
    steps: int
    features: Tensor  # [49, 80], F of p = 7
    starts: Tensor  # [20, 2p]
    sign: float  # of the velocity of θ in what is run


@final
class Observed(NamedTuple):
    """Gradient descent, and the energy's maxima."""

    first: Tensor  # [2, m, p], velocities of θ and ξ at the uniform softmax
    accuracy: Tensor  # [t]
    times: Tensor
    amplitudes: Tensor  # [t, m, k]
    final: Tensor  # [2, m, k], complex amplitudes of θ and ξ
    charges: Tensor  # [2], largest change of α² − 2β² and of α²β sin D in the reduced flow
    energies: Tensor  # [20]
    gradients: Tensor  # [η, 49, 80], −∂L/∂F with the ridge solution above
    spectra: Tensor  # [2, p²], of the NTK of a logit, before and after
    alignment: float  # of that NTK with the label, after over before


@final
class Predicted(NamedTuple):
    """From the start alone."""

    first: Tensor
    frequencies: Tensor  # [m], which wins, by the reduced flow
    largest: Tensor  # [m], which is largest at the start
    course: Tensor  # [t, m, k], |α| by the reduced flow
    gradients: Tensor
    aligned: Tensor  # [49, 80], ỸỸᵀF


ETAS = (1e-6, 1e-5, 1.0, 1e4)


@final
class ModularAddition(Entry[System, Observed, Predicted]):
    """From a small start each frequency of each neuron moves alone: α̇ = (2/p)αβ cos D, β̇ = (1/p)α² cos D.

    With Ḋ = −(4β + α²/β) sin D/p, D = 2φ − ψ, it conserves α² − 2β² and α²β sin D; the frequency that grows up first is
    the neuron's in the end. The energy ½‖Ỹᵀ(Xw)²‖² on |w| = 1 has its maxima, p/4, at single frequencies; with a
    ridge solution above, −∂L/∂F = η(FFᵀ + η)⁻¹ỸỸᵀF(FᵀF + η)⁻¹.
    """

    name = "modular"
    title = "Modular addition"
    paper = "Fourier features, lottery and grokking, 2026, arXiv 2602.16849; Tian 2025 (Li2), arXiv 2509.21519"
    kernels = (
        "As few frequencies win, the NTK of a logit falls in effective rank and turns towards the label, which random "
        "features see no better than anything else."
    )
    omits = "Grokking itself (weight decay and held-out pairs), stage III of Li2, and ReLU networks."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False) -> System:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        weights = 0.03 * draw(2, NEURONS, P)
        weights = weights - weights.mean(dim=2, keepdim=True)
        u, v = draw(2, 7, 80) / 7**0.5
        features = (u[:, None] + v).square().flatten(0, 1)
        starts = draw(20, 2 * P)
        return System(weights[0], weights[1], 800 if short else 1500, features, starts, -1.0 if broken else 1.0)

    def run(self, system: System) -> Observed:
        inner, outer = system.inner, system.outer
        zero = _velocities(torch.zeros(P, P, P, dtype=torch.float64), inner, outer)
        amplitudes, accuracy, times = [], [], []
        for step in range(system.steps + 1):
            outputs = torch.einsum("mxy,mj->xyj", (inner[:, :, None] + inner[:, None]).square(), outer)
            if step % 25 == 0:
                times.append(step)
                accuracy.append((outputs.argmax(dim=2) == _sums(P)).double().mean())
                amplitudes.append(_fourier(inner).abs())
            turn, push = _velocities(outputs, inner, outer)
            inner, outer = inner + RATE * system.sign * turn, outer + RATE * push
        a, b = _reduced(system, 250, RATE / 4, 4).unbind(dim=1)
        early = a.abs() < 1.0
        charges = a.abs().square() - 2 * b.abs().square(), (a.square() * b.conj()).imag
        labels = _labels(7)
        gradients = [_ridge_gradient(system.features, labels, eta) for eta in ETAS]
        kernels = _kernel(system.inner, system.outer), _kernel(inner, outer)
        return Observed(
            torch.stack(zero),
            torch.stack(accuracy),
            torch.tensor(times, dtype=torch.float64),
            torch.stack(amplitudes),
            torch.stack([_fourier(inner), _fourier(outer)]),
            torch.stack([((charge - charge[0]).abs() * early).max() for charge in charges]),
            _maxima(system.starts),
            torch.stack(gradients),
            torch.stack([values for values, _ in kernels]),
            kernels[1][1] / kernels[0][1],
        )

    def predict(self, system: System) -> Predicted:
        a, b = _fourier(system.inner), _fourier(system.outer)
        turns = torch.outer(torch.arange(1, P // 2 + 1), torch.arange(P)).double()
        modes = torch.exp(2j * math.pi / P * turns)
        first = torch.stack([((2 / P * b * a.conj()) @ modes).real, ((1 / P * a.square()) @ modes).real])
        course = _reduced(system, system.steps)[:, 0].abs()
        up = course > 1.0
        when = torch.where(up.any(dim=0), up.int().argmax(dim=0), len(course))
        score = torch.where(up.any(dim=0), 2.0 * len(course) - when, course[-1])
        F, labels = system.features, _labels(7)
        pull = labels @ labels.mT @ F
        rows, columns = torch.eye(len(F), dtype=torch.float64), torch.eye(F.shape[1], dtype=torch.float64)
        gradients = [
            eta * torch.linalg.solve(F @ F.mT + eta * rows, pull) @ torch.linalg.inv(F.mT @ F + eta * columns)
            for eta in ETAS[2:]
        ]
        return Predicted(first, score.argmax(dim=1), a.abs().argmax(dim=1), course, torch.stack(gradients), pull)

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        size = observed.final[0].abs()
        grown = size.amax(dim=1) > GROWN
        wins = size.argmax(dim=1)[grown]
        wrong = (wins != predicted.frequencies[grown]).double().mean()
        by_size = (wins != predicted.largest[grown]).double().mean()
        chosen = observed.final[:, grown, wins]
        phase = torch.angle(chosen[0].square() * chosen[1].conj()).abs().median()
        norms = observed.gradients.norm(dim=(1, 2))
        cosines = (observed.gradients * predicted.aligned).sum(dim=(1, 2)) / (norms * predicted.aligned.norm())
        scale = predicted.gradients.abs().amax(dim=(1, 2), keepdim=True)
        wanted = predicted.gradients / scale
        ranks = [_effective_rank(values) for values in observed.spectra]
        return [
            identity.close("velocity at the uniform softmax", predicted.first, observed.first, 1e-13),
            formula.close("α² − 2β² is conserved", 0.0, observed.charges[0], 1e-9),
            formula.close("α²β sin D is conserved", 0.0, observed.charges[1], 1e-9),
            formula.close("energy of its maxima, p/4", P / 4, observed.energies, 1e-9),
            identity.close("−∂L/∂F, over its largest", wanted, observed.gradients[2:] / scale, 1e-10),
            formula.close("|G_F| ∝ η without decay", 1.0, torch.log10(norms[1] / norms[0]), 1e-2),
            formula.at_least("cosine with ỸỸᵀF, large η", 0.99, cosines[3]),
            # seven seeds: lottery 0 to .07, size .35 to .6 more, |D| .05 to .18, ranks .43 to .78, alignment 1.9 to 3.
            monte_carlo.at_most("share of grown neurons that the lottery gets wrong", 0.15, wrong),
            monte_carlo.at_least("by how much the largest amplitude is wrong more often", 0.0, by_size - wrong),
            monte_carlo.at_most("median |D| of grown neurons", 0.15, phase),
            monte_carlo.close("accuracy at the end", 1.0, observed.accuracy[-1], 0.0),
            monte_carlo.at_most("effective rank of the NTK, after over before", 0.9, ranks[1] / ranks[0]),
            monte_carlo.at_least("its alignment with the label, after over before", 1.5, observed.alignment),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        neurons = observed.final[0].abs().amax(dim=1).argsort(descending=True)[:4]
        lines: list[Line] = []
        for g, m in enumerate(neurons.tolist()):
            k = int(observed.final[0, m].abs().argmax())
            along = predicted.course[::25][: len(observed.times)].clamp(max=2.0)
            lines.append(curve(f"frequency {k + 1}", observed.times, along[:, m, k], group=g))
            lines.append(points("", observed.times, observed.amplitudes[:, m, k], group=g))
        number = torch.arange(1, 61)
        values = tuple(
            points(name, number, spectrum[:60] / spectrum[0], group=i)
            for i, (name, spectrum) in enumerate(zip(("before", "after"), observed.spectra, strict=True))
        )
        return (
            Panel.of("Amplitudes: the reduced flow up to 2", "step", "α", *lines, log="y"),
            Panel.of("Spectrum of the NTK of a logit", "number", "eigenvalue / largest", *values, log="y"),
        )


def _sums(p: int) -> Tensor:
    return (torch.arange(p)[:, None] + torch.arange(p)) % p


def _labels(p: int) -> Tensor:
    """Ỹ, one-hot and centred, `[p², p]`."""
    return torch.eye(p, dtype=torch.float64)[_sums(p).flatten()] - 1 / p


def _fourier(rows: Tensor) -> Tensor:
    """α e^{iφ} of Σ_k α_k cos(2πkx/p + φ_k), for k = 1, …, (p−1)/2."""
    return torch.fft.rfft(rows, dim=1)[:, 1:] * (2 / P)


def _velocities(outputs: Tensor, inner: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the gradients of the mean cross-entropy by θ and ξ."""
    truth = torch.eye(P, dtype=torch.float64)[_sums(P)]
    residual = (truth - torch.softmax(outputs, dim=2)) / P**2
    seen = inner[:, :, None] + inner[:, None]
    pull = torch.einsum("xyj,mj->mxy", residual, outer) * 2 * seen
    return pull.sum(dim=1) + pull.sum(dim=2), torch.einsum("xyj,mxy->mj", residual, seen.square())


def _reduced(system: System, steps: int, step: float = RATE, every: int = 1) -> Tensor:
    """ȧ = (2/p) b ā, ḃ = (1/p) a² of a = αe^{iφ}, b = βe^{iψ}, stopped at |a| = 2, `[t, 2, m, k]`."""

    def velocity(state: Tensor) -> Tensor:
        a, b = state
        return torch.stack([2 / P * b * a.conj(), a.square() / P]) * (a.abs() < 2.0)

    return rk4(
        velocity, torch.stack([_fourier(system.inner), _fourier(system.outer)]), step, steps * every, every=every
    )


def _maxima(starts: Tensor) -> Tensor:
    """½‖Ỹᵀ(Xw)²‖² where w ← ∇E/|∇E| ends, from several starts."""
    labels, w = _labels(P), starts / starts.norm(dim=1, keepdim=True)
    pairs = torch.cartesian_prod(torch.arange(P), torch.arange(P))
    seen = torch.zeros(P * P, 2 * P, dtype=torch.float64)
    seen[torch.arange(P * P), pairs[:, 0]] = 1.0
    seen[torch.arange(P * P), P + pairs[:, 1]] = 1.0
    for _ in range(400):
        values = w @ seen.mT
        slope = ((values.square() @ labels) @ labels.mT * values) @ seen
        w = w + slope / slope.norm(dim=1, keepdim=True)  # ∇E alone swaps the shares of u and v in every step
        w = w / w.norm(dim=1, keepdim=True)
    return ((w @ seen.mT).square() @ labels).square().sum(dim=1) / 2


def _ridge_gradient(features: Tensor, labels: Tensor, eta: float) -> Tensor:
    """−∂L/∂F of ½‖Ỹ − F V‖² + ½η‖V‖² by autograd, at the V that is best for F."""
    identity = torch.eye(features.shape[1], dtype=torch.float64)
    best = torch.linalg.solve(features.mT @ features + eta * identity, features.mT @ labels)
    leaf = features.clone().requires_grad_()
    (slope,) = torch.autograd.grad((labels - leaf @ best).square().sum() / 2, [leaf])
    return -slope


@final
class Logit(nn.Module):
    """One logit of the network."""

    def __init__(self, inner: Tensor, outer: Tensor) -> None:
        nn.Module.__init__(self)
        self.inner, self.outer = nn.Parameter(inner), nn.Parameter(outer)

    def forward(self, pairs: Tensor) -> Tensor:
        return (pairs @ self.inner.mT).square() @ self.outer


def _kernel(inner: Tensor, outer: Tensor) -> tuple[Tensor, float]:
    """Spectrum of the NTK of the first logit at all pairs, and its alignment yᵀKy/(|y|²‖K‖) with the label y."""
    one = torch.eye(P, dtype=torch.float64)
    kernel = output_ntk(Logit(inner, outer[:, :1]), (one[:, None] + one).flatten(0, 1))
    label = _labels(P)[:, 0]
    alignment = label @ kernel @ label / (label.square().sum() * kernel.norm())
    return torch.linalg.eigvalsh(kernel).flip(0), float(alignment)


def _effective_rank(values: Tensor) -> float:
    return float(values.sum().square() / values.square().sum())
