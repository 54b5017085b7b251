"""Seeds: states, mixes and noise."""

import math
from typing import Any

import pytest
import torch

from helpers import close, randn
from kpflow.dynamics import seeds_from

EXACT = "donot_use_mm_for_euclid_dist"


def test_states_are_drawn_once_each():
    states = randn(4, 5, 3, seed=0)
    seeds = seeds_from(states, 20, mix=0.0)
    distances = torch.cdist(seeds, states.flatten(0, 1), compute_mode=EXACT)
    assert sorted(distances.argmin(dim=1).tolist()) == list(range(20))
    assert float(distances.amin(dim=1).max()) == 0
    assert len(seeds_from(states, 47, mix=0.0).unique(dim=0)) == 20  # then again


def test_mixes_are_convex_and_of_few_states():
    seeds = seeds_from(torch.eye(40, dtype=torch.float64), 400, mix=1.0)  # a mix of unit vectors is its weights
    assert float(seeds.min()) >= 0
    close(seeds.sum(dim=1), torch.ones(400).double())
    counts = (seeds > 0).sum(dim=1)
    assert int(counts.max()) == 6
    assert int(counts.min()) >= 1  # the same state may come twice
    assert {2, 3, 4, 5, 6} <= {*counts.tolist()}


def test_weights_are_uniform_on_the_simplex():
    corners = torch.eye(200, dtype=torch.float64)
    seeds = seeds_from(corners, 20000, mix=1.0)
    two = seeds[(seeds > 0).sum(dim=1) == 2]
    weight = two.max(dim=1).values  # the larger of (w, 1 − w), w uniform: uniform on [½, 1], mean ¾, variance 1/48
    error = float(weight.mean()) - 0.75
    assert abs(error) < 4 * math.sqrt(1 / 48 / len(weight))
    assert abs(float(weight.var()) - 1 / 48) < 0.1 / 48


def test_mix_is_a_fraction_and_noise_is_in_units_of_each_unit():
    states = randn(1000, 2, seed=1) * torch.tensor([1.0, 100.0]).double()
    plain = seeds_from(states, 600, mix=0.25)
    inside = (torch.cdist(plain, states, compute_mode=EXACT) == 0).any(dim=1)
    assert inside[:450].all()
    assert not inside[450:].any()
    moved = seeds_from(states, 600, mix=0.25, noise=0.1) - plain
    expected = 0.1 * states.std(dim=0, correction=0)
    assert ((moved.std(dim=0) / expected - 1).abs() < 4 / math.sqrt(2 * 600)).all()


def test_the_generator_decides():
    states = randn(30, 2, seed=0)
    before = torch.random.get_rng_state()
    close(seeds_from(states, 9, noise=0.1), seeds_from(states, 9, noise=0.1))
    other = seeds_from(states, 9, noise=0.1, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(other, seeds_from(states, 9, noise=0.1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert seeds_from(states.float(), 3).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"trajectories": [1.0]}, TypeError, "`trajectories` must be a torch.Tensor; got list"),
        ({"trajectories": torch.ones(3)}, ValueError, r"`trajectories` must hold at least one state.*got \(3,\)"),
        ({"trajectories": torch.ones(0, 3)}, ValueError, r"`trajectories` must hold at least one state.*\(0, 3\)"),
        ({"trajectories": torch.full((2, 3), math.nan)}, ValueError, "`trajectories` must be finite; got NaN"),
        ({"n": 0}, ValueError, "`n` must be a positive whole number; got 0"),
        ({"noise": -1.0}, ValueError, "`noise` must be a number at least 0; got -1.0"),
        ({"mix": 1.5}, ValueError, "`mix` must be a number between 0 and 1; got 1.5"),
    ],
)
def test_messages(arguments: dict[str, Any], error: Any, message):
    given = {"trajectories": torch.ones(4, 2), "n": 3} | arguments
    trajectories, n = given.pop("trajectories"), given.pop("n")
    with pytest.raises(error, match=message):
        seeds_from(trajectories, n, **given)
