"""Momentum methods as dynamical systems: radii, cycles, and differential equations of low and high resolution."""

import math
from typing import NamedTuple, final

import numpy as np
import torch
from numpy import ndarray
from scipy.special import j1
from torch import Tensor

from .entry import Check, Entry, Panel, curve, formula, identity, points
from .students import linear_network, output_ntk

__all__ = ["Acceleration"]

STEPS = (1.6e-3, 4e-4, 1e-4)  # s, of Nesterov's method on x²/2
RESOLVED = (1e-3, 1e-4, 1.6e-5)  # s, against differential equations
TIME = 5.0


@final
class Method(NamedTuple):
    """x⁺ = x + β(x − x₋) − α ∇f(x + γ(x − x₋))."""

    name: str
    rate: float
    momentum: float
    look: float


@final
class System(NamedTuple):
    """Methods tuned to a condition number; a linear student; `nudge` of the momentum is 0."""

    condition: float
    methods: tuple[Method, ...]
    design: Tensor  # [4, 6] of a linear student
    nudge: float


@final
class Observed(NamedTuple):
    """What iteration gave."""

    path: ndarray  # Nesterov's method at the smallest step
    gaps: list[float]  # from the Bessel function, by step
    bound: float
    radii: list[float]
    cycle: ndarray  # the last three of the heavy ball on Lessard's function
    rests: list[float]  # |x| in the end, of the others
    low: list[float]  # distance from the equation of low resolution, by step
    high: list[float]
    plain: list[float]  # of high resolution with the usual first velocity
    modes: ndarray  # of a linear student's residual: product of the two factors per step, by mode of the NTK
    kernel: ndarray


@final
class Predicted(NamedTuple):
    """Closed forms."""

    path: ndarray
    radii: list[float]
    cycle: ndarray
    modes: ndarray


@final
class Acceleration(Entry[System, Observed, Predicted]):
    """Nesterov's method on λx²/2 follows 2 J₁(t√λ)/(t√λ) up to O(√s), and with strong convexity a damped oscillator.

    Radii for κ = L/μ: 1 − 1/√κ (Nesterov, triple momentum) and (√κ − 1)/(√κ + 1) (heavy ball), which cycles on
    Lessard's function. ẍ + (2√μ + √s λ) ẋ + (1 + √(μs)) λx = 0 is within O(s) of the iterates only if
    ẋ(0) = −(3/2) √s ∇f.
    """

    name = "acceleration"
    title = "Acceleration"
    paper = "Dynamics of accelerated methods, 2025, arXiv 2509.18346; Su, Boyd, Candès 2016; Lessard et al. 2016"
    kernels = (
        "Momentum makes the state of the parameters second order, so that the NTK acts through the optimiser's own "
        "resolvent: each of its modes decays by the radius of its companion matrix."
    )
    omits = "Non-quadratic rates, noise, and adaptive restarts."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False, condition: float = 100.0) -> System:
        if condition <= 1:
            raise ValueError(f"`condition` must be above 1; got {condition:g}: nothing is left to accelerate at κ = 1.")
        generator = torch.Generator().manual_seed(seed)
        design = torch.randn(4, 6, generator=generator, dtype=torch.float64)
        return System(condition, _tuned(1.0, condition), design, 0.02 if broken else 0.0)

    def run(self, system: System) -> Observed:
        paths = [_nesterov(step, round(TIME / math.sqrt(step)), system.nudge) for step in STEPS]
        times = [math.sqrt(step) * np.arange(1, len(path) + 1) for step, path in zip(STEPS, paths, strict=True)]
        gaps = [float(np.abs(path - _bessel(time)).max()) for path, time in zip(paths, times, strict=True)]
        long = _nesterov(0.1, 2000, system.nudge)
        bound = 2 / (0.1 * np.arange(1, 2002) ** 2)
        nesterov, heavy, triple = (_iterate(m._replace(momentum=m.momentum + system.nudge)) for m in _tuned(1.0, 25.0))
        equations = [_against_equations(step, system.nudge) for step in RESOLVED]
        kernel = output_ntk(linear_network([torch.zeros(1, 6, dtype=torch.float64)]), system.design).numpy()
        return Observed(
            paths[-1],
            gaps,
            float((0.5 * long**2 / bound).max()),
            [_worst(m._replace(momentum=m.momentum + system.nudge), system.condition) for m in system.methods],
            np.sort(heavy[-3:]),
            [float(np.abs(path[-3:]).max()) for path in (nesterov, triple)],
            [distances[0] for distances in equations],
            [distances[1] for distances in equations],
            [distances[2] for distances in equations],
            _student(system, kernel),
            np.linalg.eigvalsh(kernel),
        )

    def predict(self, system: System) -> Predicted:
        root = math.sqrt(system.condition)
        values = np.linalg.eigvalsh((system.design @ system.design.mT).numpy())
        method = _of_student(values)
        return Predicted(
            _bessel(math.sqrt(STEPS[-1]) * np.arange(1, round(TIME / math.sqrt(STEPS[-1])) + 2)),
            [1 - 1 / root, (root - 1) / (root + 1), 1 - 1 / root],
            np.sort(np.array([792.0, -2208.0, 2592.0]) / 1225),
            method.momentum * (1 - method.rate * values),
        )

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        gram = torch.linalg.eigvalsh(system.design @ system.design.mT)
        return [
            formula.close("Nesterov's method on x²/2: 2 J₁(t)/t", predicted.path, observed.path, 5e-3),
            formula.close("its error is O(√s): exponent of s", 0.5, _order(observed.gaps, STEPS), 0.02),
            formula.at_most("f over 2 |x₀|²/(s (k + 1)²)", 1.0, observed.bound),
            formula.close("radii of three methods", predicted.radii, observed.radii, 1e-7),
            formula.close("heavy ball on Lessard's function: a cycle of three", predicted.cycle, observed.cycle, 1e-13),
            formula.close("the others come to rest on it", 0.0, observed.rests, 1e-12),
            formula.close("equation of low resolution: exponent of s", 0.5, _order(observed.low, RESOLVED), 0.1),
            formula.close(
                "of high resolution, ẋ(0) = −(3/2)√s ∇f: exponent", 1.0, _order(observed.high, RESOLVED), 0.1
            ),
            formula.at_most("its error, s = 1.6e-5", 1e-5, observed.high[-1]),
            formula.at_most("with ẋ(0) = −2√s ∇f/(1 + √μs): exponent", 0.6, _order(observed.plain, RESOLVED)),
            identity.close("the NTK of the student is XXᵀ", gram, observed.kernel, 1e-12),
            identity.close(
                "factors of each mode of the NTK: β(1 − αλ)", predicted.modes, observed.modes, 1e-6, relative=True
            ),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        times = math.sqrt(STEPS[-1]) * np.arange(1, len(observed.path) + 1)
        method = _of_student(observed.kernel)
        values = np.linspace(observed.kernel[0] / 2, observed.kernel[-1], 100)
        factors = np.sqrt(method.momentum * (1 - method.rate * values))
        return (
            Panel.of(
                "Nesterov's method on x²/2",
                "time k√s",
                "x",
                curve("2 J₁(t)/t", times, predicted.path),
                points("", times[::20], observed.path[::20]),
            ),
            Panel.of(
                "Modes of the NTK under momentum",
                "eigenvalue λ",
                "factor per step",
                curve("√(β(1 − αλ))", values, factors),
                points("", observed.kernel, np.sqrt(np.abs(observed.modes))),
            ),
        )


def _tuned(low: float, high: float) -> tuple[Method, Method, Method]:
    """Nesterov's method, the heavy ball, and triple momentum, for curvatures between two."""
    root = math.sqrt(high / low)
    beta, rho = (root - 1) / (root + 1), 1 - 1 / root
    return (
        Method("Nesterov", 1 / high, beta, beta),
        Method("heavy ball", 4 / (math.sqrt(high) + math.sqrt(low)) ** 2, beta**2, 0.0),
        Method("triple momentum", (1 + rho) / high, rho**2 / (2 - rho), rho**2 / ((1 + rho) * (2 - rho))),
    )


def _of_student(values: ndarray) -> Method:
    """Nesterov's, with a rate 0.9/λ_max that no mode is learned at once by."""
    return _tuned(float(values[0]), float(values[-1]))[0]._replace(rate=0.9 / float(values[-1]))


def _worst(method: Method, condition: float) -> float:
    """The largest root of z² − (1 + β − αλ(1 + γ)) z + β − αλγ for λ from 1 to κ."""
    values = np.linspace(1.0, condition, 1001)
    half = (1 + method.momentum - method.rate * values * (1 + method.look)) / 2
    product = method.momentum - method.rate * values * method.look
    return float(np.abs(np.abs(half) + np.sqrt((half**2 - product).astype(complex))).max())


def _nesterov(step: float, count: int, nudge: float) -> ndarray:
    """On x²/2 from 1, momentum k/(k + 3)."""
    last, ahead, path = 1.0, 1.0, [1.0]
    for k in range(count):
        new = ahead - step * ahead
        last, ahead = new, new + (k / (k + 3) + nudge) * (new - last)
        path.append(new)
    return np.array(path)


def _bessel(times: ndarray) -> ndarray:
    return 2 * j1(times) / times


def _iterate(method: Method) -> ndarray:
    """On Lessard's function, of curvatures 25, 1 and 25 with kinks at 1 and 2, from 3.07."""
    path = [3.07, 3.07]
    for _ in range(3000):
        moved = path[-1] - path[-2]
        at = path[-1] + method.look * moved
        slope = 25 * at if at < 1 else at + 24 if at < 2 else 25 * at - 24
        path.append(path[-1] + method.momentum * moved - method.rate * slope)
    return np.array(path)


def _against_equations(step: float, nudge: float) -> tuple[float, float, float]:
    """Distances of Nesterov's y on x²/2, tuned to μ = 1/4, from low resolution, high, and high with another start."""
    root, mu = math.sqrt(step), 0.25
    beta = (1 - root * math.sqrt(mu)) / (1 + root * math.sqrt(mu)) + nudge
    last, ahead, path = 1.0, 1.0, [1.0]
    for _ in range(round(TIME / root)):
        new = ahead - step * ahead
        last, ahead = new, new + beta * (new - last)
        path.append(ahead)
    low = torch.tensor([[0.0, 1.0], [-1.0, -2 * math.sqrt(mu)]], dtype=torch.float64)
    sharp = torch.tensor([[0.0, 1.0], [-1 - root * math.sqrt(mu), -2 * math.sqrt(mu) - root]], dtype=torch.float64)
    starts = (0.0, -1.5 * root, -2 * root / (1 + root * math.sqrt(mu)))
    distances = []
    for matrix, speed in zip((low, sharp, sharp), starts, strict=True):
        flow, state, miss = torch.matrix_exp(root * matrix), torch.tensor([1.0, speed], dtype=torch.float64), 0.0
        for value in path:
            miss = max(miss, abs(float(state[0]) - value))
            state = flow @ state
        distances.append(miss)
    return distances[0], distances[1], distances[2]


def _order(errors: list[float], steps: tuple[float, ...]) -> float:
    return math.log(errors[-2] / errors[-1]) / math.log(steps[-2] / steps[-1])


def _student(system: System, kernel: ndarray) -> ndarray:
    """Of residual modes rₖ = a z₁ᵏ + b z₂ᵏ, z₁z₂ from rₖ² − rₖ₊₁ rₖ₋₁ over three steps."""
    values, modes = np.linalg.eigh(kernel)
    method, X = _of_student(values), system.design.numpy()
    momentum = method.momentum + system.nudge
    last = weights = np.zeros(6)
    path = []
    for _ in range(8):
        path.append(modes.T @ (X @ weights - 1))
        ahead = weights + momentum * (weights - last)
        last, weights = weights, ahead - method.rate * X.T @ (X @ ahead - 1)
    r = np.array(path)
    casorati = r[1:-1] ** 2 - r[2:] * r[:-2]
    return np.cbrt(casorati[4] / casorati[1])
