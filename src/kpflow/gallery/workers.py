"""Workers that compute gradients on data of their own: what losses and gradients tell before they are averaged."""

import math
from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from kpflow.flow import Ntk, objectives
from kpflow.operators import to_dense
from kpflow.states import linearise

from .draws import normal
from .entry import Check, Entry, Panel, identity, monte_carlo, pair, points

__all__ = ["Workers"]

SIZE, BATCH, COUNT, NOISE = 30, 20, 8, 0.25  # p, b, N, σ²


@final
class System(NamedTuple):
    """y = w̄·x + ε, x ~ N(0, I), a model w at distance d = w − w̄, and many rounds of N workers with b samples each."""

    distance: Tensor  # [p], d
    inputs: Tensor  # [r, N, b, p]
    noise: Tensor  # [r, N, b]
    correlation: float  # ρ of the gradients of agents
    directions: Tensor  # [n, k, p], of agents
    excess: float  # of the noise in what is run; 1


@final
class Observed(NamedTuple):
    """Metrics over the rounds."""

    cosine: float  # mean between two workers
    dispersion: float  # standard deviation of a worker's loss
    aggregate: float  # mean |ḡ|²
    noise_scale: float  # tr Σ = (⟨|g|²⟩ − |ḡ|²)/(1/b − 1/(bN))
    same: tuple[float, float]  # dispersion and cosine of workers with the same data
    sums: Tensor  # [n], |Σ g| of 1, …, n agents over |g|
    blocks: Tensor  # [2, N, N], ⟨g_a, g_b⟩ of a round by `objectives`, and as r_aᵀ Θ_ab r_b
    gram: Tensor  # [N, N], the same from the gradients
    mean: Tensor  # [N, N], over all rounds


@final
class Predicted(NamedTuple):
    """Closed forms in |d|², p, b, N and σ²."""

    cosine: float
    dispersion: float
    aggregate: float
    noise_scale: float
    sums: Tensor  # √(n + n (n − 1) ρ)


@final
class Workers(Entry[System, Observed, Predicted]):
    """A worker's gradient d + noise has E cos = |μ|²/(|μ|² + tr Σ/b), |ḡ|² = |μ|² + tr Σ/(bN), tr Σ = (p+1)|d|² + σ²p.

    Its loss ½⟨r²⟩ has standard deviation √(1/(2b)) (|d|² + σ²). Workers that see the same data disagree in nothing. The
    cosine is the ratio of means, an approximation.
    """

    name = "workers"
    title = "Workers of a data-parallel step"
    paper = "Li et al. 2026, Silent Inconsistency, arXiv 2602.14462; Zeng et al. 2026, Multi-Agent RL, arXiv 2605.24202"
    kernels = (
        "⟨g_a, g_b⟩ = r_aᵀ Θ_ab r_b: the cosines of workers are cross-blocks of the NTK, which `objectives` of "
        "kpflow.flow computes in one pass for all of them."
    )
    omits = "Faults that the papers inject, networks, and the learning of several agents."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False, correlation: float = 0.3) -> System:
        """Rounds of workers.

        Args:
            seed: Of data and directions.
            short: Fewer rounds.
            broken: With twice the noise of the data.
            correlation: ρ between gradients of agents, in [0, 1]: one that is negative is not possible for many.
        """
        if not 0 <= correlation <= 1:
            raise ValueError(
                f"`correlation` must be between 0 and 1; got {correlation!r}. Directions of many agents cannot all be "
                "opposed to each other."
            )
        generator = torch.Generator().manual_seed(seed)

        rounds = 400 if short else 3000
        distance = normal(generator, SIZE)
        noise = math.sqrt(NOISE) * normal(generator, rounds, COUNT, BATCH)
        directions = normal(generator, 2000, COUNT + 1, SIZE)
        mixed = math.sqrt(correlation) * directions[:, :1] + math.sqrt(1 - correlation) * directions[:, 1:]
        inputs = normal(generator, rounds, COUNT, BATCH, SIZE)
        return System(distance / distance.norm(), inputs, noise, correlation, mixed, 1.5 if broken else 1.0)

    def run(self, system: System) -> Observed:
        def work(inputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            miss = inputs @ system.distance - system.excess * noise
            return miss, (miss[..., None] * inputs).mean(dim=2), miss.square().mean(dim=2) / 2

        miss, gradients, losses = work(system.inputs, system.noise)  # [r, N, b], [r, N, p], [r, N]
        grams = gradients @ gradients.mT
        repeated = (part[:100, :1].repeat_interleave(COUNT, dim=1) for part in (system.inputs, system.noise))
        _, alike, equal = work(*repeated)
        aggregate = float(gradients.mean(dim=1).square().sum(dim=1).mean())
        apart = float(gradients.square().sum(dim=2).mean()) - aggregate
        total = system.directions.cumsum(dim=1).square().sum(dim=2).mean(dim=0)
        return Observed(
            _cosine(grams),
            float((losses.std(dim=1).square().mean()).sqrt()),
            aggregate,
            apart / (1 / BATCH - 1 / (BATCH * COUNT)),
            (float(equal.std(dim=1).max()), _cosine(alike @ alike.mT)),
            (total / total[0]).sqrt(),
            torch.stack(_cross_blocks(system.inputs[0], miss[0], system.distance)),
            grams[0],
            grams.mean(dim=0),
        )

    def predict(self, system: System) -> Predicted:
        signal = float(system.distance.square().sum())
        trace = (SIZE + 1) * signal + NOISE * SIZE
        number = torch.arange(1, COUNT + 1, dtype=torch.float64)
        return Predicted(
            signal / (signal + trace / BATCH),
            math.sqrt(1 / (2 * BATCH)) * (signal + NOISE),
            signal + trace / (BATCH * COUNT),
            trace,
            (number + number * (number - 1) * system.correlation).sqrt(),
        )

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        # Largest relative errors, nine seeds, short: .028, .028, .018, .014, .007; full: .022, .006, .007, .004, .006
        return [
            monte_carlo.close("cosine of two workers", predicted.cosine, observed.cosine, 0.05, relative=True),
            monte_carlo.close("dispersion of losses", predicted.dispersion, observed.dispersion, 0.03, relative=True),
            monte_carlo.close("|ḡ|²", predicted.aggregate, observed.aggregate, 0.03, relative=True),
            monte_carlo.close("noise from norms", predicted.noise_scale, observed.noise_scale, 0.1, relative=True),
            identity.close("dispersion where all see the same", 0.0, observed.same[0], 1e-14),
            identity.close("cosine where all see the same", 1.0, observed.same[1], 1e-12),
            monte_carlo.close("|Σg| of n agents", predicted.sums, observed.sums, 0.03, relative=True),
            identity.close("⟨g_a, g_b⟩ by `objectives`", observed.gram, observed.blocks[0], 1e-12),
            identity.close("⟨g_a, g_b⟩ = r_aᵀ Θ_ab r_b", observed.gram, observed.blocks[1], 1e-12),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        number = torch.arange(1, COUNT + 1)
        sums = pair("√(n + n(n−1)ρ)", number, predicted.sums, observed.sums)
        apart = predicted.noise_scale / BATCH
        common = COUNT * (predicted.aggregate - apart / COUNT)
        expected = [common + apart] + [apart] * (COUNT - 1)
        mean, one = (torch.linalg.eigvalsh(gram).flip(0) for gram in (observed.mean, observed.gram))
        spectrum = (
            *pair("N|μ|² + tr Σ/b, tr Σ/b; mean of all rounds", number, expected, mean),
            points("one round", number, one, group=1),
        )
        return (
            Panel.of("Size of the sum of gradients", "number of agents", "|Σg| / |g|", *sums),
            Panel.of("Spectrum of the cross-blocks r_aᵀ Θ_ab r_b", "number", "eigenvalue", *spectrum, log="y"),
        )


def _cosine(grams: Tensor) -> float:
    """Mean between two different workers."""
    size = grams.diagonal(dim1=1, dim2=2).sqrt()
    cosines = grams / (size[:, :, None] * size[:, None, :])
    return float((cosines.sum(dim=(1, 2)) - COUNT).mean()) / (COUNT * (COUNT - 1))


def _cross_blocks(inputs: Tensor, miss: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """⟨g_a, g_b⟩ of a round, `[N, N]`: by objectives of one model on all data, and from Θ between their data."""
    model = nn.Linear(SIZE, 1, bias=False).double()
    model.load_state_dict({"weight": weights[None]})
    data = inputs.flatten(0, 1)
    lin = linearise(model, data)
    target = (data @ weights).unflatten(0, miss.shape) - miss

    def loss(worker: int) -> Callable[[Tensor], Tensor]:
        return lambda y: (y[:, 0].unflatten(0, miss.shape)[worker] - target[worker]).square().mean() / 2

    found = objectives(lin, {f"worker {a}": loss(a) for a in range(COUNT)})
    theta = to_dense(Ntk(lin, readout="outputs")).unflatten(0, miss.shape).unflatten(2, miss.shape)
    blocks = torch.einsum("ai,aibj,bj->ab", miss, theta, miss) / BATCH**2
    return -found.interference, blocks
