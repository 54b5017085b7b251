"""Bifurcation diagrams: all branches that are connected, each once, against closed forms and dense scanning."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import without_annotation_checks
from kpflow.dynamics import Diagram, bifurcation_diagram, continue_branch, find_fixed_points, switch_branch

HIGH = 0.9575040240772687


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def unit(h: Tensor, w: Tensor) -> Tensor:
    return torch.tanh(w * h)


def logistic(x: Tensor, r: Tensor) -> Tensor:
    return r * x * (1 - x)


def lorenz(x: Tensor, r: Tensor) -> Tensor:
    return torch.stack([10 * (x[1] - x[0]), x[0] * (r - x[2]) - x[1], x[0] * x[1] - 8 / 3 * x[2]])


def pair(h: Tensor, w: Tensor) -> Tensor:
    """Two units that excite each other: along (1, 1) and (1, −1) at w = 1/1.3 and 1/0.7."""
    return torch.tanh(w * (h + 0.3 * h.flip(-1)))


def crossings(diagram: Diagram, value: float) -> int:
    return sum(
        int(((branch.parameters[:-1] - value) * (branch.parameters[1:] - value) < 0).sum())
        for branch in diagram.branches
    )


def kinds(diagram: Diagram) -> list[str]:
    return [event.label for event in diagram.events]


def test_the_cycle_born_at_a_flip():
    """On the branch of F∘F that leaves the fixed point 1 − 1/r at r = 3 are both states of the cycle."""

    def twice(h: Tensor, r: Tensor) -> Tensor:
        return logistic(logistic(h, r), r)

    diagram = bifurcation_diagram(twice, vector(0.6)[None], 2.5, bounds=(2.5, 3.5))
    assert kinds(diagram) == ["supercritical pitchfork", *["supercritical flip"] * 2]  # its own, at either state
    expected = [3, 1 + math.sqrt(6), 1 + math.sqrt(6)]
    assert [event.parameter for event in diagram.events] == pytest.approx(expected, abs=1e-10)
    rest, cycle = diagram.branches
    torch.testing.assert_close(rest.states[:, 0], 1 - 1 / rest.parameters, rtol=0, atol=1e-11)
    r, side = cycle.parameters, cycle.states[:, 0] * 2 * cycle.parameters - (cycle.parameters + 1)
    torch.testing.assert_close(side.square(), (r + 1) * (r - 3), rtol=0, atol=1e-9)
    assert side[0] * side[-1] < 0  # one state on either side of the birth
    torch.testing.assert_close(cycle.multipliers[:, 0].real, 4 + 2 * r - r**2, rtol=0, atol=1e-9)
    assert cycle.stable.tolist() == ((r > 3) & (r < 1 + math.sqrt(6))).tolist()


def test_a_flip_says_how_to_go_on():
    branch = continue_branch(logistic, vector(0.6), 2.5, bounds=(2.5, 3.5))
    with pytest.raises(ValueError, match=r"got Event\(supercritical flip at 3\).*fixed points of function∘function"):
        switch_branch(logistic, branch.events[0], bounds=(2.5, 3.5))


def test_pitchfork_of_a_unit():
    diagram = bifurcation_diagram(unit, vector(0)[None], 0.0, bounds=(-2.0, 2.0))
    assert kinds(diagram) == ["supercritical flip", "supercritical pitchfork"]
    assert [event.parameter for event in diagram.events] == pytest.approx([-1, 1], abs=1e-12)
    (_, born) = diagram.branches
    assert born.states[[0, -1], 0].abs().tolist() == pytest.approx([HIGH, HIGH], abs=1e-12)
    assert born.states[0] * born.states[-1] < 0
    away = born.states[:, 0].abs() > 1e-3
    assert bool(born.stable[away].all())
    for h, w in zip(born.states[away, 0].tolist(), born.parameters[away].tolist(), strict=True):
        assert w == pytest.approx(math.atanh(h) / h, abs=1e-11)
    assert diagram.complete
    assert repr(diagram) == "Diagram(2 branches: 1 supercritical flip, 1 supercritical pitchfork)"


def test_transcritical_of_the_logistic_map():
    diagram = bifurcation_diagram(logistic, vector(0)[None], 0.5, bounds=(0.3, 4.0))
    assert kinds(diagram) == ["transcritical", "supercritical flip"]
    (_, other) = diagram.branches
    torch.testing.assert_close(other.states[:, 0], 1 - 1 / other.parameters, rtol=0, atol=1e-10)
    assert other.parameters[[0, -1]].sort().values.tolist() == [0.3, 4.0]


def test_tangent_of_the_other_branch():
    """h = λ and h = 3 λ − λ² cross at 0: from one the other, whichever was known."""

    def function(h: Tensor, value: Tensor) -> Tensor:
        return h + 0.1 * (h - value) * (h - 3 * value + value**2)

    for slope, other in ((1.0, 3.0), (3.0, 1.0)):
        start = 0.5 if slope == 1 else 1.25
        (event,) = continue_branch(function, vector(start), 0.5, bounds=(-0.5, 0.75)).events
        assert event.tangent[0] / event.tangent[1] == pytest.approx(slope, abs=1e-9)
        born = switch_branch(function, event, bounds=(-0.5, 0.75))
        at = int(born.arclength.abs().argmin())
        assert born.tangents[at, 0] / born.tangents[at, 1] == pytest.approx(other, abs=1e-9)
        assert born.events == ()


def test_lorenz():
    diagram = bifurcation_diagram(lorenz, vector(0, 0, 0)[None], 0.5, bounds=(0.0, 30.0), flow=True)
    assert kinds(diagram) == ["supercritical pitchfork", "subcritical hopf", "subcritical hopf"]
    assert [event.parameter for event in diagram.events] == pytest.approx([1, 470 / 19, 470 / 19], abs=1e-11)
    assert len(diagram.branches) == 2


def test_secondary_branches_and_dense_scanning():
    diagram = bifurcation_diagram(pair, vector(0, 0)[None], 0.5, bounds=(0.3, 2.5))
    assert [event.kind for event in diagram.events] == ["pitchfork"] * 4
    first, second, *rest = (event.parameter for event in diagram.events)
    assert (first, second) == pytest.approx((1 / 1.3, 1 / 0.7), abs=1e-11)
    assert rest[0] == pytest.approx(rest[1], abs=1e-11)
    assert len(diagram.branches) == 5
    grid = torch.linspace(-1, 1, 9)
    seeds = torch.cartesian_prod(grid, grid)
    for value, count in ((0.55, 1), (1.0, 3), (1.6, 5), (2.2, 9)):
        found = find_fixed_points(lambda h, x: pair(h, x), torch.tensor([value]).double(), seeds)
        assert len(found.states) == count == crossings(diagram, value)


def test_starts_on_one_branch_make_one():
    points = vector(0, HIGH, -HIGH)[:, None]
    diagram = bifurcation_diagram(unit, points, 2.0, bounds=(0.5, 2.5))
    assert len(diagram.branches) == 2
    assert kinds(diagram) == ["supercritical pitchfork"]


def test_budgets():
    one = bifurcation_diagram(unit, vector(0)[None], 0.0, bounds=(-2.0, 2.0), branches=1)
    assert (len(one.branches), one.complete) == (1, False)
    assert repr(one).endswith("; incomplete)")
    none = bifurcation_diagram(unit, vector(0)[None], 0.0, bounds=(-2.0, 2.0), time_limit=1e-9)
    assert (len(none.branches), none.complete) == (0, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": vector(0)}, r"`points` must be fixed points, shape \(k, n\), at least one; got \(1,\)"),
        ({"points": vector()[:, None]}, r"`points` must be fixed points, shape \(k, n\), at least one; got \(0, 1\)"),
        ({"points": vector(0, 0.5)[:, None]}, "`point` must be a fixed point"),
        ({"branches": 0}, "`branches` must be a positive whole number"),
        ({"bounds": (1.0, 0.0)}, "`bounds` must be in order"),
    ],
)
def test_messages(arguments: dict[str, Any], message):
    given: dict[str, Any] = {"points": vector(0)[:, None], "bounds": (-1.0, 1.0)}
    given |= arguments
    with without_annotation_checks(), pytest.raises(ValueError, match=message):
        bifurcation_diagram(unit, given.pop("points"), 0.0, **given)


def test_branches_cross_at_branch_points_only():
    flip = continue_branch(unit, vector(0), 0.0, bounds=(-2.0, 2.0)).events[0]
    with pytest.raises(
        ValueError, match=r"`event` must be a pitchfork or transcritical one.*Event\(supercritical flip"
    ):
        switch_branch(unit, flip, bounds=(-2.0, 2.0))
