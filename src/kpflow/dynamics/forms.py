"""The result of a normal form: coefficients, criticality and amplitude."""

import dataclasses
import math
from collections.abc import Mapping
from typing import final

from torch import Tensor

__all__ = ["NormalForm"]


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class NormalForm:
    """The normal form of a bifurcation, in the coordinate of the critical vector q with ‖q‖ = 1 and ⟨p, q⟩ = 1.

    Args:
        kind: "fold", "transcritical", "pitchfork", "flip", "neimark-sacker" or "hopf".
        coefficients: By the names that the function which made it uses.
        right: q, shape `[n]`; complex for the last two kinds.
        left: p, shape `[n]`.
        multiplier: μ of a map, or the eigenvalue of a flow.

    Example:
        >>> import torch
        >>> from kpflow.dynamics import flip
        >>> logistic = lambda r: lambda x: r * x * (1 - x)
        >>> form = flip(logistic(3.0), torch.tensor([2 / 3], dtype=torch.float64))
        >>> form
        NormalForm(flip at -1: c=9)
        >>> form.supercritical, f"{form.amplitude(0.01) ** 0.5:.4f}"
        (True, '0.0333')
    """

    kind: str
    coefficients: Mapping[str, float]
    right: Tensor
    left: Tensor
    multiplier: complex

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value:.6g}" for name, value in self.coefficients.items())
        at = self.multiplier if self.multiplier.imag else self.multiplier.real
        return f"NormalForm({self.kind} at {at:.6g}: {values})"

    @property
    def supercritical(self) -> bool:
        """Whether what is born is on the unstable side of the fixed point, and stable if its other multipliers are.

        Raises:
            ValueError: The kind has no such distinction, or the coefficient is zero.
        """
        return self._saturation() > 0

    def amplitude(self, excess: float) -> float:
        """The mean squared distance ‖h − h̄‖² of what is born, to first order in the excess over criticality.

        Pitchfork: excess/(−c), of either new point. Flip: excess/c, the square of half the distance of the two states.
        Neimark–Sacker: 2 excess/(−d), averaged over the invariant circle. Hopf: 2 excess/(−ω l₁), over the cycle.

        Args:
            excess: |μ| − 1 of the fixed point (flows: Re μ); negative for what is born subcritically.

        Raises:
            ValueError: The kind has no amplitude, the coefficient is zero, or nothing is born on this side.
        """
        if isinstance(excess, bool) or not math.isfinite(excess):
            raise ValueError(f"`excess` must be a finite number, |μ| − 1 of a map or Re μ of a flow; got {excess!r}.")
        squared = excess / self._saturation()
        if squared < 0:
            side = "positive" if self.supercritical else "negative"
            raise ValueError(f"`excess` must be {side} for {self!r}, or nothing is born; got {excess!r}.")
        return squared

    def _saturation(self) -> float:
        """Excess per mean squared distance."""
        given = self.coefficients
        if self.kind == "pitchfork":
            rate = -given["c"] if "c" in given else -given["b3"] / 6
        elif self.kind == "flip":
            rate = given["c"]
        elif self.kind == "neimark-sacker":
            rate = -given["d"] / 2
        elif self.kind == "hopf":
            rate = -self.multiplier.imag * given["l1"] / 2
        else:
            raise ValueError(
                f"A {self.kind} has neither amplitude nor criticality; pitchfork, flip, neimark-sacker and hopf have."
            )
        if rate == 0:
            raise ValueError(f"{self!r} is degenerate: its coefficient is zero, and higher terms decide.")
        return rate
