"""A student that starts near a random teacher and learns to be like it."""

import math
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn

from .entry import Check, Entry, Panel, curve, formula, monte_carlo, points
from .flows import rk4
from .students import output_ntk

__all__ = ["RandomTeacher"]

SIZES = ((64, 20), (64, 64), (16, 64))
STEPS, RATE, OTHERS = 12, 1e-3, 10
FIRST = (1e-2, 1e-3, 1e-4)  # α of first steps


@final
class System(NamedTuple):
    """Inputs, teacher, and where all students come from; `rates` of all parameters are 1."""

    inputs: Tensor  # [n, 20]
    teacher: Tensor  # [P]
    others: Tensor  # [10, P]
    rates: Tensor  # [P]
    distances: tuple[float, ...]  # α


@final
class Observed(NamedTuple):
    """Residuals of students at each distance, and their first steps."""

    starts: Tensor  # [α, 10, N], f_S − f_T
    ends: Tensor  # [α, 10, N]
    descent: Tensor  # [α], length of the first step of gradient descent
    adam: Tensor  # [α], and of Adam, over its rate


@final
class Predicted(NamedTuple):
    """By the NTK at the teacher."""

    values: Tensor  # [N], ascending
    vectors: Tensor
    time: float
    adam: float  # √P


@final
class RandomTeacher(Entry[System, Observed, Predicted]):
    """A student θ_S = (1 − α) θ_T + α θ̃ is distilled into a random teacher: r(t) = e^{−Θt} r(0) + O(α²).

    Θ is the NTK at the teacher. The first step of gradient descent is ∝ α; that of Adam is lr √P, whatever α: near the
    teacher Adam goes far beyond it, which may be why nearness matters (an interpretation, not the paper's statement).
    """

    name = "random_teacher"
    title = "Distillation from a random teacher"
    paper = "Sarnthein, Bachmann, Anagnostidis, Hofmann 2023, Random Teachers are Good Teachers, arXiv 2302.12091"
    kernels = (
        "As α → 0 learning is exactly the flow of the NTK at the teacher, mode by mode, so that any change of features "
        "is an effect of second order."
    )
    omits = "The gain of a probe on the student's features, which small networks did not show: .01–.02 at most."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False, distance: float = 0.05) -> System:
        if not 0 < distance <= 0.1:
            raise ValueError(
                f"`distance` must be above 0 and at most 0.1; got {distance!r}: farther away more than a few ReLUs "
                f"change sides, and the flow is no longer that of the teacher's NTK up to O(α²)."
            )
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(30 if short else 60, 20, generator=generator, dtype=torch.float64)
        drawn = [
            torch.cat(
                [
                    torch.cat(
                        [
                            math.sqrt(2 / into) * torch.randn(out * into, generator=generator, dtype=torch.float64),
                            0.1 * torch.randn(out, generator=generator, dtype=torch.float64),
                        ]
                    )
                    for out, into in SIZES
                ]
            )
            for _ in range(1 + OTHERS)
        ]
        teacher, others = drawn[0], torch.stack(drawn[1:])
        rates = torch.ones_like(teacher)
        rates[-(16 * 64 + 16) :] = 0.8 if broken else 1.0
        return System(inputs, teacher, others, rates, tuple(distance * 2.0**-k for k in range(4)))

    def run(self, system: System) -> Observed:
        target = _outputs(system.inputs, system.teacher)
        time = _time(system)
        starts, ends, first, adam = [], [], [], []
        for distance in system.distances:
            for other in system.others:
                student = (1 - distance) * system.teacher + distance * other
                path = rk4(
                    lambda theta: -system.rates * _gradient(system, theta, target),
                    student,
                    time / STEPS,
                    STEPS,
                    every=STEPS,
                )
                starts.append((_outputs(system.inputs, student) - target).flatten())
                ends.append((_outputs(system.inputs, path[-1]) - target).flatten())
        for distance in FIRST:
            student = (1 - distance) * system.teacher + distance * system.others[0]
            slope = system.rates * _gradient(system, student, target)
            first.append(torch.linalg.vector_norm(RATE * slope))
            adam.append(torch.linalg.vector_norm(_adam_step(student, slope)) / RATE)
        shape = (len(system.distances), OTHERS, -1)
        return Observed(
            torch.stack(starts).view(shape), torch.stack(ends).view(shape), torch.stack(first), torch.stack(adam)
        )

    def predict(self, system: System) -> Predicted:
        values, vectors = torch.linalg.eigh(output_ntk(_network(system.teacher), system.inputs))
        return Predicted(values, vectors, _time(system), math.sqrt(len(system.teacher)))

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        gaps = _gaps(observed, predicted)
        order = float(np.polyfit(np.log(system.distances), gaps.log().numpy(), 1)[0])
        slope = float(np.polyfit(np.log(FIRST), observed.descent.log().numpy(), 1)[0])
        missed = gaps[-1] / observed.starts[-1].square().sum(dim=1).mean().sqrt()
        # eleven seeds: order 1.64 to 1.96; within a linear piece it is 2, of units that change sides at random 3/2
        return [
            formula.close("nearest student: r(t) − e^{−Θt} r(0), over r(0)", 0.0, missed, 4e-2),
            monte_carlo.close("its order in α", 1.85, order, 0.28),
            formula.close("first step of gradient descent: exponent over α", 1.0, slope, 0.05),
            formula.close("first step of Adam over lr √P", 1.0, observed.adam / predicted.adam, 4e-2),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        modes = observed.starts[-1, 0] @ predicted.vectors
        left = (observed.ends[-1, 0] @ predicted.vectors / modes)[-40:]
        values = predicted.values[-40:]
        alphas, gaps = torch.tensor(system.distances), _gaps(observed, predicted)
        second, nearest = float(gaps[-1] / alphas[-1] ** 2), float(observed.descent[-1] / FIRST[-1])
        return (
            Panel.of(
                "What the teacher's NTK misses, and first steps",
                "α",
                "length",
                curve("∝ α²", alphas, second * alphas.square()),
                points("r(t) − e^{−Θt} r(0)", alphas, gaps),
                curve("Adam, lr √P", FIRST, [RATE * predicted.adam] * len(FIRST), group=1),
                points("", FIRST, RATE * observed.adam, group=1),
                curve("descent, ∝ α", FIRST, nearest * torch.tensor(FIRST), group=2),
                points("", FIRST, observed.descent, group=2),
                log="xy",
            ),
            Panel.of(
                "What is left of each mode of Θ, smallest α",
                "eigenvalue",
                "share",
                curve("e^{−λt}", values, torch.exp(-values * predicted.time)),
                points("student", values, left),
            ),
        )


def _gaps(observed: Observed, predicted: Predicted) -> Tensor:
    """Root mean square over students of ‖r(t) − e^{−Θt} r(0)‖ at each α."""
    left = torch.exp(-predicted.values * predicted.time)
    flows = (observed.starts @ predicted.vectors * left) @ predicted.vectors.mT
    return (observed.ends - flows).square().sum(dim=2).mean(dim=1).sqrt()


def _layers(theta: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases."""
    parts = theta.split([size for out, into in SIZES for size in (out * into, out)])
    return [(parts[2 * k].view(size), parts[2 * k + 1]) for k, size in enumerate(SIZES)]


def _outputs(inputs: Tensor, theta: Tensor) -> Tensor:
    (one, a), (two, b), (three, c) = _layers(theta)
    return ((inputs @ one.mT + a).relu() @ two.mT + b).relu() @ three.mT + c


def _network(theta: Tensor) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)).double()
    names = [f"{k}.{kind}" for k in (0, 2, 4) for kind in ("weight", "bias")]
    model.load_state_dict(dict(zip(names, (part for layer in _layers(theta) for part in layer), strict=True)))
    return model


def _gradient(system: System, theta: Tensor, target: Tensor) -> Tensor:
    """Of ½‖f − f_T‖²."""
    place = theta.clone().requires_grad_()
    (slope,) = torch.autograd.grad(0.5 * (_outputs(system.inputs, place) - target).square().sum(), place)
    return slope


def _time(system: System) -> float:
    """‖f‖²/‖Jᵀf‖² of the teacher's outputs f: in it a mode as large as the one that f lies in falls to 1/e."""
    slope = _gradient(system, system.teacher, torch.zeros(()))
    return float(_outputs(system.inputs, system.teacher).square().sum() / slope.square().sum())


def _adam_step(theta: Tensor, slope: Tensor) -> Tensor:
    place = theta.clone()
    place.grad = slope
    torch.optim.Adam([place], lr=RATE, eps=1e-14).step()
    return place - theta
