"""Stable rank: closed forms, singular values, honest errors, budgets, refusals."""

import pytest
import torch

from kpflow.estimate import Status, stable_rank
from kpflow.operators import Dense, Diagonal, Function, Identity
from kpflow.spaces import Space

from .problems import SPECTRA, Counter, matrix, randn, seeded, wishart

N = 80


def truth_of(a: torch.Tensor) -> float:
    squares = torch.linalg.svdvals(a).square()
    return float(squares.sum() / squares[0])


@pytest.mark.parametrize("method", ["exact", "deflated"])
def test_closed_forms(method):
    assert stable_rank(3.0 * Identity(Space.of((2, 5))), method=method).value == pytest.approx(10, rel=1e-6)
    ratio = stable_rank(Diagonal(torch.tensor([-2.0, 1.0, 1.0])), method=method).value
    assert ratio == pytest.approx(1.5, rel=1e-6 if method == "exact" else 2e-2)
    assert stable_rank(Dense(wishart(30, 1)), method=method).value == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (30, 30)])
def test_exact_takes_the_smaller_side(shape):
    counter = Counter(Dense(randn(*shape)))
    estimate = stable_rank(counter)
    assert estimate.value == pytest.approx(truth_of(randn(*shape)), rel=1e-12)
    assert (estimate.standard_error, estimate.num_matvecs, counter.total) == (0.0, min(shape), min(shape))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", SPECTRA)
def test_error_bars_are_honest(name, symmetric):
    """Of the norm it is a bound, so the scores may be small."""
    a = matrix(name, N) if symmetric else matrix(name, N).roll(1, 0)
    right = truth_of(a)
    estimates = [stable_rank(Dense(a), method="deflated", budget=72, generator=seeded(seed)) for seed in range(12)]
    z = torch.tensor([(e.value - right) / e.standard_error for e in estimates])
    assert (z[:3].abs() < 4).all()
    assert float(z.square().mean().sqrt()) < 2  # of 12


def test_a_norm_that_is_not_found_yet_is_in_the_error():
    """The bulk has no gap: a coarse tolerance leaves σ₁ some per cent short, and the ratio too large by twice that."""
    a, right = Dense(matrix("bulk", 300)), truth_of(matrix("bulk", 300))
    estimates = [stable_rank(a, method="deflated", budget=400, rtol=2.0, generator=seeded(s)) for s in range(5)]
    assert all(right < e.value < right + 4 * e.standard_error for e in estimates)


@pytest.mark.parametrize("name", ["slow power law"])
def test_where_the_probes_dominate_error_bars_are_not_padded(name):
    """At n = 80 the norm comes from the matrix, without error."""
    estimates = [
        stable_rank(Dense(matrix(name, N)), method="deflated", budget=162, generator=seeded(s)) for s in range(100)
    ]
    z = torch.tensor([(e.value - truth_of(matrix(name, N))) / e.standard_error for e in estimates])
    assert 0.6 < float(z.square().mean().sqrt()) < 1.5


@pytest.mark.parametrize("name", ["flat", "slow power law"])
def test_converged_means_within_twice_the_tolerance(name):
    rtol, right = 3e-2, truth_of(matrix(name, 210))
    estimates = [stable_rank(Dense(matrix(name, 210)), rtol=rtol, generator=seeded(seed)) for seed in range(20)]
    converged = [e for e in estimates if e.status is Status.CONVERGED]
    assert len(converged) >= 19
    assert sum(abs(e.value - right) <= 2 * rtol * right for e in converged) >= 0.95 * len(converged)


@pytest.mark.parametrize("budget", [5, 9, 50])
@pytest.mark.parametrize("symmetric", [True, False])
def test_budget_is_a_hard_limit(budget, symmetric):
    counter = Counter(Dense(matrix("bulk", 250) if symmetric else randn(250, 250)))
    estimate = stable_rank(counter, budget=budget, rtol=1e-9)
    assert counter.total == estimate.num_matvecs <= budget
    assert estimate.status is Status.BUDGET_EXHAUSTED


def test_seeds_and_scale():
    a, before = matrix("slow power law", N), torch.random.get_rng_state()
    run = lambda c, seed: stable_rank(Dense(c * a), method="deflated", budget=60, generator=seed)  # noqa: E731
    assert run(1, None) == run(1, seeded(0)) != run(1, seeded(2))
    assert run(8, None).value == pytest.approx(run(1, None).value, rel=1e-10)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("method", ["exact", "deflated"])
@pytest.mark.parametrize("n", [N, 250])
def test_zero_and_not_finite(method, n):
    zero = Dense(torch.zeros(n, n, dtype=torch.float64))
    with pytest.raises(FloatingPointError, match=r"`stable_rank` of Dense: .* has no value .* is zero"):
        stable_rank(zero, method=method)
    assert stable_rank(zero, method=method, raise_on_failure=False).status is Status.NOT_FINITE
    broken = Function(lambda v: v / 0.0, None, Space.of((n,)))
    with pytest.raises(FloatingPointError, match=r"`stable_rank` of Function: .* a product holds NaN or inf"):
        stable_rank(broken, method=method)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"method": "magic"}, r"`method` must be one of 'auto', 'deflated', 'exact'; got 'magic'"),
        ({"method": "exact", "budget": 9}, r"`budget` must be at least 10 for method 'exact'"),
        ({"budget": 2}, r"`budget` must be at least 3 here, for one probe; got 2"),
        ({"rtol": 0.0}, r"`rtol` must be a positive number"),
    ],
)
def test_refusals(arguments, match):
    with pytest.raises(ValueError, match=match):
        stable_rank(Dense(matrix("bulk", 10)), **arguments)
