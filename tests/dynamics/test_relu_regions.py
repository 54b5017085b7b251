"""Fixed points of ReLU networks against brute force over all regions, the smooth search and closed forms."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers import close, randn, without_annotation_checks
from kpflow.dynamics import IndexVerdict, PiecewiseLinear, find_cycles, find_fixed_points, find_region_points
from kpflow.dynamics.piecewise import piecewise_linear
from kpflow.states.cells import LowRankRNN, RateRNN

ONE = torch.ones(1, 1).double()


def scaled(module, factor=1.0, seed=0):
    with torch.no_grad():
        for i, value in enumerate(module.parameters()):
            value.copy_(factor * randn(*value.shape, seed=seed + i))
    return module


MODELS = {
    "RNNCell": lambda: nn.RNNCell(2, 6, nonlinearity="relu"),
    "RNNCell without bias": lambda: nn.RNNCell(2, 6, bias=False, nonlinearity="relu"),
    "RNN": lambda: nn.RNN(2, 6, nonlinearity="relu", batch_first=True),
    "RNN without bias": lambda: nn.RNN(2, 6, nonlinearity="relu", bias=False),
    "RateRNN, inside": lambda: RateRNN(2, 6, alpha=0.3, bias=True, nonlinearity=torch.relu),
    "RateRNN, outside": lambda: RateRNN(2, 6, alpha=0.3, nonlinearity=nn.ReLU(), convention="outside"),
    "RateRNN, outside, bias": lambda: RateRNN(
        2, 6, alpha=0.3, bias=True, nonlinearity=nn.functional.relu, convention="outside"
    ),
    "LowRankRNN": lambda: LowRankRNN(2, 6, 3, alpha=0.4, bias=True, nonlinearity=torch.relu),
    "LowRankRNN without bias": lambda: LowRankRNN(2, 6, 3, nonlinearity=torch.relu),
}


def random_network(size, seed, gain=3.0):
    weight = gain * randn(size, size, seed=seed) / math.sqrt(size)
    return PiecewiseLinear.inside(0.5 * torch.eye(size).double(), weight, randn(size, seed=seed + 100))


def competition(graph):
    """h' = relu(W h + 1), W = −0.75 along an edge and −1.5 where there is none: many fixed points (Curto et al.)."""
    size = len(graph)
    eye = torch.eye(size).double()
    weight = torch.where(graph, -0.75, -1.5).double() * (1 - eye)
    return PiecewiseLinear(0 * eye, eye, weight, eye.new_ones(size), eye.new_zeros(size))


def random_graph(size, seed):
    return randn(size, size, seed=seed) > 0.2


def brute_force(network):
    """All fixed points, one region after the other, by NumPy."""
    a, b, c, d, e = (getattr(network, name).double().numpy() for name in network.__dataclass_fields__)
    found = []
    for pattern in itertools.product((0.0, 1.0), repeat=len(d)):
        gate = np.asarray(pattern)
        h = np.linalg.solve(np.eye(len(e)) - a - b @ np.diag(gate) @ c, b @ (gate * d) + e)
        if ((c @ h + d > 0) == (gate > 0)).all():
            found.append(h)
    return np.asarray(found).reshape(-1, len(e))


def same_sets(got, expected, tolerance=1e-9):
    assert len(got) == len(expected)
    if len(expected):
        gaps = torch.cdist(torch.as_tensor(got), torch.as_tensor(expected), compute_mode="donot_use_mm_for_euclid_dist")
        assert float(gaps.amin(0).max()) < tolerance
        assert float(gaps.amin(1).max()) < tolerance


@pytest.mark.parametrize("make", [random_network, lambda n, seed: competition(random_graph(n, seed))])
@pytest.mark.parametrize("seed", range(6))
def test_enumeration_agrees_with_brute_force(make, seed):
    network = make(6, seed)
    points = find_region_points(network)
    same_sets(points.states, brute_force(network))
    assert (points.complete, points.regions) == (True, 64)
    assert float((network(points.states) - points.states).norm(dim=1).sum()) <= 1e-11
    iterated = find_region_points(network, method="iterate")
    same_sets(iterated.states, points.states)


def test_there_are_points_to_compare():
    counts = [len(find_region_points(competition(random_graph(6, seed))).states) for seed in range(6)]
    assert min(counts) >= 1
    assert max(counts) >= 5


@pytest.mark.parametrize("size", [3, 6, 9])
def test_competition_without_edges(size):
    """Every set of k units is the support of a point with the value 1 / (1.5 k − 0.5): 2ⁿ − 1 of them."""
    points = find_region_points(competition(torch.zeros(size, size, dtype=torch.bool)), bounded=True)
    assert len(points.states) == 2**size - 1
    support = points.active.sum(1).double()
    close(points.states.sum(1), support / (1.5 * support - 0.5))
    for k in range(2, size + 1):  # multipliers −1.5 (k − 1), and 1.5 for k − 1 times
        kind = "repeller" if k == size else f"saddle-{k}"
        assert points.kinds.count(kind) == math.comb(size, k)
    assert points.kinds.count("stable") == size
    assert (points.index_sum, points.index_verdict) == (1, IndexVerdict.CONSISTENT)  # the box [0, 1]ⁿ is kept
    iterated = find_region_points(competition(torch.zeros(size, size, dtype=torch.bool)), method="iterate")
    same_sets(iterated.states, points.states)


def test_competition_with_all_edges():
    points = find_region_points(competition(torch.ones(8, 8, dtype=torch.bool)), bounded=True)
    close(points.states, torch.full((1, 8), 1 / (1 + 7 * 0.75), dtype=torch.float64))


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_network(name):
    for seed in range(2):
        module, x = scaled(MODELS[name](), 0.8, seed), randn(2, seed=seed)
        network = piecewise_linear(module, x)
        cell = isinstance(module, nn.RNNCell)
        h = randn(5, 6, seed=9)
        exact = MODELS[name]().double()
        exact.load_state_dict(module.state_dict())
        if cell:
            moved = exact(x.expand(5, -1), h)
        elif isinstance(module, nn.RNN):
            moved = exact(x.expand(5, -1).unsqueeze(1 if module.batch_first else 0), h[None])[1][0]
        else:
            moved = exact.step(h, x.expand(5, -1))
        close(network(h), moved.detach())
        points = find_region_points(module, x)
        same_sets(points.states, brute_force(network))
        searched = find_fixed_points(module, x, randn(60, 6, seed=4), descent=20)
        gaps = torch.cdist(searched.states, points.states)
        assert float(gaps.amin(1).max() if len(searched.states) else 0) < 1e-8
        assert all(value.dtype == torch.float32 for value in module.parameters())


def test_the_smooth_search_finds_the_same_with_many_seeds():
    network = competition(random_graph(6, 3))
    points = find_region_points(network)
    searched = find_fixed_points(network, torch.zeros(1), randn(500, 6, seed=0).abs())
    same_sets(points.states, searched.states, 1e-8)
    for i, state in enumerate(points.states):
        j = int((searched.states - state).norm(dim=1).argmin())
        close(points.jacobians[i], searched.jacobians[j])
        np.testing.assert_allclose(points.multipliers[i].abs(), searched.multipliers[j].abs(), atol=1e-12)


def test_fields_of_a_point():
    network = competition(random_graph(6, 3))
    points = find_region_points(network)
    k = len(points.states)
    assert k >= 2
    before = points.states @ network.incoming.mT + 1
    close(points.border, before.abs().amin(1))
    assert points.border_unit.tolist() == before.abs().argmin(1).tolist()
    assert torch.equal(points.active, points.states > 0)
    slow = torch.stack([torch.autograd.functional.jacobian(lambda h: network(h), state) for state in points.states])
    close(points.jacobians, slow)
    jacobians = points.jacobians.to(torch.complex128)
    np.testing.assert_allclose(jacobians @ points.right, points.right * points.multipliers[:, None], atol=1e-11)
    error = points.left.mT @ jacobians - points.multipliers[:, :, None] * points.left.mT
    assert (error.abs().amax((1, 2)) <= 1e-14 * points.condition.square()).all()
    assert float(points.condition.min()) < 1e3
    assert points.unstable.tolist() == sorted(points.unstable.tolist())
    eye = torch.eye(6).double()
    assert points.index_sum == sum(int(np.sign(np.linalg.det(eye - one))) for one in slow)


@pytest.mark.parametrize("seed", range(6))
def test_iteration_finds_all_points_of_a_larger_network(seed):
    network = random_network(12, seed) if seed % 2 else competition(random_graph(12, seed))
    every = find_region_points(network, method="enumerate")
    assert every.regions == 4096
    some = find_region_points(network, method="iterate", budget=1000)
    assert (some.regions, some.complete) == (1000, False)
    same_sets(some.states, every.states)


def test_iteration_that_solves_all_regions_is_complete():
    points = find_region_points(random_network(4, 0), method="iterate")
    assert (points.regions, points.complete) == (16, True)


def test_points_of_a_search_are_made_exact():
    """Of 40 competing units the iteration alone comes to no point in 2000 regions; with seeds it needs one each."""
    network = competition(random_graph(40, 0))
    assert len(find_region_points(network, budget=2000).states) == 0
    searched = find_fixed_points(network, torch.zeros(1), randn(256, 40, seed=1).abs(), descent=0, iterations=50)
    assert len(searched.states) >= 1
    found = find_region_points(network, seeds=searched.states, budget=len(searched.states))
    same_sets(found.states, searched.states)
    assert (found.regions, found.complete) == (len(searched.states), False)


def tent(slope, x):
    """h' = 1 − slope |h − 1| + x, kinked at 1."""
    return PiecewiseLinear(slope * ONE, -2 * slope * ONE, ONE, -ONE[0], ONE[0] - slope + x)


def test_tent_map():
    points = find_region_points(tent(2.0, 0.5))
    states, order = points.states[:, 0].sort()
    np.testing.assert_allclose(states, [0.5, 3.5 / 3], atol=1e-15)  # 2h − 0.5 = h, and 3.5 − 2h = h
    np.testing.assert_allclose(points.multipliers[order, 0].real, [2, -2], atol=1e-15)
    np.testing.assert_allclose(points.border[order], [0.5, 0.5 / 3], atol=1e-15)
    assert (points.index_sum, points.kinds) == (0, ("repeller", "repeller"))
    assert len(find_region_points(tent(2.0, -0.5)).states) == 0
    two = find_cycles(tent(2.0, 0.5), torch.zeros(1), torch.tensor([[0.6], [0.9]]), 2)
    np.testing.assert_allclose(two.states[0, :, 0], [0.9, 1.3], atol=1e-14)
    assert two.multipliers[0, 0].real.item() == pytest.approx(-4, abs=1e-12)


def test_border_collision():
    on = find_region_points(tent(2.0, 0.0))  # both points meet at the kink
    assert (len(on.states), on.kinds) == (1, ("border",))
    assert on.border.tolist() == [0.0]
    near = find_region_points(tent(2.0, 1e-9))
    np.testing.assert_allclose(near.border.sort().values, [1e-9 / 3, 1e-9], rtol=1e-6)
    silent = find_region_points(nn.RNNCell(1, 5, bias=False, nonlinearity="relu"), torch.zeros(1), bounded=True)
    assert 0.0 in silent.states.norm(dim=1).tolist()
    assert silent.index_verdict is IndexVerdict.SINGULAR


def test_index_of_a_bounded_network():
    network = random_network(6, 5, gain=0.3)
    points = find_region_points(network, bounded=True)
    assert (points.index_sum, points.index_verdict) == (1, IndexVerdict.CONSISTENT)
    assert find_region_points(network).index_verdict is IndexVerdict.NOT_APPLICABLE
    wrong = find_region_points(tent(2.0, 0.5), bounded=True)  # it is not
    assert wrong.index_verdict is IndexVerdict.MISSING


def test_half_line_of_points():
    hold = PiecewiseLinear.inside(0 * ONE, ONE, 0 * ONE[0])  # h' = relu(h)
    points = find_region_points(hold, bounded=True)
    assert len(points.states) == 0  # 0 is the end of the line
    (line,) = points.continua
    assert float(line.state[0]) > 0
    close(line.directions.abs(), ONE)
    assert points.index_verdict is IndexVerdict.SINGULAR
    assert "1 continuous sets" in repr(points)
    drift = find_region_points(PiecewiseLinear.inside(0 * ONE, ONE, ONE[0]))  # h' = relu(h) + 1
    assert (len(drift.states), len(drift.continua)) == (0, 0)


def test_identity_network_holds_every_positive_state():
    cell = nn.RNNCell(1, 4, bias=False, nonlinearity="relu")
    with torch.no_grad():
        cell.weight_hh.copy_(torch.eye(4))
    points = find_region_points(cell, torch.zeros(1))
    (cone,) = points.continua
    assert cone.directions.shape == (4, 4)
    assert bool(cone.active.all())
    assert (cone.state > 0).all()
    assert len(points.states) == 0


def test_line_attractor_through_two_regions():
    """A plane: h₁ is kept, h₂ relaxes to |h₁|; two half lines and their common end."""
    network = PiecewiseLinear(
        *(
            torch.tensor(entries, dtype=torch.float64)
            for entries in ([[1, 0], [0, 0.5]], [[0, 0], [0.5, 0.5]], [[1, 0], [-1, 0]], [0, 0], [0, 0])
        )
    )
    points = find_region_points(network)
    assert len(points.states) == 0
    slopes = sorted(round(float(one.directions[1, 0] / one.directions[0, 0]), 12) for one in points.continua)
    assert slopes == [-1, 1]
    for one in points.continua:
        close(network(one.state), one.state)
        far = one.state + one.directions[:, 0] * 0.1
        close(network(far), far)


def test_a_silent_unit_is_counted_once():
    network = PiecewiseLinear(  # the second unit has no input at all
        torch.zeros(2, 2),
        torch.tensor([[1.0, 0], [0, 0]]),
        torch.tensor([[1.0, 0], [0, 0]]),
        torch.zeros(2),
        torch.zeros(2),
    )
    points = find_region_points(network)
    assert len(points.continua) == 1
    assert all(torch.isfinite(getattr(points, name)).all() for name in ("states", "residual", "border"))


def test_time_limit():
    cut = find_region_points(random_network(16, 0), method="enumerate", time_limit=1e-9)
    assert cut.regions < 2**16
    assert not cut.complete
    hold = PiecewiseLinear.inside(torch.zeros(8, 8), torch.eye(8), torch.zeros(8))
    assert find_region_points(hold, time_limit=1e-9).regions == 0
    assert find_region_points(hold, time_limit=60.0).complete


def test_random_sets_come_from_the_generator():
    network = random_network(30, 1)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one, two = (find_region_points(network, budget=600) for _ in range(2))
    close(one.states, two.states)
    assert torch.equal(torch.random.get_rng_state(), before)


NET = random_network(3, 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"step": torch.tanh}, TypeError, "`step` must be an nn.RNN, nn.RNNCell.*got builtin.*as a PiecewiseLinear"),
        ({"step": nn.GRUCell(1, 2)}, TypeError, "`step` must be an nn.RNN.*got GRUCell"),
        (
            {"step": nn.RNNCell(1, 2)},
            ValueError,
            "`step` must have the nonlinearity ReLU; got 'tanh'.*find_fixed_points",
        ),
        ({"step": RateRNN(1, 2)}, ValueError, "`step` must have the nonlinearity ReLU; got <built-in method tanh"),
        (
            {"step": nn.RNN(1, 2, 2, nonlinearity="relu"), "inputs": torch.zeros(1)},
            ValueError,
            "`step` must have one layer",
        ),
        ({"step": nn.RNN(1, 2, nonlinearity="relu")}, ValueError, "`inputs` must be the static input of RNN.*got None"),
        (
            {"step": nn.RNN(1, 2, nonlinearity="relu"), "inputs": torch.zeros(3)},
            ValueError,
            r"`inputs` must have shape \(1,\)",
        ),
        ({"inputs": torch.zeros(2, 1)}, ValueError, r"`inputs` must be one static input, shape \(I,\); got \(2, 1\)"),
        ({"inputs": torch.tensor([math.nan])}, ValueError, "`inputs` must be finite; got NaN at input 0"),
        ({"seeds": torch.zeros(2, 4)}, ValueError, r"`seeds` must have shape \(n, 3\); got \(2, 4\)"),
        ({"seeds": torch.full((1, 3), math.inf)}, ValueError, "`seeds` must be finite; got inf at seed 0, unit 0"),
        ({"seeds": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "`seeds` must hold floating-point numbers"),
        ({"method": "guess"}, ValueError, "`method` must be one of 'auto', 'enumerate', 'iterate'; got 'guess'"),
        ({"budget": 0}, ValueError, "`budget` must be a positive whole number; got 0"),
        ({"marginal": -1.0}, ValueError, "`marginal` must be a number at least 0"),
        ({"time_limit": 0.0}, ValueError, "`time_limit` must be a positive number"),
        (
            {"step": random_network(25, 0), "method": "enumerate"},
            ValueError,
            "`method` 'enumerate' goes through 2ᴹ regions, M at most 24; got 25 units. Use 'iterate'",
        ),
    ],
)
def test_messages(arguments: dict[str, Any], error, message):
    with pytest.raises(error, match=message):
        find_region_points(**({"step": NET} | arguments))


def test_messages_about_matrices():
    eye, zero = torch.eye(2), torch.zeros(2)
    cases = [
        (
            (eye, eye, torch.zeros(3, 2), zero, zero),
            r"must have the shapes \(H, H\), .*; got \(2, 2\), \(2, 2\), \(3, 2\)",
        ),
        ((eye, eye, eye, torch.tensor([0, math.nan]), zero), "`offset` must be finite; got NaN at axis 0 1"),
        ((eye, eye.double(), eye, zero, zero), "must be of one dtype and on one device; got torch.float32 on cpu, t"),
    ]
    with without_annotation_checks():
        for matrices, message in cases:
            with pytest.raises(ValueError, match=message):
                PiecewiseLinear(*matrices)
        with pytest.raises(TypeError, match=r"`constant` must hold floating-point numbers; got torch.int64"):
            PiecewiseLinear(eye, eye, eye, zero, torch.ones(2, dtype=torch.int64))
        with pytest.raises(TypeError, match=r"`bias` must be a torch.Tensor; got list"):
            PiecewiseLinear.inside(eye, eye, [0.0, 0.0])
