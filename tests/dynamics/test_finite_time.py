"""Finite-time exponents against high precision, decay against the dense propagator, and covariant vectors."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kpflow as kp
from helpers import close, randn, without_annotation_checks
from kpflow.dynamics import (
    covariant_vectors,
    finite_time_exponents,
    greens_decay,
    lyapunov_spectrum,
    trajectories,
)

NOTHING = torch.zeros(1)


def product(h: Tensor, x: Tensor) -> Tensor:
    """h' = X h with a matrix for an input."""
    return torch.einsum("bij,bj->bi", x.unflatten(1, (h.shape[1], -1)), h)


def henon(h: Tensor, _: Tensor) -> Tensor:
    return torch.stack([1 - 1.4 * h[:, 0] ** 2 + h[:, 1], 0.3 * h[:, 0]], dim=1)


def exact_logarithms(matrices: Tensor) -> Tensor:
    """log σ of the product of `[T, n, n]`, by 300 digits."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(300):
        total = mpmath.eye(matrices.shape[1])
        for matrix in matrices:
            total = mpmath.matrix(matrix.tolist()) * total
        values = [float(mpmath.log(value)) for value in mpmath.svd_r(total, compute_uv=False)]
    return torch.tensor(sorted(values, reverse=True), dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 2, 8, 60])
def test_all_singular_values_of_a_long_product(steps: int) -> None:
    """Down to e⁻²⁵⁰ beside e⁻¹⁰⁰, where the product in floating point has one of the six."""
    scales = torch.tensor([0.2, 0.15, 0.1, 0.05, 0.03, 0.02], dtype=torch.float64)
    matrices = (scales[:, None] * randn(2, steps, 6, 6, seed=0)).contiguous()
    found = finite_time_exponents(product, matrices.flatten(2), torch.zeros(2, 6))
    expected = torch.stack([exact_logarithms(trial) for trial in matrices])
    assert float((found.exponents * steps - expected).abs().max()) < 2e-14 * (steps + 5)
    assert found.sweeps <= 8
    assert found.change < 1e-12
    assert found.duration == steps
    if steps == 60:
        assert float(expected[0, -1]) < -200
        naive = matrices[0, 0]
        for matrix in matrices[0, 1:]:
            naive = matrix @ naive
        wrong = torch.linalg.svdvals(naive).log() - expected[0]
        assert abs(float(wrong[0])) < 1e-12
        assert abs(float(wrong[-1])) > 10


def test_vectors_are_singular_vectors() -> None:
    matrices = randn(2, 3, 5, 5, seed=1)
    found = finite_time_exponents(product, matrices.flatten(2), torch.zeros(2, 5), k=4)
    dense = matrices[:, 2] @ matrices[:, 1] @ matrices[:, 0]
    close(found.exponents, torch.linalg.svdvals(dense).log()[:, :4] / 3, 1e-11)
    sizes = (3 * found.exponents).exp()[:, None]
    close(dense @ found.right, found.left * sizes, 1e-5 * float(sizes.max()))
    for frame in (found.right, found.left):
        close(frame.mT @ frame, torch.eye(4).expand(2, 4, 4).double(), 1e-12)


def test_equal_singular_values() -> None:
    """Rotations: nothing tells the columns apart, and nothing has to."""
    turns = torch.linalg.qr(randn(1, 20, 4, 4, seed=0))[0]
    found = finite_time_exponents(product, turns.flatten(2), torch.zeros(1, 4))
    close(found.exponents, torch.zeros(1, 4))
    assert found.sweeps == 2


def test_exponents_sum_to_the_mean_log_determinant() -> None:
    matrices = randn(3, 40, 5, 5, seed=2)
    found = finite_time_exponents(product, matrices.flatten(2), torch.zeros(3, 5), dt=0.1)
    close(found.exponents.sum(1), torch.linalg.slogdet(matrices)[1].mean(1) / 0.1, 1e-11)


def test_wide_networks_by_their_leading_exponents() -> None:
    network = kp.states.cells.RateRNN(2, 40, gain=1.5)
    inputs, initial = randn(2, 30, 2, seed=0), randn(2, 40, seed=1)
    whole = finite_time_exponents(network, inputs, initial)
    close(finite_time_exponents(network, inputs, initial, k=3).exponents, whole.exponents[:, :3], 1e-11)
    fn = network.double().step
    close(finite_time_exponents(fn, inputs, initial, k=3).exponents, whole.exponents[:, :3], 1e-6)  # W in float32 once


def test_a_singular_product() -> None:
    matrices = randn(1, 10, 4, 4, seed=3)
    matrices[0, 5, :, 2] = 0
    found = finite_time_exponents(product, matrices.flatten(2), torch.zeros(1, 4))
    assert torch.isinf(found.exponents).tolist() == [[False, False, False, True]]
    dense = torch.linalg.multi_dot([*matrices[0].flip(0)])
    close(found.exponents[0, :2], torch.linalg.svdvals(dense).log()[:2] / 10, 1e-9)


def dead_network() -> nn.RNN:
    """A ReLU network whose units are all below zero, whatever its state."""
    network = nn.RNN(1, 4, nonlinearity="relu")
    with torch.no_grad():
        network.weight_hh_l0.copy_(-randn(4, 4, seed=0).abs())
        network.bias_hh_l0.fill_(-5)
    return network


@pytest.mark.parametrize(
    "step", [dead_network(), lambda h, x: 0 * h, lambda h, x: torch.sign(h)], ids=["dead", "zero", "sign"]
)
def test_a_product_that_vanishes(step: Any) -> None:
    initial = randn(3, 4, seed=1).abs()
    found = finite_time_exponents(step, torch.zeros(1), initial, steps=10)
    assert found.exponents.tolist() == [[-math.inf] * 4] * 3
    assert (found.sweeps, found.change) == (2, 0.0)
    for frame in (found.right, found.left):
        close(frame.mT @ frame, torch.eye(4).expand(3, 4, 4).double())
    spectrum = lyapunov_spectrum(step, torch.zeros(1), initial, steps=100)
    assert spectrum.exponents.tolist() == [-math.inf] * 4


def test_one_trial_that_vanishes_leaves_the_others_alone() -> None:
    matrices = randn(2, 10, 4, 4, seed=3)
    alone = finite_time_exponents(product, matrices[:1].flatten(2), torch.zeros(1, 4)).exponents
    matrices[1, 5] = 0
    both = finite_time_exponents(product, matrices.flatten(2), torch.zeros(2, 4)).exponents
    close(both[:1], alone, 1e-11)
    assert both[1].tolist() == [-math.inf] * 4


def test_the_leading_exponent_is_that_of_the_norm() -> None:
    cell, inputs, initial = nn.GRUCell(2, 6), randn(3, 20, 2, seed=0), randn(3, 6, seed=1)
    decay = greens_decay(cell, inputs, initial, lags=[20])
    assert decay.starts.tolist() == [0]
    close(decay.exponents[:, 0, 0], finite_time_exponents(cell, inputs, initial).exponents[:, 0], 1e-13)


def test_decay_is_that_of_blocks_of_the_dense_propagator() -> None:
    cell, inputs, initial = nn.GRUCell(2, 6).double(), randn(2, 9, 2, seed=0), randn(2, 6, seed=1)
    lin = kp.linearise(cell, inputs, initial=initial)
    dense = kp.operators.to_dense(kp.Propagator(lin)).reshape(2, 9, 6, 2, 9, 6)
    decay = greens_decay(cell, inputs, initial, lags=[1, 3, 4], starts=99)
    assert decay.starts.tolist() == [0, 1, 2, 3, 4, 5]
    norms = []
    for b in range(2):
        for i, start in enumerate(decay.starts.tolist()):
            for j, lag in enumerate(decay.lags.tolist()):
                if start:  # state 0 is `initial`, which P does not hold
                    block = dense[b, start + lag - 1, :, b, start - 1]
                    norms.append(float(torch.linalg.matrix_norm(block, 2).log()))
                    assert float(decay.log_norms[b, i, j]) == pytest.approx(norms[-1], abs=1e-12)
    matrix = dense.reshape(108, 108)
    assert float(torch.linalg.matrix_norm(matrix, 2)) >= math.exp(max(norms))
    assert float(torch.linalg.slogdet(matrix)[1]) == pytest.approx(0, abs=1e-12)  # det P = 1


@pytest.mark.parametrize("gain", [2.5, 0.6])
def test_the_norm_of_the_propagator_grows_with_the_leading_exponent(gain: float) -> None:
    """P from h₁ on: its norm is between that of its largest block and the sum of the largest at each lag."""
    step = nn.RNNCell(2, 10, bias=False).double()
    with torch.no_grad():
        step.weight_hh.copy_(gain * randn(10, 10, seed=0) / 10**0.5)
        step.weight_ih.copy_(0.3 * randn(10, 2, seed=3))
    inputs, initial = randn(1, 41, 2, seed=1), randn(1, 10, seed=2)
    first, later = step(inputs[:, 0], initial).detach(), inputs[:, 1:]
    dense = kp.operators.to_dense(kp.Propagator(kp.linearise(step, inputs, initial=initial))).reshape(410, 410)
    lengths, norms, exponents = (10, 20, 40), [], []
    for steps in lengths:
        block = dense[: 10 * (steps + 1), : 10 * (steps + 1)]
        norms.append(float(torch.linalg.matrix_norm(block, 2).log()))
        exponents.append(float(finite_time_exponents(step, later[:, :steps], first, k=1).exponents))
    largest = torch.cat([greens_decay(step, later, first, lags=[lag], starts=40).largest for lag in range(1, 41)])
    assert float(largest[-1]) == pytest.approx(40 * exponents[-1], abs=1e-11)
    assert max(0.0, float(largest.max())) <= norms[-1] <= math.log(1 + float(largest.exp().sum()))
    if gain > 1:
        gaps = [norm / steps - exponent for norm, steps, exponent in zip(norms, lengths, exponents, strict=True)]
        assert exponents[-1] > 0.15
        assert gaps[0] > gaps[1] > gaps[2] > 0  # log ‖P‖ / T comes to the exponent, from above
    else:
        assert exponents[-1] < -0.5
        assert norms[2] < norms[0] + 0.1  # ‖P‖ is that of its first blocks, however long the trajectory


def test_decay_at_long_lags_is_exact() -> None:
    """‖(½ R)ᵗ‖ = 2⁻ᵗ, far below what floats hold."""
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    decay = greens_decay(lambda h, x: 0.5 * h @ turn.mT, NOTHING, torch.zeros(1, 2), steps=6000, lags=[6000, 1, 1])
    assert decay.lags.tolist() == [1, 6000]
    close(decay.mean, math.log(0.5) * decay.lags.double(), 1e-12)
    close(decay.largest, decay.mean)
    whole = greens_decay(lambda h, x: 0.5 * h, NOTHING, torch.zeros(3, 2), steps=40)
    assert whole.lags[0] == 1
    assert whole.lags[-1] == 20
    assert whole.log_norms.shape == (3, 8, len(whole.lags))


def test_a_vanishing_derivative_decays_to_nothing() -> None:
    decay = greens_decay(lambda h, x: 0 * h, NOTHING, torch.zeros(1, 2), steps=4, lags=[1, 3])
    assert bool((decay.log_norms == -math.inf).all())


def test_a_flow_decays_per_time() -> None:
    decay = greens_decay(lambda h, x: -h, NOTHING, torch.zeros(1, 1), steps=90, lags=[70], dt=0.01, flow=True)
    close(decay.exponents, -torch.ones(1, 8, 1), 1e-9)
    found = finite_time_exponents(lambda h, x: -h, NOTHING, torch.zeros(1, 1), steps=100, dt=0.01, flow=True)
    assert float(found.exponents) == pytest.approx(-1, abs=1e-9)


def cocycle(k: int) -> tuple[Tensor, Tensor]:
    """J_t = S_{t+1} D S_t⁻¹, whose covariant vectors are the columns of S."""
    bases = randn(2, 161, 5, 5, seed=0) + 2 * torch.eye(5)
    rates = torch.tensor([2.0, 1.2, 0.8, 0.5, 0.2], dtype=torch.float64)
    jacobians = bases[:, 1:] @ torch.diag(rates) @ torch.linalg.inv(bases[:, :-1])
    return jacobians.flatten(2), bases[:, 1:, :, :k]


@pytest.mark.parametrize("k", [5, 3])
def test_covariant_vectors_of_a_cocycle_are_its_columns(k: int) -> None:
    inputs, bases = cocycle(k)
    found = covariant_vectors(product, inputs, torch.zeros(2, 5), k, warmup=60, cooldown=50)
    assert found.times.tolist() == list(range(60, 110))
    columns = torch.nn.functional.normalize(bases[:, found.times], dim=2)
    close((columns * found.vectors).sum(2).abs(), torch.ones(2, 50, k), 1e-12)
    logs = bases[:, found.times].norm(dim=2).log()
    close(found.growth, torch.tensor([2.0, 1.2, 0.8, 0.5, 0.2]).log()[:k] + logs.diff(dim=1), 1e-6)  # rates in float32


def test_an_asymmetric_torus_map_tells_covariant_vectors_from_frames() -> None:
    matrix = torch.tensor([[3.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    found = covariant_vectors(lambda h, x: (h @ matrix.mT) % 1, NOTHING, torch.rand(2, 2), steps=90)
    rates = torch.tensor([2 + 3**0.5, 2 - 3**0.5], dtype=torch.float64)
    true = torch.nn.functional.normalize(torch.stack([rates - 1, torch.ones(2)]), dim=0)
    close((found.vectors * true).sum(2).abs(), torch.ones(2, 30, 2), 1e-12)
    close((found.frames * true).sum(2).abs()[..., 1], torch.full((2, 30), (12 / 13) ** 0.5), 1e-7)  # .961
    close(found.exponents, rates.log().expand(2, 2), 1e-12)
    close(found.angles(1), torch.full((2, 30), math.acos(13**-0.5)), 1e-7)
    close(found.cosines[..., 0, 1], torch.full((2, 30), 13**-0.5), 1e-7)


def test_vectors_are_carried_into_each_other() -> None:
    found = covariant_vectors(henon, NOTHING, 0.1 * torch.rand(3, 2, dtype=torch.float64), steps=600)
    x = found.states[:, :-1, 0]
    jacobians = torch.stack([-2.8 * x, torch.ones_like(x), 0.3 * torch.ones_like(x), 0 * x], dim=-1)
    moved = jacobians.unflatten(-1, (2, 2)) @ found.vectors[:, :-1]
    close(moved.norm(dim=2).log(), found.growth, 1e-9)
    close((moved * found.vectors[:, 1:]).sum(2).abs(), moved.norm(dim=2), 1e-9)
    assert float(found.exponents.sum(1).mean()) == pytest.approx(math.log(0.3), abs=0.05)
    long = lyapunov_spectrum(henon, NOTHING, 0.1 * torch.rand(3, 2), steps=600).exponents
    assert float((found.exponents.mean(0) - long).abs().max()) < 0.1
    angles = found.angles(1)
    close(angles.cos(), found.cosines[..., 0, 1], 1e-9)
    assert 0 < float(angles.min()) < 0.2 < float(angles.max())  # tangencies: the Hénon map is not hyperbolic


def test_small_angles_are_exact() -> None:
    near = torch.tensor([[1.0, 1.0], [0.0, 1e-10]], dtype=torch.float64)
    found = covariant_vectors(henon, NOTHING, torch.zeros(1, 2), steps=9)
    vectors = torch.nn.functional.normalize(near, dim=0).expand_as(found.vectors)
    touching = dataclasses.replace(found, vectors=vectors)
    assert touching.angles(1).flatten().tolist() == pytest.approx([1e-10] * 3, rel=1e-6)


def call(name: str, step: Any = henon, inputs: Any = NOTHING, *, width: int = 2, **more: Any) -> Any:
    if "steps" not in more and inputs.ndim == 1:
        more["steps"] = 20
    function = {"finite": finite_time_exponents, "decay": greens_decay, "covariant": covariant_vectors}[name]
    return function(step, inputs, torch.zeros(1, width), **more)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("finite", {"k": 3}, "`k` must be a whole number between 1 and 2; got 3"),
        ("finite", {"tolerance": 0.0}, "`tolerance` must be a positive number; got 0.0"),
        ("finite", {"sweeps": 0}, "`sweeps` must be a positive whole number; got 0"),
        ("finite", {"sweeps": 1}, "`sweeps` must be more than 1: the logarithms of the singular values still change"),
        ("finite", {"step": lambda h, x: h.sqrt()}, "`step` has no finite derivative at step 0 of trial 0"),
        ("decay", {"step": lambda h, x: h.sqrt()}, "`step` has no finite derivative at step 0 of trial 0"),
        ("covariant", {"step": lambda h, x: h.sqrt()}, "`step` has no finite derivative at step 0 of trial 0"),
        ("decay", {"starts": 0}, "`starts` must be a positive whole number; got 0"),
        ("decay", {"lags": [0]}, "`lags` must be a whole number between 1 and 20; got 0"),
        ("decay", {"lags": [21]}, "`lags` must be a whole number between 1 and 20; got 21"),
        ("decay", {"lags": []}, "`lags` must hold at least one number of steps; got none"),
        ("covariant", {"k": 0}, "`k` must be a whole number between 1 and 2; got 0"),
        ("covariant", {"warmup": -1}, "`warmup` must be a whole number at least 0; got -1"),
        ("covariant", {"warmup": 15, "cooldown": 4}, "must leave at least two of the 20 steps; got 15 and 4"),
        ("covariant", {"step": lambda h, x: 0.5 * h * torch.tensor([1, 0])}, "`k` is too large: on the span of 2"),
    ],
)
def test_messages(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(name, **arguments)


@pytest.mark.parametrize("name", ["finite", "covariant"])
def test_a_generator_must_be_one(name: str) -> None:
    with without_annotation_checks(), pytest.raises(TypeError, match=r"`generator` must be a torch\.Generator or None"):
        call(name, generator=3)


@pytest.mark.parametrize("name", ["finite", "decay", "covariant"])
def test_memory_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trajectories, "MEMORY", 2**17)
    with pytest.raises(ValueError, match=r"`inputs` with 20 steps of 1 trials need 0\.0 GiB.*Take fewer trials"):
        call(name)


def test_angles_need_two_sides() -> None:
    with pytest.raises(ValueError, match="`split` must be a whole number between 1 and 1; got 2"):
        call("covariant").angles(2)
    with pytest.raises(ValueError, match="`k` must be at least 2 for angles between vectors; got 1"):
        call("covariant", k=1).angles(1)
