"""A forward-only rule that raises knowledge until the entropy of decisions is gone."""

import math
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from kpflow.estimate import modes
from kpflow.flow import Ntk
from kpflow.operators import to_dense

from .draws import normal, orthogonal
from .entry import Check, Entry, Panel, curve, formula, identity, points
from .exponents import exponent
from .flows import rk4
from .students import linear_map, linearise_map

__all__ = ["Ska"]

POINTS, SIZE, TIME = 20, 5, 26.0
STEPS = (0.2, 0.1, 0.05)
SCALES = torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0], dtype=torch.float64)  # of the kernel's modes, over n


@final
class System(NamedTuple):
    """Inputs and weights of one layer z = XW; `unit` is ln 2, for entropy in bits."""

    inputs: Tensor  # [20, 5]
    start: Tensor  # [5]
    unit: float
    time: float
    bend: Tensor  # [20], of a way between the same ends


@final
class Observed(NamedTuple):
    """Knowledge z = XW on the ways."""

    flow: Tensor  # [t, 20]
    gaps: list[float]  # of the discrete rule from the flow, at each step size
    entropy: Tensor  # [t, 20], −Σ z ΔD / ln 2 along the flow
    actions: Tensor  # [2, 20], from 0 to the end of the flow, straight and along a bent way
    kernel: Tensor  # [20, 20]
    values: Tensor  # [5], eigenvalues of the kernel over n, rising
    early: Tensor  # [5], rates of growth of the modes while z is small


@final
class Predicted(NamedTuple):
    """From the kernel, and from H₂."""

    flow: Tensor
    entropy: Tensor


@final
class Ska(Entry[System, Observed, Predicted]):
    """Structured knowledge accumulation: H = −(1/ln 2) Σ z ΔD with D = σ(z), descended without a backward pass.

    Along any way from 0, H is H₂(σ(z)) − 1 bits, the entropy of a decision. K steps of size η depend on ηK alone, up to
    O(η), and follow Ẇ = Xᵀ(zσ′(z))/(n ln 2). The Lagrangian −zσ′ż is a total derivative: its action does not depend
    on the way, so that the variational principle of the paper selects nothing.
    """

    name = "ska"
    title = "Structured knowledge accumulation"
    paper = "Mahi 2025, Structured Knowledge Accumulation, arXiv 2504.03214"
    kernels = (
        "Knowledge moves by ż = K zσ′(z)/(n ln 2) with the constant NTK K = XXᵀ, so that early every kernel mode λ "
        "grows on its own at the rate λ/(4n ln 2)."
    )
    omits = "Stacks of layers, which learn apart, and the comparison with back-propagation on MNIST."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False, time: float = TIME) -> System:
        if not 10 <= time <= 30:
            raise ValueError(
                f"`time` must be between 10 and 30; got {time!r}: before, knowledge is too small for its entropy to be "
                f"compared, and after it the saturated modes have no rates."
            )
        del short
        generator = torch.Generator().manual_seed(seed)
        frame, turn = orthogonal(generator, POINTS, SIZE), orthogonal(generator, SIZE)
        signs = normal(generator, SIZE).sign()
        lengths = (POINTS * SCALES).sqrt()
        return System(
            frame * lengths @ turn.mT,
            turn @ (1e-3 * signs / lengths),
            1.0 if broken else math.log(2),
            time,
            normal(generator, POINTS),
        )

    def run(self, system: System) -> Observed:
        X, count = system.inputs, round(system.time / 0.05)
        weights = rk4(lambda w: X.mT @ _pull(X @ w) / (POINTS * system.unit), system.start, 0.05, count)
        flow = weights @ X.mT
        middle = 0.5 * (flow[1:] + flow[:-1])
        ntk = Ntk(linearise_map(linear_map, X, {"W": system.start[None]}))
        leading = modes(ntk, SIZE)
        growth = (flow[[0, 20]] @ leading.vectors.flatten(1).mT).abs().log()
        return Observed(
            flow,
            [float((X @ _accumulate(system, step) - flow[-1]).abs().max()) for step in STEPS],
            1 - (middle * flow.sigmoid().diff(dim=0)).cumsum(dim=0) / math.log(2),
            torch.stack([_actions(flow[-1], size * system.bend) for size in (0.0, 1.0)]),
            to_dense(ntk),
            leading.values.flip(0) / POINTS,
            (growth[1] - growth[0]).flip(0),
        )

    def predict(self, system: System) -> Predicted:
        K = system.inputs @ system.inputs.mT
        count = round(system.time / 0.05)
        flow = rk4(lambda z: K @ _pull(z) / (POINTS * math.log(2)), system.inputs @ system.start, 0.05, count)
        return Predicted(flow, _bits(flow[1:]))

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        straight, bent = observed.actions / math.log(2)
        K, rates = system.inputs @ system.inputs.mT, SCALES / (4 * math.log(2))
        return [
            identity.close("−∫ z dσ(z) / ln 2 is H₂ − 1 bits", _bits(observed.flow[-1]) - 1, straight, 1e-10),
            identity.close("and the same along a bent way", straight, bent, 1e-9),
            formula.close("1 − Σ z ΔD / ln 2 along the flow is H₂", predicted.entropy, observed.entropy, 1e-3),
            formula.close("K steps of η at the same ηK: exponent of the gap", 1.0, exponent(STEPS, observed.gaps), 0.1),
            identity.close("flow of the weights is that of the kernel", predicted.flow, observed.flow, 1e-9),
            identity.close("NTK is XXᵀ", K, observed.kernel, 1e-12),
            identity.close("its eigenvalues, over n", SCALES, observed.values, 1e-12),
            formula.close("early rates are λ/(4n ln 2)", rates, observed.early, 1e-4, relative=True),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        grid = torch.linspace(-6, 6, 81, dtype=torch.float64)
        values = torch.linspace(0, 1.05, 12, dtype=torch.float64)
        entropy = (
            curve("H₂(σ(z))", grid, _bits(grid)),
            points("1 − Σ z ΔD / ln 2", observed.flow[1::10, :3], observed.entropy[::10, :3]),
        )
        growth = (
            curve("λ / (4n ln 2)", values, values / (4 * math.log(2))),
            points("observed", observed.values, observed.early),
        )
        return (
            Panel.of("Entropy of decisions, as knowledge accumulates", "knowledge z", "bits", *entropy),
            Panel.of("Early growth of each NTK mode", "eigenvalue / n", "rate", *growth),
        )


def _pull(knowledge: Tensor) -> Tensor:
    """z σ′(z)."""
    decision = knowledge.sigmoid()
    return knowledge * decision * (1 - decision)


def _bits(knowledge: Tensor) -> Tensor:
    """H₂(σ(z)), in bits."""
    decision = knowledge.sigmoid()
    other = (-knowledge).sigmoid()
    return -(decision * decision.log2() + other * other.log2())


def _accumulate(system: System, step: float) -> Tensor:
    """Weights after steps W ← W + η Xᵀ(zσ′(z) + ΔD)/(n ln 2) of the discrete rule."""
    W, X = system.start, system.inputs
    decision = (X @ W).sigmoid()
    for _ in range(round(system.time / step)):
        knowledge = X @ W
        before, decision = decision, knowledge.sigmoid()
        W = W + step * X.mT @ (_pull(knowledge) + decision - before) / (POINTS * system.unit)
    return W


def _actions(ends: Tensor, bend: Tensor) -> Tensor:
    """−∫ zσ′(z) ż ds along z(s) = s·end + bend sin 2πs, s from 0 to 1, by Gauss and Legendre's rule, of each point."""
    nodes, weights = (0.5 * torch.from_numpy(part)[:, None] for part in np.polynomial.legendre.leggauss(80))
    turns = 2 * math.pi * (nodes + 0.5)
    speed = ends + 2 * math.pi * bend * turns.cos()
    return -(weights * _pull((nodes + 0.5) * ends + bend * turns.sin()) * speed).sum(dim=0)
