"""Every search is bounded in time if the user says nothing, on a clock that the test moves."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from helpers import randn
from kpflow.dynamics import (
    CycleStatus,
    PiecewiseLinear,
    Status,
    Stop,
    deadlines,
    find_cycles,
    find_fixed_points,
    find_region_points,
)

NOTHING = torch.zeros(1)


@pytest.fixture
def looks(monkeypatch):
    """A list that grows with each look at a clock on which ten seconds pass between two looks."""
    seconds, seen = itertools.count(0.0, 10.0), []

    def monotonic():
        seen.append(next(seconds))
        return seen[-1]

    monkeypatch.setattr(deadlines, "time", SimpleNamespace(monotonic=monotonic))
    return seen


def step(h, x):
    return torch.tanh(2 * h) + 0 * x


def points(**more):
    return find_fixed_points(step, NOTHING, randn(9, 1, seed=0), bounded=True, **more)


def cycles(**more):
    return find_cycles(lambda h, x: -step(h, x), NOTHING, randn(9, 1, seed=0), 2, **more)


def regions(**more):
    network = PiecewiseLinear.inside(0 * randn(18, 18, seed=2), randn(18, 18, seed=0), randn(18, seed=1))
    return find_region_points(network, method="enumerate", **more)


def test_fixed_points_end_after_two_minutes(looks):
    found = points()
    assert found.stopped is Stop.TIME
    assert Status.TIMEOUT in found.status
    assert looks[12] == 120.0  # it went on until then
    assert len(looks) < 30


def test_cycles_end_after_two_minutes(looks):
    found = cycles()
    assert CycleStatus.TIMEOUT in found.status
    assert looks[12] == 120.0
    assert len(looks) < 30


def test_regions_end_after_two_minutes(looks):
    found = regions()
    assert not found.complete
    assert looks[12] == 120.0
    assert len(looks) < 30


@pytest.mark.usefixtures("looks")
@pytest.mark.parametrize("limit", [None, 1e6])
def test_no_limit_if_asked_for(limit):
    assert points(time_limit=limit).stopped is Stop.COMPLETE
    assert set(cycles(time_limit=limit).status) <= {CycleStatus.CYCLE, CycleStatus.SHORTER}
