"""MemoryPro, MemoryAnti, DelayPro, DelayAnti: see a direction, wait, and answer when the fixation goes off."""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kpflow._checks import check_one_of, check_range

from .base import Task, check_noise, need_condition, noise_per_step, trials_of
from .directions import angular_distance, draw_angles, read_angle, response_weights, to_channels
from .timing import consecutive, draw_durations, fixed_durations, piecewise, to_steps
from .trials import Trials

__all__ = ["DelayAnti", "DelayPro", "DelayedResponse", "MemoryAnti", "MemoryPro"]

TOLERANCE = math.pi / 10
"""Error of the angle below which an answer is right."""

# Durations of the epochs in ms, (low, high) and those of the grid: Driscoll et al. (2024), code names delaygo, fdgo.
MEMORY_RANGES = ((300.0, 700.0), (200.0, 1600.0), (200.0, 1600.0), (300.0, 700.0))
MEMORY_GRID = (500.0, 500.0, 1000.0, 500.0)
DELAY_RANGES = ((300.0, 700.0), (200.0, 1500.0), (300.0, 700.0))
DELAY_GRID = (500.0, 1000.0, 500.0)

DRISCOLL: Mapping[str, Any] = {
    "timing": "driscoll",
    "dt": 20.0,
    "tau": 100.0,
    "order": "sin_cos",
    "fixation_target": 0.8,
    "weighting": "driscoll",
}
STEP_FIELDS = ("context", "stimulus", "memory", "response")

AnyDelayedResponse = TypeVar("AnyDelayedResponse", bound="DelayedResponse")


@dataclasses.dataclass(frozen=True)
class DelayedResponse(Task):
    """The parameters and definitions that the four tasks share; use one of the four.

    Inputs are (fixation, cos θ, sin θ), and so are outputs. The fixation input is 1 until the response begins and 0 in
    it. The direction is shown with amplitude 1 in the stimulus epoch, and in Delay tasks from then to the end. The
    target of the fixation output is `fixation_target` until the response and 0 in it; that of the direction is 0
    until the response and then (cos θ, sin θ) in Pro tasks, (−cos θ, −sin θ), the angle θ + π, in Anti tasks.

    The epochs are context, stimulus, memory, response; Delay tasks have no memory epoch, since their stimulus lasts
    until the response. The condition is `angle`, θ in radians, drawn from U[0, 2π), or θ_b = 2π b/B on the grid.

    Trials are scored at their last step: ŷ_fixation ≤ 1/2 and the angle of the direction output within π/10 of the
    target's. (The angle itself, not its cosine: |Δ cos| < π/10 accepts the mirror image of the right answer.) A
    direction output of 0 has no angle and counts as wrong by π. `score` returns `accuracy`, the fraction of right
    trials; `released`, the fraction with ŷ_fixation ≤ 1/2; and `angular_error`, the mean error in radians.

    Args:
        context: Steps before the stimulus, with `timing="fixed"`.
        stimulus: Steps of the stimulus, with `timing="fixed"`.
        memory: Steps between the stimulus and the response, with `timing="fixed"`; in Delay tasks the stimulus is on
            during these too.
        response: Steps of the response, with `timing="fixed"`.
        timing: "fixed", or "driscoll" for durations drawn per trial, in ms: context U(300, 700), stimulus
            U(200, 1600), memory U(200, 1600), response U(300, 700) in Memory tasks; context U(300, 700), stimulus
            U(200, 1500), response U(300, 700) in Delay tasks; on the grid 500, 500, 1000, 500 and 500, 1000, 500.
        dt: Duration of a step, ms.
        tau: Time constant τ that the noise is scaled for, ms.
        sigma: σ; the noise per step is σ √(2 τ/dt), 0.141 by default.
        grace: ms from the beginning of the response without weight in the loss.
        order: "cos_sin" or "sin_cos", the order of the direction's two channels; or "one_hot" for a channel for each of
            `angles` directions 2π k/`angles`, the only ones that are then shown: k is uniform, or b mod `angles` on the
            grid. The answer is read from them as the angle of Σ_k ŷ_k exp(2π i k/`angles`).
        fixation_target: What the fixation output should be until the response.
        weighting: "uniform" for weight 1 except in the grace period; "driscoll" for weight 1 before the response, 25
            after the grace, each times 4 for the fixation output, and 0 also in the first `grace` ms of the trial.
        angles: Number of directions with `order="one_hot"`, even in Anti tasks.

    Raises:
        ValueError: A parameter is out of range; steps are given for timings that are drawn; an epoch is shorter than a
            step, or the response not longer than the grace.

    Source: Driscoll, Shenoy & Sussillo (2024), tasks and "driscoll" options; Hazelden et al. (2025), arXiv 2507.06381,
    for the fixed timing, the noise of the defaults and "one_hot". The squares of Driscoll's cost weights (1 and 5,
    fixation twice) are the weights here.
    """

    context: int = 0
    stimulus: int = 30
    memory: int = 30
    response: int = 30
    timing: str = "fixed"
    dt: int | float = 20.0
    tau: int | float = 20.0
    sigma: int | float = 0.1
    grace: int | float = 100.0
    order: str = "cos_sin"
    fixation_target: int | float = 1.0
    weighting: str = "uniform"
    angles: int = 30

    @property
    @abc.abstractmethod
    def stays(self) -> bool:
        """Whether the stimulus stays on until the end."""

    @property
    @abc.abstractmethod
    def anti(self) -> bool:
        """Whether the answer is the opposite direction."""

    @final
    @classmethod
    def driscoll(cls: type[AnyDelayedResponse], **parameters: Any) -> AnyDelayedResponse:
        """The task as Driscoll et al. (2024) set it, for one modality and without rule inputs.

        That is timings, weights, order "sin_cos", fixation target 0.8, dt 20 ms, τ 100 ms; `parameters` change it.
        """
        return cls(**{**DRISCOLL, **parameters})

    def __post_init__(self) -> None:
        check_one_of("timing", self.timing, ("fixed", "driscoll"))
        check_one_of("order", self.order, ("cos_sin", "sin_cos", "one_hot"))
        check_range("angles", self.angles, 3, integer=True)
        if self.order == "one_hot" and self.anti and self.angles % 2:
            raise ValueError(f"`angles` must be even, for there to be an opposite direction; got {self.angles}.")
        check_one_of("weighting", self.weighting, ("uniform", "driscoll"))
        check_noise(self)
        check_range("grace", self.grace, 0)
        check_range("fixation_target", self.fixation_target, 0, 1)
        for name in STEP_FIELDS:
            check_range(name, getattr(self, name), 1 if name in ("stimulus", "response") else 0, integer=True)
        _check_durations(self)

    @property
    def input_labels(self) -> tuple[str, ...]:
        return self.output_labels

    @property
    def output_labels(self) -> tuple[str, ...]:
        if self.order == "one_hot":
            return ("fixation", *(f"{round(360 * k / self.angles, 2):g}°" for k in range(self.angles)))
        return ("fixation", *self.order.split("_"))

    @property
    def epoch_names(self) -> tuple[str, ...]:
        return ("context", "stimulus", "response") if self.stays else ("context", "stimulus", "memory", "response")

    @property
    def condition_names(self) -> tuple[str, ...]:
        return ("angle",)

    @property
    def noise_std(self) -> float:
        return noise_per_step(self.sigma, self.dt, self.tau)

    def _draw(self, B: int, generator: torch.Generator | None, shared_timing: bool) -> Trials:
        epochs = consecutive(self.epoch_names, self._durations(B, generator, shared_timing))
        angle = self._angles(B, generator)
        T = int(epochs["response"][1].max())
        zeros = torch.zeros_like(angle)
        shown = {name: self._static_inputs(name, {"angle": angle}, zeros) for name in self.epoch_names}
        inputs = piecewise(epochs, shown, T)  # [B, T, 3]
        return trials_of(
            self,
            inputs=inputs,
            targets=piecewise(epochs, {name: self._answer(name, angle) for name in self.epoch_names}, T),
            mask=response_weights(
                epochs, T, grace=self.grace, dt=self.dt, weighting=self.weighting, channels=self.num_outputs
            ),
            epochs=epochs,
            conditions={"angle": angle},
        )

    def _static_inputs(self, epoch: str, conditions: Mapping[str, Tensor], zeros: Tensor) -> Tensor:
        fixation = zeros if epoch == "response" else zeros + 1
        if epoch == "stimulus" or (epoch == "response" and self.stays):
            direction = self._encode(need_condition(conditions, "angle", epoch))
        else:
            direction = zeros[:, None].repeat(1, self.num_outputs - 1)
        return torch.cat((fixation[:, None], direction), dim=-1)

    def _score(self, outputs: Tensor, trials: Trials) -> dict[str, float]:
        last = outputs[torch.arange(trials.num_trials, device=outputs.device), trials.length - 1].double()  # [B, 3]
        released = last[:, 0] <= 0.5
        answered, strength = read_angle(last[:, 1:], None if self.order == "one_hot" else self.order)
        goal = trials.conditions["angle"].double() + (math.pi if self.anti else 0.0)
        error = torch.where(strength == 0, math.pi, angular_distance(answered, goal))
        return {
            "accuracy": float((released & (error < TOLERANCE)).double().mean()),
            "released": float(released.double().mean()),
            "angular_error": float(error.mean()),
        }

    def _answer(self, epoch: str, angle: Float[Tensor, " B"]) -> Float[Tensor, "B O"]:
        """What the outputs should be in `epoch`."""
        silent = torch.zeros(len(angle), self.num_outputs, dtype=angle.dtype)
        if epoch != "response":
            silent[:, 0] = self.fixation_target
        elif self.order == "one_hot":
            silent[:, 1:] = self._encode(angle + math.pi * self.anti)
        else:
            silent[:, 1:] = (-1.0 if self.anti else 1.0) * self._encode(angle)  # cos(θ + π) = −cos θ, and so is sin
        return silent

    def _angles(self, B: int, generator: torch.Generator | None) -> Float[Tensor, " B"]:
        """The directions that are shown."""
        if self.order != "one_hot":
            return draw_angles(B, generator)
        grid = torch.arange(B) % self.angles
        k = grid if generator is None else torch.randint(self.angles, (B,), generator=generator)
        return 2 * math.pi * k.double() / self.angles

    def _encode(self, angle: Float[Tensor, " n"]) -> Float[Tensor, "n C"]:
        """The channels of directions."""
        if self.order != "one_hot":
            return to_channels(angle, self.order)
        k = (angle * self.angles / (2 * math.pi)).round().long() % self.angles
        return torch.nn.functional.one_hot(k, self.angles).to(angle.dtype)

    def _durations(self, B: int, generator: torch.Generator | None, shared: bool) -> Int[Tensor, "B E"]:
        """Steps of every epoch of every trial."""
        if self.timing == "driscoll" and generator is not None:
            return draw_durations(DELAY_RANGES if self.stays else MEMORY_RANGES, B, self.dt, generator, shared)
        if self.timing == "driscoll":
            return fixed_durations(DELAY_GRID if self.stays else MEMORY_GRID, B, self.dt)
        if self.stays:
            steps = [self.context, self.stimulus + self.memory, self.response]
        else:
            steps = [self.context, self.stimulus, self.memory, self.response]
        return torch.tensor(steps).expand(B, len(steps)).clone()


@final
@dataclasses.dataclass(frozen=True)
class MemoryPro(DelayedResponse):
    """Remember a direction θ seen for a while, and answer θ when the fixation goes off.

    Parameters: DelayedResponse. By default stimulus, memory and response last 30 steps each, T = 90.

    Example:
        >>> task = MemoryPro(stimulus=2, memory=2, response=2, grace=0.0)
        >>> trials = task.sample(4, mode="grid", noise=False)
        >>> trials.inputs[1].round().int().tolist()
        [[1, 0, 1], [1, 0, 1], [1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]
        >>> trials.targets[1].round().int().tolist()
        [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]]
        >>> MemoryPro.driscoll().sample(3, mode="grid").length
        tensor([125, 125, 125])
    """

    @property
    def name(self) -> str:
        return "memory_pro"

    @property
    def stays(self) -> bool:
        return False

    @property
    def anti(self) -> bool:
        return False


@final
@dataclasses.dataclass(frozen=True)
class MemoryAnti(DelayedResponse):
    """Remember a direction θ seen for a while, and answer θ + π when the fixation goes off.

    Parameters: DelayedResponse.

    Example:
        >>> trials = MemoryAnti().sample(4, mode="grid", noise=False)
        >>> trials.inputs[1, 0].round().int().tolist(), trials.targets[1, -1].round().int().tolist()
        ([1, 0, 1], [0, 0, -1])
    """

    @property
    def name(self) -> str:
        return "memory_anti"

    @property
    def stays(self) -> bool:
        return False

    @property
    def anti(self) -> bool:
        return True


@final
@dataclasses.dataclass(frozen=True)
class DelayPro(DelayedResponse):
    """See a direction θ that stays on, and answer θ when the fixation goes off.

    Parameters: DelayedResponse.

    Example:
        >>> trials = DelayPro().sample(4, mode="grid", noise=False)
        >>> trials.inputs[1, -1].round().int().tolist(), trials.targets[1, -1].round().int().tolist()
        ([0, 0, 1], [0, 0, 1])
    """

    @property
    def name(self) -> str:
        return "delay_pro"

    @property
    def stays(self) -> bool:
        return True

    @property
    def anti(self) -> bool:
        return False


@final
@dataclasses.dataclass(frozen=True)
class DelayAnti(DelayedResponse):
    """See a direction θ that stays on, and answer θ + π when the fixation goes off.

    Parameters: DelayedResponse.

    Example:
        >>> trials = DelayAnti().sample(4, mode="grid", noise=False)
        >>> trials.inputs[1, -1].round().int().tolist(), trials.targets[1, -1].round().int().tolist()
        ([0, 0, 1], [0, 0, -1])
    """

    @property
    def name(self) -> str:
        return "delay_anti"

    @property
    def stays(self) -> bool:
        return True

    @property
    def anti(self) -> bool:
        return True


def _check_durations(task: DelayedResponse) -> None:
    """Steps are given only where they are used, every epoch has a step, and the response outlasts the grace."""
    if task.timing == "fixed":
        response = task.response
    else:
        given = [name for name in STEP_FIELDS if getattr(task, name) != getattr(DelayedResponse, name)]
        if given:
            raise ValueError(f"`{given[0]}` is for timing='fixed'; with timing='driscoll' durations are drawn in ms.")
        shortest = min(low for low, _ in (DELAY_RANGES if task.stays else MEMORY_RANGES))
        if to_steps(shortest, task.dt) < 1:
            raise ValueError(f"`dt` must be at most {shortest:g} ms with timing='driscoll'; got {task.dt:g}.")
        response = to_steps(300.0, task.dt)
    if to_steps(task.grace, task.dt) >= response:
        raise ValueError(
            f"`grace` must be shorter than the response; got {task.grace:g} ms = {to_steps(task.grace, task.dt)} "
            f"steps for {response} steps of response. Pass grace=0.0, or a longer response."
        )
