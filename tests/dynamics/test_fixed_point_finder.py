"""Arrays of fixed-point-finder: a round trip, slow points that pass as fixed, and messages."""

import dataclasses
import inspect
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn

from helpers import close, randn, without_annotation_checks
from kpflow.dynamics import find_fixed_points, from_fixed_point_finder, to_fixed_point_finder

NONE = torch.zeros(1)
SEEDS = torch.linspace(-1, 1, 9)[:, None]


def unit(h, x):
    return torch.tanh(2 * h + x)


def of_fixed_point_finder(
    xstar=None,
    x_init=None,
    inputs=None,
    F_xstar=None,
    qstar=None,
    dq=None,
    n_iters=None,
    J_xstar=None,
    eigval_J_xstar=None,
    eigvec_J_xstar=None,
    is_stable=None,
    cond_id=None,
):
    """Takes what the constructor there takes, and asks of the arrays what its check of shapes asks."""
    arrays = {name: value for name, value in locals().items() if value is not None}
    assert {len(value) for value in arrays.values()} == {len(xstar)}
    return SimpleNamespace(**arrays)


def many():
    """A network with several fixed points, its input and seeds."""
    cell = nn.RNNCell(2, 4)
    with torch.no_grad():
        for i, value in enumerate(cell.parameters()):
            value.copy_((1.5 if i else 0.1) * randn(*value.shape, seed=i))
        cell.weight_hh.copy_(2 * torch.eye(4) + 0.2 * randn(4, 4, seed=7))
        cell.bias_ih.zero_()
        cell.bias_hh.mul_(0.1)
    return cell, randn(2, seed=5), randn(40, 4, seed=6)


def test_round_trip():
    cell, x, seeds = many()
    points = find_fixed_points(cell, x, seeds, rounds=1)
    k = len(points.states)
    assert k >= 10
    arrays = to_fixed_point_finder(points, x, step=cell, seeds=seeds)
    assert set(vars(arrays)) == set(inspect.signature(of_fixed_point_finder).parameters)
    for data in (arrays, of_fixed_point_finder(**vars(arrays))):
        back = from_fixed_point_finder(data, cell)
        assert bool(back.root.all())
        assert not back.slow.any()
        close(back.states, points.states)
        gaps = (back.points.states[:, None] - points.states).norm(dim=2)
        assert gaps.shape == (k, k)
        assert float(gaps.amin(0).max()) < 1e-11
        assert sorted(back.points.kinds) == sorted(points.kinds)
        close(back.jacobians, points.jacobians)
        assert float(back.jacobian_error.max()) < 1e-12
        assert float(back.distance.max()) < 1e-12
        assert back.rows.tolist() == list(range(k))


def test_arrays():
    cell, x, seeds = many()
    points = find_fixed_points(cell, x, seeds, rounds=1)
    arrays, k = to_fixed_point_finder(points, x, step=cell, seeds=seeds), len(points.states)
    np.testing.assert_allclose(arrays.F_xstar, arrays.xstar, atol=1e-11)
    np.testing.assert_array_equal(arrays.inputs, np.tile(x.numpy(), (k, 1)))
    np.testing.assert_allclose(arrays.qstar, ((arrays.F_xstar - arrays.xstar) ** 2).sum(1) / 2, atol=1e-28)
    values, vectors = arrays.eigval_J_xstar, arrays.eigvec_J_xstar
    np.testing.assert_allclose(arrays.J_xstar @ vectors, vectors * values[:, None], atol=1e-12)
    assert (np.diff(np.abs(values), axis=1) <= 1e-15).all()
    np.testing.assert_array_equal(arrays.is_stable, np.abs(values[:, 0]) < 1)
    assert arrays.is_stable.dtype == bool
    assert arrays.cond_id.tolist() == [0] * k
    assert repr(arrays) == f"FinderPoints({k} points, {arrays.is_stable.sum()} stable)"
    assert arrays.n == k
    assert np.isnan(arrays.dq).all()
    assert np.isnan(arrays.n_iters).all()
    for i, start in enumerate(arrays.x_init):
        came = [j for j, row in enumerate(points.point.tolist()) if row == i and points.status[j] == "root"]
        np.testing.assert_array_equal(start, seeds[came[0]].numpy() if came else np.full(4, np.nan))


def test_what_is_not_known_is_nan():
    arrays = to_fixed_point_finder(find_fixed_points(unit, NONE, SEEDS), NONE)
    assert np.isnan(arrays.F_xstar).all()
    assert np.isnan(arrays.x_init).all()
    assert arrays.F_xstar is not arrays.x_init
    assert arrays.xstar.dtype == np.float64


def test_no_points_make_empty_arrays():
    points = find_fixed_points(lambda h, x: h + 1 + x, NONE, SEEDS)
    arrays = to_fixed_point_finder(points, NONE, step=lambda h, x: h + 1 + x, seeds=SEEDS)
    assert {len(value) for value in vars(arrays).values()} == {0}
    assert arrays.J_xstar.shape == (0, 1, 1)


def test_a_seed_that_came_to_a_slow_point_is_no_start():
    x = torch.tensor([0.6])  # beyond the fold: one root, one ghost
    points = find_fixed_points(unit, x, SEEDS)
    assert "slow" in points.status
    start = to_fixed_point_finder(points, x, seeds=SEEDS).x_init
    assert points.status[int((SEEDS[:, 0] == float(start[0, 0])).nonzero()[0])] == "root"


def test_ghosts_are_told_from_roots():
    """Just beyond the fold at h = −√½, where 2 (1 − h²) = 1, a state of q = 1e-9 is no fixed point."""
    x = 2 * math.sqrt(0.5) - math.atanh(math.sqrt(0.5)) + 1e-4
    top = brentq(lambda h: math.tanh(2 * h + x) - h, 0, 1, xtol=1e-15)
    arrays = {"xstar": np.array([[-math.sqrt(0.5)], [top + 1e-4]]), "inputs": np.full((2, 1), x)}
    imported = from_fixed_point_finder(arrays, unit)
    assert imported.root.tolist() == [False, True]
    assert imported.slow.tolist() == [True, False]
    assert float(imported.q[0]) == pytest.approx((0.5 * 1e-4) ** 2 / 2, rel=1e-3)  # ∂F/∂x = 1 − h² = ½
    assert float(imported.q[1]) > float(imported.q[0])  # the root is given less exactly than the ghost
    assert (len(imported.points.states), len(imported.points.slow.states)) == (1, 1)
    assert float(imported.points.states[0, 0]) == pytest.approx(top, abs=1e-12)
    assert repr(imported) == "ImportedPoints(2 points: 1 at a root, 1 at none; 1 distinct roots)"


def test_duplicates_are_one_root():
    top = 0.9575040240772687
    arrays = {"xstar": np.array([[top + 2e-3], [top - 2e-3], [top], [0.3]])}
    imported = from_fixed_point_finder(arrays, unit, NONE, near=1e-2)
    assert imported.root.tolist() == [True, True, True, False]
    np.testing.assert_allclose(imported.distance[:3], [2e-3, 2e-3, 0], atol=1e-12)
    np.testing.assert_allclose(imported.q, [(math.tanh(2 * h) - h) ** 2 / 2 for h in arrays["xstar"][:, 0]], atol=1e-17)
    assert imported.jacobian_error.isnan().all()
    assert int((imported.points.states - top).abs().lt(1e-9).sum()) == 1


def test_points_at_another_input_are_left_out():
    low, high = (find_fixed_points(unit, torch.tensor([x]), SEEDS).states.numpy() for x in (0.0, 0.25))
    arrays = {
        "xstar": np.concatenate([low, high]),
        "inputs": np.repeat([0.0, 0.25], [len(low), len(high)])[:, None].astype(np.float32),
    }
    imported = from_fixed_point_finder(arrays, unit, torch.tensor([0.25]))
    assert imported.rows.tolist() == [3, 4, 5]
    assert bool(imported.root.all())


def test_wrong_jacobians_are_seen():
    arrays = to_fixed_point_finder(find_fixed_points(unit, NONE, SEEDS), NONE)
    arrays.J_xstar[1] += 0.25
    imported = from_fixed_point_finder(arrays, unit)
    np.testing.assert_allclose(imported.jacobian_error, [0, 0.25, 0], atol=1e-12)


def test_nothing_near():
    imported = from_fixed_point_finder({"xstar": np.zeros((2, 1))}, lambda h, x: h + 1 + x, NONE)
    assert imported.distance.tolist() == [math.inf] * 2
    assert imported.slow.tolist() == [True, True]


X = np.zeros((2, 1))


@pytest.mark.parametrize(
    ("data", "arguments", "error", "message"),
    [
        ({"inputs": X}, {}, TypeError, "`data` must be a FixedPoints object.*`xstar` among them; got dict without"),
        (
            SimpleNamespace(xstar=None),
            {},
            TypeError,
            "`data` must be a FixedPoints object.*got SimpleNamespace without",
        ),
        ({"xstar": np.zeros(2)}, {}, ValueError, r"`data.xstar` must have shape \(n, H\), n at least 1; got \(2,\)"),
        ({"xstar": np.full((1, 1), np.nan)}, {}, ValueError, "`data.xstar` must be finite; got NaN at point 0, unit 0"),
        ({"xstar": X}, {}, ValueError, "`inputs` must tell the static input.*not just one; got none"),
        ({"xstar": X, "inputs": np.array([[0], [1]])}, {}, ValueError, "not just one; got 2 different ones"),
        ({"xstar": X, "inputs": np.zeros((3, 1))}, {}, ValueError, r"`data.inputs` must have shape \(2, I\).*\(3, 1\)"),
        ({"xstar": X, "inputs": X}, {"inputs": torch.zeros(2)}, ValueError, r"`inputs` must have shape \(1,\), as"),
        (
            {"xstar": X, "inputs": X},
            {"inputs": torch.ones(1)},
            ValueError,
            "`inputs` must be an input of `data`, to 1e-6",
        ),
        ({"xstar": X}, {"inputs": torch.ones(1, 1)}, ValueError, r"`inputs` must be one static input.*got \(1, 1\)"),
        ({"xstar": X}, {"inputs": torch.tensor([math.nan])}, ValueError, "`inputs` must be finite; got NaN at input 0"),
        (
            {"xstar": X, "inputs": X, "J_xstar": np.zeros((2, 1))},
            {},
            ValueError,
            r"`data.J_xstar` must have shape \(2, 1, 1\), as xstar; got \(2, 1\)",
        ),
        ({"xstar": X, "inputs": X}, {"near": 0.0}, ValueError, "`near` must be a positive number; got 0.0"),
        ({"xstar": X, "inputs": X}, {"iterations": -1}, ValueError, "`iterations` must be a whole number at least 0"),
    ],
)
def test_messages(data: Any, arguments: dict[str, Any], error, message):
    with pytest.raises(error, match=message):
        from_fixed_point_finder(data, unit, **arguments)


def test_messages_on_the_way_out():
    points = find_fixed_points(unit, NONE, SEEDS)
    flow = find_fixed_points(lambda h, x: x - h, NONE, SEEDS, flow=True)
    with pytest.raises(ValueError, match="`points` must be those of a step; got those of a flow"):
        to_fixed_point_finder(flow, NONE)
    wrong: Any = dataclasses.asdict(points.slow)
    with without_annotation_checks(), pytest.raises(TypeError, match="`points` must be a FixedPoints of find_fixed_po"):
        to_fixed_point_finder(wrong, NONE)
    with pytest.raises(ValueError, match=r"`inputs` must be one static input, shape \(I,\); got \(1, 1\)"):
        to_fixed_point_finder(points, torch.zeros(1, 1))
    with pytest.raises(ValueError, match=r"`seeds` must be those of the search, shape \(9, 1\); got \(4, 1\)"):
        to_fixed_point_finder(points, NONE, seeds=SEEDS[:4])
