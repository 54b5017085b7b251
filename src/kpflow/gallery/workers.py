"""Workers that compute gradients on data of their own: what losses and gradients tell before they are averaged."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from kpflow.estimate import spectrum
from kpflow.flow import Ntk, objectives
from kpflow.operators import Dense, to_dense
from kpflow.states import Linearisation

from .draws import normal, orthogonal
from .entry import Check, Entry, Panel, formula, identity, monte_carlo, pair, points
from .students import linear_map, linearise_map

__all__ = ["Workers"]

SIZE, BATCH, COUNT, NOISE = 30, 20, 8, 0.25  # p, b, N, σ²


@final
class System(NamedTuple):
    """y = w̄·x + ε, x ~ N(0, I), a model w at distance d = w − w̄, and many rounds of N workers with b samples each.

    And N roles that a policy plays on the same whitened features, role a for a share of the turns.
    """

    distance: Tensor  # [p], d
    inputs: Tensor  # [r, N, b, p]
    noise: Tensor  # [r, N, b]
    correlation: float  # ρ of the gradients of roles
    features: Tensor  # [40, p]
    wishes: Tensor  # [N, p], of each role, of length 1
    turns: Tensor  # [N], shares
    excess: float  # of the noise in what is run; 1


@final
class Observed(NamedTuple):
    """Metrics over the rounds."""

    cosine: float  # mean between two workers
    dispersion: float  # standard deviation of a worker's loss
    aggregate: float  # mean |ḡ|²
    noise_scale: float  # tr Σ = (⟨|g|²⟩ − |ḡ|²)/(1/b − 1/(bN))
    same: tuple[float, float]  # dispersion and cosine of workers with the same data
    roles: Tensor  # [2, N, N], ⟨g_a, g_b⟩ of roles that share a policy, and of roles with one of their own
    blocks: Tensor  # [2, N, N], ⟨g_a, g_b⟩ of a round by `objectives`, and as r_aᵀ Θ_ab r_b
    grams: Tensor  # [r, N, N], from the gradients of each round


@final
class Predicted(NamedTuple):
    """Closed forms in |d|², p, b, N and σ²."""

    cosine: float
    dispersion: float
    aggregate: float
    noise_scale: float
    sums: Tensor  # [2, n], √(n + n (n − 1) ρ) and √n
    masses: Tensor  # [2, N], share of each role in |Σ g|²


@final
class Workers(Entry[System, Observed, Predicted]):
    """A worker's gradient d + noise has E cos = |μ|²/(|μ|² + tr Σ/b), |ḡ|² = |μ|² + tr Σ/(bN), tr Σ = (p+1)|d|² + σ²p.

    Its loss ½⟨r²⟩ has standard deviation √(1/(2b)) (|d|² + σ²). Workers that see the same data disagree in nothing. The
    cosine is the ratio of means, an approximation. The gradients of n roles of one policy that correlate by ρ add to
    √(n + n(n−1)ρ) times one of them, those of n policies to √n; the mass of role a is ⟨g_a, Σ g⟩/|Σ g|².
    """

    name = "workers"
    title = "Workers of a data-parallel step"
    paper = "Li et al. 2026, Silent Inconsistency, arXiv 2602.14462; Zeng et al. 2026, Multi-Agent RL, arXiv 2605.24202"
    kernels = (
        "⟨g_a, g_b⟩ = r_aᵀ Θ_ab r_b: the cosines of workers are cross-blocks of the NTK, which `objectives` of "
        "kpflow.flow computes in one pass for all of them; roles with policies of their own have none."
    )
    omits = "Faults that the papers inject, networks, and what roles with a policy of their own, or in common, learn."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False, correlation: float = 0.3) -> System:
        if not 0 <= correlation <= 1:
            raise ValueError(
                f"`correlation` must be between 0 and 1; got {correlation!r}. Directions of many agents cannot all be "
                "opposed to each other."
            )
        generator, rounds = torch.Generator().manual_seed(seed), 400 if short else 3000
        distance, inputs = normal(generator, SIZE), normal(generator, rounds, COUNT, BATCH, SIZE)
        noise = math.sqrt(NOISE) * normal(generator, rounds, COUNT, BATCH)
        common, *own = orthogonal(generator, SIZE, COUNT + 1).mT
        wishes = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * torch.stack(own)
        features, turns = 40**0.5 * orthogonal(generator, 40, SIZE), normal(generator, COUNT).softmax(dim=0)
        data = (distance / distance.norm(), inputs, noise, correlation, features, wishes, turns)
        return System(*data, 1.5 if broken else 1.0)

    def run(self, system: System) -> Observed:
        def work(inputs: Tensor, miss: Tensor) -> tuple[Tensor, Tensor]:
            return (miss[..., None] * inputs).mean(dim=2), miss.square().mean(dim=2) / 2

        miss = system.inputs @ system.distance - system.excess * system.noise  # [r, N, b]
        gradients, losses = work(system.inputs, miss)  # [r, N, p], [r, N]
        grams = gradients @ gradients.mT
        alike, equal = work(*(part[:100, :1].expand(-1, COUNT, *part.shape[2:]) for part in (system.inputs, miss)))
        aggregate = float(gradients.mean(dim=1).square().sum(dim=1).mean())
        apart = float(gradients.square().sum(dim=2).mean()) - aggregate
        return Observed(
            _cosine(grams),
            float((losses.std(dim=1).square().mean()).sqrt()),
            aggregate,
            apart / (1 / BATCH - 1 / (BATCH * COUNT)),
            (float(equal.std(dim=1).max()), _cosine(alike @ alike.mT)),
            torch.stack([_roles(system, share) for share in (True, False)]),
            torch.stack(_cross_blocks(system.inputs[0], miss[0], system.distance)),
            grams,
        )

    def predict(self, system: System) -> Predicted:
        signal = float(system.distance.square().sum())
        trace = (SIZE + 1) * signal + NOISE * SIZE
        number, turns = torch.arange(1, COUNT + 1, dtype=torch.float64), system.turns
        correlations = torch.tensor([system.correlation, 0.0], dtype=torch.float64)[:, None]
        masses = turns * ((1 - correlations) * turns + correlations * turns.sum())
        return Predicted(
            signal / (signal + trace / BATCH),
            math.sqrt(1 / (2 * BATCH)) * (signal + NOISE),
            signal + trace / (BATCH * COUNT),
            trace,
            (number + number * (number - 1) * correlations).sqrt(),
            masses / masses.sum(dim=1, keepdim=True),
        )

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        masses = observed.roles.sum(dim=2) / observed.roles.sum(dim=(1, 2))[:, None]
        return [
            monte_carlo.close("cosine of two workers", predicted.cosine, observed.cosine, 0.05, relative=True),
            monte_carlo.close("dispersion of losses", predicted.dispersion, observed.dispersion, 0.03, relative=True),
            monte_carlo.close("|ḡ|²", predicted.aggregate, observed.aggregate, 0.03, relative=True),
            monte_carlo.close("noise from norms", predicted.noise_scale, observed.noise_scale, 0.08, relative=True),
            identity.close("dispersion where all see the same", 0.0, observed.same[0], 1e-14),
            identity.close("cosine where all see the same", 1.0, observed.same[1], 1e-12),
            formula.close("|Σg| of n roles, over |g|: one policy, and n", predicted.sums, _sums(observed.roles), 1e-12),
            formula.close("mass of each role: one policy, and n", predicted.masses, masses, 1e-12),
            identity.close("⟨g_a, g_b⟩ by `objectives`", observed.grams[0], observed.blocks[0], 1e-12),
            identity.close("⟨g_a, g_b⟩ = r_aᵀ Θ_ab r_b", observed.grams[0], observed.blocks[1], 1e-12),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        number = torch.arange(1, COUNT + 1)
        sums = (
            *pair("√(n + n(n−1)ρ): one policy", number, predicted.sums[0], _sums(observed.roles)[0]),
            *pair("√n: n policies", number, predicted.sums[1], _sums(observed.roles)[1], 1),
        )
        apart = predicted.noise_scale / BATCH
        common = COUNT * (predicted.aggregate - apart / COUNT)
        expected = [common + apart] + [apart] * (COUNT - 1)
        mean, one = (spectrum(Dense(gram)) for gram in (observed.grams.mean(dim=0), observed.blocks[0]))
        values = (
            *pair("N|μ|² + tr Σ/b, tr Σ/b; mean of all rounds", number, expected, mean),
            points("one round", number, one, group=1),
        )
        return (
            Panel.of("Size of the sum of gradients", "number of roles", "|Σg| / |g|", *sums),
            Panel.of("Spectrum of the cross-blocks r_aᵀ Θ_ab r_b", "number", "eigenvalue", *values, log="y"),
        )


def _cosine(grams: Tensor) -> float:
    """Mean between two different workers."""
    return float((_cosines(grams).sum(dim=(1, 2)) - COUNT).mean()) / (COUNT * (COUNT - 1))


def _cosines(grams: Tensor) -> Tensor:
    size = grams.diagonal(dim1=1, dim2=2).sqrt()
    return grams / (size[:, :, None] * size[:, None, :])


def _sums(grams: Tensor) -> Tensor:
    """|Σ g| of the first 1, 2, … of some gradients, each at length 1, `[*, N]`."""
    return _cosines(grams).cumsum(dim=1).cumsum(dim=2).diagonal(dim1=1, dim2=2).sqrt()


def _gram(lin: Linearisation, losses: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
    """⟨g_a, g_b⟩ of losses on one model, by `objectives`."""
    named = {str(a): loss for a, loss in enumerate(losses)}
    return -objectives(lin, named, of="states").interference


def _roles(system: System, share: bool) -> Tensor:
    """⟨g_a, g_b⟩ of roles that all play one policy, or each its own."""
    wanted = system.features @ system.wishes.mT
    start = torch.zeros(1 if share else COUNT, SIZE, dtype=torch.float64)

    def loss(y: Tensor, role: int) -> Tensor:
        return system.turns[role] * (y[:, 0, 0 if share else role] - wanted[:, role]).square().mean() / 2

    lin = linearise_map(linear_map, system.features, {"W": start})
    return _gram(lin, [functools.partial(loss, role=role) for role in range(COUNT)])


def _cross_blocks(inputs: Tensor, miss: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """⟨g_a, g_b⟩ of a round: by objectives of one model on all data, and from Θ between their data."""
    shape = miss.shape
    lin = linearise_map(linear_map, inputs.flatten(0, 1), {"W": weights[None]})
    target = inputs @ weights - miss

    def loss(y: Tensor, worker: int) -> Tensor:
        return (y.view(shape)[worker] - target[worker]).square().mean() / 2

    theta = to_dense(Ntk(lin)).unflatten(0, shape).unflatten(2, shape)
    blocks = torch.einsum("ai,aibj,bj->ab", miss, theta, miss) / BATCH**2
    return _gram(lin, [functools.partial(loss, worker=worker) for worker in range(COUNT)]), blocks
