"""Continuation of fixed points against closed forms: where branches go, and where and how they bifurcate."""

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import randn, without_annotation_checks
from kpflow.dynamics import Branch, Ending, continue_branch, find_fixed_points

TURN = torch.tensor([[math.cos(0.9), -math.sin(0.9)], [math.sin(0.9), math.cos(0.9)]], dtype=torch.float64)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def logistic(x: Tensor, r: Tensor) -> Tensor:
    return r * x * (1 - x)


def henon(x: Tensor, a: Tensor) -> Tensor:
    return torch.stack([1 - a * x[0] ** 2 + x[1], 0.3 * x[0]])


def delayed_logistic(x: Tensor, r: Tensor) -> Tensor:
    return torch.stack([r * x[0] * (1 - x[1]), x[0]])


def lorenz(x: Tensor, r: Tensor) -> Tensor:
    return torch.stack([10 * (x[1] - x[0]), x[0] * (r - x[2]) - x[1], x[0] * x[1] - 8 / 3 * x[2]])


def brusselator(x: Tensor, b: Tensor) -> Tensor:
    return torch.stack([1 - (b + 1) * x[0] + x[0] ** 2 * x[1], b * x[0] - x[0] ** 2 * x[1]])


def unit(h: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(2 * h + b)


HIGH = 0.9575040240772687
"""The stable point of tanh(2 h)."""
SIDE = math.sqrt(24)
HENON = (-0.7 + math.sqrt(0.49 + 0.8)) / 0.4

# function, point, λ, bounds, flow, events in the order of arclength (towards growing λ from the start)
CLOSED: dict[str, tuple[Any, Tensor, float, tuple[float, float], bool, list[tuple[str, float, dict[str, float]]]]] = {
    "tanh unit, bias": (
        unit,
        vector(HIGH),
        0.0,
        (-1.0, 1.0),
        False,
        [("fold", 0.532839975353552, {"a": 0.5, "b3": 4}), ("fold", -0.532839975353552, {"a": 0.5, "b3": 4})],
    ),
    "tanh unit, weight": (
        lambda h, w: torch.tanh(w * h),
        vector(0),
        0.0,
        (-2.0, 2.0),
        False,
        [("flip", -1, {"c": 1 / 3}), ("pitchfork", 1, {"a": 0, "b1": 1, "b2": 0, "b3": -2})],
    ),
    "tanh unit, weight, from its pitchfork's branch": (
        lambda h, w: torch.tanh(w * h),
        vector(HIGH),
        2.0,
        (-2.0, 2.5),
        False,
        [("pitchfork", 1, {"a": 0, "b1": 1, "b2": 0, "b3": -2})],
    ),
    "logistic, zero": (
        logistic,
        vector(0),
        0.5,
        (0.0, 4.0),
        False,
        [("transcritical", 1, {"a": 0, "b1": 1, "b2": -2})],
    ),
    "logistic, other": (
        logistic,
        vector(0.5),
        2.0,
        (0.5, 4.0),
        False,
        [("transcritical", 1, {"a": 0, "b1": 1, "b2": -2}), ("flip", 3, {"c": 9})],
    ),
    "Hénon": (
        henon,
        vector(HENON, 0.3 * HENON),
        0.2,
        (-0.13, 1.0),
        False,
        [("fold", -0.1225, {}), ("flip", 0.3675, {})],
    ),
    "leaky Euler": (
        lambda h, rho: 0.8 * h + 0.2 * torch.tanh(rho * (TURN @ h)),
        vector(0, 0),
        0.5,
        (0.0, 2.0),
        False,
        [("neimark-sacker", 1.4100179083459181, {"d": -0.218461})],
    ),
    "delayed logistic": (
        delayed_logistic,
        vector(1 / 3, 1 / 3),
        1.5,
        (0.5, 2.5),
        False,
        [("transcritical", 1, {"a": 0}), ("neimark-sacker", 2, {"d": -1})],
    ),
    "x' = μ − x²": (lambda x, m: m - x**2, vector(1), 1.0, (-1.0, 1.0), True, [("fold", 0, {"a": 1, "b2": -2})]),
    "rotated tanh flow": (
        lambda h, rho: torch.tanh(rho * (TURN @ h)) - h,
        vector(0, 0),
        0.5,
        (0.0, 2.0),
        True,
        [("hopf", 1 / math.cos(0.9), {"l1": -1 / math.cos(0.9) ** 2 / (2 * math.tan(0.9))})],
    ),
    "Lorenz, zero": (lorenz, vector(0, 0, 0), 0.5, (0.0, 30.0), True, [("pitchfork", 1, {"a": 0, "b3": -45 / 44})]),
    "Lorenz, side": (
        lorenz,
        vector(SIDE, SIDE, 9),
        10.0,
        (0.0, 30.0),
        True,
        [("hopf", 470 / 19, {}), ("pitchfork", 1, {"b3": -45 / 44}), ("hopf", 470 / 19, {})],
    ),
    "Brusselator": (brusselator, vector(1, 1), 1.0, (0.0, 3.0), True, [("hopf", 2, {"l1": -0.5})]),
}


@functools.cache
def followed(name: str) -> Branch:
    function, point, parameter, bounds, flow, _ = CLOSED[name]
    return continue_branch(function, point, parameter, bounds=bounds, flow=flow, steps=150)


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms(name):
    *_, flow, expected = CLOSED[name]
    branch = followed(name)
    by_place = sorted(branch.events, key=lambda event: (round(event.parameter, 6), event.arclength))
    assert [event.kind for event in by_place] == [kind for kind, *_ in sorted(expected, key=lambda item: item[1])]
    for event, (_, value, coefficients) in zip(by_place, sorted(expected, key=lambda item: item[1]), strict=True):
        assert event.parameter == pytest.approx(value, abs=1e-12, rel=1e-12)
        assert event.bracket[0] <= event.parameter <= event.bracket[1]
        assert event.bracket[1] - event.bracket[0] < 1e-6
        assert event.form is not None
        for key, wanted in coefficients.items():
            assert event.form.coefficients[key] == pytest.approx(wanted, abs=5e-7)
        critical = -1 if event.kind == "flip" else 0 if flow else 1
        if event.kind in ("hopf", "neimark-sacker"):
            mu = event.multiplier
            assert abs(mu.real if flow else abs(mu) - 1) < 1e-10
            assert mu.imag > 0.1
        else:
            assert event.multiplier == pytest.approx(critical, abs=2e-8)


@pytest.mark.parametrize("name", CLOSED)
def test_every_point_is_one_and_tangents_are_tangent(name):
    function, _, _, bounds, flow, _ = CLOSED[name]
    branch = followed(name)
    for h, value, tangent, mu in zip(
        branch.states, branch.parameters, branch.tangents, branch.multipliers, strict=True
    ):
        rest = function(h, value) - (0 if flow else h)
        assert float(rest.norm()) <= 1e-12 * (1 + float(h.norm()))
        assert float(tangent.norm()) == pytest.approx(1, abs=1e-12)
        moved = function(h + 1e-6 * tangent[:-1], value + 1e-6 * tangent[-1])
        assert float((moved - (0 if flow else h + 1e-6 * tangent[:-1])).norm()) <= 1e-9 * (1 + float(h.norm())) ** 2
        size = mu.real if flow else mu.abs()
        assert (size.diff() <= 1e-12).all()
    excess = branch.multipliers.real if flow else branch.multipliers.abs() - 1
    assert torch.equal(branch.stable, (excess < 0).all(dim=1))
    assert (branch.arclength.diff() > 0).all()
    steps = (torch.cat([branch.states, branch.parameters[:, None]], 1).diff(dim=0) * branch.tangents[:-1]).sum(1)
    assert (steps > 0).all()  # the tangents point along growing arclength
    assert float(branch.parameters.min()) >= bounds[0]
    assert float(branch.parameters.max()) <= bounds[1]
    for end, at in zip(branch.endings, (0, -1), strict=True):
        assert end is not Ending.BOUND or float(branch.parameters[at]) in bounds


@pytest.mark.parametrize("seed", range(4))
def test_all_bifurcations_of_a_random_network_at_zero(seed):
    """h' = tanh(g W h) bifurcates at g = 1/|μ| for every eigenvalue μ of W."""
    weight = randn(12, 12, seed=seed) / math.sqrt(12)
    branch = continue_branch(
        lambda h, g: torch.tanh(g * (weight @ h)), torch.zeros(12).double(), 0.3, bounds=(0.0, 4.0)
    )
    expected = []
    for value in torch.linalg.eigvals(weight).tolist():
        if value.imag >= 0 and abs(value) > 0.25:
            kind = "neimark-sacker" if value.imag else "pitchfork" if value.real > 0 else "flip"
            expected.append((1 / abs(value), kind))
    expected.sort()
    assert [event.kind for event in branch.events] == [kind for _, kind in expected]
    assert [event.parameter for event in branch.events] == pytest.approx([at for at, _ in expected], abs=1e-11)


@pytest.mark.parametrize("start", [0.0, -HIGH])
def test_events_do_not_depend_on_the_start(start):
    events = continue_branch(unit, vector(start), 0.0, bounds=(-1.0, 1.0)).events
    expected = followed("tanh unit, bias").events
    order = 1 if start else -1  # the middle one is followed the other way
    assert [event.parameter for event in events][::order] == pytest.approx(
        [event.parameter for event in expected], abs=1e-13
    )


def crossings(branch: Branch, value: float) -> int:
    """How often a branch comes to this λ."""
    return int(((branch.parameters[:-1] - value) * (branch.parameters[1:] - value) < 0).sum())


def test_counts_agree_with_dense_scanning():
    branch = continue_branch(unit, vector(HIGH), 0.0, bounds=(-1.0, 1.0))
    for value in torch.linspace(-0.95, 0.95, 20).tolist():
        points = find_fixed_points(
            lambda h, x: unit(h, x), torch.tensor([value], dtype=torch.float64), torch.linspace(-1, 1, 30)[:, None]
        )
        assert len(points.states) == crossings(branch, value)


def broken_pitchfork(h: float) -> float:
    """The ε for which tanh(w h + ε) has its fold at h."""
    return math.atanh(h) - h / (1 - h**2)


@pytest.mark.parametrize(("at", "imperfect"), [(-0.01, True), (-0.05, True), (-0.1, True), (-0.6, False)])
def test_a_fold_near_a_pitchfork_is_called_imperfect(at, imperfect):
    shift, weight = broken_pitchfork(at), 1 / (1 - at**2)
    start = find_fixed_points(
        lambda h, x: torch.tanh(2.0 * h + x), torch.tensor([shift]).double(), torch.tensor([[-0.99]])
    ).states[0]
    branch = continue_branch(lambda h, w: torch.tanh(w * h + shift), start, 2.0, bounds=(0.0, 2.5))
    (fold,) = branch.events
    assert (fold.kind, fold.imperfect) == ("fold", imperfect)
    assert fold.parameter == pytest.approx(weight, abs=1e-11)
    assert fold.label == ("imperfect pitchfork" if imperfect else "fold")
    assert not any(event.imperfect for event in continue_branch(unit, vector(HIGH), 0.0, bounds=(-1.0, 1.0)).events)


def test_criticality():
    flip, pitchfork = continue_branch(lambda h, w: torch.tanh(w * h), vector(0), 0.0, bounds=(-2.0, 2.0)).events
    assert (flip.label, pitchfork.label) == ("supercritical flip", "supercritical pitchfork")
    (other,) = continue_branch(lambda h, w: torch.sinh(w * h), vector(0), 0.5, bounds=(0.0, 2.0)).events
    assert other.label == "subcritical pitchfork"
    (fold, _) = continue_branch(unit, vector(HIGH), 0.0, bounds=(-1.0, 1.0)).events
    assert fold.supercritical is None
    (linear, *_) = continue_branch(lambda h, w: w * h, vector(0), 0.5, bounds=(0.0, 2.0)).events
    assert linear.supercritical is None  # its cubic coefficient is zero
    hopf = continue_branch(lorenz, vector(SIDE, SIDE, 9), 10.0, bounds=(5.0, 30.0), flow=True).events
    assert [event.label for event in hopf] == ["subcritical hopf"]


def test_neutral_saddles_are_no_event():
    for flow, second in ((False, 0.6), (True, -1.6)):
        branch = continue_branch(
            lambda h, value, second=second: torch.stack([(1.5 + value) * h[0], second * h[1]]),
            vector(0, 0),
            0.0,
            bounds=(-0.3, 0.5),
            flow=flow,
        )
        assert branch.events == ()
        assert not branch.stable.any()


def test_a_pair_that_becomes_real_right_after_it_left_the_circle():
    """μ² − 2 cos a μ + … with a pair on the circle at λ = 0 that is real from λ = 0.001 on, within one step."""

    def function(h: Tensor, value: Tensor) -> Tensor:
        gap = 1e-3 - value  # the pair is 1 + λ ± i √gap
        return torch.stack([(1 + value - 5e-4) * h[0] - gap * h[1], h[0] + (1 + value - 5e-4) * h[1]])

    branch = continue_branch(function, vector(0, 0), -0.4, bounds=(-0.5, 0.5), max_step=0.3)
    kinds = [event.kind for event in branch.events if event.kind == "neimark-sacker"]
    assert kinds == ["neimark-sacker"]


def test_a_pair_that_becomes_real_and_passes_one_is_no_neimark_sacker():
    """Multipliers 0.9 + λ ± √λ: a pair within the circle, then two real ones of which one passes 1, in one step."""

    def function(h: Tensor, value: Tensor) -> Tensor:
        return torch.stack([(0.9 + value) * h[0] + value * h[1], h[0] + (0.9 + value) * h[1]])

    branch = continue_branch(function, vector(0, 0), -0.3, bounds=(-0.4, 0.05), max_step=0.3)
    (event,) = branch.events
    assert event.kind == "pitchfork"
    assert event.parameter == pytest.approx((math.sqrt(1.4) - 1) ** 2 / 4, abs=1e-12)


def test_strong_resonances_are_said():
    def turning(angle: float):
        turn = vector(math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)).reshape(2, 2)
        return lambda h, rho: torch.tanh(rho * (turn @ h))

    (event,) = continue_branch(turning(math.pi / 2), vector(0, 0), 0.5, bounds=(0.0, 1.5)).events
    assert event.form is None
    assert "strong resonance, μ^4 = 1" in event.note
    assert event.supercritical is None
    (event,) = continue_branch(turning(math.pi / 2 + 1e-3), vector(0, 0), 0.5, bounds=(0.0, 1.5)).events
    assert event.form is not None
    assert "close to a strong resonance" in event.note


# How a branch ends.


def circle(h: Tensor, value: Tensor) -> Tensor:
    return h + 0.3 * (1 - h**2 - value**2)


ENDS = {
    "bound": (lambda h, value: 0.5 * (h + value), 0.0, {}, Ending.BOUND),
    "closed": (circle, 1.0, {}, Ending.CLOSED),
    "steps": (lambda h, value: 0.5 * (h + value), 0.0, {"steps": 7}, Ending.STEPS),
    "time": (lambda h, value: 0.5 * (h + value), 0.0, {"time_limit": 1e-9}, Ending.TIME),
}


@pytest.mark.parametrize("name", ENDS)
def test_endings(name):
    function, start, more, ending = ENDS[name]
    branch = continue_branch(function, vector(start), 0.0, bounds=(-2.0, 2.0), **more)
    assert branch.endings == (ending, ending)
    if name == "steps":
        assert len(branch.states) == 15
    if name == "closed":
        assert [event.kind for event in branch.events] == ["fold", "fold"]
        assert sorted(event.parameter for event in branch.events) == pytest.approx([-1, 1], abs=1e-12)
        length = float(branch.arclength[-1])
        assert length == pytest.approx(2 * math.pi, rel=0.01)


def test_a_branch_that_leaves_the_floating_range():
    branch = continue_branch(lambda h, value: 0.5 * h + 0.5 * torch.sqrt(value), vector(1.0), 1.0, bounds=(-1.0, 2.0))
    assert branch.endings[0] in (Ending.RANGE, Ending.STALLED)
    assert branch.endings[1] is Ending.BOUND
    assert abs(float(branch.parameters[0])) < 1e-6  # √λ has no branch below 0
    never = continue_branch(lambda h, value: h / 2 + 0.5 / (1 - value), vector(1.0), 0.0, bounds=(-1.0, 2.0), steps=80)
    assert never.endings[1] is Ending.STEPS  # to infinity


def test_lines_of_fixed_points_end():
    """A continuous attractor has no single branch: whatever is followed, it ends."""
    for function, point in (
        (lambda h, value: torch.stack([h[0], 0.5 * h[1]]) + 0 * value, vector(0.3, 0)),
        (lambda h, value: h / h.norm() * (1 + 0.1 * value), vector(1, 0)),
    ):
        branch = continue_branch(function, point, 0.0, bounds=(-1.0, 1.0), steps=50)
        assert len(branch.states) <= 101


def test_step_that_does_not_use_the_parameter():
    branch = continue_branch(lambda h, value: h / 2, vector(0), 0.0, bounds=(-1.0, 1.0))
    assert branch.parameters[[0, -1]].tolist() == [-1.0, 1.0]


def test_start_on_a_bound_goes_inwards_only():
    branch = continue_branch(lambda h, value: 0.5 * (h + value), vector(0), 0.0, bounds=(0.0, 1.0))
    assert branch.endings == (Ending.BOUND, Ending.BOUND)
    assert branch.parameters[[0, -1]].tolist() == [0.0, 1.0]


def test_a_rough_start_is_polished():
    branch = continue_branch(unit, vector(HIGH + 2e-7), 0.0, bounds=(-0.1, 0.1))
    assert float((branch.states[branch.arclength == 0] - HIGH).abs().max()) < 1e-13


def test_works_where_gradients_are_off():
    with torch.inference_mode():
        branch = continue_branch(unit, torch.tensor([HIGH], dtype=torch.float64), 0.0, bounds=(-1.0, 1.0))
    assert len(branch.events) == 2


def test_what_is_printed():
    branch = continue_branch(unit, vector(HIGH), 0.0, bounds=(-1.0, 1.0))
    assert repr(branch).endswith("points, λ from -1 to 1: 2 fold; ends: bound, bound)")
    assert repr(branch.events[0]) == "Event(fold at 0.5328399754)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"point": vector(0.5)}, r"`point` must be a fixed point, function\(h, λ\) = h at λ = 0.*is `function` a flow"),
        ({"flow": True}, r"`point` must be a fixed point, function\(h, λ\) = 0 at λ = 0.*is `function` a map"),
        ({"point": vector(math.nan)}, "`point` must be finite; got NaN at unit 0"),
        (
            {"point": torch.zeros(1)},
            r"`point` must be one state of shape \(n,\) in float64; got shape \(1,\) in torch.f",
        ),
        ({"point": torch.zeros(2, 1).double()}, r"`point` must be one state of shape \(n,\)"),
        ({"parameter": 1.5}, "`parameter` must be a number within `bounds`, -1 to 1; got 1.5"),
        ({"parameter": math.nan}, "`parameter` must be a number within `bounds`"),
        ({"bounds": (1.0, -1.0)}, "`bounds` must be in order, least λ first"),
        ({"bounds": (-1.0, math.inf)}, "`bounds` must be two finite numbers, least and largest λ"),
        ({"max_step": 0.0}, "`max_step` must be a positive number"),
        ({"steps": 0}, "`steps` must be a positive whole number"),
        ({"time_limit": 0.0}, "`time_limit` must be a positive number"),
        ({"tolerance": 0.0}, "`tolerance` must be a positive number"),
        (
            {"function": lambda h, value: h[:0]},
            r"`function` must return shape \(1,\) in float64, like `point`; got \(0,",
        ),
        ({"function": lambda h, value: h.float()}, r"`function` must return shape \(1,\) in float64.*torch.float32"),
        ({"function": lambda h, value: 1.0}, r"`function` must return shape \(1,\) in float64.*got float"),
        ({"function": lambda h, value: h.detach()}, "`function` must be differentiable in h and λ"),
        ({"function": lambda h, value: h @ torch.ones(3)}, r"`function` fails as function\(h, λ\) with h of shape"),
        ({"function": lambda h, value: h * math.nan}, r"`function\(point, parameter\)` must be finite; got NaN.*range"),
        (
            {"function": lambda h, value: h + value.abs().sqrt(), "point": vector(0)},
            "`function` must have finite derivatives at `point`; at λ = 0 they are not",
        ),
    ],
)
def test_messages(arguments: dict[str, Any], message):
    given: dict[str, Any] = {"function": unit, "point": vector(HIGH), "parameter": 0.0, "bounds": (-1.0, 1.0)}
    given |= arguments
    function, point, parameter = (given.pop(name) for name in ("function", "point", "parameter"))
    with pytest.raises(ValueError, match=message):
        continue_branch(function, point, parameter, **given)


@pytest.mark.parametrize("bounds", [(-1.0, 0.0, 1.0), 1.0, ("a", "b"), (True, 2.0)])
def test_bounds_of_another_type(bounds):
    with without_annotation_checks(), pytest.raises(ValueError, match="`bounds` must be two finite numbers, least and"):
        continue_branch(unit, vector(HIGH), 0.0, bounds=bounds)
