"""Linear regression in context by softmax attention: one head, and two that cancel."""

import math
from collections.abc import Mapping
from typing import NamedTuple, final

import torch
from torch import Generator, Tensor

from kpflow.estimate import effective_rank
from kpflow.operators import Dense

from .draws import normal
from .entry import Check, Entry, Panel, formula, monte_carlo, pair, points
from .flows import rk4
from .prompts import attend, regression_prompts, sampled_loss
from .students import map_jacobian

__all__ = ["InContext"]

SIZE, LENGTH, NOISE = 8, 64, 0.1  # d, L, σ²
MANY = SIZE * (1 + NOISE)
LENGTHS = torch.tensor([LENGTH, 4 * LENGTH], dtype=torch.float64)
STEP, EVERY = 0.1, 10
SEEN = (0, 1, 2, 4, 10, 20, 40)  # of the kept states, those whose NTK is shown


@final
class System(NamedTuple):
    """Heads h give Σ_l y_l softmax_l(ω_h x_l·x_q), weighted by μ_h; starts of one and of two heads."""

    start: Tensor  # [2, 2, 2], of one head (and none) and of two: ω and μ
    matrices: dict[str, Tensor]  # KQ, "key" [2, 5, 4], and OV, "value" [2, 5], for d = 4, L = 32
    steps: int
    updates: int  # of Adam
    generator: Generator
    scale: float  # of the exponent in what is run; 1


@final
class Observed(NamedTuple):
    """Gradient flow of the surrogate, losses by sampling, and full matrices by Adam."""

    path: Tensor  # [t, 2, 2, 2], at L = 64
    ends: Tensor  # [2, 2], losses of one head and of two in the end, by L
    midway: float  # loss of one head by sampling at ω = 1/4, μ = 1
    optimal: float  # and in the end
    cancelling: float  # at two small cancelling heads
    matrices: dict[str, Tensor]  # by Adam
    loss: float  # with these
    ranks: list[list[float]]  # [t, 3], effective ranks of the NTK and of its parts of KQ and OV


@final
class Predicted(NamedTuple):
    """Closed forms."""

    scale: float  # ω* = 1/√d
    loss: float  # of one head
    product: float  # μ·ω of two heads
    limit: float  # of the loss of two heads
    cancelling: float
    best: float  # for the full matrices' d and L


@final
class InContext(Entry[System, Observed, Predicted]):
    """ℒ = 1 + σ² − 2μ·ω + μᵀ(ωωᵀ + ((1 + σ²)/L) exp(dωωᵀ))μ: one head ends at ω = 1/√d, two cancel.

    One head has the loss 1 + σ² − 1/(1 + e d(1 + σ²)/L), two nearly 1 + σ² − 1/(1 + d(1 + σ²)/L): e times less excess.
    Full matrices come to KQ = ωI and OV = (0, μ), two heads that cancel.
    """

    name = "in_context"
    title = "Linear regression in context"
    paper = "He, Pan, Chen, Yang 2025, In-Context Linear Regression Demystified, arXiv 2503.12734"
    kernels = (
        "K has a block for the scales ω (KQ) and one for the weights μ (OV), which grow at one rate from the saddle of "
        "a linear network of two layers: its effective rank rises while both count, and comes to that of KQ."
    )
    omits = "Several tasks at once, and more than two heads."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False) -> System:
        generator = torch.Generator().manual_seed(seed)
        start = 0.01 * (1 + 0.1 * torch.rand(2, 2, 2, generator=generator, dtype=torch.float64))
        start[0, :, 1] = 0.0
        start[1, :, 1] *= -1.0
        key, value = 0.1 * normal(generator, 2, 5, 4), 0.1 * normal(generator, 2, 5)
        signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
        key[:, range(4), range(4)] = 0.1 * signs[:, None]  # heads of equal signs stay alike
        value[:, 4] = 0.1 * signs
        steps, updates = (1500, 400) if short else (4000, 2000)
        return System(start, {"key": key, "value": value}, steps, updates, generator, 0.5 if broken else 1.0)

    def run(self, system: System) -> Observed:
        share, heads = ((1 + NOISE) / LENGTHS).view(2, 1, 1, 1), (system.start != 0).double()

        def velocity(state: Tensor) -> Tensor:
            scales, weights = state.unbind(dim=-2)
            kernel = share * torch.exp(system.scale * SIZE * scales[..., :, None] * scales[..., None, :])
            pull = 2 - 2 * (weights * scales).sum(dim=-1, keepdim=True)
            by_scale = pull * weights - 2 * SIZE * weights * (kernel @ (weights * scales)[..., None])[..., 0]
            by_weight = pull * scales - 2 * (kernel @ weights[..., None])[..., 0]
            return torch.stack([by_scale, by_weight], dim=-2) * heads

        paths = rk4(velocity, system.start.expand(2, -1, -1, -1), STEP, system.steps, every=EVERY)
        path = paths[:, 0]
        small, mass = torch.tensor([0.01, -0.01], dtype=torch.float64), 1 / (1 + MANY / LENGTH)
        states = [torch.tensor([[0.25], [1.0]]).double(), path[-1, 0, :, :1], torch.stack([small, small * mass / 2e-4])]
        midway, optimal, cancelling = (
            sampled_loss(_isotropic(state), LENGTH, NOISE, system.generator) for state in states
        )
        trained = _adam(system)
        prompts, _ = regression_prompts(40, SIZE, LENGTH, NOISE, system.generator)
        return Observed(
            path,
            torch.stack([_surrogate(ends, float(length)) for ends, length in zip(paths[-1], LENGTHS, strict=True)]),
            midway,
            optimal,
            cancelling,
            trained,
            sampled_loss(trained, 32, NOISE, system.generator),
            [_ranks(_isotropic(path[k, 1]), prompts) for k in SEEN],
        )

    def predict(self, system: System) -> Predicted:
        n = LENGTH - 1
        product = 1 / (1 + MANY / LENGTH)
        return Predicted(
            1 / math.sqrt(SIZE),
            1 + NOISE - 1 / (1 + math.e * MANY / LENGTH),
            product,
            1 + NOISE - product,
            1 + NOISE - 2 * product * n / LENGTH + product**2 * n * (n + 1 + MANY) / LENGTH**2,
            1 + NOISE - 31 / (32 + 4 * (1 + NOISE)),
        )

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        (one, _), (scales, weights) = observed.path[-1, 0], observed.path[-1, 1]
        sums = observed.path[-1, 1].sum(dim=1) / observed.path[-1, 1].abs().amax(dim=1)
        loss, other = observed.ends[0].tolist()
        growth = observed.path[:2, 0, 1, 0].log().diff() / (STEP * EVERY)
        excess, x = observed.ends - NOISE, MANY / LENGTHS
        ratio = excess[:, 0] / excess[:, 1] * (1 + math.e * x) / (1 + x)
        long = system.steps > 2000  # the short form ends at t = 150 instead of 400, and with less of Adam
        midway = float(_surrogate(torch.tensor([[0.25], [1.0]]).double()))
        key = observed.matrices["key"][:, :4]
        diagonal = key.diagonal(dim1=1, dim2=2)
        off = (key - torch.diag_embed(diagonal)).abs().max() / diagonal.abs().mean()
        value = observed.matrices["value"] / observed.matrices["value"][:, 4].abs().max()
        return [
            formula.close("ω of one head, 1/√d", predicted.scale, one[0], 1e-11 if long else 1e-5),
            formula.close("its loss", predicted.loss, loss, 1e-9),
            formula.close("Σω and Σμ of two heads, over the largest", 0.0, sums, 1e-9 if long else 1e-3),
            formula.close("μ·ω of two heads", predicted.product, weights @ scales, 0.02, relative=True),
            formula.close("their loss", predicted.limit, other, 5e-3),
            formula.close(
                "excess of one over two heads, by (1 + x)/(1 + ex): e",
                math.e,
                ratio,
                0.05 if long else 0.08,
                relative=True,
            ),
            formula.close("early growth rate", 2.0, growth, 0.08, relative=True),
            monte_carlo.close("surrogate by sampling, midway", midway, observed.midway, 0.05, relative=True),
            monte_carlo.close("in the end, to d/L", loss, observed.optimal, SIZE / LENGTH, relative=True),
            monte_carlo.close("zero-sum loss", predicted.cancelling, observed.cancelling, 0.03, relative=True),
            monte_carlo.at_most("full matrices: KQ off the diagonal, over it", 0.2, off),
            monte_carlo.at_most("OV, x over y", 0.1, value[:, :4].abs().max()),
            monte_carlo.close("Σμ over the largest", 0.0, value[:, 4].sum(), 0.1),
            monte_carlo.close(
                "full matrices: loss", predicted.best, observed.loss, 0.05 if long else 0.15, relative=True
            ),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        times = STEP * EVERY * torch.arange(41)
        one, two = _surrogate(observed.path[:41]).mT
        losses = (
            *pair("one head, 1 + σ² − 1/(1 + ex)", times, predicted.loss * torch.ones(41), one, every=2),
            *pair("two heads, 1 + σ² − 1/(1 + x)", times, predicted.limit * torch.ones(41), two, 1, every=2),
        )
        ranks = zip(("NTK", "its part of KQ", "of OV"), zip(*observed.ranks, strict=True), strict=True)
        lines = [points(name, times[list(SEEN)], found, i) for i, (name, found) in enumerate(ranks)]
        return (
            Panel.of("Loss, x = d(1 + σ²)/L", "time", "ℒ", *losses),
            Panel.of("Two heads' NTK over learning", "time", "effective rank", *lines),
        )


def _surrogate(states: Tensor, length: float = LENGTH) -> Tensor:
    """ℒ at states (ω, μ), `[*]` of `[*, 2, heads]`."""
    scales, weights = states.unbind(dim=-2)
    outer = scales[..., :, None] * scales[..., None, :]
    kernel = outer + (1 + NOISE) / length * torch.exp(SIZE * outer)
    quadratic = (weights[..., None, :] @ kernel @ weights[..., None])[..., 0, 0]
    return 1 + NOISE - 2 * (weights * scales).sum(dim=-1) + quadratic


def _isotropic(state: Tensor) -> dict[str, Tensor]:
    """KQ = ωI, OV = (0, μ)."""
    scales, weights = state[..., None]
    one = torch.eye(SIZE + 1, dtype=torch.float64)
    return {"key": scales[:, :, None] * one[:, :SIZE], "value": weights * one[SIZE]}


def _ranks(model: Mapping[str, Tensor], prompts: Tensor) -> list[float]:
    """Effective ranks of the NTK and of its parts of KQ and OV."""
    flat = prompts.flatten(1)
    J = map_jacobian(lambda x, model: attend(x.view(-1, *prompts.shape[1:]), model), flat, model)
    parts = J.split([value.numel() for value in model.values()], dim=1)
    return [effective_rank(Dense(part)).value for part in (J, *parts)]


def _adam(system: System) -> dict[str, Tensor]:
    """Full matrices after Adam, whose rate falls to 0, on 64 new prompts at every step."""
    model = {name: value.clone().requires_grad_() for name, value in system.matrices.items()}
    rate = 12 / system.updates
    optimiser = torch.optim.Adam(model.values(), lr=rate)
    for step in range(system.updates):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / system.updates)
        prompts, target = regression_prompts(64, 4, 32, NOISE, system.generator)
        optimiser.zero_grad()
        (attend(prompts, model) - target).square().mean().backward()
        optimiser.step()
    return {name: value.detach() for name, value in model.items()}
