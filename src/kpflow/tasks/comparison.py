"""ParametricWorkingMemory and DelayedMatch: compare what is shown with what was shown before a delay."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from kpflow._checks import check_numbers, check_one_of, check_positive, check_range

from .base import Task, check_noise, need_condition, trials_of
from .scores import decision
from .timing import consecutive, draw_durations, fixed_durations, piecewise, to_steps
from .trials import Trials

__all__ = ["DelayedMatch", "ParametricWorkingMemory"]

EPOCHS = ("fixation", "stimulus", "delay", "test", "decision")


@final
@dataclasses.dataclass(frozen=True)
class ParametricWorkingMemory(Task):
    """Two frequencies f₁, f₂, one after the other: answer their difference.

    One input, (f − f̄)/(f_max − f_min) with f̄ the middle of the range while f is shown, else 0; one output, whose
    target during the decision, the only steps with weight, is (f₁ − f₂)/(f_max − f_min). f₁ − f₂ is ± one of
    `differences`, equally likely, and the smaller frequency uniform where both lie in the range.

    Epochs: fixation, stimulus (f₁), delay, test (f₂), decision. Conditions: `f1`, `f2`, Hz. On the grid, trials go
    through all differences, and the smaller frequency through five evenly spaced values.

    An answer is right if the mean output over the decision is nearer to the target than half the least distance of
    two targets, or of a target and 0. `score` returns `accuracy`, and `sign`, the fraction with the right sign.

    Args:
        differences: |f₁ − f₂|, Hz.
        low: f_min, Hz.
        high: f_max, Hz.
        sigma: Standard deviation of the noise per step.
        fixation: ms before all else.
        stimulus: ms of each frequency.
        delay: (low, high) of the delay, ms; U(low, high), and their mean on the grid.
        decision: ms of the decision.
        dt: Duration of a step, ms.
        tau: Time constant of the units, ms.

    Raises:
        ValueError: A parameter is out of range, an epoch is shorter than a step, or a difference exceeds the range.

    Source: Romo et al. (1999); durations and differences of Dubreuil, Valente et al. (2022). The noise, the law of the
    smaller frequency and the score are ours.

    Example:
        >>> task = ParametricWorkingMemory(stimulus=20.0, fixation=20.0, decision=20.0, delay=(20.0, 40.0))
        >>> trials = task.sample(6, mode="grid", noise=False)
        >>> [trials.conditions[name].tolist() for name in ("f1", "f2")]
        [[10.0, 10.0, 10.0, 18.0, 26.0, 34.0], [18.0, 26.0, 34.0, 10.0, 10.0, 10.0]]
        >>> trials.inputs[5, :, 0].tolist(), trials.targets[5, :, 0].tolist()
        ([0.0, 0.5, 0.0, -0.5, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0])
    """

    differences: tuple[int | float, ...] = (8, 16, 24)
    low: int | float = 10.0
    high: int | float = 34.0
    sigma: int | float = 0.01
    fixation: int | float = 100.0
    stimulus: int | float = 100.0
    delay: tuple[int | float, int | float] = (500.0, 2000.0)
    decision: int | float = 100.0
    dt: int | float = 20.0
    tau: int | float = 100.0

    def __post_init__(self) -> None:
        check_positive("low", self.low)
        check_range("high", self.high, self.low)
        check_numbers("differences", self.differences)
        for difference in self.differences:
            check_positive("differences", difference)
            check_range("differences", difference, 0, self.high - self.low)
        _check_times(self, ("stimulus", "decision"))

    @property
    def name(self) -> str:
        return "parametric_working_memory"

    @property
    def input_labels(self) -> tuple[str, ...]:
        return ("frequency",)

    @property
    def output_labels(self) -> tuple[str, ...]:
        return ("difference",)

    @property
    def epoch_names(self) -> tuple[str, ...]:
        return EPOCHS

    @property
    def condition_names(self) -> tuple[str, ...]:
        return ("f1", "f2")

    @property
    def noise_std(self) -> float:
        return float(self.sigma)

    def _draw(self, B: int, generator: torch.Generator | None, shared_timing: bool) -> Trials:
        signed = torch.tensor([sign * d for sign in (-1, 1) for d in self.differences], dtype=torch.float64)
        if generator is None:
            index = torch.arange(B)
            difference, place = signed[index % len(signed)], (index // len(signed) % 5).double() / 4
        else:
            difference = signed[torch.randint(len(signed), (B,), generator=generator)]
            place = torch.rand(B, generator=generator, dtype=torch.float64)
        smaller = self.low + place * (self.high - self.low - difference.abs())
        first, second = smaller + difference.clamp_min(0), smaller - difference.clamp_max(0)
        span = self.high - self.low
        return _two_stimuli(
            self, {"f1": first, "f2": second}, (first - second)[:, None] / span, B, generator, shared_timing
        )

    def _static_inputs(self, epoch: str, conditions: Mapping[str, Tensor], zeros: Tensor) -> Tensor:
        if epoch not in ("stimulus", "test"):
            return zeros[:, None].clone()
        frequency = need_condition(conditions, "f1" if epoch == "stimulus" else "f2", epoch)
        return ((frequency - (self.low + self.high) / 2) / (self.high - self.low))[:, None]

    def _score(self, outputs: Tensor, trials: Trials) -> dict[str, float]:
        answered, right = decision(outputs, trials), decision(trials.targets, trials)
        levels = sorted({0.0, *map(float, self.differences)})
        nearest = min(b - a for a, b in itertools.pairwise(levels)) / (self.high - self.low)
        return {
            "accuracy": float(((answered - right).abs() < nearest / 2).double().mean()),
            "sign": float((answered.sign() == right.sign()).double().mean()),
        }


@final
@dataclasses.dataclass(frozen=True)
class DelayedMatch(Task):
    """Two of K stimuli, one after the other: do they match?

    K inputs, one-hot while a stimulus is shown, else 0; one output, whose target during the decision, the only steps
    with weight, is 1 for a match and −1 otherwise. With `kind="sample"` stimuli match if they are equal; with
    `kind="category"` if both or neither are among the first K/2. The first stimulus is uniform, matches have
    probability 1/2, and the second stimulus is uniform among those that match, or do not.

    Epochs: fixation, stimulus, delay, test, decision. Conditions: `first`, `second`, numbers in 0 … K − 1, and `match`,
    0 or 1. On the grid, trials go through all K² pairs.

    An answer is right if the mean output over the decision has the right sign; `score` returns `accuracy`, `hits` and
    `correct_rejections`, the accuracies of matches and of others, NaN where there are none.

    Args:
        kind: "sample" or "category".
        K: Number of stimuli, at least 2; even for categories.
        sigma: Standard deviation of the noise per step.
        fixation: ms before all else.
        stimulus: ms of each stimulus.
        delay: (low, high) of the delay, ms; U(low, high), and their mean on the grid.
        decision: ms of the decision.
        dt: Duration of a step, ms.
        tau: Time constant of the units, ms.

    Raises:
        ValueError: A parameter is out of range, or an epoch is shorter than a step.

    Source: Dubreuil, Valente et al. (2022) for K = 2 samples, the durations and the noise; categories follow Freedman &
    Assad (2006), with stimuli that are one-hot instead of directions.

    Example:
        >>> trials = DelayedMatch("category", K=4).sample(16, mode="grid", noise=False)
        >>> trials.targets[:, -1, 0].int().reshape(4, 4).tolist()
        [[1, 1, -1, -1], [1, 1, -1, -1], [-1, -1, 1, 1], [-1, -1, 1, 1]]
    """

    kind: str = "sample"
    K: int = 2
    sigma: int | float = 0.03
    fixation: int | float = 100.0
    stimulus: int | float = 500.0
    delay: tuple[int | float, int | float] = (500.0, 3000.0)
    decision: int | float = 1000.0
    dt: int | float = 20.0
    tau: int | float = 100.0

    def __post_init__(self) -> None:
        check_one_of("kind", self.kind, ("sample", "category"))
        check_range("K", self.K, 2, integer=True)
        if self.kind == "category" and self.K % 2:
            raise ValueError(f"`K` must be even, for two categories of one size; got {self.K}.")
        _check_times(self, ("stimulus", "decision"))

    @property
    def name(self) -> str:
        return f"delayed_match_{self.kind}"

    @property
    def input_labels(self) -> tuple[str, ...]:
        return tuple(f"stimulus {k}" for k in range(self.K))

    @property
    def output_labels(self) -> tuple[str, ...]:
        return ("match",)

    @property
    def epoch_names(self) -> tuple[str, ...]:
        return EPOCHS

    @property
    def condition_names(self) -> tuple[str, ...]:
        return ("first", "second", "match")

    @property
    def noise_std(self) -> float:
        return float(self.sigma)

    def _draw(self, B: int, generator: torch.Generator | None, shared_timing: bool) -> Trials:
        if generator is None:
            first, second = torch.arange(B) // self.K % self.K, torch.arange(B) % self.K
        else:
            first = torch.randint(self.K, (B,), generator=generator)
            wanted = torch.randint(2, (B,), generator=generator)
            likely = (self._matches(first[:, None], torch.arange(self.K)) == wanted[:, None].bool()).double()
            second = torch.multinomial(likely, 1, generator=generator)[:, 0]
        match = self._matches(first, second).long()
        answer = (2.0 * match.double() - 1.0)[:, None]
        return _two_stimuli(
            self, {"first": first, "second": second, "match": match}, answer, B, generator, shared_timing
        )

    def _matches(self, first: Int[Tensor, "..."], second: Int[Tensor, "..."]) -> Tensor:
        """Whether two stimuli match."""
        if self.kind == "sample":
            return first == second
        return (first < self.K // 2) == (second < self.K // 2)

    def _static_inputs(self, epoch: str, conditions: Mapping[str, Tensor], zeros: Tensor) -> Tensor:
        if epoch not in ("stimulus", "test"):
            return zeros[:, None].repeat(1, self.K)
        shown = need_condition(conditions, "first" if epoch == "stimulus" else "second", epoch)
        return (shown[:, None] == torch.arange(self.K, device=shown.device)).to(zeros.dtype)

    def _score(self, outputs: Tensor, trials: Trials) -> dict[str, float]:
        right = (decision(outputs, trials).sign() == decision(trials.targets, trials).sign())[:, 0].double()
        match = trials.conditions["match"] == 1
        return {
            "accuracy": float(right.mean()),
            "hits": float(right[match].mean()),
            "correct_rejections": float(right[~match].mean()),
        }


def _two_stimuli(
    task: ParametricWorkingMemory | DelayedMatch,
    conditions: Mapping[str, Tensor],
    answer: Tensor,
    B: int,
    generator: torch.Generator | None,
    shared: bool,
) -> Trials:
    """Trials with a stimulus, a delay, a test, and a decision whose target is `answer [B, 1]`."""
    before, after = (task.fixation, task.stimulus), (task.stimulus, task.decision)
    if generator is None:
        durations = fixed_durations((*before, sum(task.delay) / 2, *after), B, task.dt)
    else:
        spans = [(float(d), float(d)) for d in before], [(float(d), float(d)) for d in after]
        low, high = task.delay
        durations = draw_durations((*spans[0], (float(low), float(high)), *spans[1]), B, task.dt, generator, shared)
    epochs = consecutive(EPOCHS, durations)
    T = int(epochs["decision"][1].max())
    zeros = torch.zeros(B, dtype=torch.float64)
    shown = {name: task._static_inputs(name, conditions, zeros) for name in EPOCHS}
    last = {"decision": epochs["decision"]}
    return trials_of(
        task,
        inputs=piecewise(epochs, shown, T),
        targets=piecewise(last, {"decision": answer}, T),
        mask=piecewise(last, {"decision": torch.ones_like(answer)}, T),
        epochs=epochs,
        conditions=conditions,
    )


def _check_times(task: ParametricWorkingMemory | DelayedMatch, needed: tuple[str, ...]) -> None:
    check_noise(task)
    check_range("fixation", task.fixation, 0)
    for name in needed:
        check_positive(name, getattr(task, name))
        if to_steps(getattr(task, name), task.dt) < 1:
            raise ValueError(f"`{name}` must last at least one step of {task.dt:g} ms; got {getattr(task, name):g} ms.")
    check_numbers("delay", task.delay, 2)
    check_range("delay", task.delay[0], 0)
    check_range("delay", task.delay[1], task.delay[0])
