"""Finite steps of gradient descent as flows: how far they drift from the gradient flow, and which flow they are."""

import math
from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.func import grad

from kpflow.flow import finite_step_kernel, finite_step_rates, modified_flow, modified_gradient_flow

from .draws import normal
from .entry import Check, Entry, Line, Panel, curve, formula, identity, pair
from .exponents import exponent
from .flows import rk4
from .students import linear_ntk

__all__ = ["Drift"]

STEPS = (0.02, 0.01, 0.005)
CURVATURES = torch.tensor([0.3, 1.0, 9.0, 15.0, 19.0, 21.0], dtype=torch.float64)  # times 0.1: both sides of 1 and 2


@final
class System(NamedTuple):
    """A tanh net of 22 parameters on 20 data, a game of two players, and a linear net; `rate` over the stated step."""

    inputs: Tensor  # [20]
    targets: Tensor  # [20]
    start: Tensor  # [22]
    players: Tensor  # [2]
    design: Tensor  # [6, 4]
    rate: float
    time: float


@final
class Observed(NamedTuple):
    """Errors of each flow by step, and what descent did."""

    local: Tensor  # [3, steps]
    everywhere: Tensor  # [2, steps]
    games: Tensor  # [2, steps]
    quadratic: Tensor  # [6], what 30 steps of descent leave
    bilinear: float
    kernel: Tensor  # [6, 6]
    residuals: Tensor  # [41, 6]


@final
class Predicted(NamedTuple):
    """Orders are 2, 3, 4 and 1, 2; the rest in closed form."""

    bilinear: float
    residuals: Tensor  # [41, 6]
    naive: Tensor  # the same by the gradient flow


@final
class Drift(Entry[System, Observed, Predicted]):
    """A step η is, to order 2, 3 and 4, the flow of −g, −g − η/2 Hg and −g − η/2 Hg − η²(HHg/3 + ∂H[g]g/12).

    On a quadratic it is that of −log(I − ηH)/η exactly. Games: x ← x + η f(x) is the flow of f − η/2 ∂f f to order 3;
    a bilinear one, which rotates, grows by log(1 + η²)/2η.
    """

    name = "drift"
    title = "Discretisation drift"
    paper = "Rosca 2023, arXiv 2310.14036; Rosca, Wu, Qin, Dherin 2023"
    kernels = (
        "For a model that is linear in its parameters, steps η replace the NTK Λ by Λ·(−log(1 − ηΛ)/(ηΛ)), mode by "
        "mode: modes with ηλ near 2 are where the linear theory has to be corrected."
    )
    omits = "Adaptive drift control, batch-wise modified losses, and training of GANs."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False) -> System:
        generator = torch.Generator().manual_seed(seed)
        inputs, start, design = normal(generator, 20), normal(generator, 22), normal(generator, 6, 4)
        players = torch.tensor([0.6, -0.4], dtype=torch.float64)
        return System(inputs, (2 * inputs).sin(), start, players, design, 1.1 if broken else 1.0, 0.2 if short else 1.0)

    def run(self, system: System) -> Observed:
        def loss(theta: Tensor) -> Tensor:
            first, bias, second, last = theta.split((7, 7, 7, 1))
            outputs = torch.tanh(system.inputs[:, None] * first + bias) @ second + last
            return 0.5 * (outputs - system.targets).square().mean()

        def descended(step: float, count: int) -> Tensor:
            theta = system.start
            for _ in range(count):
                theta = theta - system.rate * step * grad(loss)(theta)
            return theta

        local, everywhere, games = [], [], []
        for step in STEPS:
            flows, count = [modified_gradient_flow(loss, step, order) for order in (1, 2, 3)], round(system.time / step)
            once, ended = descended(step, 1), descended(step, count)
            local.append([_distance(flow, system.start, step, 4, once) for flow in flows])
            everywhere.append([_distance(flow, system.start, system.time, count, ended) for flow in flows[:2]])
            played = system.players + system.rate * step * _game(system.players)
            fields = (_game, modified_flow(_game, step))
            games.append([_distance(flow, system.players, step, 4, played) for flow in fields])
        left = torch.ones_like(CURVATURES)
        for _ in range(30):
            left = left - 0.1 * system.rate * CURVATURES * left
        return Observed(
            torch.tensor(local).mT,
            torch.tensor(everywhere).mT,
            torch.tensor(games).mT,
            left,
            _growth(0.1 * system.rate),
            linear_ntk([torch.ones(1, 4, dtype=torch.float64)], system.design),
            _residuals(system),
        )

    def predict(self, system: System) -> Predicted:
        kernel = system.design @ system.design.mT
        rate = _rate(system.design)
        exact, naive = -rate * finite_step_kernel(kernel, rate), -rate * kernel
        return Predicted(math.log1p(0.01) / 0.2, _decay(exact), _decay(naive))

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        gram, growth = system.design @ system.design.mT, observed.bilinear
        left = observed.quadratic
        rates = finite_step_rates(CURVATURES, 0.1)
        local, everywhere, games = (
            [exponent(STEPS[-2:], errors[-2:]) for errors in found]
            for found in (observed.local, observed.everywhere, observed.games)
        )
        return [
            formula.close("order of the error of one step: three flows", [2, 3, 4], local, 0.12),
            formula.close("after a time: two flows", [1, 2], everywhere, 0.12),
            formula.close("of one step of a game: two flows", [2, 3], games, 0.02),
            identity.close("30 steps on quadratics: e^{−rt}", torch.exp(-3 * rates).real, left, 1e-12, relative=True),
            identity.close("they grow where the rate is negative", (rates.real < 0).double(), (left > 1).double(), 0.0),
            identity.close(
                "growth in a bilinear game: log(1 + η²)/2η", predicted.bilinear, growth, 1e-12, relative=True
            ),
            formula.close("the same by the corrected flow, η/2", 0.05, growth, 6e-3, relative=True),
            identity.close("the NTK of the linear model is XXᵀ", gram, observed.kernel, 1e-12),
            identity.close("descent by the kernel of finite steps", predicted.residuals, observed.residuals, 1e-10),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        lines: list[Line] = []
        for group, errors in enumerate(observed.local):
            order = group + 2
            expected = [float(errors[-1]) * (step / STEPS[-1]) ** order for step in STEPS]
            lines += pair(f"flow of order {group + 1}: η^{order}", STEPS, expected, errors, group)
        values, vectors = torch.linalg.eigh(observed.kernel)
        modes, steps = list[Line](), range(0, 41, 2)
        for group, k in enumerate((5, 4, 3, 2)):
            known, seen, naive = (
                (residuals[::2] @ vectors[:, k]).abs().clamp_min(1e-12)
                for residuals in (predicted.residuals, observed.residuals, predicted.naive)
            )
            modes += pair(f"ηλ = {_rate(system.design) * float(values[k]):.2f}", steps, known, seen, group)
            modes.append(curve("", steps, naive, group=7))
        return (
            Panel.of("One step against flows", "step η", "distance", *lines, log="xy"),
            Panel.of("Modes of the NTK (grey: gradient flow)", "step", "residual", *modes, log="y"),
        )


def _distance(flow: Callable[[Tensor], Tensor], start: Tensor, time: float, count: int, end: Tensor) -> float:
    return float(torch.linalg.vector_norm(rk4(flow, start, time / count, count)[-1] - end))


def _game(players: Tensor) -> Tensor:
    """−∂L₁/∂x and −∂L₂/∂y for L₁ = xy + x⁴/4 and L₂ = −xy + x²y²/2 + y⁴/8."""
    x, y = players
    return torch.stack([-y - x**3, x - x**2 * y - y**3 / 2])


def _growth(step: float) -> float:
    """Of the distance from the equilibrium of the game xy by simultaneous steps, per time at η = 0.1."""
    x, y = 1.0, 0.0
    for _ in range(100):
        x, y = x - step * y, y + step * x
    return math.log(math.hypot(x, y)) / 10.0


def _rate(design: Tensor) -> float:
    """With which the largest mode has ηλ = 1.9."""
    return 1.9 / float(torch.linalg.eigvalsh(design @ design.mT)[-1])


def _residuals(system: System) -> Tensor:
    """Of gradient descent on ½‖Xw − y‖², with Xw − y = 1 at first."""
    design, rate = system.design, system.rate * _rate(system.design)
    moved, kept = torch.zeros(4, dtype=torch.float64), []
    for _ in range(41):
        kept.append(1 + design @ moved)
        moved = moved - rate * design.mT @ kept[-1]
    return torch.stack(kept)


def _decay(generator: Tensor) -> Tensor:
    """What is left of ones after 0 to 40 steps."""
    step, left = torch.matrix_exp(generator), [torch.ones(len(generator), dtype=generator.dtype)]
    for _ in range(40):
        left.append(step @ left[-1])
    return torch.stack(left).real
