"""A model too small for the world, fitted to what matters for the value, or to the states."""

from typing import NamedTuple, final

import torch
from torch import Tensor

from kpflow.estimate import spectrum
from kpflow.flow import Ntk

from .draws import normal, orthogonal
from .entry import Check, Entry, Panel, curve, formula, identity, pair, points
from .exponents import exponent
from .flows import rk4
from .students import linear_map, linearise_map

__all__ = ["Vagram"]

SIZE, START, STEP, COUNT = 4, 1e-3, 0.02, 1000
SEEN = list(range(0, 71, 10))  # of what is kept, where the NTK is seen
TIMES = 10 * STEP * torch.arange(COUNT // 10 + 1, dtype=torch.float64)  # of what is kept


@final
class System(NamedTuple):
    """The world s ↦ As, a value V(s) = v·s; `stretch` of what the value-aware model is to learn is 1."""

    world: Tensor  # A, [4, 4]
    value: Tensor  # v, [4], ‖v‖ = 1
    scales: Tensor  # singular values of A
    left: Tensor  # [4], the first singular vectors
    right: Tensor
    start: Tensor  # [2, 4], of the model u wᵀ
    probe: Tensor  # [2, 4], a state and a way to leave it
    stretch: float


@final
class Observed(NamedTuple):
    """Models u wᵀ while they learn."""

    likely: Tensor  # [t, 2, 4], by the squared error of states
    valued: Tensor  # [t, 2, 4], by that weighed with ∇V
    order: float  # of what ∇V misses of the error of a curved value
    ranks: list[int]  # of the kernel of values, at the ends
    kernels: Tensor  # [1 + m, 4], its eigenvalues: by likelihood in the end, value-aware at some times


@final
class Predicted(NamedTuple):
    """Shares of the variance of values that stay."""

    valued: Tensor  # [t]
    likely: float
    kernels: Tensor  # [1 + m, 4]


@final
class Vagram(Entry[System, Observed, Predicted]):
    """A model uwᵀ of rank one learns s ↦ As by ‖Ms − As‖², or by the value-aware loss (v·(Ms − As))².

    Maximum likelihood takes the largest singular direction of A; if the value does not see it, all of the variance of
    v·As is missed. The other loss misses nothing, and learns |Aᵀv| as a mode of a deep linear network:
    a(t) = s e^{2st}/(e^{2st} − 1 + s/a₀), s = ‖Aᵀv‖. For a curved value, ∇V·ΔM errs at second order.
    """

    name = "vagram"
    title = "Value-gradient weighted models"
    paper = "Voelcker, Liao, Garg, Farahmand 2022, Value Gradient weighted Model-Based RL, arXiv 2204.01464"
    kernels = (
        "Of the model's NTK Θ the value-aware loss sees vᵀΘv, which has full rank at its own solution, and rank one at "
        "that of maximum likelihood, where v·u = 0: there values cannot be corrected any more."
    )
    omits = "Learned values, spurious minima far from data, and reinforcement learning with it."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False, largest: float = 3.0) -> System:
        if not 2.5 <= largest <= 20:
            raise ValueError(
                f"`largest` must be between 2.5 and 20; got {largest!r}: maximum likelihood misses all of the value in "
                f"the time that is run only if the direction that the value does not see is the largest, by a gap to "
                f"the next, 1; beyond 20 the steps are too long."
            )
        del short
        generator = torch.Generator().manual_seed(seed)
        left, right = orthogonal(generator, SIZE), orthogonal(generator, SIZE)
        scales = torch.tensor([largest, 1.0, 0.8, 0.5], dtype=torch.float64)
        value = left[:, 1:] @ (1 + torch.rand(SIZE - 1, generator=generator, dtype=torch.float64))
        start = normal(generator, 2, SIZE)
        return System(
            left * scales @ right.mT,
            value / value.norm(),
            scales,
            left[:, 0],
            right[:, 0],
            0.1 * start / start.norm(dim=1, keepdim=True),  # balanced
            normal(generator, 2, SIZE),
            0.8 if broken else 1.0,
        )

    def run(self, system: System) -> Observed:
        def likely(model: Tensor) -> Tensor:
            miss = system.world - torch.outer(*model)
            return torch.stack([miss @ model[1], miss.mT @ model[0]])

        def valued(model: Tensor) -> Tensor:
            miss = system.stretch * system.world.mT @ system.value - (system.value @ model[0]) * model[1]
            return torch.stack([system.value * (miss @ model[1]), (system.value @ model[0]) * miss])

        wish = system.world.mT @ system.value
        aligned = START**0.5 * torch.stack([system.value, wish / wish.norm()])
        first, second = rk4(likely, system.start, STEP, COUNT, every=10), rk4(valued, aligned, STEP, COUNT, every=10)
        spectra = torch.stack([_value_spectrum(system, model) for model in (first[-1], *second[SEEN])])
        return Observed(first, second, _order(system), [int((spectra[k] > 1e-8).sum()) for k in (0, -1)], spectra)

    def predict(self, system: System) -> Predicted:
        wish = torch.linalg.vector_norm(system.world.mT @ system.value)
        strength = wish / (1 + (wish / START - 1) * torch.exp(-2 * wish * TIMES))
        # with ‖u‖² = ‖w‖² = s: w wᵀ + (v·u)² I, and v·u = 0 by maximum likelihood
        kernels = torch.zeros(1 + len(SEEN), SIZE, dtype=torch.float64)
        kernels[0, 0], kernels[1:], kernels[1:, 0] = system.scales[0], strength[SEEN, None], 2 * strength[SEEN]
        return Predicted((1 - strength / wish).square(), 1.0, kernels)

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        largest = system.scales[0] * torch.outer(system.left, system.right)
        likely, valued = torch.outer(*observed.likely[-1]), torch.outer(*observed.valued[-1])
        missed, left = _missed(system, observed.likely[-1:]), _missed(system, observed.valued)
        ratio = torch.dist(valued, system.world) / torch.dist(likely, system.world)
        return [
            formula.close("likelihood: the model is A's first singular part", largest, likely, 1e-8),
            formula.close("likelihood: share of the value's variance missed", predicted.likely, missed, 1e-8),
            formula.close("value-aware: share missed while it learns", predicted.valued, left, 1e-6),
            formula.close("value-aware: share missed in the end", 0.0, left[-1], 1e-9),
            identity.at_least("value-aware: error of the states over that of likelihood", 1.0, ratio),
            formula.close("a curved value: order of what ∇V misses", 2.0, observed.order, 0.05),
            formula.close("spectra of the values' NTK", predicted.kernels, observed.kernels, 1e-6),
            identity.close("ranks of the values' NTK", [1, SIZE], observed.ranks, 0.0),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        names, some = ("maximum likelihood", "value-aware"), slice(71)
        likely, valued = (_missed(system, models[some]) for models in (observed.likely, observed.valued))
        missed = (
            curve(names[0], TIMES[[0, 70]], [predicted.likely] * 2),
            points("", TIMES[:71:2], likely[::2]),
            *pair(names[1], TIMES[some], predicted.valued[some], valued, 1, every=2),
        )
        values = (
            *pair("value-aware, first: 2a(t)", TIMES[SEEN], predicted.kernels[1:, 0], observed.kernels[1:, 0]),
            *pair("three others: a(t)", TIMES[SEEN], predicted.kernels[1:, 1], observed.kernels[1:, 1], 1),
            *pair(
                "likelihood, first, in the end", TIMES[SEEN[-1:]], predicted.kernels[0, :1], observed.kernels[0, :1], 2
            ),
        )
        return (
            Panel.of("Share of the value's variance that is missed", "time", "share", *missed),
            Panel.of("Spectrum of the values' NTK", "time", "eigenvalue", *values, log="y"),
        )


def _missed(system: System, models: Tensor) -> Tensor:
    """‖Aᵀv − (v·u) w‖² / ‖Aᵀv‖² of each model: states are white."""
    wish = system.world.mT @ system.value
    return (wish - (models[:, 0] @ system.value)[:, None] * models[:, 1]).square().sum(dim=1) / wish.square().sum()


def _value_spectrum(system: System, model: Tensor) -> Tensor:
    """Eigenvalues of vᵀΘv at four white states, the largest first."""
    weights = {"w": model[1][None], "u": model[0][:, None], "v": system.value[None]}
    lin = linearise_map(linear_map, torch.eye(SIZE, dtype=torch.float64), weights)
    return spectrum(Ntk(lin, params=["w", "u"]))


def _order(system: System) -> float:
    """Exponent over ε of V(s + εδ) − V(s) − ε∇V·δ for V(s) = Σ tanh(sᵢ)vᵢ."""
    (s, away), sizes = system.probe, [1e-2, 1e-3, 1e-4]
    slope = (1 - s.tanh().square()) * system.value
    gaps = [float((((s + e * away).tanh() - s.tanh()) @ system.value - e * slope @ away).abs()) for e in sizes]
    return exponent(sizes, gaps)
