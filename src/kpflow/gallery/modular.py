"""Modular addition: Fourier features, the lottery of frequencies, and an energy whose maxima are single frequencies."""

import math
from typing import NamedTuple, final

import torch
from torch import Tensor

from kpflow.estimate import alignment, effective_rank
from kpflow.operators import Dense, Gram

from .draws import normal
from .entry import Check, Entry, Panel, formula, identity, monte_carlo, pair, points
from .features import climb, ridge_force, ridge_force_formula
from .flows import rk4
from .students import map_jacobian
from .sums import commutator, counts, fourier, labels, pairs, square, sums

__all__ = ["ModularAddition"]

P, NEURONS, INIT, RATE, EVERY = 23, 64, 0.04, 2.0, 25
SMALL, FEW, NETS = 11, 16, 4  # numbers, neurons and networks where the commutator is seen
GROWN = 0.5
"""Amplitude from which a neuron counts as grown."""
ETAS = (1e-6, 1e-5, 1.0, 1e2)


@final
class System(NamedTuple):
    """f(x, y)_j = Σ_m ξ_m[j] (θ_m[x] + θ_m[y])² at a small centred start; features and starts for the energy."""

    weights: Tensor  # [2, m, p], θ and ξ
    small: Tensor  # [4, 2, 16, 11]
    steps: int
    features: Tensor  # [49, 80], F of p = 7
    starts: Tensor  # [20, 2p]
    sign: float  # of the velocity of θ in what is run


@final
class Observed(NamedTuple):
    """Gradient descent, and the energy's maxima."""

    first: Tensor  # [2, m, p], velocities of θ and ξ at the uniform softmax
    course: Tensor  # [t, 2, m, p], weights every 25 steps
    charges: Tensor  # [2, t, m, k], α² − 2β² and α²β sin D along the reduced flow, less those at its start
    energies: Tensor  # [20]
    gradients: Tensor  # [η, 49, 80], −∂L/∂F with the ridge solution above
    kernels: Tensor  # [5, 2], of the NTK of a logit along the course: effective rank, and alignment with the label
    commutators: Tensor  # [2, 4], of the small networks' NTK with the shift


@final
class Predicted(NamedTuple):
    """From the start alone."""

    first: Tensor
    frequencies: Tensor  # [m], which wins, by the reduced flow
    largest: Tensor  # [m], which is largest at the start
    course: Tensor  # [t, m, k], |α| by the reduced flow
    gradients: Tensor  # [2, 49, 80], at the two larger η


@final
class ModularAddition(Entry[System, Observed, Predicted]):
    """From a small start each frequency of each neuron moves alone: α̇ = (2/p)αβ cos D, β̇ = (1/p)α² cos D.

    With Ḋ = −(4β + α²/β) sin D/p, D = 2φ − ψ, it conserves α² − 2β² and α²β sin D; the frequency that grows up first is
    the neuron's in the end. The energy ½‖Ỹᵀ(Xw)²‖² on |w| = 1 has its maxima, p/4, at single frequencies; with a
    ridge solution above, −∂L/∂F = η(FFᵀ + η)⁻¹ỸỸᵀF(FᵀF + η)⁻¹.
    """

    name = "modular"
    title = "Modular addition"
    paper = (
        "He, Wang, Chen, Yang 2026, Modular Addition, arXiv 2602.16849; Tian 2025 (Li2), arXiv 2509.21519; "
        "rank and alignment of the NTK as in Fast NTK Alignment, Norm and Effective Rank, arXiv 2511.10796"
    )
    kernels = (
        "As few frequencies win, the NTK of a logit falls in effective rank and turns towards the label, and that of "
        "a network of few neurons comes to commute with the cyclic shift."
    )
    omits = "Grokking itself (weight decay and held-out pairs), stage III of Li2, and ReLU networks."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False) -> System:
        generator = torch.Generator().manual_seed(seed)
        weights, small = normal(generator, 2, NEURONS, P), normal(generator, NETS, 2, FEW, SMALL)
        u, v = 0.2 * normal(generator, 2, 7, 80)
        return System(
            INIT * (weights - weights.mean(dim=-1, keepdim=True)),
            0.05 * (small - small.mean(dim=-1, keepdim=True)),
            800 if short else 1500,
            (u[:, None] + v).square().flatten(0, 1),
            normal(generator, 20, 2 * P),
            -1.0 if broken else 1.0,
        )

    def run(self, system: System) -> Observed:
        course = _train(system.weights, system.steps, system.sign)
        a, b = _reduced(system.weights, 250, RATE / 4, 4).unbind(dim=1)
        charges = a.abs().square() - 2 * b.abs().square(), (a.square() * b.conj()).imag
        one = torch.eye(SMALL, dtype=torch.float64)
        orbits = torch.stack([2 * one, one + one.roll(1, dims=0)])  # (a, a) and (a, a − 1)
        ends = system.small, _train(system.small, 400, system.sign)[-1]
        return Observed(
            _pull(system.weights, labels(P) / P**2),
            course,
            torch.stack([(charge - charge[0]) * (a.abs() < 1.0) for charge in charges]),
            climb(system.starts, pairs(P), labels(P)),
            torch.stack([ridge_force(system.features, labels(7), eta) for eta in ETAS]),
            torch.tensor([_kernel(weights) for weights in course[:: len(course) // 4]]),
            torch.tensor([[commutator(_parameters(net), orbits) for net in nets] for nets in ends]),
        )

    def predict(self, system: System) -> Predicted:
        a, b = fourier(system.weights)
        turns = torch.outer(torch.arange(1, P // 2 + 1), torch.arange(P)).double()
        modes = torch.exp(2j * math.pi / P * turns)
        first = torch.stack([((2 / P * b * a.conj()) @ modes).real, ((1 / P * a.square()) @ modes).real])
        course = _reduced(system.weights, system.steps)[:, 0].abs()
        up = course > 1.0
        score = torch.where(up.any(dim=0), 2.0 * len(course) - up.int().argmax(dim=0), course[-1])  # the first one up
        gradients = [ridge_force_formula(system.features, labels(7), eta) for eta in ETAS[2:]]
        return Predicted(first, score.argmax(dim=1), a.abs().argmax(dim=1), course, torch.stack(gradients))

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        final = fourier(observed.course[-1])
        grown = final[0].abs().amax(dim=1) > GROWN
        wins = final[0].abs().argmax(dim=1)[grown]
        wrong = (wins != predicted.frequencies[grown]).double().mean()
        by_size = (wins != predicted.largest[grown]).double().mean()
        chosen = final[:, grown, wins]
        phase = torch.angle(chosen[0].square() * chosen[1].conj()).abs().median()
        norms, scale = observed.gradients.norm(dim=(1, 2)), predicted.gradients.abs().amax(dim=(1, 2), keepdim=True)
        pull = (labels(7) @ labels(7).mT @ system.features).flatten()
        known, cosines = (
            torch.cosine_similarity(G.flatten(1), pull) for G in (predicted.gradients, observed.gradients[2:])
        )
        outputs = torch.stack([square(counts(P), _parameters(observed.course[k])) for k in (400 // EVERY, -1)])
        right = outputs.argmax(dim=2) == sums(P)
        rank, aligned = observed.kernels[-1] / observed.kernels[0]
        commuting = observed.commutators[1].mean() / observed.commutators[0].mean()
        return [
            identity.close("velocity at the uniform softmax", predicted.first, observed.first, 1e-13),
            formula.close("α² − 2β² is conserved", 0.0, observed.charges[0], 1e-9),
            formula.close("α²β sin D is conserved", 0.0, observed.charges[1], 1e-9),
            formula.close("energy of its maxima, p/4", P / 4, observed.energies, 1e-9),
            identity.close(
                "−∂L/∂F, over its largest", predicted.gradients / scale, observed.gradients[2:] / scale, 1e-10
            ),
            formula.close("|G_F| ∝ η without decay", 1.0, torch.log10(norms[1] / norms[0]), 1e-2),
            formula.close("its cosine with ỸỸᵀF, η = 1 and 100", known, cosines, 1e-10),
            formula.at_least("which comes to 1: at 100", 0.99, cosines[1]),
            monte_carlo.at_most("share of grown neurons that the lottery gets wrong", 0.15, wrong),
            monte_carlo.at_least("by how much the largest amplitude is wrong more often", 0.0, by_size - wrong),
            monte_carlo.at_most("median |D| of grown neurons, π/2 if at random", 0.4, phase),
            monte_carlo.close("accuracy after 400 steps, and at the end", 1.0, right.double().mean(dim=1), 0.0),
            monte_carlo.at_most("effective rank of the NTK, after over before", 0.9, rank),
            monte_carlo.at_least("its alignment with the label, after over before", 1.5, aligned),
            # .33 to .57 for ten times four networks; those of many neurons nearly commute from the start
            monte_carlo.at_most("its commutator with the shift, after over before", 0.75, commuting),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        steps = EVERY * torch.arange(len(observed.course))
        amplitudes = fourier(observed.course)[:, 0].abs()
        lines = []
        for group, m in enumerate(amplitudes[-1].amax(dim=1).argsort(descending=True)[:4]):
            k = amplitudes[-1, m].argmax()
            along = predicted.course[::EVERY, m, k].clamp(max=2.0)
            lines += pair(f"frequency {int(k) + 1}", steps, along, amplitudes[:, m, k], group)
        seen = steps[:: len(steps) // 4]
        kernels = [
            points("effective rank / 100", seen, observed.kernels[:, 0] / 100),
            points("alignment with the label", seen, observed.kernels[:, 1], 1),
        ]
        return (
            Panel.of("Amplitudes: the reduced flow up to 2", "step", "α", *lines, log="y"),
            Panel.of("NTK of a logit: few features, turned to the label", "step", "", *kernels, log="y"),
        )


def _parameters(weights: Tensor) -> dict[str, Tensor]:
    return {"U": weights[0].mT, "V": weights[1]}


def _pull(weights: Tensor, residual: Tensor | None = None) -> Tensor:
    """Jᵀr, `[*, 2, m, p]`; by default with r of the mean cross-entropy, whose gradient it is with a minus."""
    inner, outer = weights.unbind(dim=-3)
    p = inner.shape[-1]
    seen = counts(p) @ inner.mT  # [*, p², m]
    if residual is None:
        residual = (labels(p) + 1 / p - torch.softmax(seen.square() @ outer, dim=-1)) / p**2
    turn = 2 * (residual @ outer.mT * seen).mT @ counts(p)
    return torch.stack([turn, seen.square().mT @ residual], dim=-3)


def _train(weights: Tensor, steps: int, sign: float) -> Tensor:
    """Weights every 25 steps of gradient descent, `[t, *, 2, m, p]`."""
    kept, rates = [weights], RATE * torch.tensor([sign, 1.0], dtype=torch.float64)[:, None, None]
    for step in range(1, steps + 1):
        weights = weights + rates * _pull(weights)
        if step % EVERY == 0:
            kept.append(weights)
    return torch.stack(kept)


def _reduced(weights: Tensor, steps: int, step: float = RATE, every: int = 1) -> Tensor:
    """ȧ = (2/p) b ā, ḃ = (1/p) a² of a = αe^{iφ}, b = βe^{iψ}, stopped at |a| = 2, `[t, 2, m, k]`."""

    def velocity(state: Tensor) -> Tensor:
        a, b = state
        return torch.stack([2 / P * b * a.conj(), a.square() / P]) * (a.abs() < 2.0)

    return rk4(velocity, fourier(weights), step, steps * every, every=every)


def _kernel(weights: Tensor) -> tuple[float, float]:
    """Effective rank of the NTK of the first logit at all pairs x ≤ y, and its alignment with the label."""
    some = torch.ones(P, P).triu().flatten() > 0
    J = map_jacobian(square, counts(P)[some], _parameters(weights) | {"V": weights[1, :, :1]})
    ntk, label = Gram(Dense(J)), Gram(Dense(labels(P)[some, :1]))
    return effective_rank(ntk, method="exact").value, alignment(ntk, label, method="exact").value
