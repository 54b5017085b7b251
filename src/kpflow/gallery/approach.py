"""A recurrent network near a bifurcation, whose NTK collapses to the channel that becomes critical."""

import math
from typing import NamedTuple, final

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from kpflow.estimate import effective_rank
from kpflow.flow import Ntk, ParameterKernel, Propagator
from kpflow.operators import Restriction, to_dense
from kpflow.states import linearise

from .draws import normal
from .entry import Check, Entry, Panel, curve, identity, monte_carlo, points

__all__ = ["Approach"]

UNITS = 6


@final
class System(NamedTuple):
    """A tanh network with inputs; strengths w of W = w vvᵀ, the noise that drives it, and `slack` of w that is lost."""

    model: nn.RNN
    inputs: Tensor  # [2, 5, 2]
    strengths: tuple[float, ...]
    direction: ndarray  # v
    draw: np.random.Generator
    probes: torch.Generator
    trials: int
    slack: float


@final
class Observed(NamedTuple):
    """Dense kernels of the tanh network, and blocks of the NTK at the last step of the linear one."""

    ntk: Tensor
    composed: Tensor  # P K Pᵀ
    explicit: Tensor  # of gains and features
    kernel: Tensor  # K
    blocks: tuple[ndarray, ndarray]  # of two trials, by the package and by sums over the past
    channel: ndarray  # [w], mean over trials
    others: ndarray
    rank: float  # effective rank of the tanh network's NTK, by 24 products


@final
class Predicted(NamedTuple):
    """Expectations under white noise."""

    channel: ndarray
    others: ndarray


@final
class Approach(Entry[System, Observed, Predicted]):
    """h ← w vvᵀ h + ξ with white noise: as w → 1 the NTK at equal times becomes one channel, which grows as (1 − w)⁻³.

    Along v it is σ² [(1 + w²)/(1 − w²)³ + (n − 1)/(1 − w²)] on average, across it σ² [1/(1 − w²) + n − 1]. For any tanh
    network NTK = P K Pᵀ, K = D (ZZᵀ ⊗ I) D with gains D = 1 − h² and features z = (x, h₋, 1, 1).
    """

    name = "approach"
    title = "Approach to a bifurcation"
    paper = "Hazelden et al. 2025, arXiv 2507.06381; Hazelden, Shea-Brown 2026, arXiv 2605.12763; arXiv 2511.10796"
    kernels = (
        "P supplies (1 − w²)⁻² of the growth and K the rest, both along v: near the bifurcation the NTK has effective "
        "rank one."
    )
    omits = "Nonlinear saturation, the normal forms beyond it, and discontinuous transitions."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False, nearest: float = 0.95) -> System:
        if not 0.5 <= nearest < 1:
            raise ValueError(
                f"`nearest` must be at least 0.5 and below 1; got {nearest:g}: at w ≥ 1 the state has no stationary "
                "variance, and no mean NTK."
            )
        generator = torch.Generator().manual_seed(seed)
        draw = np.random.default_rng(seed)
        model = nn.RNN(2, 4, batch_first=True).double()
        for value in model.parameters():
            value.data = 0.5 * normal(generator, *value.shape)
        inputs, direction = normal(generator, 2, 5, 2), draw.standard_normal(UNITS)
        strengths = tuple(w for w in (0.25, 0.5, 0.8, 0.9) if w < nearest)
        return System(
            model,
            inputs,
            (*strengths, nearest),
            direction / np.linalg.norm(direction),
            draw,
            generator,
            3000 if short else 10_000,
            0.05 if broken else 0.0,
        )

    def run(self, system: System) -> Observed:
        lin = linearise(system.model, system.inputs)
        P, kernel = to_dense(Propagator(lin)), to_dense(ParameterKernel(lin))
        means = np.array([_past(system, w).mean(axis=1) for w in system.strengths])
        return Observed(
            to_dense(Ntk(lin)),
            P @ kernel @ P.mT,
            _explicit(system, lin.states),
            kernel,
            _two_ways(system, 0.8),
            means[:, 0],
            means[:, 1],
            effective_rank(Ntk(lin), method="deflated", budget=24, generator=system.probes).value,
        )

    def predict(self, system: System) -> Predicted:
        return _expected(np.array(system.strengths))

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        apart, rank = (
            np.diff(np.log1p(-np.array(system.strengths))),
            observed.ntk.trace() ** 2 / observed.ntk.square().sum(),
        )
        law, growth = (np.diff(np.log(values.channel)) / apart for values in (predicted, observed))
        return [
            identity.close("NTK = P K Pᵀ of a tanh network", observed.composed, observed.ntk, 1e-12),
            identity.close("K = D (ZZᵀ ⊗ I) D", observed.explicit, observed.kernel, 1e-12),
            identity.close("NTK at the last step, by sums over the past", *observed.blocks, 1e-10),
            monte_carlo.close("channel along v", predicted.channel, observed.channel, 0.12, relative=True),
            monte_carlo.close("across v", predicted.others, observed.others, 0.1, relative=True),
            monte_carlo.close("share of the channel in the trace", _share(predicted), _share(observed), 0.02),
            monte_carlo.close("exponent of the growth with 1 − w, which comes to −3", law, growth, 0.2),
            monte_carlo.close("effective rank of the NTK by few products", rank, observed.rank, 0.2, relative=True),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        away = np.logspace(math.log10(1 - system.strengths[-1]) - 0.1, -0.2, 60)
        line, seen = _expected(1 - away), 1 - np.array(system.strengths)
        return (
            Panel.of(
                "Share of the critical channel in the NTK",
                "1 − w",
                "share",
                curve("predicted", away, _share(line)),
                points("", seen, _share(observed)),
                log="x",
            ),
            Panel.of(
                "Eigenvalues of the mean NTK at equal times",
                "1 − w",
                "eigenvalue",
                curve("along v", away, line.channel),
                points("", seen, observed.channel),
                curve("across v", away, line.others, group=1),
                points("", seen, observed.others, group=1),
                log="xy",
            ),
        )


def _expected(strength: ndarray) -> Predicted:
    rest = 1 - strength**2
    return Predicted((2 - rest) / rest**3 + (UNITS - 1) / rest, 1 / rest + UNITS - 1)


def _share(values: Observed | Predicted) -> ndarray:
    return values.channel / (values.channel + (UNITS - 1) * values.others)


def _explicit(system: System, states: Tensor) -> Tensor:
    """K of the tanh network from gains and features, `[B·T·H, B·T·H]`."""
    before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], dim=1)
    features = torch.cat([system.inputs, before, torch.ones_like(states[:, :, :2])], dim=2).flatten(0, 1)
    gains = (1 - states.square()).flatten()
    return gains[:, None] * torch.kron(features @ features.mT, torch.eye(4, dtype=torch.float64)) * gains


def _past(system: System, strength: float) -> ndarray:
    """‖Σ_a w^a h(t − 1 − a)‖² and ‖h(t − 1)‖² of every trial, `[2, trials]`: the NTK along and across v at time t."""
    w, v = strength - system.slack, system.direction
    state = np.zeros((system.trials, UNITS))
    last, summed = state, np.zeros_like(state)
    for _ in range(round(6 / (1 - strength)) + 20):
        summed = w * summed + state
        last, state = state, w * np.outer(state @ v, v) + system.draw.standard_normal(state.shape)
    return np.stack([(summed**2).sum(axis=1), (last**2).sum(axis=1)])


def _two_ways(system: System, strength: float) -> tuple[ndarray, ndarray]:
    """vᵀNv and uᵀNu of two trials of twelve steps, u across v: by the NTK of the step, and by sums over the past."""
    v = system.direction
    u = np.linalg.svd(v[None])[2][1]
    noise = system.draw.standard_normal((2, 12, UNITS))
    weights = {"W": torch.from_numpy(strength * np.outer(v, v)).requires_grad_()}
    start = torch.zeros(2, UNITS, dtype=torch.float64)
    lin = linearise(lambda h, x, p: h @ p["W"].mT + x, torch.from_numpy(noise), initial=start, parameters=weights)
    blocks = to_dense(Ntk(lin, readout=Restriction(lin.space, {"time": [11]}))).numpy().reshape(2, UNITS, 2, UNITS)
    known = [axis @ blocks[trial, :, trial] @ axis for axis in (v, u) for trial in range(2)]
    before = lin.states[:, :-1].numpy()  # h at steps 1 to 11, those that act on the last
    powers = strength ** np.arange(10, -1, -1.0)
    along = ((powers[:, None] * before).sum(axis=1) ** 2).sum(axis=1)
    return np.array(known), np.concatenate([along, (before[:, -1] ** 2).sum(axis=1)])
