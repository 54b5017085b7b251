"""A student that starts near a random teacher and learns to be like it."""

import math
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from .draws import normal
from .entry import Check, Entry, Panel, formula, monte_carlo, pair
from .exponents import exponent
from .flows import rk4
from .students import output_ntk

__all__ = ["RandomTeacher"]

SIZES = ((64, 20), (64, 64), (16, 64))
STEPS, RATE, OTHERS = 12, 1e-3, 10
FIRST = torch.tensor([1e-2, 1e-3, 1e-4], dtype=torch.float64)  # α of first steps
NEAR = torch.tensor([1e-5, 5e-6, 2.5e-6], dtype=torch.float64)  # α within a linear piece


@final
class System(NamedTuple):
    """Inputs, teacher, and where all students come from; `rates` of all parameters are 1."""

    inputs: Tensor  # [n, 20]
    teacher: Tensor  # [P]
    others: Tensor  # [10, P]
    rates: Tensor  # [P]
    distances: Tensor  # α


@final
class Observed(NamedTuple):
    """Residuals of students at each distance, and their first steps."""

    far: Tensor  # [2, α, 10, N], f_S − f_T at the start and in the end
    near: Tensor  # [2, α, 10, N], with α so small that hardly a ReLU changes sides
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
        if not 0.003 <= distance <= 0.1:
            raise ValueError(
                f"`distance` must be between 0.003 and 0.1; got {distance!r}: farther away more than a few ReLUs "
                "change sides, and the flow is no longer that of the teacher's NTK up to O(α²); nearer none "
                "does, and the order of the difference is another."
            )
        generator = torch.Generator().manual_seed(seed)
        inputs = normal(generator, 30 if short else 60, 20)
        drawn = [
            scale * normal(generator, count)
            for _ in range(1 + OTHERS)
            for out, into in SIZES
            for scale, count in ((math.sqrt(2 / into), out * into), (0.1, out))
        ]
        teacher, *others = torch.cat(drawn).view(1 + OTHERS, -1)
        rates = torch.ones_like(teacher)
        rates[-(16 * 64 + 16) :] = 0.8 if broken else 1.0
        distances = distance * 2.0 ** -torch.arange(4.0, dtype=torch.float64)
        return System(inputs, teacher, torch.stack(others), rates, distances)

    def run(self, system: System) -> Observed:
        far, near = _residuals(system, system.distances, STEPS), _residuals(system, NEAR, 2 * STEPS)
        students = (1 - FIRST[:, None]) * system.teacher + FIRST[:, None] * system.others[0]
        slopes = system.rates * _gradient(system, students, _outputs(system.inputs, system.teacher))
        return Observed(far, near, RATE * slopes.norm(dim=1), _adam_step(students, slopes).norm(dim=1) / RATE)

    def predict(self, system: System) -> Predicted:
        values, vectors = torch.linalg.eigh(output_ntk(_network(system.teacher), system.inputs))
        return Predicted(values, vectors, _time(system), math.sqrt(len(system.teacher)))

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        far, near = (_gaps(residuals, predicted) for residuals in (observed.far, observed.near))
        means = far.square().mean(dim=1).sqrt()  # over students
        missed = means[-1] / observed.far[0, -1].square().sum(dim=1).mean().sqrt()
        # within a linear piece the order is 2, of units that change sides at random 3/2
        return [
            formula.close("nearest student: r(t) − e^{−Θt} r(0), over r(0)", 0.0, missed, 4e-2),
            monte_carlo.close("its order in α", 1.85, exponent(system.distances, means), 0.28),
            formula.close("its order within a linear piece", 2.0, exponent(NEAR, near.median(dim=1).values), 0.1),
            formula.close(
                "first step of gradient descent: exponent of α", 1.0, exponent(FIRST, observed.descent), 0.05
            ),
            formula.close("first step of Adam over lr √P", 1.0, observed.adam / predicted.adam, 4e-2),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        start, end = observed.far[:, -1, 0] @ predicted.vectors
        values, left = predicted.values[-40:], (end / start)[-40:]
        alphas, gaps = system.distances, _gaps(observed.far, predicted).square().mean(dim=1).sqrt()
        second, nearest = gaps[-1] / alphas[-1] ** 2, observed.descent[-1] / FIRST[-1]
        return (
            Panel.of(
                "What the teacher's NTK misses, and first steps",
                "α",
                "length",
                *pair("r(t) − e^{−Θt} r(0), ∝ α²", alphas, second * alphas.square(), gaps),
                *pair("Adam, lr √P", FIRST, RATE * predicted.adam * torch.ones(3), RATE * observed.adam, 1),
                *pair("descent, ∝ α", FIRST, nearest * FIRST, observed.descent, 2),
                log="xy",
            ),
            Panel.of(
                "What is left of each mode of Θ, smallest α",
                "eigenvalue",
                "share",
                *pair("e^{−λt}", values, torch.exp(-values * predicted.time), left),
            ),
        )


def _gaps(residuals: Tensor, predicted: Predicted) -> Tensor:
    """‖r(t) − e^{−Θt} r(0)‖ of every student, `[α, 10]`."""
    start, end = residuals
    left = torch.exp(-predicted.values * predicted.time)
    return (end - (start @ predicted.vectors * left) @ predicted.vectors.mT).norm(dim=2)


def _layers(theta: Tensor) -> list[Tensor]:
    """Weights `[*, out, in]` and biases `[*, 1, out]` in turn."""
    parts = theta.split([size for out, into in SIZES for size in (out * into, out)], dim=-1)
    shapes = [shape for out, into in SIZES for shape in ((out, into), (1, out))]
    return [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]


def _outputs(inputs: Tensor, theta: Tensor) -> Tensor:
    """`[*, n, 16]`."""
    one, a, two, b, three, c = _layers(theta)
    return ((inputs @ one.mT + a).relu() @ two.mT + b).relu() @ three.mT + c


def _residuals(system: System, distances: Tensor, steps: int) -> Tensor:
    """f_S − f_T of all students at the start and in the end of gradient flow, `[2, α, 10, N]`."""
    target = _outputs(system.inputs, system.teacher)
    students = (1 - distances[:, None, None]) * system.teacher + distances[:, None, None] * system.others
    path = rk4(
        lambda theta: -system.rates * _gradient(system, theta, target),
        students,
        _time(system) / steps,
        steps,
        every=steps,
    )
    return (_outputs(system.inputs, path) - target).flatten(-2)


def _network(theta: Tensor) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)).double()
    names = [f"{k}.{kind}" for k in (0, 2, 4) for kind in ("weight", "bias")]
    model.load_state_dict(dict(zip(names, (part.squeeze(0) for part in _layers(theta)), strict=True)))
    return model


def _gradient(system: System, theta: Tensor, target: Tensor) -> Tensor:
    """Of ½‖f − f_T‖², of several students at once."""
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
