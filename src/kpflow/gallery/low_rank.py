"""Weights and gradients of low rank: what weight decay and few data leave."""

import math
from typing import NamedTuple, final

import torch
from torch import Tensor

from kpflow.estimate import spectrum
from kpflow.flow import cores
from kpflow.operators import Dense
from kpflow.states import linearise

from .draws import normal, orthogonal
from .entry import Check, Entry, Line, Panel, curve, formula, identity, pair, points
from .students import linear_network

__all__ = ["LowRank"]

SIZE, DATA, TRUE_RANK, DECAY, RATE = 30, 12, 6, 0.1, 0.05
TIMES = (1, 10, 100)
WIDTH, THRESHOLD, FALLS = 50, 0.5, (0.005, 0.0225, 0.08)


@final
class System(NamedTuple):
    """L(W) = ½‖W X − Y‖²/n + λ/2 ‖W‖², Y of rank 6, n = 12 data of 30 dimensions; and layers with known spectra."""

    inputs: Tensor  # [d, n], X
    targets: Tensor  # [d, n], Y
    start: Tensor  # [d, d]
    decay: float
    steps: int
    layers: tuple[Tensor, ...]
    shrink: float  # of the decay in what is run

    def gradient(self, weights: Tensor) -> Tensor:
        """∇L without decay."""
        return (weights @ self.inputs - self.targets) @ self.inputs.mT / DATA


@final
class Observed(NamedTuple):
    """Weights and gradients along the run."""

    weights: Tensor  # [t, d, d], kept ones
    final: Tensor
    gradient: Tensor  # ∇L at the end
    size: Tensor  # |G|² by autograd at the start
    ranks: tuple[int, ...]  # that a global threshold keeps, by layer
    tails: Tensor  # [layers], squared errors of the truncated layers
    gram: Tensor  # [n], eigenvalues of the weight-site core


@final
class Predicted(NamedTuple):
    """Closed forms."""

    final: Tensor
    size: Tensor
    ranks: tuple[int, ...]
    tails: Tensor
    gram: Tensor


@final
class LowRank(Entry[System, Observed, Predicted]):
    """Where ∇L + λW = 0, W = −∇L/λ has the rank of a gradient, at most that of Y and the number of data.

    On the way W_t − (1−ηλ)^t W₀ has rank at most n; |G|² = ⟨ΔᵀΔ, XᵀX⟩. One threshold on σ/σ_max gives each layer a rank
    of its own, and what is cut off is the tail energy.
    """

    name = "low_rank"
    title = "Low-rank gradients and weights"
    paper = "Jaiswal et al. 2024 (GaLore to WeLore), arXiv 2407.11239"
    kernels = (
        "The rank of a gradient is bounded by that of the weight-site Gram XᵀX, the core of K: layers of low rank are "
        "those whose core has a low effective rank."
    )
    omits = "Large language models, fine-tuning in the low-rank space, and memory."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False, decay: float = DECAY) -> System:
        if not 0.02 <= decay <= 1:
            raise ValueError(
                f"`decay` must be between 0.02 and 1; got {decay!r}. With less the start is not forgotten in the steps "
                "that are done, and with more the steps are too long."
            )
        generator = torch.Generator().manual_seed(seed)
        inputs = normal(generator, SIZE, DATA)
        targets = normal(generator, SIZE, TRUE_RANK) @ normal(generator, TRUE_RANK, DATA) / TRUE_RANK**0.5
        # orthogonal factors around spectra that fall slowly, faster, fastest
        falls = [torch.exp(-rate * torch.arange(WIDTH, dtype=torch.float64)) for rate in FALLS]
        turns = [[orthogonal(generator, WIDTH) for _ in range(2)] for _ in falls]
        layers = tuple((u * 3.0 * s) @ v for (u, v), s in zip(turns, falls, strict=True))
        steps = round((10 if short else 40) / (RATE * decay))
        start = normal(generator, SIZE, SIZE) / SIZE**0.5
        return System(inputs, targets, start, decay, steps, layers, 0.8 if broken else 1.0)

    def run(self, system: System) -> Observed:
        leaf, lin = system.start.clone().requires_grad_(), linearise(linear_network([system.start]), system.inputs.mT)
        loss = (leaf @ system.inputs - system.targets).square().sum() / (2 * DATA)
        (first,) = torch.autograd.grad(loss, [leaf])
        W, kept = system.start, []
        for step in range(1, system.steps + 1):
            W = W - RATE * (system.gradient(W) + system.shrink * system.decay * W)
            if step in TIMES:
                kept.append(W)
        values = [spectrum(Dense(layer)) for layer in system.layers]
        ranks = tuple(int((v / v[0] > THRESHOLD).sum()) for v in values)
        tails = [
            (layer - _truncated(layer, rank)).square().sum() for layer, rank in zip(system.layers, ranks, strict=True)
        ]
        (core,) = cores(lin).values()
        return Observed(
            torch.stack(kept),
            W,
            system.gradient(W),
            first.square().sum(),
            ranks,
            torch.stack(tails),
            core.spectrum,
        )

    def predict(self, system: System) -> Predicted:
        gram = system.inputs @ system.inputs.mT / DATA
        force = system.targets @ system.inputs.mT / DATA
        final = torch.linalg.solve(gram + system.decay * torch.eye(SIZE, dtype=torch.float64), force, left=False)
        miss = (system.start @ system.inputs - system.targets) / DATA
        size = ((miss.mT @ miss) * (system.inputs.mT @ system.inputs)).sum()
        ranks = tuple(min(WIDTH, 1 + math.floor(math.log(1 / THRESHOLD) / fall)) for fall in FALLS)
        squares = [9.0 * torch.exp(-2 * fall * torch.arange(WIDTH, dtype=torch.float64)) for fall in FALLS]
        tails = torch.stack([values[rank:].sum() for values, rank in zip(squares, ranks, strict=True)])
        core = torch.linalg.eigvalsh(system.inputs.mT @ system.inputs).flip(0)
        return Predicted(final, size, ranks, tails, core)

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        left = RATE * system.decay
        moved = torch.stack(
            [W - (1 - left) ** time * system.start for W, time in zip(observed.weights, TIMES, strict=True)]
        )
        beyond = torch.linalg.svdvals(moved)[:, DATA] / torch.linalg.svdvals(moved)[:, 0]
        scale = float(predicted.final.abs().max())
        gradients = [system.gradient(W) for W in (system.start, *observed.weights)]
        ranks = [_rank(M) for M in (observed.final, observed.gradient, *gradients)]
        layers = [torch.tensor(of.ranks, dtype=torch.float64) for of in (predicted, observed)]
        off = (observed.final - predicted.final).abs().max() / scale
        stationary = (observed.final + observed.gradient / system.decay).abs().max() / scale
        return [
            formula.close("W = −∇L/λ at the end, over max |W|", 0.0, stationary, 2e-3),
            formula.close("W = YXᵀ (XXᵀ + nλ)⁻¹, over max |W|", 0.0, off, 2e-3),
            formula.close("rank of W is that of the targets", TRUE_RANK, ranks[0], 0.0),
            identity.at_most("rank of W, at most that of ∇L", float(ranks[1]), float(ranks[0])),
            identity.at_most("rank of ∇L on the way, at most n", float(DATA), float(max(ranks[1:]))),
            identity.close("σ₁₃/σ₁ of W_t − (1−ηλ)^t W₀", 0.0, beyond, 1e-12),
            identity.close("|G|² = ⟨ΔᵀΔ, XᵀX⟩", predicted.size, observed.size, 1e-12, relative=True),
            identity.close("ranks of the layers at one threshold", layers[0], layers[1], 0.0),
            identity.close("truncation error is the tail energy", predicted.tails, observed.tails, 1e-9),
            identity.close("spectrum of the core is that of XᵀX", predicted.gram, observed.gram, 1e-10),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        kept = tuple(line for i, fall in enumerate(FALLS) for line in _spectrum(system.layers[i], fall, i))
        number = torch.arange(1, DATA + 1)
        path = zip((0, *TIMES, system.steps), (system.start, *observed.weights, observed.final), strict=True)
        squares = (
            points(f"σ² of ∇L, step {time}", number, spectrum(Dense(system.gradient(W)))[:DATA].square(), group=k)
            for k, (time, W) in enumerate(path, start=1)
        )
        lines = (*pair("core XᵀX", number, predicted.gram, observed.gram), *squares)
        return (
            Panel.of("Spectra of three layers and the threshold", "number", "σ/σ_max", *kept),
            Panel.of("The core bounds the rank of the gradient", "number", "eigenvalue", *lines, log="y"),
        )


def _spectrum(layer: Tensor, fall: float, group: int) -> tuple[Line, Line]:
    number, values = torch.arange(1, WIDTH + 1), torch.linalg.svdvals(layer)
    rank = int((values > THRESHOLD * values[0]).sum())
    return (
        curve(f"rank {rank}", number, torch.exp(-fall * (number - 1)), group=group),
        points("", number[:rank:3], (values / values[0])[:rank:3], group=group),
    )


def _rank(matrix: Tensor) -> int:
    values = spectrum(Dense(matrix))
    return int((values > 1e-3 * values[0]).sum())


def _truncated(layer: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(layer)
    return (left[:, :rank] * values[:rank]) @ right[:rank]
