"""PerceptualIntegration and ContextIntegration: the sign of noisy evidence, of one stream or of the one attended to."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_numbers, check_positive, check_range

from .base import Task, check_flag, check_noise, need_condition, trials_of
from .scores import decision
from .timing import consecutive, fixed_durations, piecewise, to_steps
from .trials import Trials

__all__ = ["ContextIntegration", "EvidenceTask", "PerceptualIntegration"]


@dataclasses.dataclass(frozen=True)
class EvidenceTask(Task):
    """What the two tasks share; use one of the two.

    The evidence is u = s c `scale` during the stimulus, with s = ±1 and c one of `coherences`, all equally likely; it
    is seen through white noise. The target is the sign s of the evidence that counts during the decision, the only
    steps with weight. On the grid, trials go through all values of the conditions in turn, so that a number of trials
    which is a multiple of that of the conditions has each as often.

    An answer is right if the mean output over the decision has the right sign; `score` returns `accuracy`.

    Args:
        coherences: The values of c.
        scale: The evidence at coherence 1.
        sigma: Standard deviation of the noise per step, on all inputs.
        fixation: ms before all else.
        stimulus: ms of the evidence.
        delay: ms from the evidence to the decision.
        decision: ms of the decision.
        dt: Duration of a step, ms.
        tau: Time constant of the units, ms.

    Raises:
        ValueError: A parameter is out of range, or the stimulus or the decision is shorter than a step.

    Source: Mante et al. (2013); durations, coherences and noise of Dubreuil, Valente et al. (2022), where only the
    evidence has noise.
    """

    coherences: tuple[int | float, ...] = (1, 2, 4)
    scale: int | float = 0.1
    sigma: int | float = 0.1
    fixation: int | float = 100.0
    stimulus: int | float = 800.0
    delay: int | float = 100.0
    decision: int | float = 20.0
    dt: int | float = 20.0
    tau: int | float = 100.0

    def __post_init__(self) -> None:
        check_numbers("coherences", self.coherences)
        for coherence in self.coherences:
            check_positive("coherences", coherence)
        check_positive("scale", self.scale)
        check_noise(self)
        for name in ("fixation", "delay"):
            check_range(name, getattr(self, name), 0)
        for name in ("stimulus", "decision"):
            check_range(name, getattr(self, name), self.dt)

    @property
    def output_labels(self) -> tuple[str, ...]:
        return ("choice",)

    @property
    def noise_std(self) -> float:
        return float(self.sigma)

    @property
    def _evidence(self) -> Float[Tensor, " c"]:
        """All values of s c, the negative ones first."""
        positive = torch.tensor(self.coherences, dtype=torch.float64)
        return torch.cat((-positive, positive))

    @abc.abstractmethod
    def _attended(self, conditions: Mapping[str, Tensor]) -> Tensor:
        """The evidence s c that counts."""

    def _draw(self, B: int, generator: torch.Generator | None, shared_timing: bool) -> Trials:  # noqa: ARG002
        durations = [getattr(self, name) for name in self.epoch_names]
        epochs = consecutive(self.epoch_names, fixed_durations(durations, B, self.dt))
        conditions = self._conditions(B, generator)
        zeros = torch.zeros(B, dtype=torch.float64)
        T = sum(to_steps(duration, self.dt) for duration in durations)
        shown = {name: self._static_inputs(name, conditions, zeros) for name in self.epoch_names}
        answer = self._attended(conditions).sign()[:, None]
        return trials_of(
            self,
            inputs=piecewise(epochs, shown, T),
            targets=piecewise({"decision": epochs["decision"]}, {"decision": answer}, T),
            mask=piecewise({"decision": epochs["decision"]}, {"decision": torch.ones_like(answer)}, T),
            epochs=epochs,
            conditions=conditions,
        )

    def _conditions(self, B: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        """A value of every condition for each trial."""
        values = self._evidence
        index = torch.arange(B)
        conditions = {}
        for name in self.condition_names:
            choices = torch.tensor([1, 2]) if name == "context" else values
            if generator is None:
                conditions[name] = choices[index % len(choices)]
                index = index // len(choices)
            else:
                conditions[name] = choices[torch.randint(len(choices), (B,), generator=generator)]
        return conditions

    def _score(self, outputs: Tensor, trials: Trials) -> dict[str, float]:
        chosen, right = decision(outputs, trials), decision(trials.targets, trials)
        return {"accuracy": float((chosen.sign() == right.sign()).double().mean())}


@final
@dataclasses.dataclass(frozen=True)
class PerceptualIntegration(EvidenceTask):
    """Say whether a noisy input was positive or negative on average.

    One input, one output. Epochs: fixation, stimulus, delay, decision. The condition is `evidence`, s c.

    Parameters: EvidenceTask.

    Example:
        >>> task = PerceptualIntegration(stimulus=40.0, delay=20.0, fixation=20.0)
        >>> trials = task.sample(6, mode="grid", noise=False)
        >>> trials.conditions["evidence"].tolist()
        [-1.0, -2.0, -4.0, 1.0, 2.0, 4.0]
        >>> trials.inputs[2, :, 0].tolist(), trials.targets[2, :, 0].tolist()
        ([0.0, -0.4..., -0.4..., 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, -1.0])
    """

    @property
    def name(self) -> str:
        return "perceptual_integration"

    @property
    def input_labels(self) -> tuple[str, ...]:
        return ("evidence",)

    @property
    def epoch_names(self) -> tuple[str, ...]:
        return ("fixation", "stimulus", "delay", "decision")

    @property
    def condition_names(self) -> tuple[str, ...]:
        return ("evidence",)

    def _attended(self, conditions: Mapping[str, Tensor]) -> Tensor:
        return conditions["evidence"]

    def _static_inputs(self, epoch: str, conditions: Mapping[str, Tensor], zeros: Tensor) -> Tensor:
        if epoch != "stimulus":
            return zeros[:, None].clone()
        return self.scale * need_condition(conditions, "evidence", epoch)[:, None]


@final
@dataclasses.dataclass(frozen=True)
class ContextIntegration(EvidenceTask):
    """Say whether the attended one of two noisy inputs was positive or negative on average.

    Inputs are two streams of evidence and the context, one-hot, which is on from the end of the fixation until the
    decision; one output. Epochs: fixation, context, stimulus, delay, decision. The conditions are `evidence1`,
    `evidence2`, the s c of both streams, and `context`, 1 or 2, the stream that counts.

    With `paired`, each stream is shown by two inputs, one for each sign, (1 + u)/2 and (1 − u)/2 during the stimulus,
    where u = s c `scale` is the evidence, and 0 otherwise.

    Parameters: EvidenceTask, and

    Args:
        context: ms from the onset of the context to that of the evidence.
        paired: Whether each stream has two inputs.

    Raises:
        ValueError: With `paired`, the largest coherence times `scale` is above 1.
        TypeError: `paired` is no bool.

    Source: for pairs of inputs, trainRNNbrain (Tolmachev & Engel), whose coherences lie in [−1, 1], with scale 1.

    Example:
        >>> task = ContextIntegration(coherences=(1,))
        >>> trials = task.sample(8, mode="grid", noise=False)
        >>> [trials.conditions[name].int().tolist() for name in ("context", "evidence1", "evidence2")]
        [[1, 2, 1, 2, 1, 2, 1, 2], [-1, -1, 1, 1, -1, -1, 1, 1], [-1, -1, -1, -1, 1, 1, 1, 1]]
        >>> trials.targets[:, -1, 0].int().tolist()
        [-1, -1, 1, -1, -1, 1, 1, 1]
    """

    context: int | float = 350.0
    paired: bool = False

    def __post_init__(self) -> None:
        EvidenceTask.__post_init__(self)
        check_range("context", self.context, 0)
        check_flag("paired", self.paired)
        if self.paired and max(self.coherences) * self.scale > 1:
            raise ValueError(
                f"`scale` must be at most 1/{max(self.coherences):g}, so that paired inputs are not negative; "
                f"got {self.scale!r}."
            )

    @property
    def name(self) -> str:
        return "context_integration"

    @property
    def input_labels(self) -> tuple[str, ...]:
        signs = (" +", " −") if self.paired else ("",)
        return (*(f"evidence {i}{sign}" for i in (1, 2) for sign in signs), "context 1", "context 2")

    @property
    def epoch_names(self) -> tuple[str, ...]:
        return ("fixation", "context", "stimulus", "delay", "decision")

    @property
    def condition_names(self) -> tuple[str, ...]:
        return ("context", "evidence1", "evidence2")

    def _attended(self, conditions: Mapping[str, Tensor]) -> Tensor:
        return torch.where(conditions["context"] == 1, conditions["evidence1"], conditions["evidence2"])

    def _static_inputs(self, epoch: str, conditions: Mapping[str, Tensor], zeros: Tensor) -> Tensor:
        evidence, context = [zeros] * (self.num_inputs - 2), [zeros, zeros]
        if epoch == "stimulus":
            evidence = [self.scale * need_condition(conditions, f"evidence{i}", epoch) for i in (1, 2)]
            if self.paired:
                evidence = [(1 + sign * stream) / 2 for stream in evidence for sign in (1, -1)]
        if epoch not in ("fixation", "decision"):
            attended = need_condition(conditions, "context", epoch)
            context = [(attended == i).to(zeros.dtype) for i in (1, 2)]
        return torch.stack((*evidence, *context), dim=-1)
