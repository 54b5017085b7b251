"""Timing of trials: durations drawn or fixed, epochs one after the other, and signals that are constant in each."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Choice", "consecutive", "draw_durations", "fixed_durations", "from_uniform", "piecewise", "to_steps"]


@final
@dataclasses.dataclass(frozen=True)
class Choice:
    """A duration that is one of a few, each equally likely.

    Args:
        values: The durations, ms.
    """

    values: tuple[float, ...]


def to_steps(milliseconds: int | float, dt: int | float) -> int:
    """Whole steps of `dt` in a duration, ⌊ms/dt⌋, safe against rounding.

    Example:
        >>> to_steps(100.0, 20.0), to_steps(0.3, 0.1), to_steps(30.0, 20.0)
        (5, 3, 1)
    """
    return int(milliseconds / dt + 1e-9)


def draw_durations(
    ranges: Sequence[tuple[float, float] | Choice], B: int, dt: int | float, generator: torch.Generator, shared: bool
) -> Int[Tensor, "B E"]:
    """Steps of each of E durations in B trials, each ⌊U(low, high)/dt⌋; one draw for all trials if `shared`.

    Args:
        ranges: (low, high) of each duration, ms, or a Choice of durations.
        B: Number of trials.
        dt: Duration of a step, ms.
        generator: Source of the draws, on the CPU.
        shared: Whether all trials have the same durations.
    """
    uniform = torch.rand(1 if shared else B, len(ranges), generator=generator, dtype=torch.float64)
    drawn = [from_uniform(span, uniform[:, e]) for e, span in enumerate(ranges)]
    steps = (torch.stack(drawn, dim=1) / dt + 1e-9).long()
    return steps.expand(B, len(ranges)).clone()


def from_uniform(span: tuple[float, float] | Choice, uniform: Tensor) -> Tensor:
    """What numbers in [0, 1) stand for: low + (high − low) u, or one of the values of a Choice."""
    if isinstance(span, Choice):
        values = torch.tensor(span.values, dtype=torch.float64)
        return values[(uniform * len(values)).long()]
    low, high = span
    return low + (high - low) * uniform


def fixed_durations(durations: Sequence[float], B: int, dt: int | float) -> Int[Tensor, "B E"]:
    """Steps of E given durations, ms, the same in B trials."""
    steps = [to_steps(duration, dt) for duration in durations]
    return torch.tensor(steps).expand(B, len(steps)).clone()


def consecutive(names: Sequence[str], durations: Int[Tensor, "B E"]) -> dict[str, tuple[Tensor, Tensor]]:
    """Epochs of the given durations, in steps, one after the other from step 0: `{name: (start [B], stop [B])}`.

    Example:
        >>> consecutive(("stimulus", "response"), torch.tensor([[2, 3]]))
        {'stimulus': (tensor([0]), tensor([2])), 'response': (tensor([2]), tensor([5]))}
    """
    stops = durations.cumsum(dim=1)
    starts = stops - durations
    return {name: (starts[:, i].clone(), stops[:, i].clone()) for i, name in enumerate(names)}


def piecewise(
    epochs: Mapping[str, tuple[Int[Tensor, " B"], Int[Tensor, " B"]]],
    values: Mapping[str, Float[Tensor, "B C"]],
    T: int,
) -> Float[Tensor, "B T C"]:
    """The signal that in each epoch has that epoch's values, and is 0 outside of all; overlapping epochs add."""
    B, C = next(iter(values.values())).shape
    step = torch.arange(T)
    signal = torch.zeros(B, T, C, dtype=torch.float64)
    for name, (start, stop) in epochs.items():
        inside = (start[:, None] <= step) & (step < stop[:, None])  # [B, T]
        signal += inside[:, :, None] * values[name][:, None, :]
    return signal
