"""Copy and DelayedAddition: the standard tests of long memory in machine learning."""

import dataclasses
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from kpflow._checks import check_positive, check_range

from .base import Task, check_noise, trials_of
from .scores import explained, within
from .timing import consecutive
from .trials import Trials

__all__ = ["Copy", "DelayedAddition"]


@final
@dataclasses.dataclass(frozen=True)
class Copy(Task):
    """Say a list of symbols again after a delay.

    Inputs are `symbols` channels, one-hot while the list is shown, one symbol a step, and a cue, which is 1 in the last
    step of the delay. Outputs are `symbols` channels, whose targets in the response, the only steps with weight, are
    the list, one-hot, in the same order. Symbols are uniform and independent; on the grid, trial b begins with symbol
    b mod `symbols`, and the next ones follow cyclically, one more place on for each time round.

    Epochs: list, delay, response. The static input is 0, that between symbols and cue. No conditions.

    A step is right if the largest output is the symbol's; `score` returns `accuracy`, the fraction of right steps, and
    `perfect_trials`, the fraction of trials with no wrong one.

    Args:
        symbols: Number of symbols, at least 2.
        items: Length of the list.
        delay: Steps from the list to the response, the cue included.
        sigma: Standard deviation of the noise per step.
        dt: Duration of a step, ms.
        tau: Time constant of the units, ms.

    Raises:
        ValueError: A parameter is out of range.

    Source: Hochreiter & Schmidhuber (1997); eight symbols and lists of ten as in Arjovsky et al. (2016), who have a
    blank symbol in inputs and outputs instead of silence.

    Example:
        >>> trials = Copy(symbols=3, items=2, delay=1).sample(1, mode="grid", noise=False)
        >>> trials.inputs[0].int().tolist()
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
        >>> trials.targets[0].int().tolist()
        [[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]]
    """

    symbols: int = 8
    items: int = 10
    delay: int = 30
    sigma: int | float = 0.0
    dt: int | float = 20.0
    tau: int | float = 20.0

    def __post_init__(self) -> None:
        check_range("symbols", self.symbols, 2, integer=True)
        check_positive("items", self.items, integer=True)
        check_positive("delay", self.delay, integer=True)
        check_noise(self)

    @property
    def name(self) -> str:
        return "copy"

    @property
    def input_labels(self) -> tuple[str, ...]:
        return (*self.output_labels, "cue")

    @property
    def output_labels(self) -> tuple[str, ...]:
        return tuple(f"symbol {k}" for k in range(self.symbols))

    @property
    def epoch_names(self) -> tuple[str, ...]:
        return ("list", "delay", "response")

    @property
    def condition_names(self) -> tuple[str, ...]:
        return ()

    @property
    def noise_std(self) -> float:
        return float(self.sigma)

    def _draw(self, B: int, generator: torch.Generator | None, shared_timing: bool) -> Trials:  # noqa: ARG002
        if generator is None:
            trial, item = torch.arange(B)[:, None], torch.arange(self.items)
            said = (trial + item * (1 + trial // self.symbols)) % self.symbols
        else:
            said = torch.randint(self.symbols, (B, self.items), generator=generator)
        one_hot = torch.nn.functional.one_hot(said, self.symbols).double()
        start = self.items + self.delay
        inputs = torch.zeros(B, start + self.items, self.symbols + 1, dtype=torch.float64)
        inputs[:, : self.items, :-1] = one_hot
        inputs[:, start - 1, -1] = 1
        targets = torch.zeros(B, start + self.items, self.symbols, dtype=torch.float64)
        targets[:, start:] = one_hot
        mask = torch.zeros_like(targets)
        mask[:, start:] = 1
        durations = torch.tensor([self.items, self.delay, self.items]).expand(B, 3)
        return trials_of(
            self,
            inputs=inputs,
            targets=targets,
            mask=mask,
            epochs=consecutive(self.epoch_names, durations),
            conditions={},
        )

    def _static_inputs(self, epoch: str, conditions: Mapping[str, Tensor], zeros: Tensor) -> Tensor:  # noqa: ARG002
        return zeros[:, None].repeat(1, self.symbols + 1)

    def _score(self, outputs: Tensor, trials: Trials) -> dict[str, float]:
        right = outputs.argmax(dim=2) == trials.targets.argmax(dim=2)
        weighted = trials.mask[:, :, 0] > 0
        return {
            "accuracy": float((right & weighted).sum() / weighted.sum()),
            "perfect_trials": float((right | ~weighted).all(dim=1).double().mean()),
        }


@final
@dataclasses.dataclass(frozen=True)
class DelayedAddition(Task):
    """Add the two marked ones of many numbers.

    Inputs are a number, U(0, 1) at every step, and a mark, 1 at two steps, one uniform in the first half of the trial
    and one in the second, else 0. The target, at the last step, the only one with weight, is the sum of the marked
    numbers. On the grid, numbers and marks are the first ones of one fixed sequence of draws.

    One epoch, `numbers`, whose static input is the mean number, 1/2, without a mark. The condition is `sum`.

    An answer is right where |ŷ − y| < `tolerance`. `score` returns `accuracy`, and `r2`, the variance explained. To
    always answer 1 is right in 1 − (1 − `tolerance`)² of trials, 8 % by default.

    Args:
        steps: T, at least 2.
        tolerance: Error below which an answer is right.
        sigma: Standard deviation of the noise per step.
        dt: Duration of a step, ms.
        tau: Time constant of the units, ms.

    Raises:
        ValueError: A parameter is out of range.

    Source: Hochreiter & Schmidhuber (1997), with tolerance 0.04; trials of one length and marks in the halves as in
    Arjovsky et al. (2016).

    Example:
        >>> trials = DelayedAddition(steps=10).sample(3)
        >>> marked = (trials.inputs[:, :, 0] * trials.inputs[:, :, 1]).sum(dim=1)
        >>> torch.allclose(marked, trials.targets[:, -1, 0])
        True
    """

    steps: int = 100
    tolerance: int | float = 0.04
    sigma: int | float = 0.0
    dt: int | float = 20.0
    tau: int | float = 20.0

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 2, integer=True)
        check_positive("tolerance", self.tolerance)
        check_noise(self)

    @property
    def name(self) -> str:
        return "delayed_addition"

    @property
    def input_labels(self) -> tuple[str, ...]:
        return ("number", "mark")

    @property
    def output_labels(self) -> tuple[str, ...]:
        return ("sum",)

    @property
    def epoch_names(self) -> tuple[str, ...]:
        return ("numbers",)

    @property
    def condition_names(self) -> tuple[str, ...]:
        return ("sum",)

    @property
    def noise_std(self) -> float:
        return float(self.sigma)

    def _draw(self, B: int, generator: torch.Generator | None, shared_timing: bool) -> Trials:  # noqa: ARG002
        source = torch.Generator().manual_seed(0) if generator is None else generator
        numbers = torch.rand(B, self.steps, generator=source, dtype=torch.float64)
        half = self.steps // 2
        marks = torch.zeros_like(numbers)
        for low, high in ((0, half), (half, self.steps)):
            marks.scatter_(1, torch.randint(low, high, (B, 1), generator=source), 1.0)
        total = (numbers * marks).sum(dim=1)
        targets = torch.zeros(B, self.steps, 1, dtype=torch.float64)
        targets[:, -1, 0] = total
        mask = torch.zeros_like(targets)
        mask[:, -1] = 1
        return trials_of(
            self,
            inputs=torch.stack((numbers, marks), dim=2),
            targets=targets,
            mask=mask,
            epochs=consecutive(self.epoch_names, torch.full((B, 1), self.steps)),
            conditions={"sum": total},
        )

    def _static_inputs(self, epoch: str, conditions: Mapping[str, Tensor], zeros: Tensor) -> Tensor:  # noqa: ARG002
        return torch.stack((zeros + 0.5, zeros), dim=1)

    def _score(self, outputs: Tensor, trials: Trials) -> dict[str, float]:
        return {"accuracy": within(outputs, trials, self.tolerance), "r2": explained(outputs, trials)}
