"""Integration of flows whose field jumps where a ReLU switches: order 5 between switches, which are located."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_positive

__all__ = ["SwitchedPath", "check_times", "switched_flow"]

TINY = 1e-13
"""Margins below this part of the largest one are at the switch."""

TIES = 100.0
"""Margins below so many times that switch with the one that was located."""

TRIES = 60
POLISH = 6

SHORTEST = 1e-13
"""Steps, and what of a time asked for may be missed."""

SLOWER = 4
"""By which steps along a switch are shorter than the longest."""

NUDGE = 1e-6
"""Of time, for the speed of margins; of a step, for their slope."""

STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERRORS = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
"""Dormand and Prince 1980: the last stage is the result, of order 5; the error is that of order 4."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class SwitchedPath:
    """A solution of ẏ = f(y; H), H the signs of margins of y.

    Args:
        states: y at the times asked for, shape `[T, *shape]`.
        events: Times at which a sign switched.
        slid: Steps in which the field on both sides of a switch leads to it: it stays there (Filippov 1988), to
            first order in the step.
    """

    states: Tensor
    events: tuple[float, ...]
    slid: int


def check_times(times: Sequence[float] | Tensor, step: float, tolerance: float) -> list[float]:
    """Times as numbers, if they rise from 0 or later."""
    check_positive("step", step)
    check_positive("tolerance", tolerance)
    asked = [float(time) for time in times]
    rising = all(before < after for before, after in itertools.pairwise(asked))
    if not asked or not rising or not asked[0] >= 0 or not asked[-1] < float("inf"):
        raise ValueError(f"`times` must be finite numbers that rise from 0 or later; got {asked[:5]}.")
    return asked


def switched_flow(
    field: Callable[[Tensor, Tensor], Tensor],
    margins: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    pattern: Tensor,
    times: Sequence[float],
    step: float,
    tolerance: float,
    project: Callable[[Tensor], Tensor],
) -> SwitchedPath:
    """Runge–Kutta steps of order 5 with the signs H held, each cut short where a margin changes its sign.

    Args:
        field: f(y; H), smooth in y beyond where H holds, and affine in H where margins are zero.
        margins: Of y and H, positive where H is to be True.
        start: y(0).
        pattern: H at the start.
        times: Rising, from 0 or later.
        step: The longest.
        tolerance: Of the error of a step, relative to 1 + max |y|.
        project: Back onto where y lives, after each step.

    Raises:
        ValueError: Steps become too short: the flow comes to a singularity.
    """
    state, time, kept, events, slid, longest = start, 0.0, [], [], 0, step
    sliding = torch.zeros_like(pattern, dtype=torch.bool)
    pattern = pattern.to(start.dtype)
    for target in times:
        while time < target - SHORTEST * target:
            length, slides = min(longest, target - time), sliding
            if bool(sliding.any()):
                length, slid = min(length, step / SLOWER), slid + 1
                pattern, sliding = _balanced(field, margins, state, pattern, sliding, length)
            moved, error = _advanced(field, state, pattern, length)
            if not error <= tolerance:
                longest = length * (max(0.2, 0.9 * (tolerance / error) ** 0.2) if error < math.inf else 0.2)
                _check_length(longest, time)
                continue
            wrong = ((margins(moved, pattern) > 0) != (pattern > 0.5)) & ~slides & ~sliding
            before = _violation(margins(state, pattern), pattern)
            scale = TINY * max(float(before.abs().max()), TINY)
            back = wrong & (before >= -scale)
            if bool(back.any()):  # they have just switched, and are driven back at once
                sliding = sliding | back
                continue
            if bool(wrong.any()):
                length, moved = _switch(field, margins, state, pattern, wrong, length, scale)
                violation = _violation(margins(moved, pattern), pattern)
                nearest = min(-TIES * scale, float(violation[wrong].max()))
                pattern = torch.where(wrong & (violation >= nearest), 1 - pattern, pattern)
                events.append(time + length)
            state, time = project(moved), time + length
            longest = min(step, max(longest, length * min(5.0, 0.9 * (tolerance / max(error, 1e-300)) ** 0.2)))
        kept.append(state)
    return SwitchedPath(torch.stack(kept), tuple(events), slid)


def _balanced(
    field: Callable[[Tensor, Tensor], Tensor],
    margins: Callable[[Tensor, Tensor], Tensor],
    state: Tensor,
    pattern: Tensor,
    sliding: Tensor,
    length: float,
) -> tuple[Tensor, Tensor]:
    """H in [0, 1] at which margins stay zero (the solution of Filippov), and what still slides, having one."""

    def speed(held: Tensor) -> Tensor:
        return (margins(state + NUDGE * field(state, held), held) - margins(state, held)) / NUDGE

    while bool(sliding.any()):
        places = [tuple(place) for place in sliding.nonzero().tolist()]
        without = torch.where(sliding, 0.0, pattern)
        rest, columns = speed(without)[sliding], []
        for place in places:
            held = without.clone()
            held[place] = 1.0
            columns.append(speed(held)[sliding] - rest)
        wanted = -margins(state, without)[sliding] / length - rest
        shares = torch.linalg.pinv(torch.stack(columns, dim=1), rtol=1e-6) @ wanted
        outside = (shares - shares.clamp(0, 1)).abs()
        pattern = without.masked_scatter(sliding, shares.clamp(0, 1))
        worst = int(outside.argmax())
        if not float(outside[worst]) > 0:
            break
        pattern[places[worst]] = pattern[places[worst]].round()
        sliding = sliding.clone()
        sliding[places[worst]] = False
    return pattern, sliding


def _check_length(length: float, time: float) -> None:
    if length < SHORTEST:
        raise ValueError(
            f"The flow comes to a singularity at time {time:.6g}, where a weight is not invertible. End `times` before."
        )


def _advanced(
    field: Callable[[Tensor, Tensor], Tensor], state: Tensor, pattern: Tensor, length: float
) -> tuple[Tensor, float]:
    """A step by Dormand and Prince, and its error relative to 1 + max |y|."""
    slopes: list[Tensor] = []
    moved = state
    for row in STAGES:
        moved = state + length * sum((a * slope for a, slope in zip(row, slopes, strict=True)), torch.zeros_like(state))
        slopes.append(field(moved, pattern))
    error = length * sum((e * slope for e, slope in zip(ERRORS, slopes, strict=True)), torch.zeros_like(state))
    return moved, float(error.abs().max()) / (1.0 + float(state.abs().max()))


def _violation(margin: Float[Tensor, "..."], pattern: Tensor) -> Tensor:
    """How far a margin is on the wrong side."""
    return torch.where(pattern > 0.5, -margin, margin)


def _switch(
    field: Callable[[Tensor, Tensor], Tensor],
    margins: Callable[[Tensor, Tensor], Tensor],
    state: Tensor,
    pattern: Tensor,
    wrong: Tensor,
    length: float,
    scale: float,
) -> tuple[float, Tensor]:
    """The part of a step after which the first of the `wrong` signs switches.

    Where an interpolation of the step says so, corrected by Newton's method with steps of that length.
    """

    def excess(at: Tensor) -> float:
        return float(_violation(margins(at, pattern), pattern)[wrong].max())

    moved, _ = _advanced(field, state, pattern, length)
    between = _interpolation(state, moved, length * field(state, pattern), length * field(moved, pattern))
    root, slope = _root(lambda part: excess(between(part)), scale)
    for _ in range(POLISH):
        moved, _ = _advanced(field, state, pattern, root * length)
        value = excess(moved)
        if abs(value) <= scale or slope == 0.0:
            break
        root = min(max(root - value / slope, 0.0), 1.0)
    return root * length, moved


def _interpolation(start: Tensor, end: Tensor, first: Tensor, last: Tensor) -> Callable[[float], Tensor]:
    """The cubic with values and slopes of both ends of [0, 1]."""
    change = end - start
    square, cube = 3 * change - 2 * first - last, first + last - 2 * change
    return lambda part: start + part * (first + part * (square + part * cube))


def _root(excess: Callable[[float], float], scale: float) -> tuple[float, float]:
    """A root of a function that rises through zero in [0, 1], by the Illinois method, and the slope there."""
    low, high, side = 0.0, 1.0, 0
    under, over, part = excess(low), excess(high), high
    for _ in range(TRIES):
        part = (low * over - high * under) / (over - under)
        value = excess(part)
        if abs(value) <= scale:
            break
        if value > 0:
            high, over, under, side = part, value, under / 2 if side == 1 else under, 1
        else:
            low, under, over, side = part, value, over / 2 if side == -1 else over, -1
    return part, (excess(part + NUDGE) - excess(part - NUDGE)) / (2 * NUDGE)
