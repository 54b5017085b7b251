"""A time after which searches end where they are."""

import dataclasses
import math
import time
from typing import final

from kpflow._checks import check_positive

__all__ = ["NEVER", "TIME_LIMIT", "Deadline", "deadline_in"]

TIME_LIMIT = 120.0
"""Seconds that a search may take if the user says nothing."""


@final
@dataclasses.dataclass(frozen=True)
class Deadline:
    """A moment of the monotonic clock, in seconds."""

    moment: float

    @property
    def over(self) -> bool:
        """Whether it has passed."""
        return time.monotonic() >= self.moment

    @property
    def halfway(self) -> "Deadline":
        """In half of the time that is left."""
        now = time.monotonic()
        return Deadline(now + (self.moment - now) / 2)


NEVER = Deadline(math.inf)


def deadline_in(time_limit: float | None) -> Deadline:
    """The deadline so many seconds from now; None for none."""
    if time_limit is None:
        return NEVER
    check_positive("time_limit", time_limit)
    return Deadline(time.monotonic() + time_limit)
