"""SineGenerator: a static input sets the frequency of a sine wave."""

import dataclasses
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from kpflow._checks import check_positive, check_range

from .base import Task, check_noise, need_condition, trials_of
from .scores import explained, within
from .timing import consecutive
from .trials import Trials

__all__ = ["SineGenerator"]


@final
@dataclasses.dataclass(frozen=True)
class SineGenerator(Task):
    """y(t) = sin(ω_j t), with ω_j = ω_min + (ω_max − ω_min)(j − 1)/(n − 1) set by the static input j/n + 1/4.

    One input, one output, all steps have weight; t = 0, Δ, 2Δ, … with Δ = dt/1000 in seconds. j is uniform in 1 … n.
    One epoch, `generation`; the conditions are `number`, j, and `frequency`, ω_j. On the grid the j are evenly spaced
    from 1 to n. A network that solves the task has, at each input, an unstable spiral whose multiplier μ has
    arg μ/Δ ≈ ω_j.

    An output is right where |ŷ − y| < `tolerance`. `score` returns `accuracy`, the fraction of right outputs, and `r2`,
    the variance explained.

    Args:
        n: Number of frequencies.
        low: ω_min, radians per second.
        high: ω_max, radians per second.
        steps: T.
        tolerance: Error below which an output is right.
        sigma: Standard deviation of the noise per step.
        dt: Duration of a step, ms.
        tau: Time constant of the units, ms.

    Raises:
        ValueError: A parameter is out of range, or a period of the highest frequency has fewer than four steps.

    Source: Sussillo & Barak (2013), 51 frequencies from 1 to 6 radians per second. The duration of steps and trials
    is ours.

    Example:
        >>> trials = SineGenerator().sample(3, mode="grid")
        >>> trials.conditions["frequency"].tolist(), trials.inputs[:, 7, 0].tolist()
        ([1.0, 3.5, 6.0], [0.269..., 0.759..., 1.25])
    """

    n: int = 51
    low: int | float = 1.0
    high: int | float = 6.0
    steps: int = 200
    tolerance: int | float = 0.1
    sigma: int | float = 0.0
    dt: int | float = 50.0
    tau: int | float = 100.0

    def __post_init__(self) -> None:
        check_range("n", self.n, 2, integer=True)
        check_positive("steps", self.steps, integer=True)
        check_positive("low", self.low)
        check_range("high", self.high, self.low)
        check_positive("tolerance", self.tolerance)
        check_noise(self)
        if self.high * self.dt / 1000 > torch.pi / 2:
            raise ValueError(
                f"`dt` must leave four steps to a period of {self.high:g} radians per second; got {self.dt:g} ms."
            )

    @property
    def name(self) -> str:
        return "sine_generator"

    @property
    def input_labels(self) -> tuple[str, ...]:
        return ("level",)

    @property
    def output_labels(self) -> tuple[str, ...]:
        return ("sine",)

    @property
    def epoch_names(self) -> tuple[str, ...]:
        return ("generation",)

    @property
    def condition_names(self) -> tuple[str, ...]:
        return ("number", "frequency")

    @property
    def noise_std(self) -> float:
        return float(self.sigma)

    def _draw(self, B: int, generator: torch.Generator | None, shared_timing: bool) -> Trials:  # noqa: ARG002
        if generator is None:
            number = torch.linspace(1, self.n, B, dtype=torch.float64).round().long()
        else:
            number = torch.randint(1, self.n + 1, (B,), generator=generator)
        frequency = self.low + (self.high - self.low) * (number.double() - 1) / (self.n - 1)
        conditions = {"number": number, "frequency": frequency}
        time = self.dt / 1000 * torch.arange(self.steps, dtype=torch.float64)
        targets = (frequency[:, None] * time).sin()[:, :, None]
        level = self._static_inputs("generation", conditions, frequency)
        return trials_of(
            self,
            inputs=level[:, None, :].repeat(1, self.steps, 1),
            targets=targets,
            mask=torch.ones_like(targets),
            epochs=consecutive(self.epoch_names, torch.full((B, 1), self.steps)),
            conditions=conditions,
        )

    def _static_inputs(self, epoch: str, conditions: Mapping[str, Tensor], zeros: Tensor) -> Tensor:
        return (need_condition(conditions, "number", epoch).to(zeros) / self.n + 0.25)[:, None]

    def _score(self, outputs: Tensor, trials: Trials) -> dict[str, float]:
        return {"accuracy": within(outputs, trials, self.tolerance), "r2": explained(outputs, trials)}
