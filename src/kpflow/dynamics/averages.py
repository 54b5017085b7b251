"""Time averages of growth, with errors: what is kept of a long run, and samples whose spread tells the error."""

import math
from collections.abc import Callable
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["BATCHES", "MIN_SAMPLES", "TRIALS", "Growth", "Measured", "entropy", "jackknife", "kaplan_yorke", "samples"]

MARKS = 400
"""Times, evenly spread, at which the growth so far is kept."""

BATCHES = 20
"""Stretches of time whose means are compared; each must be longer than the memory of the dynamics."""

TRIALS = 8
"""From so many trials on, their spread is the error."""

MIN_SAMPLES = 8
"""Fewer samples say nothing about their spread, which could vanish by chance: the error is then infinite."""


@final
class Measured(NamedTuple):
    """A number and its standard error."""

    value: float
    standard_error: float


@final
class Growth:
    """Σ log R_ii over time, and its value at some times.

    Args:
        steps: Over which it will be summed.
        like: Zeros of the shape `[B, K]` of the logarithms.
    """

    def __init__(self, steps: int, like: Float[Tensor, "B K"]) -> None:
        self._total, self._elapsed = torch.zeros_like(like), 0
        self._every = max(1, steps // MARKS)
        self._times: list[int] = []
        self._marks: list[Tensor] = []

    def add(self, logs: Float[Tensor, "B K"], steps: int, last: bool) -> None:
        """What so many steps more have grown."""
        self._total = self._total + logs
        self._elapsed += steps
        if last or self._elapsed >= self._every * (len(self._times) + 1):
            self._times.append(self._elapsed)
            self._marks.append(self._total)

    @property
    def times(self) -> Float[Tensor, "E"]:
        """Steps at the marks."""
        return torch.tensor(self._times, dtype=torch.float64, device=self._total.device)

    @property
    def marks(self) -> Float[Tensor, "E B K"]:
        """Growth at the marks."""
        return torch.stack(self._marks)


def samples(times: Float[Tensor, "E"], marks: Float[Tensor, "E B K"]) -> Float[Tensor, "S K"]:
    """Rates per step whose mean is that of all trials and whose spread tells the error of that mean.

    Of at least `TRIALS` trials their own rates; of fewer, the rates over stretches of time, each about its trial's.
    """
    rates = marks[-1] / times[-1]
    trials = len(rates)
    count = min(BATCHES, len(times))
    if trials >= TRIALS or count < 2:
        return rates
    goals = times[-1] * torch.arange(1, count + 1, device=times.device) / count
    ends = torch.searchsorted(times, goals * (1 - 1e-12)).unique()
    durations = times[ends].diff(prepend=times.new_zeros(1))  # [M]
    stretches = marks[ends].diff(dim=0, prepend=torch.zeros_like(marks[:1]))
    count = len(ends)
    if count < 2:
        return rates
    off = (stretches - rates * durations[:, None, None]) * count / times[-1]  # [M, B, K]
    freedom = (trials * count - 1) / (trials * (count - 1))  # each trial has a mean of its own
    off = torch.where(torch.isfinite(rates), off, 0.0) * math.sqrt(freedom)
    return (rates.mean(0) + off).flatten(0, 1)


def jackknife(function: Callable[[Tensor], Tensor], values: Float[Tensor, "S K"]) -> tuple[Tensor, Tensor]:
    """A function of the mean of S samples, from `[*, K]` to `[*, ...]`, and its standard error.

    The error is infinite for fewer than `MIN_SAMPLES` samples, and 0 where the value is −inf in all of them.
    """
    count = len(values)
    value = function(values.mean(dim=0, keepdim=True))[0]
    if count < MIN_SAMPLES:
        return value, torch.full_like(value, math.inf)
    without = (values.sum(dim=0) - values) / (count - 1)
    without = torch.where(torch.isinf(values).any(dim=0), -math.inf, without)  # −inf less −inf
    found = function(without)
    off = torch.where(torch.isinf(found), 0.0, found - found.nan_to_num(neginf=0.0).mean(dim=0))
    return value, (off.square().sum(dim=0) * (count - 1) / count).sqrt()


def kaplan_yorke(exponents: Float[Tensor, "S K"]) -> Float[Tensor, "S"]:
    """j + Σ_{i≤j} λ_i / |λ_{j+1}| with the largest j whose sum is not negative; K where no sum of all is."""
    falling = exponents.sort(dim=1, descending=True).values
    sums = falling.cumsum(dim=1)
    whole = (sums >= 0).cumprod(dim=1).sum(dim=1)  # j
    padded = torch.nn.functional.pad(sums, (1, 0))
    after = torch.nn.functional.pad(falling, (0, 1), value=-math.inf)
    return whole + padded.gather(1, whole[:, None])[:, 0] / after.gather(1, whole[:, None])[:, 0].abs()


def entropy(exponents: Float[Tensor, "S K"]) -> Float[Tensor, "S"]:
    """Σ of the positive exponents."""
    return exponents.clamp_min(0).sum(dim=1)
