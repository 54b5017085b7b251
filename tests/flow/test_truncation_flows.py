"""Effective flows of ReLU networks beside the flow of their weights, and the integration of both."""

import math
from typing import Any

import pytest
import torch

from kpflow.flow.switched import switched_flow
from kpflow.flow.truncation import (
    aligned_frame,
    aligned_map,
    bias_flow,
    collapse,
    cumulative_parameters,
    effective_flow,
    effective_gradient,
    input_targets,
    network_flow,
    truncated_data,
)
from truncation_cases import forward, near, network, noise, orthogonal


@pytest.mark.parametrize("scaled", [False, True])
def test_the_flow_of_the_biases_is_the_effective_flow_where_weights_are_aligned(scaled):
    turn, points, start = orthogonal(4, 1), noise(12, 4, seed=2), 0.2 * noise(4, seed=3)
    target = (4 + 0.2 * noise(4, seed=4)) @ turn
    scales = 0.5 + noise(4, seed=5).sigmoid() if scaled else torch.ones(4).double()
    layers = ([scales[:, None] * turn, turn.mT], [scales * (turn @ start), torch.zeros(4).double()])
    times = [0.0, 0.4, 1.0, 2.0, 4.0]
    flow = bias_flow(points, target, start, turn, scales=scales if scaled else None)
    path = network_flow(layers, points, target, times=times)
    near(path.shifts[:, 0], flow.at(times), 1e-8)  # asked for: 1e-6
    before = [event for event in flow.events if event < 4.0]
    assert path.events == pytest.approx(before, abs=1e-8)
    assert float(path.misalignment.max()) < 1e-14
    if scaled:
        assert float((path.shifts[:, 0] - bias_flow(points, target, start, turn).at(times)).abs().max()) > 0.1


def test_the_flow_deviates_where_weights_are_not_aligned_or_learn():
    turn, points, start = orthogonal(3, 1), noise(10, 3, seed=2), 0.2 * noise(3, seed=3)
    target, times = torch.full((3,), 3.0).double() @ turn, [0.0, 0.25, 0.5]
    exact = bias_flow(points, target, start, turn).at(times)
    oblique = turn + 0.2 * noise(3, 3, seed=6)
    held = network_flow(([oblique, oblique], [oblique @ start, start]), points, target, times=times)
    assert float(held.misalignment.min()) > 0.05
    frame = aligned_frame(oblique)
    nearest = bias_flow(points, target, start, frame.rotation, scales=frame.scales).at(times)
    assert 0.01 < float((held.shifts[:, 0] - nearest).abs().max()) < 1.0
    learnt = network_flow(([turn, turn], [turn @ start, start]), points, target, times=times, learn="all")
    assert float(learnt.misalignment[0, 0]) < 1e-14
    assert float(learnt.misalignment[-1, 0]) > 0.05
    assert float((learnt.shifts[:, 0] - exact).abs().max()) > 0.05
    assert bool((learnt.costs.diff() < 0).all())


def test_frames_turn_along_the_gradient_on_the_orthogonal_group():
    turn, points, start = orthogonal(3, 1), noise(10, 3, seed=2), 0.2 * noise(3, seed=3)
    target, times = torch.tensor([3.0, 2.0, 4.0]).double() @ turn, [0.0, 0.5, 1.0, 2.0]
    path = effective_flow(points, target, start, turn, times=times)
    identity = path.rotations @ path.rotations.mT
    near(identity, torch.eye(3), 1e-13)
    assert bool((path.costs.diff() < 0).all())
    assert float(path.misalignment[0, 0]) < 1e-7
    assert bool((path.misalignment[:, 0].diff() > 0).all())
    quick = effective_flow(points, target, start, turn, times=[1e-5])
    gradient = effective_gradient(points, target, start, turn)
    near((quick.rotations[0, 0] @ turn.mT - torch.eye(3)) / 1e-5, -gradient.turns[0], 1e-3)
    size = gradient.turns[0].norm() / math.sqrt(3)
    assert float(quick.misalignment) == pytest.approx(1e-5 * float(size), rel=1e-3)


def test_a_flow_along_kinks_of_the_cost_goes_down():
    points, clusters, targets = noise(10, 3, seed=11), torch.arange(10) % 2, noise(2, 3, seed=12)
    turn, start, times = orthogonal(3, 13), 0.5 * noise(3, seed=14), [0.0, 0.5, 1.0, 2.0]

    def at(step: float) -> Any:
        return effective_flow(points, targets, start, turn, clusters=clusters, times=times, step=step)

    rough, fine = at(0.1), at(0.02)
    assert rough.slid > 0
    assert bool((rough.costs.diff() < 0).all())
    near(rough.shifts, fine.shifts, 1e-3)
    near(rough.rotations, fine.rotations, 1e-3)


def test_a_layer_for_each_cluster_takes_each_to_its_own_target():
    """Layer 1 looks along +1, layer 2 along −1: each cuts one cluster off and lets the other one be."""
    turns = torch.stack([torch.eye(2), -torch.eye(2)]).double()
    points = torch.cat([0.2 * noise(6, 2) - 3.0, 0.2 * noise(9, 2, seed=1) + 3.0])
    clusters = (torch.arange(15) >= 6).long()
    targets = torch.tensor([[-2.0, -1.0], [1.5, 2.0]]).double()
    starts = torch.tensor([[3.0, 3.0], [-3.0, -3.0]]).double()
    cut = effective_gradient(points[6:], torch.tensor([9.0, 9.0]).double(), starts[0], turns[0])
    assert float(cut.shifts.abs().max()) == 0.0  # of the other cluster, exactly
    times = [0.0, 0.5, 2.0, 60.0]
    path = effective_flow(points, targets, starts, turns, clusters=clusters, times=times, turning=False)
    for layer, turn in enumerate(turns):
        flow = bias_flow(points, targets, starts[layer], turn, clusters=clusters)
        near(path.shifts[:, layer], flow.at(times), 1e-8)
        share = float((clusters == layer).double().mean())
        assert [course.rates[-1] for course in flow.courses] == pytest.approx([share, share])
    both = aligned_map(aligned_map(points, path.shifts[-1, 0], turns[0]), path.shifts[-1, 1], turns[1])
    near(both, targets[clusters], 1e-8)
    assert path.costs[-1] < 1e-16
    assert collapse(both, clusters).ratio < 1e-16


def test_the_standard_cost_decays_at_the_spectral_gap():
    layers = network([3, 3, 3], seed=11)
    layers[0][0] = orthogonal(3, 11)
    total, points = cumulative_parameters(layers), 0.2 * noise(8, 3, seed=12)
    corner = torch.tensor([1.0, 1.0, 1.0]).double() @ layers[0][0]
    start, goal = -2 * corner, 3 * corner  # all points are cut off, and stay so
    outputs = goal[None] @ total.weights[1].mT + total.biases[1]
    target = input_targets(layers, outputs)[0]
    times = [0.0, 1.0, 2.0]
    path = effective_flow(points, target, start, layers[0][0], metric=total.gram, times=times, turning=False)
    decay = torch.stack([torch.linalg.matrix_exp(-total.gram * time) for time in times])
    near(path.shifts[:, 0] + target, decay @ (start + target), 1e-8)
    sizes = (path.shifts[:, 0] + target).norm(dim=1)
    assert bool((sizes <= sizes[0] * torch.exp(-total.gap * path.times) + 1e-12).all())


def test_a_network_whose_points_are_all_cut_off_does_not_learn_its_biases():
    """The effective flow holds b^(L+1) = W_(L+1) b^(L) + b_(L+1), and training b_L does not: they are opposed here."""
    layers, points = network([3, 3, 3], seed=11), noise(8, 3)
    layers[0][0], layers[1][0] = orthogonal(3, 11), torch.full((3,), -9.0).double()
    path = network_flow(layers, points, noise(3, seed=1), cost="standard", times=[0.0, 1.0])
    near(path.costs[1], path.costs[0], 0.0)
    near(path.shifts[1], path.shifts[0], 0.0)
    total, target = cumulative_parameters(layers), input_targets(layers, noise(1, 3, seed=1))[0]
    effective = effective_gradient(points, target, total.shifts[0], layers[0][0], metric=total.gram)
    assert float(effective.shifts.norm()) > 0.5


def test_the_standard_cost_is_that_of_the_outputs():
    layers, points = network([3, 3, 3, 2], seed=21), noise(9, 3, seed=22)
    outputs, clusters = noise(2, 2, seed=23), torch.arange(9) % 2
    path = network_flow(layers, points, outputs, clusters=clusters, cost="standard", times=[0.0, 0.1])
    miss = forward(layers, points)[-1] - outputs[clusters]
    assert float(path.costs[0]) == pytest.approx(0.5 * float(miss.square().sum()) / 9, rel=1e-13)
    total, data = cumulative_parameters(layers), truncated_data(layers, points)
    rest = data.points[-1] @ total.weights[-1].mT + total.biases[-1] - outputs[clusters]
    assert float(path.costs[0]) == pytest.approx(0.5 * float(rest.square().sum()) / 9, rel=1e-12)
    near(path.shifts[0], total.shifts, 1e-14)
    near(path.weights[2][1], layers[0][2], 0.0)
    euclidean = network_flow(layers, points, noise(3), times=[0.0])
    assert float(euclidean.costs[0]) == pytest.approx(
        0.5 * float((data.points[-1] - noise(3)).square().sum()) / 9, rel=1e-12
    )


def test_a_switched_flow_finds_its_switches_and_its_singularity():
    one = torch.ones(1, dtype=torch.float64)
    same = lambda state: state  # noqa: E731
    path = switched_flow(
        lambda y, held: torch.where(held > 0.5, -y, -3 * y), lambda y, _: y - 0.5, one, one > 0, [2.0], 0.1, 1e-10, same
    )
    assert path.events == pytest.approx((math.log(2),), abs=1e-9)
    assert float(path.states[0, 0]) == pytest.approx(0.5 * math.exp(-3 * (2 - math.log(2))), rel=1e-7)
    with pytest.raises(ValueError, match="comes to a singularity at time 1, where a weight is not invertible"):
        switched_flow(lambda y, _: y * y, lambda y, _: y, one, one > 0, [2.0], 0.1, 1e-10, same)
