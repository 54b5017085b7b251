"""Momentum methods as dynamical systems: radii, cycles, and differential equations of low and high resolution."""

import math
from typing import NamedTuple, final

import numpy as np
import torch
from numpy import ndarray
from scipy.special import j1
from torch import Tensor

from kpflow.estimate import effective_rank
from kpflow.operators import Dense

from .draws import normal
from .entry import Check, Entry, Panel, formula, identity, pair
from .exponents import exponent
from .momentum import Method, iterate, radius, tuned
from .students import linear_network, output_ntk

__all__ = ["Acceleration"]

STEPS = (1.6e-3, 4e-4, 1e-4)  # s, of Nesterov's method on x²/2
RESOLVED = (1e-3, 1e-4, 1.6e-5)  # s, against differential equations
TIME = 5.0


@final
class System(NamedTuple):
    """A condition number and a linear student; `nudge` of the momentum is 0."""

    condition: float
    design: Tensor  # [4, 6]
    nudge: float


@final
class Observed(NamedTuple):
    """What iteration gave."""

    paths: list[ndarray]  # Nesterov's method, by step
    bound: float
    radii: list[float]
    cycle: ndarray  # the last three of the heavy ball on Lessard's function
    rests: list[float]  # |x| in the end, of the others
    distances: ndarray  # [s, 3], from equations of low resolution, of high, and of high with the usual first velocity
    modes: ndarray  # of a linear student's residual: product of the two factors per step, by mode of the NTK
    kernel: ndarray  # eigenvalues of the NTK
    ranks: ndarray  # [2, 41], effective rank of the NTK on what is not yet learned, by Nesterov's method and without


@final
class Predicted(NamedTuple):
    """Closed forms."""

    paths: list[ndarray]
    radii: list[float]
    cycle: ndarray
    modes: ndarray
    ranks: ndarray


@final
class Acceleration(Entry[System, Observed, Predicted]):
    """Nesterov's method on λx²/2 follows 2 J₁(t√λ)/(t√λ) up to O(√s), and with strong convexity a damped oscillator.

    Radii for κ = L/μ: 1 − 1/√κ (Nesterov, triple momentum) and (√κ − 1)/(√κ + 1) (heavy ball), which cycles on
    Lessard's function. ẍ + (2√μ + √s λ) ẋ + (1 + √(μs)) λx = 0 is within O(s) of the iterates only if
    ẋ(0) = −(3/2) √s ∇f.
    """

    name = "acceleration"
    title = "Acceleration"
    paper = "Parimi et al. 2025, Dynamics of Acceleration, arXiv 2509.18346; Su, Boyd, Candès 2016; Lessard et al. 2016"
    kernels = (
        "Momentum makes the state of the parameters second order, so that the NTK acts through the optimiser's own "
        "resolvent: each of its modes decays by the radius of its companion matrix."
    )
    omits = "Non-quadratic rates, noise, and adaptive restarts."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False, condition: float = 100.0) -> System:
        if not 1 < condition < math.inf:
            raise ValueError(
                f"`condition` must be above 1 and finite; got {condition:g}: nothing is left to accelerate at κ = 1, "
                f"and nothing converges at κ = ∞."
            )
        design = normal(torch.Generator().manual_seed(seed), 4, 6)
        return System(condition, design, 0.02 if broken else 0.0)

    def run(self, system: System) -> Observed:
        fading = Method(0.1, 1 + system.nudge, 1 + system.nudge)
        long = iterate(fading, float, 1.0, 2000, fading=True)
        ends = [iterate(method, _lessard, 3.07, 3000)[-3:] for method in tuned(1.0, 25.0, system.nudge)]
        kernel = output_ntk(linear_network([torch.zeros(1, 6, dtype=torch.float64)]), system.design).numpy()
        values = np.linalg.eigvalsh(kernel)
        return Observed(
            [iterate(fading._replace(rate=s), float, 1.0, round(TIME / math.sqrt(s)), fading=True) for s in STEPS],
            float((0.5 * long**2 * 0.1 * np.arange(1, 2002) ** 2 / 2).max()),
            [radius(method, system.condition) for method in tuned(1.0, system.condition, system.nudge)],
            np.sort(ends[1]),
            [float(np.abs(ends[i]).max()) for i in (0, 2)],
            np.array([_distances(s, system.nudge) for s in RESOLVED]),
            _student(system, kernel),
            values,
            np.array([_ranks(system, method) for method in _with_and_without(values, system.nudge)]),
        )

    def predict(self, system: System) -> Predicted:
        root = math.sqrt(system.condition)
        values = np.linalg.eigvalsh((system.design @ system.design.mT).numpy())
        method = _of_student(values)
        times = [math.sqrt(step) * np.arange(1, round(TIME / math.sqrt(step)) + 2) for step in STEPS]
        return Predicted(
            [2 * j1(time) / time for time in times],
            [1 - 1 / root, (root - 1) / (root + 1), 1 - 1 / root],
            np.sort(np.array([792.0, -2208.0, 2592.0]) / 1225),
            method.momentum * (1 - method.rate * values),
            np.array([_rank_law(values, method) for method in _with_and_without(values)]),
        )

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        gram = torch.linalg.eigvalsh(system.design @ system.design.mT)
        gaps = [float(np.abs(seen - law).max()) for seen, law in zip(observed.paths, predicted.paths, strict=True)]
        low, high, plain = (exponent(RESOLVED[1:], distances) for distances in observed.distances[1:].T)
        return [
            formula.close("Nesterov's method on x²/2: 2 J₁(t)/t", predicted.paths[-1], observed.paths[-1], 5e-3),
            formula.close("its error is O(√s): exponent of s", 0.5, exponent(STEPS[1:], gaps[1:]), 0.02),
            formula.at_most("f over 2 |x₀|²/(s (k + 1)²)", 1.0, observed.bound),
            formula.close("radii of three methods", predicted.radii, observed.radii, 1e-7),
            formula.close("heavy ball on Lessard's function: a cycle of three", predicted.cycle, observed.cycle, 1e-13),
            formula.close("the others come to rest on it", 0.0, observed.rests, 1e-12),
            formula.close("equation of low resolution: exponent of s", 0.5, low, 0.1),
            formula.close("of high resolution, ẋ(0) = −(3/2)√s ∇f: exponent", 1.0, high, 0.1),
            formula.at_most("its error, s = 1.6e-5", 1e-5, observed.distances[-1, 1]),
            formula.at_most("with ẋ(0) = −2√s ∇f/(1 + √μs): exponent", 0.6, plain),
            identity.close("the NTK of the student is XXᵀ", gram, observed.kernel, 1e-12),
            identity.close("factors of its modes: β(1 − αλ)", predicted.modes, observed.modes, 1e-6, relative=True),
            formula.close("effective rank of what is left of it", predicted.ranks, observed.ranks, 1e-6, relative=True),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        times = math.sqrt(STEPS[-1]) * np.arange(1, len(observed.paths[-1]) + 1)
        path = pair("2 J₁(t)/t", times, predicted.paths[-1], observed.paths[-1], every=20)
        ranks = [
            line
            for i, name in enumerate(("Nesterov's method", "without momentum"))
            for line in pair(name, range(41), predicted.ranks[i], observed.ranks[i], i)
        ]
        return (
            Panel.of("Nesterov's method on x²/2", "time k√s", "x", *path),
            Panel.of("The NTK on what is not yet learned", "step", "effective rank", *ranks),
        )


def _of_student(values: ndarray, nudge: float = 0.0) -> Method:
    """Nesterov's, with a rate 0.9/λ_max that no mode is learned at once by."""
    return tuned(float(values[0]), float(values[-1]), nudge)[0]._replace(rate=0.9 / float(values[-1]))


def _lessard(x: float) -> float:
    """Slope of Lessard's function, of curvatures 25, 1 and 25 with kinks at 1 and 2."""
    return 25 * x if x < 1 else x + 24 if x < 2 else 25 * x - 24


def _distances(step: float, nudge: float) -> list[float]:
    """Of Nesterov's y on x²/2, tuned to μ = 1/4, from low resolution, high, and high with another start."""
    root, mu = math.sqrt(step), 0.25
    method = tuned(mu, 1 / step, nudge)[0]
    path = iterate(method, float, 1.0, round(TIME / root))
    ahead = path + method.look * np.diff(path, prepend=1.0)
    low = np.array([[0.0, 1.0], [-1.0, -2 * math.sqrt(mu)]])
    high = low - root * np.array([[0.0, 0.0], [math.sqrt(mu), 1.0]])
    distances = []
    for matrix, speed in ((low, 0.0), (high, -1.5 * root), (high, -2 * root / (1 + root * math.sqrt(mu)))):
        rates, vectors = np.linalg.eig(matrix)
        weights = vectors[0] * np.linalg.solve(vectors, np.array([1.0, speed], dtype=complex))
        flow = weights @ np.exp(np.outer(rates, root * np.arange(len(path))))
        distances.append(float(np.abs(flow.real - ahead).max()))
    return distances


def _student(system: System, kernel: ndarray) -> ndarray:
    """Of residual modes rₖ = a z₁ᵏ + b z₂ᵏ, z₁z₂ from rₖ² − rₖ₊₁ rₖ₋₁ over three steps."""
    values, modes = np.linalg.eigh(kernel)
    method, X = _of_student(values, system.nudge), system.design.numpy()
    r = (iterate(method, lambda w: X.T @ (X @ w - 1), np.zeros(6), 7) @ X.T - 1) @ modes
    casorati = r[1:-1] ** 2 - r[2:] * r[:-2]
    return np.cbrt(casorati[4] / casorati[1])


def _with_and_without(values: ndarray, nudge: float = 0.0) -> tuple[Method, Method]:
    """The student's method, and gradient descent."""
    method = _of_student(values, nudge)
    return method, Method(method.rate, 0.0, 0.0)


def _ranks(system: System, method: Method) -> list[float]:
    """Effective rank of R Θ Rᵀ over 40 steps, R from the residual at first to that now, Θ = XXᵀ the NTK."""
    X, one = system.design.numpy(), np.eye(4)
    path = iterate(method, lambda w: X.T @ (X @ w - one), np.zeros((6, 4)), 40)
    return [effective_rank(Dense(torch.from_numpy((X @ w - one) @ X))).value for w in path]


def _rank_law(values: ndarray, method: Method) -> ndarray:
    """The same by the two roots of z² − (1 + β)(1 − αλ) z + β(1 − αλ) for each mode."""
    kept = 1 - method.rate * values
    half, product = (1 + method.momentum) * kept / 2, method.momentum * kept
    root = np.sqrt((half**2 - product).astype(complex))
    one, two, steps = half + root, half - root, np.arange(41)[:, None]
    left = values * np.abs((one ** (steps + 1) * (1 - two) - two ** (steps + 1) * (1 - one)) / (one - two)) ** 2
    return left.sum(axis=1) ** 2 / (left**2).sum(axis=1)
