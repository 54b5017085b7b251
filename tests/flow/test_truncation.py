"""Truncation maps of ReLU networks and the closed form of their biases' flow: identities, autograd, refusals."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

import kpflow as kp
from kpflow.flow.truncation import (
    aligned_frame,
    aligned_map,
    bias_flow,
    collapse,
    cumulative_parameters,
    effective_flow,
    effective_gradient,
    equilibria,
    input_targets,
    network_flow,
    truncated_data,
    truncated_fractions,
    truncation_map,
)
from truncation_cases import forward, near, network, noise, orthogonal

# Maps.


def test_the_output_is_affine_in_the_truncated_data():
    layers, points = network([5, 5, 5, 5, 3]), noise(40, 5, seed=9)
    total, data = cumulative_parameters(layers), truncated_data(layers, points)
    assert total.depth == 3
    assert total.invertible
    assert float(data.residuals.max()) <= 1e-14
    near(data.points[-1] @ total.weights[-1].mT + total.biases[-1], forward(layers, points)[-1], 1e-13)
    assert all(0.05 < float(cut.double().mean()) < 0.95 for cut in data.cut)
    for index, state in enumerate(forward(layers, points)[:-1]):
        assert torch.equal(data.cut[index], state == 0)
        weight, bias = total.weights[index], total.biases[index]
        near(truncation_map(data.points[index], weight, bias), data.points[index + 1], 1e-14)
        near(weight @ total.shifts[index], bias, 1e-14)


def test_cumulative_parameters_are_those_of_the_linear_network():
    layers = network([4, 4, 4, 2], seed=3)
    (first, second, third), (one, two, three) = layers
    total = cumulative_parameters(layers)
    near(total.weights[2], third @ second @ first, 1e-14)
    near(total.biases[2], third @ (second @ one + two) + three, 1e-14)
    near(total.shifts[1], torch.linalg.solve(second @ first, second @ one + two), 1e-14)
    near(total.gram, total.weights[2].mT @ total.weights[2], 1e-15)
    assert total.gap == pytest.approx(0.0, abs=1e-14)  # two outputs of four coordinates
    assert cumulative_parameters(([first, second], [one, two])).gap == pytest.approx(
        float(torch.linalg.svdvals(second @ first)[-1]) ** 2, rel=1e-12
    )


def test_a_sequential_is_its_lists():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 2)).double()
    weights = [model[0].weight, model[2].weight, model[4].weight]
    lists = (weights, [model[0].bias, torch.zeros(3).double(), model[4].bias])
    points = noise(7, 3)
    near(truncated_data(model, points).points, truncated_data(lists, points).points, 0.0)
    hidden = cumulative_parameters(model[:4])
    assert (hidden.readout, hidden.depth, len(hidden.weights)) == (False, 2, 2)
    near(hidden.shifts, cumulative_parameters(lists).shifts, 0.0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_map_is_idempotent_and_does_not_see_positive_scales(seed):
    turn, shift, points = orthogonal(4, seed), noise(4, seed=seed + 1), noise(30, 4, seed=seed + 2)
    scales = noise(4, seed=seed + 3).exp()[:, None]
    plain = aligned_map(points, shift, turn)
    near(plain, ((points + shift) @ turn.mT).relu() @ turn - shift, 5e-15)
    near(truncation_map(points, scales * turn, scales[:, 0] * (turn @ shift)), plain, 2e-14)
    near(aligned_map(plain, shift, turn), plain, 5e-15)
    weight, bias = network([4, 4], seed)[0][0], noise(4, seed=seed + 4)
    once = truncation_map(points, weight, bias)
    near(truncation_map(once, weight, bias), once, 2e-14)
    near(truncation_map(points, scales * weight, scales[:, 0] * bias), once, 2e-14)
    near(once, torch.linalg.solve(weight, ((points @ weight.mT + bias).relu() - bias).mT).mT, 2e-14)


def test_narrowing_layers_are_exact_and_widening_ones_are_refused():
    layers, points = network([6, 4, 3, 2], seed=5), noise(20, 6, seed=6)
    total, data = cumulative_parameters(layers), truncated_data(layers, points)
    assert float(data.residuals.max()) < 1e-14
    assert float(total.residuals.max()) < 1e-14
    near(data.points[-1] @ total.weights[-1].mT + total.biases[-1], forward(layers, points)[-1], 1e-13)
    assert not total.invertible

    wide = network([3, 5, 5, 2], seed=7)
    with pytest.raises(
        ValueError, match="cumulative weight of layer 1 must have independent rows; got 5 rows of rank 3"
    ):
        truncated_data(wide, points[:, :3])
    rough = truncated_data(wide, points[:, :3], least_squares=True)
    assert float(rough.residuals.min()) > 0.01
    assert cumulative_parameters(wide).ranks == (3, 3)
    assert float(cumulative_parameters(wide).residuals.min()) > 0.01
    wide[1][0] += 100.0  # nothing is truncated by layer 1: the image of W^(1) holds all activations
    assert float(truncated_data(wide, points[:, :3], least_squares=True).residuals[0]) < 1e-14


def test_a_singular_square_layer_is_refused():
    weight = torch.ones(2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="`weight` must have independent rows; got 2 rows of rank 1"):
        truncation_map(noise(3, 2), weight, noise(2))
    assert truncation_map(noise(3, 2), weight, noise(2), least_squares=True).shape == (3, 2)


def test_fractions_count_the_points_that_each_activation_cuts_off():
    layers, points = network([4, 6, 3, 2], seed=8), noise(25, 4, seed=9)
    clusters = torch.arange(25) % 3
    states = forward(layers, points)
    found = truncated_fractions(layers, points, clusters)
    assert [part.shape for part in found] == [(3, 6), (3, 3)]
    for part, state in zip(found, states, strict=False):
        for j in range(3):
            near(part[j], (state[clusters == j] == 0).double().sum(0) / 25, 1e-15)
        near(part.sum(0), (state == 0).double().mean(0), 1e-15)
    near(truncated_fractions(layers, points)[0][0], found[0].sum(0), 1e-15)


def test_targets_of_outputs_are_points_of_input_space():
    layers, targets = network([3, 3, 3], seed=4), noise(2, 3, seed=5)
    total, found = cumulative_parameters(layers), input_targets(layers, targets)
    near(found @ total.weights[-1].mT + total.biases[-1], targets, 1e-13)
    flat = ([layers[0][0], torch.ones(3, 3).double()], layers[1])
    with pytest.raises(ValueError, match=r"`targets` must be outputs W\^\(L\+1\) z \+ b"):
        input_targets(flat, targets)


def test_sizes_of_clusters():
    points = torch.tensor([[0.0, 0.0], [0.0, 2.0], [4.0, 1.0], [4.0, 1.0]])
    found = collapse(points, torch.tensor([0, 0, 1, 1]))
    assert (found.within.tolist(), found.diameters.tolist(), float(found.between[0, 1])) == ([1, 0], [2, 0], 16)
    assert found.ratio == 0.5 / 16
    assert math.isnan(collapse(points).ratio)


def test_how_aligned_a_weight_is():
    turn, scales = orthogonal(4), noise(4).exp()
    frame = aligned_frame(scales[:, None] * turn)
    near(frame.scales, scales, 1e-14)
    near(frame.rotation, turn, 1e-14)
    assert frame.misalignment < 1e-15
    oblique = torch.tensor([[1.0, 0.0], [math.cos(1.0), math.sin(1.0)]])
    assert aligned_frame(3.0 * oblique).misalignment == pytest.approx(math.cos(1.0))
    near(aligned_frame(oblique).rotation @ aligned_frame(oblique).rotation.mT, torch.eye(2), 1e-14)
    assert aligned_frame(torch.ones(1, 1)).misalignment == 0.0


# Gradients.


def cost_by_hand(points: Tensor, targets: Tensor, shifts: Tensor, turns: Tensor, metric: Tensor) -> Tensor:
    for shift, turn in zip(shifts, turns, strict=True):
        points = ((points + shift) @ turn.mT).relu() @ turn - shift
    miss = points - targets
    return 0.5 * ((miss @ metric) * miss).sum(1).mean()


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_are_those_of_autograd(depth, weighted):
    points, targets, clusters = noise(20, 4), noise(3, 4, seed=1), torch.arange(20) % 3
    shifts = (0.5 * noise(depth, 4, seed=2)).requires_grad_()
    turns = torch.stack([orthogonal(4, 3 + index) for index in range(depth)])
    square = noise(4, 4, seed=8)
    metric = square @ square.mT if weighted else torch.eye(4).double()
    free = torch.zeros(depth, 4, 4, dtype=torch.float64, requires_grad=True)
    cost = cost_by_hand(points, targets[clusters], shifts, torch.linalg.matrix_exp(free - free.mT) @ turns, metric)
    by_shift, by_turn = torch.autograd.grad(cost, (shifts, free))
    found = effective_gradient(points, targets, shifts, turns, clusters=clusters, metric=metric if weighted else None)
    assert found.cost == pytest.approx(float(cost.detach()), rel=1e-13)
    near(found.shifts, by_shift, 1e-14 * max(1.0, float(by_shift.abs().max())))
    near(found.turns, by_turn, 1e-14 * max(1.0, float(by_turn.abs().max())))
    assert float(by_turn.abs().max()) > 1e-2


def test_gradients_are_the_formulas_of_one_layer():
    points, target, shift, turn = noise(15, 3), noise(3, seed=1), noise(3, seed=2), orthogonal(3, 3)
    found = effective_gradient(points, target, shift, turn)
    inner, outer = (points + shift) @ turn.mT, turn @ (shift + target)
    held = inner > 0
    rates = (~held).double().mean(0)
    near(found.shifts[0], turn.mT @ (rates * outer), 1e-14)
    open_, cut = torch.where(held, inner, 0.0), torch.where(held, 0.0, inner)
    formula = (open_.mT @ cut - torch.where(held, outer, 0.0).mT @ inner + outer[:, None] * open_.sum(0)) / 15
    near(found.turns[0], formula - formula.mT, 1e-14)


# The closed form.


def test_a_single_neuron_has_known_events():
    points, target = torch.tensor([[-2.0], [-1.0], [0.5], [1.0]]).double(), torch.tensor([3.0]).double()
    course = bias_flow(points, target, torch.tensor([0.0]).double()).courses[0]
    first, second = 2 * math.log(3 / 2.5), 4 / 3 * math.log(2.5 / 2)
    assert course.counts == (2, 3, 4)
    assert course.rates == (0.5, 0.75, 1.0)
    assert course.times == pytest.approx((0.0, first, first + second), rel=1e-14)
    assert course.at(0.1) == pytest.approx(-3 + 3 * math.exp(-0.05), rel=1e-14)
    late = first + second + 2.0
    assert course.at(late) == pytest.approx(-3 + 2 * math.exp(-2.0), rel=1e-14)
    assert (course.limit, course.end) == (-3.0, "node")


def test_one_cluster_collapses_onto_its_target():
    points, target, start = noise(50, 4), torch.full((4,), 4.0).double(), torch.full((4,), 0.2).double()
    flow = bias_flow(points, target, start)
    assert all(before < after for course in flow.courses for before, after in itertools.pairwise(course.rates))
    assert [course.rates for course in flow.courses] == [tuple(n / 50 for n in c.counts) for c in flow.courses]
    late = torch.tensor([flow.collapse_time, flow.collapse_time + 1.0, flow.collapse_time + 30.0])
    near(flow.fractions(late), 1.0, 0.0)
    near(flow.at(late)[1] + target, (flow.at(late)[0] + target) * math.exp(-1.0), 1e-6)  # times in float32
    image = aligned_map(points, flow.limit, torch.eye(4).double())
    near(image, target, 1e-15)
    assert float(collapse(image).diameters) < 1e-15
    assert len(flow.events) == int((points > -0.2).sum())


def test_two_clusters_merge_onto_the_mean_of_their_targets():
    points, clusters = 0.3 * noise(30, 2), (torch.arange(30) >= 20).long()
    targets = torch.tensor([[3.0, 4.0], [6.0, 2.0]]).double()
    turn = orthogonal(2, 4)
    start = torch.zeros(2).double()
    flow = bias_flow(points, targets @ turn, start, turn, clusters=clusters)
    near(flow.limit, -(2 * targets[0] + targets[1]) / 3 @ turn, 1e-14)
    for course in flow.courses:
        assert course.rates == tuple(count / 30 for count in course.counts)
    cut = truncated_fractions(([turn, turn], [turn @ start, start]), points, clusters)[0]
    near(flow.fractions([0.0])[0], cut.sum(0), 1e-15)
    slope = (flow.at([1e-6])[0] - flow.at([0.0])[0]) / 1e-6
    force = -(cut * (turn @ start + targets)).sum(0)  # −Σ_j (n_jk / N)(β̂_k + ŷ_jk)
    near(turn @ slope, force, 1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_clusters_that_are_not_separated(seed):
    points, clusters = noise(16, 3, seed=seed), torch.arange(16) % 2
    targets, start = 0.7 * noise(2, 3, seed=seed + 10), 0.3 * noise(3, seed=seed + 20)
    turn = orthogonal(3, seed + 30)
    times = [0.0, 0.3, 1.0, 3.0, 8.0]
    flow = bias_flow(points, targets, start, turn, clusters=clusters)
    path = effective_flow(points, targets, start, turn, clusters=clusters, times=times, turning=False)
    near(path.shifts[:, 0], flow.at(times), 1e-8 if path.slid == 0 else 1e-3)
    assert (path.slid > 0) == any(course.end == "kink" and course.times[-1] < 8 for course in flow.courses)
    rest = equilibria(points, targets, turn, clusters=clusters)
    for k, course in enumerate(flow.courses):
        here = [found for found in rest if found.coordinate == k]
        kind = [f.kind for f in here if abs(f.shift - course.limit) < 1e-12]
        assert course.end in kind or (course.end == "untruncated" and course.limit >= here[0].shift - 1e-12)


def test_a_kink_holds_where_one_more_point_would_push_back():
    points = torch.tensor([[0.0], [1.0], [1.0], [5.0]]).double()
    targets = torch.tensor([[2.0], [-9.0], [-9.0], [5.0]]).double()
    flow = bias_flow(points, targets, torch.tensor([-0.5]).double())
    (course,) = flow.courses
    assert (course.end, course.limit, course.counts) == ("kink", -1.0, (1, 3))
    assert course.times[1] == pytest.approx(4 * math.log(1.5))
    path = effective_flow(points, targets, torch.tensor([-0.5]).double(), times=[1.0, 4.0], turning=False)
    assert path.slid > 0
    near(path.shifts[:, 0], flow.at([1.0, 4.0]), 1e-3)
    kinds = [(found.shift, found.kind) for found in equilibria(points, targets)]
    assert (-1.0, "kink") in kinds
    back = bias_flow(points, targets, torch.tensor([-4.0]).double())  # from the other side
    assert (back.courses[0].end, back.limit.tolist()) == ("kink", [-1.0])
    freed = bias_flow(points, torch.tensor([-3.0]).double(), torch.tensor([-4.0]).double())
    assert (freed.courses[0].end, freed.limit.tolist(), freed.courses[0].counts) == ("untruncated", [0.0], (3, 1, 0))
    repelled = equilibria(points, torch.tensor([[0.5], [9.0], [9.0], [5.0]]).double())
    assert (-1.0, "repelling") in [(found.shift, found.kind) for found in repelled]


@pytest.mark.parametrize("seed", range(40))
def test_every_limit_is_an_equilibrium_with_ties_too(seed):
    generator = torch.Generator().manual_seed(seed)
    points, targets = (torch.randint(-2, 3, (4, 1), generator=generator).double() for _ in range(2))
    rest = equilibria(points, targets)
    for start in torch.linspace(-3.3, 3.3, 23).double():
        flow = bias_flow(points, targets, start.reshape(1))
        end, limit = flow.courses[0].end, float(flow.limit)
        attracting = [found.shift for found in rest if found.kind in ("node", "kink")]
        if end == "untruncated":
            assert limit >= rest[0].shift - 1e-12
        else:
            assert min(abs(shift - limit) for shift in attracting) < 1e-12


def test_a_rotation_in_float32_is_orthogonal_to_its_rounding():
    turn = orthogonal(4, 0)
    near(aligned_map(noise(5, 4), torch.zeros(4), turn.float()), aligned_map(noise(5, 4), torch.zeros(4), turn), 1e-6)


# Refusals.

I2, X2 = torch.eye(2), torch.ones(3, 2)
GOOD = ([I2, I2], [torch.zeros(2), torch.zeros(2)])


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: cumulative_parameters(nn.Linear(2, 2)), TypeError, "must be an nn.Sequential of Linear and ReLU"),
        (lambda: cumulative_parameters([I2]), TypeError, r"pair \(weights, biases\) of lists; got list"),
        (
            lambda: cumulative_parameters(nn.Sequential(nn.Linear(2, 2), nn.Tanh())),
            ValueError,
            "got Tanh at place 1, where ReLU is due",
        ),
        (lambda: cumulative_parameters(nn.Sequential(nn.Linear(2, 2))), ValueError, "must have a layer with a ReLU"),
        (lambda: cumulative_parameters(([I2, I2], [X2[0]])), ValueError, "2 weights and 1 biases"),
        (lambda: cumulative_parameters(([X2[0], I2], [X2[0], X2[0]])), ValueError, "Layer 1 must have a weight of two"),
        (
            lambda: cumulative_parameters(([I2, torch.eye(3)], [torch.zeros(2), torch.zeros(3)])),
            ValueError,
            r"weight of layer 2 must have shape \(3, 2\)",
        ),
        (
            lambda: cumulative_parameters(([I2 * math.nan, I2], GOOD[1])),
            ValueError,
            "`weight of layer 1` must be finite; got NaN",
        ),
        (lambda: cumulative_parameters(([I2.long(), I2], GOOD[1])), TypeError, "`weight 1` must hold floating-point"),
        (lambda: cumulative_parameters(nn.Sequential(nn.Linear(2, 2), nn.ReLU())).gram, ValueError, "has no read-out"),
        (lambda: input_targets(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), X2), ValueError, "has no read-out"),
        (lambda: input_targets(GOOD, X2[0]), ValueError, r"`targets` must have shape \(J, 2\)"),
        (lambda: truncation_map(X2, I2, torch.zeros(3)), ValueError, r"`weight` must have shape \(M, Q\)"),
        (
            lambda: truncation_map(torch.ones(3, 4), I2, torch.zeros(2)),
            ValueError,
            r"`points` must have shape \(N, 2\)",
        ),
        (lambda: truncated_data(GOOD, X2 * math.inf), ValueError, "`points` must be finite; got inf at point 0"),
        (lambda: truncated_data(GOOD, X2.int()), TypeError, "`points` must hold floating-point numbers"),
        (lambda: truncated_fractions(GOOD, X2, torch.zeros(3)), TypeError, "`clusters` must be a tensor of whole numb"),
        (
            lambda: truncated_fractions(GOOD, X2, torch.tensor([0, -1, 0])),
            ValueError,
            "of each of the 3 points' cluster",
        ),
        (lambda: collapse(X2, torch.tensor([0, 2, 2])), ValueError, r"without gaps; got none of \[1\]"),
        (lambda: aligned_frame(torch.ones(2, 3)), ValueError, r"`weight` must be square; got shape \(2, 3\)"),
        (lambda: aligned_frame(torch.zeros(2, 2)), ValueError, "must have no row of zeros; got one at 0"),
        (lambda: bias_flow(X2, X2[0], torch.zeros(3)), ValueError, r"`shift` must have shape \(2,\)"),
        (lambda: bias_flow(X2, X2[:2], torch.zeros(2)), ValueError, "With one for each cluster, give `clusters`"),
        (
            lambda: bias_flow(X2, X2[:1], torch.zeros(2), clusters=torch.tensor([0, 1, 1])),
            ValueError,
            r"`targets` must have shape \(2, 2\), one for each cluster",
        ),
        (
            lambda: bias_flow(X2, X2[0], torch.zeros(2), 2 * I2),
            ValueError,
            "`rotation` must be orthogonal; R Rᵀ misses",
        ),
        (
            lambda: bias_flow(X2, X2[0], torch.zeros(2), torch.eye(3)),
            ValueError,
            r"`rotation` must have shape \(2, 2\)",
        ),
        (
            lambda: bias_flow(X2, X2[0], torch.zeros(2), scales=-X2[0]),
            ValueError,
            "`scales` must be 2 positive numbers",
        ),
        (lambda: bias_flow(X2, X2[0], X2[0]).at([-1.0]), ValueError, "`times` must be at least 0 and finite; got -1.0"),
        (lambda: bias_flow(X2, X2[0], X2[0]).at([math.inf]), ValueError, "got inf. At infinity there is `limit`"),
        (lambda: aligned_map(X2, torch.zeros(1), I2), ValueError, r"`shift` must have shape \(2,\)"),
        (lambda: aligned_map(X2, X2[0], 2 * I2), ValueError, "`rotation` must be orthogonal; R Rᵀ misses I by 3"),
        (lambda: effective_gradient(X2, X2[0], torch.zeros(3)), ValueError, r"`shifts` must have shape \(L, 2\)"),
        (
            lambda: effective_gradient(X2, X2[0], torch.zeros(2), torch.stack([I2, I2])),
            ValueError,
            "`rotations` must be R of each of the 1 layers; got 2",
        ),
        (
            lambda: effective_gradient(X2, X2[0], torch.zeros(2), metric=torch.tensor([[1.0, 2.0], [0.0, 1.0]])),
            ValueError,
            "`metric` must be symmetric",
        ),
        (
            lambda: effective_flow(X2, X2[0], torch.zeros(2), times=[1.0, 0.5]),
            ValueError,
            "`times` must be finite numbers that rise",
        ),
        (
            lambda: effective_flow(X2, X2[0], torch.zeros(2), times=[1.0], step=0.0),
            ValueError,
            "`step` must be a positive number",
        ),
        (
            lambda: network_flow(([X2, X2.mT], [torch.zeros(3), torch.zeros(2)]), X2, X2[0], times=[1.0]),
            ValueError,
            r"square, invertible cumulative weights; got shapes \(3, 2\) of ranks \(1,\)",
        ),
        (lambda: network_flow(GOOD, X2, X2[0], times=[1.0], cost="l1"), ValueError, "`cost` must be one of"),
        (lambda: network_flow(GOOD, X2, X2[0], times=[1.0], learn="none"), ValueError, "`learn` must be one of"),
        (
            lambda: network_flow(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), X2, X2[0], times=[1.0], cost="standard"),
            ValueError,
            '`cost` "standard" is that of outputs',
        ),
    ],
)
def test_what_is_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_the_names_are_where_the_design_has_them():
    assert kp.flow.truncation.truncation_map is truncation_map
    assert kp.flow.truncation.effective_flow is effective_flow
