"""Cycles against closed forms of the logistic and the Hénon map and of tanh networks; statuses; messages."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn

from helpers import close, randn
from kpflow.dynamics import CycleStatus, detect_periods, find_cycles, find_fixed_points
from kpflow.dynamics.monodromy import monodromy, multipliers
from kpflow.states.cells import RateRNN

NONE = torch.zeros(1)
UNIT = torch.linspace(0.02, 0.98, 49)[:, None]
QUARTER = torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double()


def logistic(r):
    return lambda h, x: r * h * (1 - h) + 0 * x


def of_logistic(r, period, **more):
    return find_cycles(logistic(r), NONE, UNIT, period, **more)


def tanh_root(w):
    """x > 0 with x = tanh(w x)."""
    return brentq(lambda h: math.tanh(w * h) - h, 1e-3, 1, xtol=1e-16)


@pytest.mark.parametrize("r", [3.01, 3.2, 1 + math.sqrt(6), 3.9])
def test_two_cycle_of_the_logistic_map(r):
    cycles = of_logistic(r, 2)
    assert len(cycles.states) == 1
    half = math.sqrt((r - 3) * (r + 1))
    np.testing.assert_allclose(cycles.states[0, :, 0], [(r + 1 - half) / (2 * r), (r + 1 + half) / (2 * r)], atol=1e-14)
    assert cycles.multipliers[0, 0].real.item() == pytest.approx(4 + 2 * r - r**2, abs=1e-12)
    assert {*cycles.status} == {CycleStatus.CYCLE, CycleStatus.SHORTER}


def test_two_cycle_is_born_at_three():
    assert len(of_logistic(2.999, 2).states) == 0
    born = of_logistic(3.0001, 2)
    assert len(born.states) == 1
    assert float((born.states[0, 0] - born.states[0, 1]).abs()) == pytest.approx(math.sqrt(0.0001 * 4.0001) / 3.0001)


def test_four_cycle_is_born_at_one_plus_root_six():
    before, after = of_logistic(1 + math.sqrt(6) - 1e-3, 4), of_logistic(1 + math.sqrt(6) + 1e-3, 4)
    assert len(before.states) == 0
    assert {1, 2} <= {*before.period.tolist()} <= {0, 1, 2}
    assert after.kinds == ("stable",)
    assert 0.9 < after.multipliers[0, 0].real.item() < 1  # 1 at the flip of the 2-cycle, which has −1 there
    assert of_logistic(1 + math.sqrt(6), 2).multipliers[0, 0].real.item() == pytest.approx(-1, abs=1e-12)


def test_three_cycles_come_in_a_fold_at_one_plus_root_eight():
    before, after = of_logistic(1 + math.sqrt(8) - 1e-3, 3), of_logistic(1 + math.sqrt(8) + 1e-3, 3)
    assert len(before.states) == 0
    assert {*before.status} == {CycleStatus.SHORTER, CycleStatus.SLOW}
    assert after.kinds == ("stable", "repeller")
    near = of_logistic(1 + math.sqrt(8) + 1e-6, 3).multipliers[:, 0].real
    assert float(near[0]) < 1 < float(near[1])
    assert float(near.sum()) == pytest.approx(2, abs=1e-3)  # 1 ∓ √ on both sides of a fold


@pytest.mark.parametrize(("period", "count"), [(1, 2), (2, 1), (3, 2), (4, 3), (5, 6), (6, 9)])
def test_all_cycles_of_the_logistic_map_at_four(period, count):
    """Of sin²(2ⁿ φ): as many as there are necklaces of 0 and 1, each with μ = ±2ᵖ but for the fixed point 0 with 4."""
    cycles = find_cycles(logistic(4.0), NONE, torch.linspace(0, 1, 200)[:, None], period)
    assert len(cycles.states) == count
    sizes = cycles.multipliers[:, 0].abs().sort().values
    expected = [2.0, 4.0] if period == 1 else [2.0**period] * count
    np.testing.assert_allclose(sizes, expected, rtol=1e-11)
    for one in cycles.states:
        np.testing.assert_allclose(4 * one * (1 - one), one.roll(-1, 0), atol=1e-14)


def test_flip_of_the_henon_map():
    b = 0.3

    def henon(a):
        return lambda h, x: torch.stack([1 - a * h[:, 0] ** 2 + h[:, 1], b * h[:, 0]], dim=1) + 0 * x

    seeds = randn(60, 2, seed=0)
    assert len(find_cycles(henon(0.3665), NONE, seeds, 2).states) == 0
    for a in (0.3685, 0.4, 0.9):
        cycles = find_cycles(henon(a), NONE, seeds, 2)
        assert len(cycles.states) == 1
        roots = np.sort(np.roots([a**2, -a * (1 - b), (1 - b) ** 2 - a]))
        np.testing.assert_allclose(cycles.states[0, :, 0], roots, atol=1e-13)
        assert complex(cycles.multipliers[0].prod()).real == pytest.approx(b**2, rel=1e-12)
        trace = 4 * a**2 * roots.prod() + 2 * b
        assert complex(cycles.multipliers[0].sum()).real == pytest.approx(trace, rel=1e-11)


@pytest.mark.parametrize("n", [1, 3])
def test_alternating_tanh_network(n):
    w, x = 2.0, tanh_root(2.0)
    cycles = find_cycles(lambda h, u: torch.tanh(-w * h) + 0 * u, torch.zeros(n), torch.full((1, n), 0.4), 2)
    close(cycles.states[0, 0], torch.full((n,), -x, dtype=torch.float64))
    close(cycles.states[0, 1], torch.full((n,), x, dtype=torch.float64))
    np.testing.assert_allclose(cycles.multipliers[0].real, (w * (1 - x**2)) ** 2, rtol=1e-12)
    assert cycles.kinds == ("stable",)


def turning(w):
    return lambda h, x: torch.tanh(w * h @ QUARTER.mT) + 0 * x


def test_network_that_turns_by_a_right_angle():
    w, x = 1.5, tanh_root(1.5)
    cycles = find_cycles(turning(w), torch.zeros(2), randn(100, 2, seed=0), 4)
    assert cycles.kinds == ("stable", "saddle-1")  # of (x, x) and of (x, 0)
    slope = w * (1 - x**2)
    np.testing.assert_allclose(cycles.states[0].abs(), x, atol=1e-13)
    np.testing.assert_allclose(cycles.multipliers[0].real, slope**4, rtol=1e-11)
    np.testing.assert_allclose(cycles.multipliers[1].real, [w**4, slope**4], rtol=1e-11)
    assert cycles.unstable.tolist() == [0, 1]
    np.testing.assert_allclose(cycles.timescales[0], -4 / math.log(slope**4), rtol=1e-10)
    assert repr(cycles).startswith("Cycles(2 of period 4: 1 stable, 1 saddle-1; seeds: ")


def test_the_same_cycle_from_every_phase_is_one():
    x = tanh_root(1.5)
    corners = x * torch.tensor([[1.0, 1], [-1, 1], [-1, -1], [1, -1]])
    cycles = find_cycles(turning(1.5), torch.zeros(2), corners, 4)
    assert len(cycles.states) == 1
    assert cycles.cycle.tolist() == [0, 0, 0, 0]


def test_shorter_cycles_are_named_but_not_listed():
    x = tanh_root(2.0)
    seeds = torch.tensor([[0.0], [x]])
    cycles = find_cycles(lambda h, u: torch.tanh(-2 * h) + 0 * u, NONE, seeds, 4)
    assert cycles.states.shape == (0, 4, 1)
    assert cycles.status == (CycleStatus.SHORTER,) * 2
    assert cycles.period.tolist() == [1, 2]
    assert cycles.cycle.tolist() == [-1, -1]


def test_period_one_gives_the_fixed_points():
    cell, x, seeds = nn.GRUCell(2, 5), torch.ones(2), randn(30, 5, seed=0)
    with torch.no_grad():
        for value in cell.parameters():
            value.copy_(2 * randn(*value.shape, seed=value.numel()))
    points, cycles = find_fixed_points(cell, x, seeds), find_cycles(cell, x, seeds, 1)
    assert len(points.states) == len(cycles.states) > 0
    gaps = torch.cdist(points.states, cycles.states[:, 0])
    assert float(gaps.amin(0).max()) < 1e-10


def test_cycles_of_a_module_with_their_eigenvectors():
    rnn = RateRNN(1, 6, alpha=0.7, gain=3.0, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        rnn.weight_hh.sub_(2 * torch.eye(6))
    cycles = find_cycles(rnn, torch.zeros(1), randn(60, 6, seed=1), 2)
    assert len(cycles.states) >= 1
    w = rnn.weight_hh.detach().double()
    for i, states in enumerate(cycles.states):
        moved = 0.3 * states + 0.7 * torch.tanh(states) @ w.mT
        np.testing.assert_allclose(moved, states.roll(-1, 0), atol=1e-11)
        close(cycles.jacobians[i, 0], 0.3 * torch.eye(6).double() + 0.7 * w * (1 - torch.tanh(states[0]) ** 2))
        for j in range(2):
            product = (cycles.jacobians[i, 1 - j] @ cycles.jacobians[i, j]).to(torch.complex128)
            v, u, mu = cycles.right[i, j], cycles.left[i, j], cycles.multipliers[i]
            np.testing.assert_allclose(product @ v, v * mu, atol=1e-10)
            np.testing.assert_allclose(u.mT @ product, mu[:, None] * u.mT, atol=1e-9)
            np.testing.assert_allclose(u.mT @ v, np.eye(6), atol=1e-10)


def test_small_multipliers_of_a_long_product():
    """J_j = S_{j+1} D_j S_j⁻¹ has the multipliers Π D_j: 1e-40 beside 1, where the product has no digit."""
    period, ratios = 20, torch.tensor([1.0, -0.1, 0.01], dtype=torch.float64)
    frames = torch.linalg.qr(randn(period, 3, 3, seed=0))[0] + 0.2 * randn(period, 3, 3, seed=1)
    jacobians = torch.stack([frames[(j + 1) % period] * ratios @ torch.linalg.inv(frames[j]) for j in range(period)])
    found = multipliers(jacobians[None])[0]
    np.testing.assert_allclose(found.real, [1, 1e-20, 1e-40], rtol=1e-11)
    assert (found.imag == 0).all()
    naive = torch.linalg.eigvals(torch.linalg.multi_dot(list(jacobians.flip(0)))).abs().sort().values
    assert float(naive[0]) > 1e3 * 1e-40


def test_multipliers_of_random_products():
    for seed, (period, size) in enumerate([(1, 4), (2, 5), (3, 4), (5, 2)]):
        jacobians = randn(2, period, size, size, seed=seed)
        product = jacobians[:, 0]
        for j in range(1, period):
            product = jacobians[:, j] @ product
        eigen = monodromy(jacobians)
        expected = torch.linalg.eigvals(product)
        for got, wanted in zip(eigen.multipliers, expected, strict=True):
            gaps = (got[:, None] - wanted[None]).abs()
            assert float(gaps.amin(0).max()) < 1e-11 * float(wanted.abs().max())
            assert float(gaps.amin(1).max()) < 1e-11 * float(wanted.abs().max())
        assert (eigen.multipliers.abs().diff(dim=1) <= 1e-12).all()


def test_singular_jacobians_leave_everything_finite():
    step = lambda h, x: torch.stack([3.2 * h[:, 0] * (1 - h[:, 0]), 0 * h[:, 1]], 1) + 0 * x  # noqa: E731
    cycles = find_cycles(step, NONE, torch.tensor([[0.3, 0.0]]), 2)
    assert cycles.multipliers[0, 1] == 0
    assert torch.isfinite(torch.view_as_real(cycles.left)).all()
    assert torch.isfinite(torch.view_as_real(cycles.right)).all()


def test_guesses_of_all_phases():
    guesses = torch.tensor([[[0.5], [0.8]], [[0.8], [0.5]], [[0.69], [0.69]]])
    cycles = find_cycles(logistic(3.2), NONE, guesses, 2)
    assert cycles.cycle.tolist() == [0, 0, -1]
    assert cycles.period.tolist() == [2, 2, 1]
    for one in guesses[:2]:
        states = find_cycles(logistic(3.2), NONE, one[None], 2).states[0, :, 0]
        assert states.tolist() == sorted(states.tolist())  # the smallest first, from every phase


def test_periods_are_detected():
    found = [
        detect_periods(logistic(r), NONE, torch.tensor([[0.3]])).period.item() for r in (2.8, 3.2, 3.5, 3.55, 3.83)
    ]
    assert found == [1, 2, 4, 8, 3]
    chaos = detect_periods(logistic(4.0), NONE, torch.tensor([[0.3]]))
    assert (chaos.period.item(), chaos.gap.item() > 1e-3) == (0, True)
    lost = detect_periods(logistic(4.0), NONE, torch.tensor([[2.0], [0.75]]), 3, transient=30)
    assert lost.period.tolist() == [0, 1]
    assert torch.isfinite(lost.states).all()
    assert math.isinf(lost.gap[0])
    assert detect_periods(logistic(3.5), NONE, torch.tensor([[0.3]]), 3).period.item() == 0
    turns = detect_periods(turning(1.5), torch.zeros(2), randn(5, 2, seed=0))
    assert turns.period.tolist() == [4] * 5
    cycles = find_cycles(turning(1.5), torch.zeros(2), turns.states, 4)
    assert cycles.kinds == ("stable",)


def test_ends_of_searches():
    lost = find_cycles(lambda h, x: torch.exp(3 * h) + 1 + x, NONE, torch.tensor([[0.0], [500.0]]), 2, descent=0)
    assert CycleStatus.DIVERGED in lost.status
    assert "cycle" not in lost.status
    short = find_cycles(lambda h, x: h**5 + x, NONE, torch.full((1, 1), 3.0), 2, descent=0, iterations=2)
    assert short.status == (CycleStatus.MAXITER,)
    late = of_logistic(3.9, 6, time_limit=1e-9)
    assert CycleStatus.TIMEOUT in late.status
    assert "maxiter" not in late.status
    assert of_logistic(3.2, 2, time_limit=60.0).kinds == ("stable",)


def test_searches_in_pieces_agree(monkeypatch):
    whole = of_logistic(3.9, 4)
    monkeypatch.setattr("kpflow.dynamics.cycles.PIECE_ENTRIES", 5 * 16)
    pieces = of_logistic(3.9, 4)
    assert pieces.status == whole.status
    close(pieces.states, whole.states)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"inputs": torch.zeros(5, 1)},
            r"`inputs` must be one static input, shape \(I,\); got \(5, 1\). Cycles belong",
        ),
        ({"inputs": torch.tensor([math.nan])}, "`inputs` must be finite; got NaN at input 0"),
        ({"seeds": torch.ones(1)}, r"`seeds` must be states.*\(n, H\), or of all phases.*got \(1,\)"),
        ({"seeds": torch.ones(0, 1)}, r"`seeds` must be states to start from.*got \(0, 1\)"),
        (
            {"seeds": torch.ones(4, 3, 1)},
            r"`seeds` of shape \(n, phases, H\) must have as many phases as `period`, 2; g",
        ),
        ({"seeds": torch.full((1, 1), math.inf)}, "`seeds` must be finite; got inf at seed 0, unit 0.*Leave such"),
        ({"seeds": torch.full((1, 2, 1), math.inf)}, "`seeds` must be finite; got inf at seed 0, phase 0, unit 0"),
        ({"inputs": torch.zeros(1, device="meta")}, "`inputs` must be on the device of `seeds`, cpu; got meta"),
        ({"period": 0}, "`period` must be a positive whole number; got 0"),
        ({"tolerance": 0.0}, "`tolerance` must be a positive number; got 0.0"),
        ({"descent": -1}, "`descent` must be a whole number at least 0; got -1"),
        ({"iterations": -1}, "`iterations` must be a whole number at least 0"),
        ({"merge": -1.0}, "`merge` must be a number at least 0"),
        ({"marginal": -1.0}, "`marginal` must be a number at least 0"),
        ({"dt": 0.0}, "`dt` must be a positive number"),
        ({"time_limit": 0.0}, "`time_limit` must be a positive number; got 0.0"),
        ({"step": lambda h, x: h.detach()}, "`step` must be differentiable in h"),
    ],
)
def test_messages(arguments: dict[str, Any], message):
    given = {"step": logistic(3.2), "inputs": NONE, "seeds": UNIT, "period": 2} | arguments
    with pytest.raises(ValueError, match=message):
        find_cycles(**given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": torch.ones(4, 2, 1)}, r"`seeds` must be states to start from, shape \(n, H\), at least one"),
        ({"max_period": 0}, "`max_period` must be a positive whole number; got 0"),
        ({"transient": -1}, "`transient` must be a whole number at least 0; got -1"),
        ({"tolerance": 0.0}, "`tolerance` must be a positive number"),
    ],
)
def test_messages_of_the_detection(arguments: dict[str, Any], message):
    with pytest.raises(ValueError, match=message):
        detect_periods(**({"step": logistic(3.2), "inputs": NONE, "seeds": UNIT} | arguments))


def test_messages_about_types():
    with pytest.raises(TypeError, match=r"`seeds` must hold floating-point numbers; got torch.int64"):
        find_cycles(logistic(3.2), NONE, torch.ones(2, 1, dtype=torch.int64), 2)
