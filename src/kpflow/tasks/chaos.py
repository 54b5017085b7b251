"""ChaosForecast: the future state of a chaotic flow, of known Lyapunov exponents."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_one_of, check_positive, check_range

from .base import Task, check_noise, trials_of
from .scores import explained, within
from .timing import consecutive
from .trials import Trials

__all__ = ["SYSTEMS", "ChaosForecast", "ChaoticSystem"]


@final
@dataclasses.dataclass(frozen=True)
class ChaoticSystem:
    """A flow x' = f(x) in three dimensions with a strange attractor.

    Args:
        flow: f, of states `[*, 3]`.
        mean: Mean of each variable over the attractor.
        std: Standard deviation of each variable over the attractor.
        exponents: The Lyapunov exponents, per unit of time; their sum is the mean divergence of f.
        start: A state whose trajectory, and those from nearby, go to the attractor.
        step: The largest step at which the classical Runge-Kutta method of order 4 is used.
        relaxation: Twice the time after which trajectories from `start` are taken to be on the attractor.
    """

    flow: Callable[[Tensor], Tensor]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    exponents: tuple[float, float, float]
    start: tuple[float, float, float]
    step: float
    relaxation: float


def _lorenz(state: Tensor) -> Tensor:
    """Lorenz (1963), σ = 10, ρ = 28, β = 8/3."""
    x, y, z = state.unbind(-1)
    return torch.stack((10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z), dim=-1)


def _rossler(state: Tensor) -> Tensor:
    """Rössler (1976), a = b = 0.2, c = 5.7."""
    x, y, z = state.unbind(-1)
    return torch.stack((-y - z, x + 0.2 * y, 0.2 + z * (x - 5.7)), dim=-1)


def _halvorsen(state: Tensor) -> Tensor:
    """Halvorsen's cyclically symmetric flow, a = 1.27 (Sprott 2003)."""
    following, preceding = state.roll(-1, dims=-1), state.roll(1, dims=-1)
    return -1.27 * state - 4 * preceding - following * (4 + following)


def _thomas(state: Tensor) -> Tensor:
    """Thomas (1999), b = 0.18: x' = sin y − b x, and cyclically."""
    return state.roll(-1, dims=-1).sin() - 0.18 * state


def _chen(state: Tensor) -> Tensor:
    """Chen & Ueta (1999), a = 35, b = 3, c = 28."""
    x, y, z = state.unbind(-1)
    return torch.stack((35 * (y - x), -7 * x - x * z + 28 * y, x * y - 3 * z), dim=-1)


def _diffusionless_lorenz(state: Tensor) -> Tensor:
    """The flow of Lorenz for large σ and ρ, rescaled, with R = 1 (van der Schrier & Maas 2000)."""
    x, y, z = state.unbind(-1)
    return torch.stack((-y - x, -x * z, x * y + 1), dim=-1)


def _burke_shaw(state: Tensor) -> Tensor:
    """Burke and Shaw (Shaw 1981), S = 10, V = 13."""
    x, y, z = state.unbind(-1)
    return torch.stack((-10 * (x + y), -y - 10 * x * z, 10 * x * y + 13), dim=-1)


def _chua(state: Tensor) -> Tensor:
    """The circuit of Chua (Matsumoto 1984), α = 9, β = 100/7, slopes −8/7 for |x| < 1 and −5/7 outside."""
    x, y, z = state.unbind(-1)
    current = -5 / 7 * x - 3 / 7 * x.clamp(-1, 1)
    return torch.stack((9 * (y - x - current), x - y + z, -100 / 7 * y), dim=-1)


def _windmi(state: Tensor) -> Tensor:
    """Solar wind and ionosphere (Horton et al. 2001), y = x', z = y', a = 0.7, b = 2.5."""
    x, y, z = state.unbind(-1)
    return torch.stack((y, z, -0.7 * z - y + 2.5 - x.exp()), dim=-1)


def _sprott_f(state: Tensor) -> Tensor:
    """Sprott (1994), case F: one quadratic term."""
    x, y, z = state.unbind(-1)
    return torch.stack((y + z, 0.5 * y - x, x.square() - z), dim=-1)


SYSTEMS: Mapping[str, ChaoticSystem] = {
    "lorenz": ChaoticSystem(
        _lorenz, (0.0, 0.0, 23.54), (7.924, 9.018, 8.634), (0.9056, 0.0, -14.5723), (1.0, 1.0, 20.0), 0.01, 10.0
    ),
    "rossler": ChaoticSystem(
        _rossler, (0.22, -0.98, 0.876), (5.17, 4.855, 2.8), (0.0714, 0.0, -5.3943), (1.0, 1.0, 0.0), 0.05, 70.0
    ),
    "halvorsen": ChaoticSystem(
        _halvorsen,
        (-3.128, -3.128, -3.128),
        (4.383, 4.383, 4.383),
        (0.7899, 0.0, -4.5999),
        (-5.0, 0.0, 0.0),
        0.01,
        20.0,
    ),
    "thomas": ChaoticSystem(
        _thomas, (0.0, 0.0, 0.0), (2.266, 2.266, 2.266), (0.0349, 0.0, -0.5749), (0.1, 0.0, 0.0), 0.1, 80.0
    ),
    "chen": ChaoticSystem(
        _chen, (0.0, 0.0, 23.82), (8.454, 9.114, 6.4), (2.0272, 0.0, -12.0272), (-10.0, 0.0, 37.0), 0.004, 10.0
    ),
    "diffusionless_lorenz": ChaoticSystem(
        _diffusionless_lorenz,
        (0.0, 0.0, 0.0),
        (1.0, 1.312, 1.333),
        (0.2101, 0.0, -1.2101),
        (1.0, 0.0, 0.0),
        0.04,
        60.0,
    ),
    "burke_shaw": ChaoticSystem(
        _burke_shaw, (0.0, 0.0, 0.178), (1.14, 1.52, 1.516), (2.2499, 0.0, -13.2499), (0.6, 0.0, 0.0), 0.004, 10.0
    ),
    "chua": ChaoticSystem(
        _chua, (0.0, 0.0, 0.0), (1.37, 0.1905, 1.612), (0.3271, 0.0, -2.5197), (0.0, 0.0, 0.6), 0.01, 60.0
    ),
    "windmi": ChaoticSystem(
        _windmi, (-5.29, 0.0, 0.0), (7.5, 5.266, 5.266), (0.0755, 0.0, -0.7755), (0.0, 0.8, 0.0), 0.04, 160.0
    ),
    "sprott_f": ChaoticSystem(
        _sprott_f, (-0.456, -0.912, 0.912), (0.839, 1.073, 0.971), (0.117, 0.0, -0.617), (0.1, 0.1, 0.1), 0.05, 100.0
    ),
}
"""The systems by name; exponents from Sprott (2003), means and deviations measured over trajectories."""


SUBSTEPS = 1000
"""The most steps of integration in one step of a trial."""


@final
@dataclasses.dataclass(frozen=True)
class ChaosForecast(Task):
    """Forecast the state of a chaotic system: the input is x(t), the target x(t + `horizon` Δ).

    Both are normalised, (x − mean)/std with the mean and deviation of each variable over the attractor; Δ = dt/1000 in
    the system's unit of time, so that at Δ = 0.02, the default, the exponents per step are 0.02 λ. All steps have
    weight. Trajectories start from N(start, 0.1²) and have relaxed onto the attractor when the trial begins,
    at times that differ, so that phases do.

    One epoch, `forecast`, whose static input is the mean, 0. No conditions. On the grid, the starts are the first ones
    of one fixed sequence of draws. `exponents` gives the Lyapunov exponents that a network that has learned the
    system should have.

    An output is right where |ŷ − y| < `tolerance`. `score` returns `accuracy`, the fraction of right outputs, and `r2`,
    the variance explained. To repeat the input is good for small horizons: compare with its score.

    Args:
        system: "lorenz", "rossler", "halvorsen", "thomas", "chen", "diffusionless_lorenz", "burke_shaw", "chua",
            "windmi" or "sprott_f".
        horizon: Steps to look ahead.
        steps: T.
        tolerance: Error below which an output is right.
        sigma: Standard deviation of the noise per step on the normalised inputs.
        dt: Duration of a step, ms, where 1000 ms are the unit of time of the system; at most 1000 steps of integration.
        tau: Time constant of the units, ms.

    Raises:
        ValueError: A parameter is out of range.

    Source: Sprott (2003), Chaos and Time-Series Analysis, for the exponents; long trajectories with tangents of our own
    give the same within 2 %.

    Example:
        >>> task = ChaosForecast("lorenz", steps=50)
        >>> trials = task.sample(4, dtype=torch.float64)
        >>> bool(torch.equal(trials.targets[:, :-1], trials.inputs[:, 1:])), task.exponents
        (True, (0.9056, 0.0, -14.5723))
    """

    system: str = "lorenz"
    horizon: int = 1
    steps: int = 100
    tolerance: int | float = 0.1
    sigma: int | float = 0.0
    dt: int | float = 20.0
    tau: int | float = 20.0

    def __post_init__(self) -> None:
        check_one_of("system", self.system, tuple(SYSTEMS))
        check_positive("horizon", self.horizon, integer=True)
        check_positive("steps", self.steps, integer=True)
        check_positive("tolerance", self.tolerance)
        check_noise(self)
        check_range("dt", self.dt, 0, 1000 * SUBSTEPS * SYSTEMS[self.system].step)

    @property
    def name(self) -> str:
        return f"chaos_{self.system}"

    @property
    def input_labels(self) -> tuple[str, ...]:
        return ("x", "y", "z")

    @property
    def output_labels(self) -> tuple[str, ...]:
        return ("x", "y", "z")

    @property
    def epoch_names(self) -> tuple[str, ...]:
        return ("forecast",)

    @property
    def condition_names(self) -> tuple[str, ...]:
        return ()

    @property
    def noise_std(self) -> float:
        return float(self.sigma)

    @property
    def exponents(self) -> tuple[float, float, float]:
        """The Lyapunov exponents of the system, per unit of time, which is a second."""
        return SYSTEMS[self.system].exponents

    def _draw(self, B: int, generator: torch.Generator | None, shared_timing: bool) -> Trials:  # noqa: ARG002
        source = torch.Generator().manual_seed(0) if generator is None else generator
        system = SYSTEMS[self.system]
        centre = torch.tensor(system.start, dtype=torch.float64)
        state = centre + 0.1 * torch.randn(B, 3, generator=source, dtype=torch.float64)
        before = system.relaxation * (1 + torch.rand(B, 1, generator=source, dtype=torch.float64)) / 2
        state = _advance(system, state, before, 3 * system.step)  # no need to be precise here
        course = [state]
        step = torch.tensor(self.dt / 1000, dtype=torch.float64)
        for _ in range(self.steps + self.horizon - 1):
            course.append(_advance(system, course[-1], step, system.step))
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (system.mean, system.std))
        signal = (torch.stack(course, dim=1) - mean) / std  # [B, T + horizon, 3]
        targets = signal[:, self.horizon :].clone()
        return trials_of(
            self,
            inputs=signal[:, : self.steps].clone(),
            targets=targets,
            mask=torch.ones_like(targets),
            epochs=consecutive(self.epoch_names, torch.full((B, 1), self.steps)),
            conditions={},
        )

    def _static_inputs(self, epoch: str, conditions: Mapping[str, Tensor], zeros: Tensor) -> Tensor:  # noqa: ARG002
        return zeros[:, None].repeat(1, 3)

    def _score(self, outputs: Tensor, trials: Trials) -> dict[str, float]:
        return {"accuracy": within(outputs, trials, self.tolerance), "r2": explained(outputs, trials)}


def _advance(
    system: ChaoticSystem, state: Float[Tensor, "B 3"], duration: Float[Tensor, "*B"], largest: float
) -> Float[Tensor, "B 3"]:
    """The state after `duration`, by equal steps, `largest` at most, of the Runge-Kutta method of order 4."""
    count = math.ceil(float(duration.max()) / largest - 1e-6)
    h, f = duration / count, system.flow
    for _ in range(count):
        k1 = f(state)
        k2 = f(state + h / 2 * k1)
        k3 = f(state + h / 2 * k2)
        k4 = f(state + h * k3)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return state
