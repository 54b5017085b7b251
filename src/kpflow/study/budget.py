"""Time budget: how much of a training's time its recording may take."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import final

from kpflow import _checks

__all__ = ["Meter", "TimeBudget"]

clock = time.perf_counter


@final
@dataclasses.dataclass(frozen=True)
class TimeBudget:
    """How long recording may take, of the time since the recorder was attached, or in all.

    A step that is due is skipped if recording would have taken more with it, supposing that it takes as long as the
    last one. On an accelerator the time of a record includes the wait for what was queued before it.

    Args:
        fraction: The largest part of the wall time, between 0 and 1; None for no such limit.
        seconds: The largest time in all; None for no such limit.

    Example:
        >>> TimeBudget(fraction=0.1).allows(spent=0.4, elapsed=9.5, last=0.5)
        True
        >>> TimeBudget(fraction=0.1).allows(spent=0.4, elapsed=8.0, last=0.5)
        False
    """

    fraction: int | float | None = None
    seconds: int | float | None = None

    def __post_init__(self) -> None:
        if self.fraction is None and self.seconds is None:
            raise ValueError("`fraction` or `seconds` must be given; got neither. Try TimeBudget(fraction=0.02).")
        if self.fraction is not None:
            _checks.check_positive("fraction", self.fraction)
            _checks.check_range("fraction", self.fraction, 0, 1)
        if self.seconds is not None:
            _checks.check_range("seconds", self.seconds, 0)

    def allows(self, spent: int | float, elapsed: int | float, last: int | float) -> bool:
        """Whether one more record fits, after `spent` seconds of recording in `elapsed`, if it takes `last` seconds."""
        within = self.fraction is None or spent + last <= self.fraction * (elapsed + last)
        return within and (self.seconds is None or spent + last <= self.seconds)


@final
class Meter:
    """Measures what recording takes, and compares it with the budget.

    Args:
        budget: The budget; None for none.
    """

    def __init__(self, budget: TimeBudget | None) -> None:
        self.budget = budget
        self.spent = 0.0
        self.last = 0.0
        self._before = 0.0  # elapsed in earlier runs, if this one is resumed
        self._started = clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the start, with those of the runs that this one goes on from."""
        return self._before + clock() - self._started

    def start(self) -> None:
        """Count the time from now on."""
        self._started = clock()

    def allows(self) -> bool:
        """Whether the budget has room for one more record."""
        return self.budget is None or self.budget.allows(self.spent, self.elapsed, self.last)

    @contextlib.contextmanager
    def measuring(self, *, whole: bool = True) -> Iterator[None]:
        """Count what is done inside as recording; if it is a `whole` record, the next is supposed to take as long."""
        before = clock()
        try:
            yield
        finally:
            took = clock() - before
            self.spent += took
            self.last = took if whole else self.last

    def state(self) -> list[float]:
        """What a resumed run goes on from; empty without a budget, so that files do not depend on the time."""
        return [] if self.budget is None else [self.spent, self.last, self.elapsed]

    def restore(self, state: list[float]) -> None:
        """Go on from `state`."""
        if state:
            self.spent, self.last, self._before = state
