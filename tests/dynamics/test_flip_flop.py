"""All fixed points of a trained network: a GRU that holds three bits.

`data/flip_flop_gru32.safetensors` holds what `benchmarks.fixed_points.trained(0)` trained, with the read-out.
"""

from pathlib import Path

import pytest
import torch
from torch import nn

import kpflow as kp
from kpflow.dynamics import FixedPoints, IndexVerdict, Status, Stop, find_fixed_points, seeds_from

load_file = pytest.importorskip("safetensors.torch").load_file


@pytest.fixture(scope="module")
def points() -> FixedPoints:
    """From 1024 states and mixes of states."""
    weights = load_file(Path(__file__).parent / "data" / "flip_flop_gru32.safetensors")
    network = nn.GRU(3, 32, batch_first=True).requires_grad_(False)
    network.load_state_dict({name: value for name, value in weights.items() if not name.startswith("readout")})
    readout = nn.Linear(32, 3).requires_grad_(False)
    readout.load_state_dict({name: weights[f"readout.{name}"] for name in ("weight", "bias")})
    task = kp.tasks.FlipFlop(K=3, steps=80, p=0.2, first="pulse", sigma=0.1)
    trials = task.sample(64, generator=torch.Generator().manual_seed(5))
    states = network(trials.inputs.float())[0]
    return find_fixed_points(network, torch.zeros(3), seeds_from(states, 1024), readout=readout)


def test_all_points_of_a_trained_network(points: FixedPoints) -> None:
    """As many as the benchmark finds from 8192 seeds."""
    assert len(points.states) == 27
    assert (points.index_sum, points.index_verdict) == (1, IndexVerdict.CONSISTENT)
    assert points.unstable.bincount().tolist() == [8, 12, 6, 1]  # corners, edges, faces and the middle of a cube
    assert "repeller" not in points.kinds  # three of 32 directions grow in the middle
    assert points.stopped is Stop.COMPLETE
    assert set(points.status) == {Status.ROOT}
    assert bool(points.certified.all())
    assert float(points.residual.max()) < 1e-11


def test_the_stable_points_hold_the_bits(points: FixedPoints) -> None:
    assert points.outputs is not None
    corners = points.outputs[points.unstable == 0]
    assert sorted(corners.sign().tolist()) == [[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]
    assert float((corners.abs() - 1).abs().max()) < 0.2
