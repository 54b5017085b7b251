"""What is known of a branch of fixed points, and of the bifurcations on it."""

import collections
import dataclasses
import enum
from typing import final

from jaxtyping import Bool, Complex, Float
from torch import Tensor

from .forms import NormalForm

__all__ = ["Branch", "Ending", "Event"]


@final
class Ending(str, enum.Enum):
    """Why a branch was followed no further in one direction."""

    BOUND = "bound: the parameter came to an end of its range"
    CLOSED = "closed: the branch came back to where it started"
    STEPS = "steps: all were used up; give more `steps`, or a longer `max_step`"
    TIME = "time: `time_limit` was used up"
    STALLED = "stalled: Newton's method finds no next point, however short the step"
    RANGE = "range: the map or its derivative leaves the floating range"


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Event:
    """A bifurcation on a branch.

    Args:
        kind: "fold", "pitchfork", "transcritical", "flip", "neimark-sacker", "hopf", "border" (a ReLU's argument
            changes sign), or "branch point" where it cannot be told which.
        parameter: λ.
        bracket: Least and largest λ of the last interval that surely holds it.
        state: h, shape `[n]`.
        multiplier: The critical one; at a border the leading one beyond it.
        form: The normal form; None where there is none, which `note` explains.
        arclength: Where on the branch.
        tangent: Unit vector (dh, dλ) along the branch, shape `[n + 1]`.
        imperfect: Whether a fold is that of a pitchfork which a small term breaks.
        units: Which of the ReLUs' arguments changed sign at a border, in the order of the calls.
        note: What else there is to know.
    """

    kind: str
    parameter: float
    bracket: tuple[float, float]
    state: Float[Tensor, "n"]
    multiplier: complex
    form: NormalForm | None
    arclength: float
    tangent: Float[Tensor, "n1"]
    imperfect: bool = False
    units: tuple[int, ...] = ()
    note: str = ""

    @property
    def supercritical(self) -> bool | None:
        """Whether what is born is on the unstable side of the fixed point; None where that is not defined."""
        if self.form is None or self.kind not in ("pitchfork", "flip", "neimark-sacker", "hopf"):
            return None
        try:
            return self.form.supercritical
        except ValueError:  # its coefficient is zero
            return None

    @property
    def label(self) -> str:
        """The kind in words: "imperfect pitchfork" for such a fold, and with the criticality where there is one."""
        if self.imperfect:
            return "imperfect pitchfork"
        side = {None: "", True: "supercritical ", False: "subcritical "}[self.supercritical]
        return side + self.kind

    def __repr__(self) -> str:
        return f"Event({self.label} at {self.parameter:.10g})"


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Branch:
    """Fixed points along a parameter, in the order of arclength.

    Args:
        states: h, shape `[m, n]`, float64.
        parameters: λ, shape `[m]`.
        multipliers: Eigenvalues of ∂F/∂h, by falling modulus (flows: by falling real part), shape `[m, n]`.
        stable: Whether all |μ| < 1 (flows: Re μ < 0), shape `[m]`.
        arclength: Sum of distances of (h, λ), 0 at the start and negative before it, shape `[m]`.
        tangents: Unit vectors (dh, dλ) in the direction of growing arclength, shape `[m, n + 1]`.
        events: Bifurcations, in the order of arclength.
        endings: Why the branch ends at its first and at its last point.
    """

    states: Float[Tensor, "m n"]
    parameters: Float[Tensor, "m"]
    multipliers: Complex[Tensor, "m n"]
    stable: Bool[Tensor, "m"]
    arclength: Float[Tensor, "m"]
    tangents: Float[Tensor, "m n1"]
    events: tuple[Event, ...]
    endings: tuple[Ending, Ending]

    def __repr__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in collections.Counter(e.kind for e in self.events).items())
        low, high = (float(value) for value in (self.parameters.min(), self.parameters.max()))
        ends = ", ".join(end.value.split(":")[0] for end in self.endings)
        return f"Branch({len(self.states)} points, λ from {low:.6g} to {high:.6g}: {kinds or 'no event'}; ends: {ends})"
