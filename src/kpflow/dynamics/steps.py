"""One step along a curve: the places within it, and the root of a number that changes sign on the way."""

import dataclasses
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from .curves import Curve, Place

__all__ = ["Root", "Step", "distance", "hermite"]

WIDTH = 1e-13
"""A bracket is narrow enough, in units of the step; what is left is rounding."""

HALVINGS = 80
"""The most evaluations of a search for a root."""

COARSE = 1e-6
"""Of a place within a step where Newton's method fails, the interpolated one is taken if ‖G‖ is this small."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Root:
    """Where a number is zero within a step.

    Args:
        at: Its distance from the start of the step, along the tangent there.
        place: The place.
        before: The last place before it where the number had its first sign.
        after: The first place beyond it where it had the other sign.
    """

    at: float
    place: Place
    before: Place
    after: Place


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """The piece of a curve between two places that are near; a place in it is told by its projection on the tangent.

    Args:
        curve: The curve.
        start: Where it begins.
        end: Where it ends.
    """

    curve: Curve
    start: Place
    end: Place

    @property
    def length(self) -> float:
        """Of its projection on the first tangent."""
        return float(self.start.tangent @ (self.end.u - self.start.u))

    def guess(self, at: float) -> Float[Tensor, "n1"]:
        """Hermite's cubic; its error, by the fourth power of the length, is less than that of the tangent."""
        return hermite(self.start.u, self.start.tangent, self.end.u, self.end.tangent, at)

    def direction(self, at: float) -> Float[Tensor, "n1"]:
        """A tangent of Hermite's cubic."""
        reach = 1e-4 * self.length
        return self.guess(at + reach) - self.guess(at - reach)

    def place(self, at: float) -> Place | None:
        """The place at this projection."""
        guess = self.guess(at)
        found = self.curve.corrected(guess, self.start.tangent)
        if found is None:
            residual = float(self.curve.residual(guess).detach().norm())
            if not residual <= COARSE * (1 + float(guess.norm())):
                return None
            found = guess, 0
        return self.curve.place(found[0], self.start.tangent)

    def root(self, number: Callable[[Place], float]) -> Root | None:
        """Where `number`, which changes sign on the way, is zero: the secant method, kept in a bracket (Illinois)."""
        low, high, before, after = 0.0, self.length, self.start, self.end
        first, last = number(before), number(after)
        below, above, best = first, last, (abs(last), high, after)
        for count in range(HALVINGS):
            middle = low + (high - low) * (0.5 if count % 4 == 3 else below / (below - above))
            if high - low <= WIDTH * self.length or not low < middle < high:
                break
            place = self.place(middle)
            if place is None:
                return None
            value = number(place)
            best = min(best, (abs(value), middle, place), key=lambda item: item[0])
            if value == 0.0:
                before = after = place
                break
            if (value > 0) == (first > 0):
                low, before, below, above = middle, place, value, above / 2
            else:
                high, after, above, below = middle, place, value, below / 2
        return Root(best[1], best[2], before, after)


def hermite(first: Tensor, leaving: Tensor, last: Tensor, arriving: Tensor, at: float) -> Tensor:
    """The cubic between two places with both unit tangents, at a projection on the first tangent."""
    chord = last - first
    length = leaving @ chord
    s = at / length
    slope = arriving / (arriving @ leaving)
    bend = (1 - s) * (length * leaving - chord) + s * (chord - length * slope)
    return first + s * chord + s * (1 - s) * bend


def distance(one: Tensor, other: Tensor) -> float:
    """‖u − v‖ relative to 1 + ‖u‖."""
    return float(torch.linalg.vector_norm(one - other)) / (1 + float(torch.linalg.vector_norm(one)))
