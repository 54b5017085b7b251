"""RuleTask: the fifteen tasks of Driscoll et al. (2024) and the twenty of Yang et al. (2019), one class for all."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_one_of, check_range

from .base import Task, check_noise, noise_per_step, trials_of
from .directions import angular_distance, read_angle, response_weights, ring, to_channels
from .rule_conditions import angle_of, answer, condition_names, draw_conditions, grid_conditions, strengths_of
from .rules import DRISCOLL_RULES, EPOCHS, GRIDS, RULES, TIMINGS, YANG_RULES, Rule, resolve_rule
from .timing import consecutive, draw_durations, fixed_durations, piecewise, to_steps
from .trials import Trials

__all__ = ["RuleTask"]

YANG: Mapping[str, Any] = {
    "timing": "yang",
    "encoding": "ring",
    "sigma": 0.01,
    "baseline": 0.05,
    "tolerance": math.pi / 5,
}

SHOWN: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "delay": {"stimulus": (1,), "response": (1,)},
    "memory": {"stimulus": (1,)},
    "react": {"response": (1,)},
    "two": {"stimulus": (1,), "stimulus2": (2,)},
    "two_long": {"stimulus": (1,), "stimulus2": (2,)},
    "once": {"stimulus": (1, 2)},
    "match": {"stimulus": (1,), "response": (2,)},
    "match_category": {"stimulus": (1,), "response": (2,)},
}
"""Which stimuli are shown in which epochs of each schedule."""


@final
@dataclasses.dataclass(frozen=True)
class RuleTask(Task):
    """One of the tasks with two rings of directions, of Driscoll et al. (2024) or Yang et al. (2019).

    Inputs are a fixation and two modalities that show directions; outputs are a fixation and a direction. There are
    no rule inputs: MultiTask adds them. The rules, with their names in the code of both papers:

    - delay_pro, delay_anti (fdgo, fdanti): a direction θ stays on; respond θ, or θ + π, when the fixation goes off.
    - memory_pro, memory_anti (delaygo, delayanti): the same, but θ is shown for a while only.
    - react_pro, react_anti (reactgo, reactanti): respond as soon as θ is shown; the fixation never goes off.
    - integration_modality1, 2 (delaydm1, 2): two directions, one after the other, in modality 1, 2; the stronger one.
    - ctxt_int_modality1, 2 (contextdelaydm1, 2): the same two directions in both modalities, with independent
      strengths; the stronger one in modality 1, 2.
    - integration_multimodal (multidelaydm): the same; the one with the larger sum of strengths.
    - react_match2sample, react_nonmatch2sample (dmsgo, dmsnogo): respond with the second direction as soon as it is
      shown if it equals the first one, or if it does not; otherwise fixate. The fixation never goes off.
    - react_category_pro, react_category_anti (dmcgo, dmcnogo): the same for equal and unequal categories; the
      category of θ is whether θ < π, exactly, in inputs and labels alike.
    - dm1, dm2, contextdm1, contextdm2, multidm, of Yang et al. alone: both directions are shown at once.

    Strengths are m ± c with m ~ U(0.8, 1.2) and c from U(0.005, 0.8), or with `timing="yang"` one of 0.08, 0.16, 0.32
    (0.01, 0.02, 0.04, 0.08 if shown at once). For the multimodal rules they are a in the mean of both modalities, and
    a (1 ± d/2), d ~ ±U(0.005, 0.8) (±U(0.2, 0.8)) in each. The second direction is ±U(π/2, 3π/2) from the first one;
    in non-matches ±U(π/9, 17π/9), not only the opposite one. Directions of categories are uniform, or, with
    "yang", one of ten, 0.1 π, 0.3 π, … 1.9 π. Modalities of single and matching directions are drawn per trial.

    On the grid, durations are those of the public test sets, angles are 2π b/B, and trials go through modalities,
    strengths and matches in turn. There, strengths are never equal and both answers occur, unlike in the test sets.

    The target of the fixation is `fixation_target` while it should be held, else `baseline`. Trials are scored at
    their last step: to fixate is ŷ_fixation > 1/2, to respond is ŷ_fixation ≤ 1/2 with the angle of the direction
    within `tolerance`. `score` returns `accuracy`; `fixation`, the fraction with the right side of 1/2; and
    `angular_error`, the mean over trials that ask for a response, NaN if none does.

    Args:
        rule: A rule, by its name or by that of either paper.
        timing: "driscoll", or "yang" for the durations, coherences and categories of Yang et al. (2019).
        encoding: "circular" for (cos θ, sin θ), or "ring" for bumps 0.8 exp(−½ (Δ/(π/8))²) on `units` channels.
        order: "cos_sin" or "sin_cos", of circular channels; the files of Driscoll et al. have "sin_cos".
        units: Units of a ring.
        dt: Duration of a step, ms.
        tau: Time constant τ that the noise is scaled for, ms.
        sigma: σ; the noise per step is σ √(2 τ/dt), 0.316 by default.
        grace: ms from the beginning of the response without weight in the loss.
        fixation_target: What the fixation output should be while it is held.
        baseline: Added to the direction's targets throughout; also the target of the fixation after its release.
        weighting: "driscoll" or "uniform", as in DelayedResponse.
        tolerance: Error of the angle below which a response is right.

    Raises:
        ValueError: A parameter is out of range; the rule is not one of Driscoll et al. with `timing="driscoll"`; an
            epoch may be shorter than a step, or the response not longer than the grace.

    Source: the code of Driscoll et al. (2024), `stepnet/task.py` of flexible_multitask as of March 2025, and of Yang
    et al. (2019), `task.py` of multitask. Public versions disagree on the order of the channels, the coherences, the
    fixation target of matches and what a non-match is; here all are as in these two files, and the order is ours.

    Example:
        >>> task = RuleTask("ctxt_int_modality1")
        >>> task.input_labels
        ('fixation', 'cos 1', 'sin 1', 'cos 2', 'sin 2')
        >>> task.sample(16, mode="grid")
        Trials(16 trials × 175 steps, float32, dt 20 ms
          inputs: fixation, cos 1, sin 1, cos 2, sin 2
          outputs: fixation, cos, sin
          epochs: context, stimulus, memory, stimulus2, memory2, response
          conditions: angle1, angle2, strength1_modality1, ..., strength2_modality2)
        >>> RuleTask("Dly Go") == RuleTask("memory_pro"), RuleTask.yang("Dly Go").num_inputs
        (True, 65)
    """

    rule: str = "memory_pro"
    timing: str = "driscoll"
    encoding: str = "circular"
    order: str = "cos_sin"
    units: int = 32
    dt: int | float = 20.0
    tau: int | float = 100.0
    sigma: int | float = 0.1
    grace: int | float = 100.0
    fixation_target: int | float = 0.8
    baseline: int | float = 0.0
    weighting: str = "driscoll"
    tolerance: int | float = math.pi / 10

    @classmethod
    def yang(cls, rule: str, **parameters: Any) -> "RuleTask":
        """The task as Yang et al. (2019) set it: their timing, rings, σ 0.01, baseline 0.05 and tolerance π/5."""
        return cls(rule, **{**YANG, **parameters})

    def __post_init__(self) -> None:
        check_one_of("timing", self.timing, tuple(TIMINGS))
        object.__setattr__(self, "rule", resolve_rule(self.rule))
        check_one_of("rule", self.rule, DRISCOLL_RULES if self.timing == "driscoll" else YANG_RULES)
        check_one_of("encoding", self.encoding, ("circular", "ring"))
        check_one_of("order", self.order, ("cos_sin", "sin_cos"))
        check_one_of("weighting", self.weighting, ("uniform", "driscoll"))
        check_range("units", self.units, 3, integer=True)
        check_noise(self)
        check_range("grace", self.grace, 0)
        check_range("fixation_target", self.fixation_target, 0.5, 1)
        check_range("baseline", self.baseline, 0, 0.5)
        check_range("tolerance", self.tolerance, 0, math.pi)
        _check_durations(self)

    @property
    def name(self) -> str:
        return f"{self.timing}_{self.rule}"

    @property
    def input_labels(self) -> tuple[str, ...]:
        return ("fixation", *(f"{channel} {modality}" for modality in (1, 2) for channel in self._channels))

    @property
    def output_labels(self) -> tuple[str, ...]:
        return ("fixation", *self._channels)

    @property
    def epoch_names(self) -> tuple[str, ...]:
        return EPOCHS[self._rule.schedule]

    @property
    def condition_names(self) -> tuple[str, ...]:
        return condition_names(self._rule)

    @property
    def noise_std(self) -> float:
        return noise_per_step(self.sigma, self.dt, self.tau)

    @property
    def _rule(self) -> Rule:
        return RULES[self.rule]

    @property
    def _channels(self) -> tuple[str, ...]:
        if self.encoding == "ring":
            return tuple(f"{round(360 * k / self.units, 2):g}°" for k in range(self.units))
        return tuple(self.order.split("_"))

    def _draw(self, B: int, generator: torch.Generator | None, shared_timing: bool) -> Trials:
        schedule = self._rule.schedule
        if generator is None:
            durations = fixed_durations(GRIDS[schedule], B, self.dt)
            conditions = grid_conditions(self._rule, B)
        else:
            durations = draw_durations(TIMINGS[self.timing][schedule], B, self.dt, generator, shared_timing)
            conditions = draw_conditions(self._rule, self.timing, B, generator)
        epochs = consecutive(self.epoch_names, durations)
        T = int(epochs["response"][1].max())
        zeros = torch.zeros(B, dtype=torch.float64)
        inputs = {name: self._static_inputs(name, conditions, zeros) for name in self.epoch_names}
        targets = {name: self._answer(name, conditions) for name in self.epoch_names}
        return trials_of(
            self,
            inputs=piecewise(epochs, inputs, T),
            targets=piecewise(epochs, targets, T),
            mask=response_weights(
                epochs, T, grace=self.grace, dt=self.dt, weighting=self.weighting, channels=self.num_outputs
            ),
            epochs=epochs,
            conditions=conditions,
        )

    def _static_inputs(self, epoch: str, conditions: Mapping[str, Tensor], zeros: Tensor) -> Tensor:
        rule = self._rule
        stays_on = rule.schedule in ("react", "match", "match_category")
        fixation = zeros + (1.0 if epoch != "response" or stays_on else 0.0)
        modalities = torch.zeros(len(zeros), 2, self.num_outputs - 1, dtype=zeros.dtype, device=zeros.device)
        for stimulus in SHOWN[rule.schedule].get(epoch, ()):
            direction = self._encode(angle_of(rule, conditions, stimulus, epoch))  # [n, C]
            strengths = strengths_of(rule, conditions, stimulus, epoch)  # [n, 2]
            modalities = modalities + strengths[:, :, None] * direction[:, None, :]
        return torch.cat((fixation[:, None], modalities.flatten(1)), dim=1)

    def _score(self, outputs: Tensor, trials: Trials) -> dict[str, float]:
        last = outputs[torch.arange(trials.num_trials, device=outputs.device), trials.length - 1].double()
        conditions = {name: v.double() if v.dtype.is_floating_point else v for name, v in trials.conditions.items()}
        goal, responds = answer(self._rule, conditions)
        fixates = last[:, 0] > 0.5
        answered, strength = read_angle(last[:, 1:], self.order if self.encoding == "circular" else None)
        error = torch.where(strength == 0, math.pi, angular_distance(answered, goal))
        right = torch.where(responds, ~fixates & (error < self.tolerance), fixates)
        return {
            "accuracy": float(right.double().mean()),
            "fixation": float((fixates != responds).double().mean()),
            "angular_error": float(error[responds].mean()),
        }

    def _encode(self, angle: Tensor) -> Tensor:
        """The channels of directions."""
        return ring(angle, self.units) if self.encoding == "ring" else to_channels(angle, self.order)

    def _answer(self, epoch: str, conditions: Mapping[str, Tensor]) -> Float[Tensor, "B O"]:
        """What the outputs should be in `epoch`."""
        angle, responds = answer(self._rule, conditions)
        now = responds & (epoch == "response")
        fixation = torch.full_like(angle, self.fixation_target).masked_fill(now, self.baseline)
        direction = self.baseline + self._encode(angle) * now[:, None]
        return torch.cat((fixation[:, None], direction), dim=1)


def _check_durations(task: RuleTask) -> None:
    """Every epoch has a step, and the response outlasts the grace."""
    spans = TIMINGS[task.timing][RULES[task.rule].schedule]
    shortest = [min(span) if isinstance(span, tuple) else min(span.values) for span in spans]
    if to_steps(min(shortest), task.dt) < 1:
        raise ValueError(f"`dt` must be at most {min(shortest):g} ms for {task.rule}; got {task.dt:g}.")
    response = to_steps(shortest[-1], task.dt)
    if to_steps(task.grace, task.dt) >= response:
        raise ValueError(
            f"`grace` must be shorter than the response of {task.rule}, which may last {response} steps; got "
            f"{task.grace:g} ms = {to_steps(task.grace, task.dt)} steps. Pass grace=0.0."
        )
