"""The density of a spectrum: against dense eigenvalues, mass, degenerate spectra, honest errors, budgets, refusals."""

import math

import pytest
import torch

from kpflow.estimate import Density, Status, density
from kpflow.operators import Dense, Function, Identity
from kpflow.spaces import Space

from .problems import SPECTRA, Counter, matrix, randn, seeded

N = 80


def smooth(values: torch.Tensor, result: Density) -> tuple[torch.Tensor, torch.Tensor]:
    """Density and cumulative count of eigenvalues, smoothed as those of the result."""
    z = (result.grid[:, None] - values) / result.bandwidth
    bell = torch.exp(-z.square() / 2) / (result.bandwidth * math.sqrt(2 * math.pi))
    return bell.sum(1), torch.special.ndtr(z).sum(1)


@pytest.mark.parametrize("name", SPECTRA)
def test_small_operators_are_exact(name):
    result = density(Dense(matrix(name, N)))
    heights, counts = smooth(SPECTRA[name](N), result)
    assert (result.method, result.num_matvecs, result.status) == ("exact", N, Status.CONVERGED)
    torch.testing.assert_close(result.density, heights, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(result.counts, counts, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(result.nodes, SPECTRA[name](N).sort().values, rtol=0, atol=1e-12)
    assert float(result.count_error.max()) == 0


@pytest.mark.parametrize("method", ["slq", "deflated"])
@pytest.mark.parametrize("name", SPECTRA)
def test_mass_is_the_number_of_eigenvalues(name, method):
    result = density(Dense(matrix(name, N)), method=method, budget=72)
    assert float(result.weights.sum()) == pytest.approx(N, rel=1e-12)
    assert float(torch.trapezoid(result.density, result.grid)) == pytest.approx(N, rel=1e-3)
    assert float(result.counts[0]) == pytest.approx(0, abs=0.01)
    assert float(result.counts[-1]) == pytest.approx(N, abs=0.01)
    assert (result.nodes.diff() >= 0).all()
    assert (result.counts.diff() >= -1e-9).all()


@pytest.mark.parametrize("method", ["slq", "deflated", "exact"])
def test_one_eigenvalue_many_times(method):
    for scale in (0.0, 3.0):
        result = density(scale * Identity(Space.of((N,))), method=method, budget=100)
        assert result.nodes.sub(scale).abs().max() < 1e-12
        assert float(result.density.max()) == pytest.approx(N / (result.bandwidth * math.sqrt(2 * math.pi)), rel=1e-2)


@pytest.mark.parametrize(("name", "method"), [("bulk", "slq"), ("indefinite", "deflated")])
def test_error_bars_are_honest(name, method):
    operator, values = Dense(matrix(name, N)), SPECTRA[name](N)
    scores = []
    for seed in range(60):
        result = density(operator, method=method, budget=72, points=20, bandwidth=0.05, generator=seeded(seed))
        heights, counts = smooth(values, result)
        inner = slice(5, 15)
        scores.append(((result.density - heights) / result.density_error)[inner])
        scores.append(((result.counts - counts) / result.count_error)[inner])
    z = torch.stack(scores)
    assert (z[:6].abs() < 4).all()
    assert 0.3 < float(z.square().mean().sqrt()) < 1.5


def test_converged_means_that_the_largest_error_is_small():
    values = SPECTRA["bulk"](300)
    for seed in range(3):
        result = density(Dense(matrix("bulk", 300)), rtol=1e-2, generator=seeded(seed))
        _, counts = smooth(values, result)
        assert result.status is Status.CONVERGED
        assert float(result.count_error.max()) < 1e-2 * 300
        assert float((result.counts - counts).abs().max()) < 3e-2 * 300


def test_smaller_bandwidth_takes_more_products():
    a = Dense(matrix("bulk", 300))
    wide, narrow = (density(a, method="slq", rtol=2e-2, bandwidth=h) for h in (0.3, 0.02))
    assert wide.num_matvecs < narrow.num_matvecs


def test_sampling_gives_up_where_the_matrix_is_cheaper():
    counter = Counter(Dense(matrix("bulk", 300)))
    result = density(counter, rtol=1e-6)
    assert (result.method, result.status) == ("exact", Status.CONVERGED)
    assert 300 < counter.total == result.num_matvecs <= 600


@pytest.mark.parametrize("budget", [1, 20, 75])
def test_budget_is_a_hard_limit(budget):
    counter = Counter(Dense(matrix("bulk", N)))
    result = density(counter, method="deflated", budget=budget, rtol=1e-12)
    assert counter.total == result.num_matvecs <= budget
    assert result.status is Status.BUDGET_EXHAUSTED
    assert "budget exhausted" in repr(result)


def test_seeds_and_points():
    a, before = Dense(matrix("bulk", N)), torch.random.get_rng_state()
    run = lambda seed: density(a, method="slq", budget=60, points=7, generator=seed).density  # noqa: E731
    assert run(None).shape == (7,)
    assert torch.equal(run(None), run(seeded(0)))
    assert not torch.equal(run(seeded(1)), run(seeded(2)))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("method", ["slq", "exact"])
def test_not_finite(method):
    broken = Function(lambda v: v / 0.0, None, Space.of((N,)))
    with pytest.raises(
        FloatingPointError, match=r"`density` of Function: .* is not finite: a product holds NaN or inf"
    ):
        density(broken, method=method)
    result = density(broken, method=method, raise_on_failure=False)
    assert result.status is Status.NOT_FINITE
    assert len(result.grid) == 0
    assert "not finite" in repr(result)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"points": 0}, r"`points` must be a positive whole number; got 0"),
        ({"bandwidth": -1.0}, r"`bandwidth` must be a positive number; got -1.0"),
        ({"method": "magic"}, r"`method` must be one of 'auto', 'deflated', 'slq', 'exact'; got 'magic'"),
        ({"budget": 0}, r"`budget` must be a positive whole number; got 0"),
    ],
)
def test_refusals(arguments, match):
    with pytest.raises(ValueError, match=match):
        density(Dense(matrix("bulk", 10)), **arguments)


def test_refuses_what_has_no_eigenvalues():
    with pytest.raises(ValueError, match=r"`operator` must map a space to itself; .* `density` needs eigenvalues"):
        density(Dense(randn(3, 4)))
