"""Bifurcations within a step along a curve: found by a change of sign, refined in arclength, and told apart."""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import final

from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .branch_points import refined_branch_point
from .branches import Event
from .curves import Curve, Place
from .forms import NormalForm
from .normal_forms import flip, hopf, neimark_sacker, reduced_equation
from .steps import Root, Step

__all__ = ["events_within"]

NORMAL = 1e-5
"""Tolerance of a normal form at a refined point: of the critical multiplier, and of a vanishing coefficient."""

TOGETHER = 1e-3
"""A fold and a branch point that are this close, in units of the step, are the branch point: its branch turns there."""

SAME = 1e-8
"""Roots that are this close, in units of the step, are those of one pair."""

REAL = 1e-6
"""|Im μ| of a multiplier that is as good as real: two real ones with product 1, a neutral saddle, are no event."""

IMPERFECT = 0.25
"""A fold is that of a broken pitchfork if its cusp is this close, in units of 1 + ‖h‖: a number by experience."""

Number = Callable[[Place], float]


def events_within(curve: Curve, start: Place, end: Place, arclength: float) -> list[Event]:
    """The bifurcations between two neighbouring places, in order; `arclength` is that of the first."""
    step = Step(curve, start, end)
    found: list[tuple[str, Root | None]] = [("fold", step.root(_turn))] if _turn(start) * _turn(end) < 0 else []
    if start.sign * end.sign < 0:
        found.append(
            ("branch point", step.root(lambda place: place.sign * math.exp(min(place.log - start.log, 600.0))))
        )
    if not curve.flow and _flips(start) * _flips(end) < 0:
        found.append(("flip", step.root(_flips)))
    kind = "hopf" if curve.flow else "neimark-sacker"
    for number in _pairs(curve, start, end, step.length):
        root = step.root(number)
        twice = root is not None and any(
            was is not None and name == kind and abs(was.at - root.at) <= SAME * step.length for name, was in found
        )
        if root is None or (number.is_pair(root.place) and not twice):
            found.append((kind, root))
    roots = [(kind, root) for kind, root in found if root is not None]
    branchings = [root.at for kind, root in roots if kind == "branch point"]
    kept = [
        (kind, root)
        for kind, root in roots
        if kind != "fold" or all(abs(root.at - at) > TOGETHER * step.length for at in branchings)
    ]
    lost = [_unrefined(kind, step, arclength) for kind, root in found if root is None]
    return sorted(
        [_described(step, kind, root, arclength) for kind, root in kept] + lost, key=lambda item: item.arclength
    )


def _turn(place: Place) -> float:
    """Component of the tangent along λ: it changes sign where the branch turns, at a fold."""
    return float(place.tangent[-1])


def _flips(place: Place) -> float:
    """The distance of the real multiplier nearest to −1, with the sign of det(J + I)."""
    real = place.multipliers.real[place.multipliers.imag == 0] + 1
    if not len(real):
        return 1.0
    return float(real.abs().min()) * (-1.0) ** int((real < 0).sum())


def _pairs(curve: Curve, start: Place, end: Place, length: float) -> list["_Followed"]:
    """For each complex pair that becomes critical on the way, its excess; pairs are told by nearness at both ends."""
    old, new = start.multipliers, end.multipliers
    rows, columns = linear_sum_assignment((old[:, None] - new[None]).abs().cpu().numpy())
    old, new = old[rows], new[columns]
    crossing = (curve.excess(old) > 0) != (curve.excess(new) > 0)
    turning_real = (old.imag == 0) != (new.imag == 0)  # of such a pair, either may be the one that crosses
    complex_ = (old.imag > 0) | turning_real
    return [_Followed(curve, start, old[i], new[i], length) for i in (crossing & complex_).nonzero()[:, 0].tolist()]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class _Followed:
    """The excess of the multiplier that is nearest to a line between its values at both ends."""

    curve: Curve
    start: Place
    old: Tensor
    new: Tensor
    length: float

    def nearest(self, place: Place) -> Tensor:
        share = float(self.start.tangent @ (place.u - self.start.u)) / self.length
        expected = self.old + share * (self.new - self.old)
        return place.multipliers[(place.multipliers - expected).abs().argmin()]

    def __call__(self, place: Place) -> float:
        return float(self.curve.excess(self.nearest(place)))

    def is_pair(self, place: Place) -> bool:
        """Whether a complex pair is critical there, and not two real ones, a neutral saddle."""
        return abs(self(place)) <= NORMAL and abs(float(self.nearest(place).imag)) > REAL


def _described(step: Step, kind: str, root: Root, arclength: float) -> Event:
    """The event with its normal form."""
    curve, place = step.curve, root.place
    refined = refined_branch_point(curve, place, step.direction(root.at)) if kind == "branch point" else None
    place = place if refined is None else refined
    state, parameter = place.u[:-1], float(place.u[-1])
    form, note = _form(curve, kind, state, parameter)
    if refined is not None and form is not None:
        kind = "transcritical" if abs(form.coefficients["b2"]) > NORMAL else "pitchfork"
        form = dataclasses.replace(form, kind=kind)
    edges = [float(item.u[-1]) for item in (root.before, place, root.after)]
    return Event(
        kind,
        parameter,
        (min(edges), max(edges)),
        state,
        complex(_critical(curve, kind, place)),
        form,
        arclength + root.at,
        place.tangent,
        kind == "fold" and form is not None and _is_imperfect(form, 1 + float(state.norm())),
        (),
        note,
    )


def _critical(curve: Curve, kind: str, place: Place) -> complex:
    """The multiplier that is critical at an event of this kind."""
    given = place.multipliers
    if kind in ("neimark-sacker", "hopf"):
        upper = given[given.imag > 0] if bool((given.imag > 0).any()) else given
        return complex(upper[curve.excess(upper).abs().argmin()].item())
    value = -1.0 if kind == "flip" else 0.0 if curve.flow else 1.0
    return complex(given[(given - value).abs().argmin()].item())


def _form(curve: Curve, kind: str, state: Tensor, parameter: float) -> tuple[NormalForm | None, str]:
    """The normal form, or why there is none; with what there was to warn of."""
    value = state.new_tensor(parameter)

    def step(h: Tensor) -> Tensor:
        return curve.function(h, value)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            if kind == "flip":
                form = flip(step, state, tolerance=NORMAL)
            elif kind == "hopf":
                form = hopf(step, state, tolerance=NORMAL)
            elif kind == "neimark-sacker":
                form = neimark_sacker(step, state, tolerance=NORMAL)
            else:
                form = reduced_equation(curve.function, state, parameter, flow=curve.flow, tolerance=NORMAL)
        except ValueError as error:
            return None, f"No normal form: {error}"
    return form, " ".join(str(item.message) for item in warned if item.category is UserWarning)


def _is_imperfect(form: NormalForm, unit: float) -> bool:
    """Whether a fold belongs to the nearby unfolding of a pitchfork, a + b₁ x and b₂ + b₃ x vanishing at the same x."""
    a, b1, b2, b3 = (form.coefficients[name] for name in ("a", "b1", "b2", "b3"))
    if b1 == 0 or b3 == 0:
        return False
    one, other = a / b1, b2 / b3
    return max(abs(one), abs(other)) <= IMPERFECT * unit and abs(one - other) <= 0.5 * max(abs(one), abs(other))


def _unrefined(kind: str, step: Step, arclength: float) -> Event:
    """An event where Newton's method finds no place within the step: in its middle, with the step for a bracket."""
    ends = [float(step.start.u[-1]), float(step.end.u[-1])]
    middle = step.guess(step.length / 2)
    return Event(
        kind,
        float(middle[-1]),
        (min(ends), max(ends)),
        middle[:-1],
        complex(_critical(step.curve, "" if kind == "branch point" else kind, step.start)),
        None,
        arclength + step.length / 2,
        step.start.tangent,
        note="Not refined: Newton's method finds no place within the step; take a shorter `max_step`.",
    )
