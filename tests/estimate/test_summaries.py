"""summary: the same numbers as one by one, from one set of products, with honest error bars."""

import math

import pytest
import torch
from torch import nn

import kpflow as kp
from kpflow.estimate import Status, summary
from kpflow.operators import Dense, Diagonal, Function, Identity
from kpflow.spaces import Space

from .problems import POSITIVE, Counter, matrix, seeded

N = 80


def _truth(a):
    top = float(torch.linalg.eigvalsh(a).abs().max())
    square = float(a.square().sum())
    return {
        "trace": float(a.trace()),
        "frobenius_norm": math.sqrt(square),
        "effective_rank": float(a.trace()) ** 2 / square,
        "operator_norm": top,
        "stable_rank": square / top**2,
    }


@pytest.mark.parametrize("name", POSITIVE)
def test_each_number_is_within_its_error_bar(name):
    a = matrix(name, N)
    for seed in range(3):
        found = summary(Dense(a), budget=60, generator=seeded(seed))
        assert found.num_matvecs == 60
        for quantity, value in _truth(a).items():
            estimate = getattr(found, quantity)
            assert abs(estimate.value - value) <= 4 * estimate.standard_error + 1e-9 * value, quantity


@pytest.mark.parametrize("quantity", ["trace", "frobenius_norm", "effective_rank"])
@pytest.mark.parametrize("name", ["bulk", "step", "slow power law"])
def test_error_bars_are_neither_small_nor_padded(name, quantity):
    a = matrix(name, N)
    scores = []
    for seed in range(100):
        estimate = getattr(summary(Dense(a), budget=40, generator=seeded(seed)), quantity)
        scores.append((estimate.value - _truth(a)[quantity]) / estimate.standard_error)
    assert 0.7 < math.sqrt(sum(score**2 for score in scores) / len(scores)) < 1.3


@pytest.mark.parametrize("name", POSITIVE)
def test_converged_runs_meet_the_tolerance(name):
    a, rtol = matrix(name, N), 0.03
    truth = _truth(a)
    misses = {quantity: 0 for quantity in ("trace", "frobenius_norm", "effective_rank")}
    for seed in range(100):
        found = summary(Dense(a), rtol=rtol, generator=seeded(seed))
        assert found.status is Status.CONVERGED
        for quantity in misses:
            misses[quantity] += abs(getattr(found, quantity).value / truth[quantity] - 1) > 2 * rtol
    assert max(misses.values()) <= 5, misses


def test_all_of_it_takes_no_more_products_than_it_says():
    counter = Counter(Dense(matrix("slow power law", N)))
    found = summary(counter, rtol=0.05)
    assert found.num_matvecs == counter.forward + counter.backward
    assert {e.num_matvecs for e in (found.trace, found.stable_rank, found.modes)} == {found.num_matvecs}


def test_modes_are_ritz_pairs_with_true_residuals():
    a = matrix("exponential", N)
    modes = summary(Dense(a), k=5, budget=45).modes
    image = modes.vectors @ a
    residuals = (image - modes.values[:, None] * modes.vectors).norm(dim=1)
    assert torch.allclose(residuals, modes.residuals, atol=1e-12)
    values = torch.linalg.eigvalsh(a)
    nearest = (modes.values[:, None] - values).abs().min(1).values
    assert bool((nearest <= modes.residuals + 1e-12).all())
    assert float((modes.values[:3] / values.flip(0)[:3] - 1).abs().max()) < 1e-2


def test_small_operators_are_exact():
    a = matrix("slow power law", 30)
    found = summary(Dense(a), k=30)
    assert found.num_matvecs == 30
    for quantity, value in _truth(a).items():
        estimate = getattr(found, quantity)
        assert estimate.standard_error == 0
        assert estimate.value == pytest.approx(value, rel=1e-12)
    assert torch.allclose(found.modes.values, torch.linalg.eigvalsh(a).flip(0), atol=1e-12)


def test_a_budget_is_a_hard_limit_and_is_reported():
    found = summary(Dense(matrix("bulk", N)), rtol=1e-6, budget=50)
    assert found.num_matvecs == 50
    assert found.status is Status.BUDGET_EXHAUSTED
    assert "budget exhausted" in repr(found)


def test_vectors_have_the_shape_of_states():
    space = Space.of((4, 5, 6), ("trial", "time", "unit"), torch.float64)
    found = summary(Identity(space), k=3, budget=30)
    assert found.modes.vectors.shape == (3, 4, 5, 6)
    assert abs(found.effective_rank.value - 120) <= 4 * found.effective_rank.standard_error


def test_agrees_with_the_quantities_one_by_one_on_an_ntk():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.GRU(3, 8, batch_first=True, dtype=torch.float64)
    lin = kp.linearise(model, torch.randn(3, 6, 3, generator=seeded(), dtype=torch.float64))
    ntk = kp.Ntk(lin)
    truth = _truth(kp.operators.to_dense(ntk).reshape(144, 144))
    found = summary(ntk, budget=60)
    for quantity, value in truth.items():
        estimate = getattr(found, quantity)
        assert abs(estimate.value - value) <= 4 * estimate.standard_error


def test_the_zero_operator_has_no_ranks():
    zero = Diagonal(torch.zeros(100))
    with pytest.raises(FloatingPointError, match="has no value"):
        summary(zero, budget=30)
    found = summary(zero, budget=30, raise_on_failure=False)
    assert found.status is Status.NOT_FINITE
    assert found.trace.value == 0


def test_a_product_that_is_not_finite():
    bad = Function(lambda block: block * math.nan, None, Space.of((100,)))
    with pytest.raises(FloatingPointError, match=r"`summary` of .* is not finite"):
        summary(bad)
    assert summary(bad, raise_on_failure=False).status is Status.NOT_FINITE


def test_bad_arguments():
    a = Dense(matrix("bulk", N))
    with pytest.raises(ValueError, match=r"`operator` must be symmetric; got .* take G @ G.T"):
        summary(Dense(torch.triu(matrix("bulk", N))) @ Identity(a.in_space))
    with pytest.raises(ValueError, match=r"`k` must be at most 80"):
        summary(a, k=81)
    with pytest.raises(ValueError, match="`rtol`"):
        summary(a, rtol=-1.0)
    with pytest.raises(TypeError, match="`operator` must be a kpflow operator"):
        summary(torch.eye(3))
