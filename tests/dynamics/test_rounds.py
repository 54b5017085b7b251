"""Completeness: further rounds of seeds, deflation, and why a search ended."""

import math

import pytest
import torch
from torch import nn

from helpers import close, randn
from kpflow.dynamics import IndexVerdict, Status, Stop, find_fixed_points
from kpflow.dynamics.deflation import deflated
from kpflow.dynamics.maps import StaticMap, exact_derivatives, static_map


def units(h, x):
    """tanh(2 h) for every unit by itself, with a pitchfork behind it: three fixed points a unit."""
    return torch.tanh(2 * h) + 0 * x.sum(dim=1, keepdim=True)


def test_the_points_between_two_stable_ones_are_added():
    points = find_fixed_points(units, torch.zeros(1), torch.tensor([[0.9], [-0.9]]), bounded=True)
    assert sorted(points.states[:, 0].sign().tolist()) == [-1, 0, 1]
    assert (points.index_sum, points.index_verdict, points.stopped) == (1, IndexVerdict.CONSISTENT, Stop.COMPLETE)
    assert points.added > 0
    assert len(points.status) == len(points.point) == 2  # of the given seeds alone
    close(points.states[points.point], torch.tensor([[0.9575040], [-0.9575040]]).double(), 1e-6)


@pytest.mark.parametrize("width", [2, 3])
def test_all_points_of_a_product_from_its_corners(width):
    corners = torch.cartesian_prod(*[torch.tensor([-0.9, 0.9])] * width)
    points = find_fixed_points(units, torch.zeros(1), corners, bounded=True)
    assert len(points.states) == 3**width
    assert points.stopped is Stop.COMPLETE
    counts = torch.bincount(points.unstable)
    assert counts.tolist() == [math.comb(width, j) * 2 ** (width - j) for j in range(width + 1)]


def test_without_rounds_the_given_seeds_are_all():
    points = find_fixed_points(units, torch.zeros(1), torch.tensor([[0.9], [-0.9]]), bounded=True, rounds=0)
    assert (len(points.states), points.added, points.stopped) == (2, 0, Stop.ROUNDS)
    assert repr(points).endswith("0 added, rounds)")


def test_unbounded_maps_get_no_more_seeds():
    points = find_fixed_points(units, torch.zeros(1), torch.tensor([[0.9], [-0.9]]))
    assert (len(points.states), points.added, points.stopped) == (2, 0, Stop.GIVEN)


def test_what_cannot_be_completed_ends():
    """Without the continuity that the theorem asks for, no number of seeds gives the sum 1."""
    points = find_fixed_points(
        lambda h, x: torch.where(h > 0, -1.0 + 0 * h, 1.0 + 0 * h) + 0 * x,
        torch.zeros(1),
        randn(6, 1, seed=0),
        bounded=True,
    )
    assert (len(points.states), points.index_sum, points.stopped) == (0, 0, Stop.SATURATED)
    assert points.index_verdict is IndexVerdict.MISSING


def test_deflation_finds_the_other_roots():
    """From one seed at one root after the other: the cubic h − h (h² − 1) has the fixed points −1, 0 and 1."""
    with exact_derivatives():
        cubic = static_map(lambda h, x: h - h * (h**2 - 1) + 0 * x, torch.zeros(1), torch.ones(2, 1).double())
        away = deflated(cubic, torch.tensor([[1.0], [-1.0]]).double(), 1.0)
        h = torch.tensor([[0.0], [0.3], [2.0]]).double()
        expected = h + (1 + 1 / (h - 1) ** 2) * (1 + 1 / (h + 1) ** 2) * (-h * (h**2 - 1))
        close(away(h), expected)
        by_formula = away.linearised(h)
        by_rows = StaticMap(away.function, False, away.limits).linearised(h)
        close(by_formula[0], by_rows[0])
        close(by_formula[1], by_rows[1])
        near = torch.tensor([[1 + 1e-9]], dtype=torch.float64)
        assert float((away(near) - near).abs()) > 1e8  # the known root is none any more
        close(away(torch.zeros(1, 1).double()), torch.zeros(1, 1).double())  # the other one still is


def test_derivative_of_a_deflated_map_in_several_units():
    with exact_derivatives():
        mapping = static_map(nn.GRUCell(2, 4), torch.ones(2).double(), randn(3, 4, seed=0))
        away = deflated(mapping, randn(5, 4, seed=1), 0.7)
        h = randn(6, 4, seed=2)
        close(away.linearised(h)[1], StaticMap(away.function, False, away.limits).linearised(h)[1])


def test_the_time_limit_is_kept():
    calls = []

    def slow(h, x):
        calls.append(len(h))
        return torch.tanh(2 * h) + 0 * x

    points = find_fixed_points(slow, torch.zeros(3), randn(40, 3, seed=0), bounded=True, time_limit=1e-9)
    assert points.stopped is Stop.TIME
    assert Status.TIMEOUT in points.status
    assert {*points.status} <= {Status.TIMEOUT, Status.ROOT}
    assert len(calls) < 30  # no more than judging and describing what is there
    assert points.added == 0
    assert "time" in repr(points)


def test_time_enough_changes_nothing():
    seeds = randn(20, 1, seed=0)
    one, other = (find_fixed_points(units, torch.zeros(1), seeds, bounded=True, time_limit=t) for t in (None, 600.0))
    close(one.states, other.states)
    assert one.stopped == other.stopped


def test_the_generator_draws_the_added_seeds():
    corners = torch.tensor([[-0.9], [0.9]])
    before = torch.random.get_rng_state()
    one, other = (find_fixed_points(units, torch.zeros(1), corners, bounded=True) for _ in range(2))
    assert torch.equal(one.states, other.states)
    assert torch.equal(before, torch.random.get_rng_state())


def test_messages():
    call = find_fixed_points
    with pytest.raises(ValueError, match="`rounds` must be a whole number at least 0; got -1"):
        call(units, torch.zeros(1), torch.zeros(1, 1), rounds=-1)
    with pytest.raises(ValueError, match="`time_limit` must be a positive number; got 0"):
        call(units, torch.zeros(1), torch.zeros(1, 1), time_limit=0.0)
