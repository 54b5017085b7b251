"""Schedules: which steps of a training are recorded, by their number or by what the loss does."""

import abc
import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import final

from kpflow import _checks

__all__ = ["AnyOf", "Every", "LogSpaced", "LossJump", "Schedule", "every", "log_spaced", "on_loss_jump"]


class Schedule(abc.ABC):
    """Says of every step whether it is recorded; `a | b` is the schedule of the steps of either.

    Schedules have no state: the same step with the same losses before it always has the same answer, in a resumed run
    too.
    """

    @abc.abstractmethod
    def __call__(self, step: int, losses: Sequence[float] = ()) -> bool:
        """Whether `step` is recorded, given the losses so far, oldest first, at least the newest `memory`."""

    @property
    @abc.abstractmethod
    def memory(self) -> int:
        """How many losses it looks at."""

    def __or__(self, other: "Schedule") -> "AnyOf":
        if not isinstance(other, Schedule):
            raise TypeError(f"`|` joins two schedules; got {type(other).__name__}. Try log_spaced() | every(500).")
        return AnyOf((self, other))


@final
@dataclasses.dataclass(frozen=True)
class LogSpaced(Schedule):
    """The steps round(10^(k / per_decade)), k = 0, 1, …, and 0; early changes are fast, so early steps are dense."""

    per_decade: int = 8

    def __post_init__(self) -> None:
        _checks.check_positive("per_decade", self.per_decade, integer=True)

    def __call__(self, step: int, losses: Sequence[float] = ()) -> bool:  # noqa: ARG002
        return step in self.grid(step)

    @property
    def memory(self) -> int:
        return 0

    def grid(self, last: int) -> list[int]:
        """The steps of the grid from 0 to `last`."""
        steps = {0}
        power = 0
        while (step := round(10 ** (power / self.per_decade))) <= last:
            steps.add(step)
            power += 1
        return sorted(steps)


@final
@dataclasses.dataclass(frozen=True)
class Every(Schedule):
    """The multiples of `n`, 0 included."""

    n: int

    def __post_init__(self) -> None:
        _checks.check_positive("n", self.n, integer=True)

    def __call__(self, step: int, losses: Sequence[float] = ()) -> bool:  # noqa: ARG002
        return step % self.n == 0

    @property
    def memory(self) -> int:
        return 0


@final
@dataclasses.dataclass(frozen=True)
class LossJump(Schedule):
    """The steps at which the loss has just risen or fallen by more than `factor`.

    With a the median of the newest `window` losses and b that of the `window` before, a jump is
    |a − b| > (factor − 1) min(|a|, |b|): for losses of one sign, a ratio beyond `factor`. A step is recorded where this
    begins to hold, about half a window after the jump; a single outlier is none, for windows of three or more. Windows
    with a loss that is not finite have no jump.

    Args:
        factor: Above 1.
        window: How many losses are taken together; 1 for a loss without noise.

    Raises:
        ValueError: `factor` is no number above 1, or `window` no positive whole number.
    """

    factor: int | float = 1.5
    window: int = 10

    def __post_init__(self) -> None:
        _checks.check_positive("window", self.window, integer=True)
        _checks.check_positive("factor", self.factor)
        if not self.factor > 1:
            raise ValueError(f"`factor` must be above 1; got {self.factor}. Try 1.5.")

    def __call__(self, step: int, losses: Sequence[float] = ()) -> bool:  # noqa: ARG002
        return self._jumped(losses) and not self._jumped(losses[:-1])

    @property
    def memory(self) -> int:
        return 2 * self.window + 1

    def _jumped(self, losses: Sequence[float]) -> bool:
        both = list(losses[-2 * self.window :])
        if len(both) < 2 * self.window or not all(map(math.isfinite, both)):
            return False
        before, after = statistics.median(both[: self.window]), statistics.median(both[self.window :])
        return abs(after - before) > (self.factor - 1) * min(abs(after), abs(before))


@final
@dataclasses.dataclass(frozen=True)
class AnyOf(Schedule):
    """The steps of any of several schedules: what `|` makes."""

    schedules: tuple[Schedule, ...]

    def __call__(self, step: int, losses: Sequence[float] = ()) -> bool:
        return any(schedule(step, losses) for schedule in self.schedules)

    @property
    def memory(self) -> int:
        return max((schedule.memory for schedule in self.schedules), default=0)


def log_spaced(per_decade: int = 8) -> LogSpaced:
    """Make the logarithmic grid of steps with about `per_decade` steps in each decade, 0 included.

    Raises:
        ValueError: `per_decade` is no positive whole number.

    Example:
        >>> log_spaced(per_decade=4).grid(100)
        [0, 1, 2, 3, 6, 10, 18, 32, 56, 100]
    """
    return LogSpaced(per_decade)


def every(n: int) -> Every:
    """Make the schedule of every n-th step, 0 included.

    Raises:
        ValueError: `n` is no positive whole number.

    Example:
        >>> schedule = log_spaced(per_decade=1) | every(40)
        >>> [step for step in range(101) if schedule(step)]
        [0, 1, 10, 40, 80, 100]
    """
    return Every(n)


def on_loss_jump(factor: int | float = 1.5, window: int = 10) -> LossJump:
    """Make the schedule of the steps at which the loss jumps by more than `factor`; see `LossJump`.

    Raises:
        ValueError: `factor` is no number above 1, or `window` no positive whole number.

    Example:
        >>> losses = [1.0] * 50 + [0.2] * 50
        >>> schedule = on_loss_jump(factor=2, window=4)
        >>> [step for step in range(101) if schedule(step, losses[max(step - schedule.memory, 0) : step])]
        [53]
    """
    return LossJump(factor, window)
