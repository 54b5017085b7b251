"""Sums over the spectrum: exact cases, Gauss and Radau rules, honest and converged over the spectra, refusals."""

import math
from typing import Any

import pytest
import torch

from kpflow.estimate import Status, count_above, entropy_rank, log_determinant, spectral_sum
from kpflow.estimate.base import Effort
from kpflow.estimate.lanczos import BlockBasis, Lanczos, sphere
from kpflow.estimate.measure import SpectralMeasure
from kpflow.estimate.products import Products
from kpflow.estimate.quadrature import Rules, Sums, remaining
from kpflow.estimate.spectral_sums import check_function
from kpflow.operators import Dense, Diagonal, Function, Identity
from kpflow.spaces import Space

from .problems import SPECTRA, Counter, matrix, randn, seeded, wishart

N = 80


def root(nodes: torch.Tensor) -> torch.Tensor:
    return (nodes.clamp(min=0) + 1e-3).sqrt()


def entropy_of(values: torch.Tensor) -> float:
    p = values.clamp(min=0) / values.clamp(min=0).sum()
    return float(torch.special.entr(p).sum().exp())


ESTIMATORS = {
    "root": (lambda a, **k: spectral_sum(a, root, **k), lambda v: float(root(v).sum())),
    "log det": (lambda a, **k: log_determinant(a, shift=0.1, **k), lambda v: float((v + 0.1).log().sum())),
    "count": (lambda a, **k: count_above(a, 0.4, **k), lambda v: float((v > 0.4).sum())),
    "entropy": (entropy_rank, entropy_of),
}
"""Name to (function of an operator, the truth from the eigenvalues)."""


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", [name for name in SPECTRA if name != "indefinite"])
def test_small_operators_are_exact(estimator, name):
    function, truth = ESTIMATORS[estimator]
    estimate = function(Dense(matrix(name, N)))
    assert (estimate.method, estimate.num_matvecs, estimate.status) == ("exact", N, Status.CONVERGED)
    assert estimate.value == pytest.approx(truth(SPECTRA[name](N)), rel=1e-10)
    assert estimate.standard_error <= 1e-10 * abs(estimate.value)


@pytest.mark.parametrize("method", ["slq", "deflated"])
def test_identity_zero_and_rank_one(method):
    space = Space.of((N,))
    settings = {"method": method, "budget": 200}
    assert log_determinant(Identity(space), shift=1.0, **settings).value == pytest.approx(N * math.log(2), rel=1e-12)
    assert entropy_rank(3.0 * Identity(space), **settings).value == pytest.approx(N, rel=1e-12)
    assert log_determinant(0.0 * Identity(space), shift=2.0, **settings).value == pytest.approx(N * math.log(2))
    assert count_above(0.0 * Identity(space), 1.0, **settings).value == 0
    one = entropy_rank(Dense(matrix("rank one", N)), **settings)
    assert abs(one.value - 1) < (1e-10 if method == "deflated" else 4 * one.standard_error)


@pytest.mark.parametrize("name", ["flat", "step", "rank one"])
def test_deflation_makes_short_spectra_exact(name):
    """What a plain quadrature of as many products knows to some per cent; with many equal eigenvalues, too."""
    truth = entropy_of(SPECTRA[name](N))
    estimate = entropy_rank(Dense(matrix(name, N)), method="deflated", budget=150)
    assert estimate.value == pytest.approx(truth, rel=1e-6)
    assert estimate.standard_error < 1e-6 * truth


def test_gauss_rules_are_exact_for_polynomials():
    a, k = matrix("indefinite", 40), 5
    lanczos = Lanczos(Products(Dense(a)), sphere(Space.of((40,)), 3, a[:0], seeded()), 40)
    lanczos.extend(k)
    starts = lanczos.basis[:, 0]
    rules = Rules.of(lanczos.matrices(), torch.ones(3, 1, k).double(), 1, 1.0, [k])
    for power in range(2 * k):
        truth = (starts @ torch.linalg.matrix_power(a, power) * starts).sum(1)
        torch.testing.assert_close(rules.sums(lambda x, p=power: x[..., None] ** p)[:, 0], truth, rtol=1e-9, atol=1e-12)
    off = rules.sums(lambda x: x[..., None] ** (2 * k))[:, 0]
    assert not torch.allclose(off, (starts @ torch.linalg.matrix_power(a, 2 * k) * starts).sum(1), rtol=1e-9)


def test_lanczos_keeps_its_vectors_orthogonal():
    """Without reorthogonalisation they are not, once the extreme eigenvalues are found."""
    lanczos = Lanczos(Products(Dense(matrix("exponential", 60))), randn(2, 60), 60)
    lanczos.extend(30)
    steps = lanczos.steps
    gram = lanczos.basis[:, :steps] @ lanczos.basis[:, :steps].mT
    torch.testing.assert_close(gram, torch.eye(steps).double().expand(2, -1, -1), rtol=0, atol=1e-12)


def test_lanczos_stops_where_a_krylov_space_ends():
    a = torch.diag(torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0, 3.0])).double()
    counter = Counter(Dense(a))
    starts = torch.tensor([[1.0, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 2, 3, 4, 5, 6]]).double()
    lanczos = Lanczos(Products(counter), starts, 6)
    lanczos.extend(5)
    assert counter.total == 1 + 2 + 3
    assert lanczos.steps == 3
    rules = Rules.of(lanczos.matrices(), lanczos.coupling[:, None, -1:].expand(3, 1, 3), 1, 1.0, [3, 2, 1, 1, 1])
    assert rules.exact.all()
    truth = (starts.square() * a.diag().exp()).sum(1) / starts.square().sum(1)
    for level in range(5):
        torch.testing.assert_close(rules.sums(lambda x: x.exp()[..., None], level)[:, 0], truth)


def test_block_rules_are_exact_for_polynomials():
    a = matrix("slow power law", 60)
    krylov = BlockBasis(Products(Dense(a)), 3, seeded())
    krylov.extend(18)
    q = krylov.basis[:9]  # three of six blocks: f(A) on them is exact up to degree 7
    rules = Rules.of(krylov.matrix()[None], krylov.coupling()[None], 9, 1.0, [18])
    for power in range(8):
        truth = (q @ torch.linalg.matrix_power(a, power) * q).sum()
        assert float(rules.sums(lambda x, p=power: x[..., None] ** p)) == pytest.approx(float(truth), rel=1e-11)
    torch.testing.assert_close(
        krylov.images, krylov.matrix() @ krylov.basis + krylov.coupling().mT @ krylov.fresh, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("threshold", [0.12, 0.31, 0.7, 2.0, -1.0])
@pytest.mark.parametrize("blocks", [False, True])
def test_the_bracket_holds_every_measure_of_these_moments(threshold, blocks):
    a = matrix("slow power law", 60)
    values, vectors = torch.linalg.eigh(a)
    if blocks:
        krylov = BlockBasis(Products(Dense(a)), 3, seeded())
        krylov.extend(18)
        rules = Rules.of(krylov.matrix()[None], krylov.coupling()[None], 9, 1.0, [18])
        truth = ((krylov.basis[:9] @ vectors).square() * (values > threshold)).sum()[None]
    else:
        lanczos = Lanczos(Products(Dense(a)), randn(20, 60), 60)
        lanczos.extend(6)
        coupling = torch.zeros(20, 1, 6).double()
        coupling[:, 0, -1] = lanczos.coupling[:, -1]
        rules = Rules.of(lanczos.matrices(), coupling, 1, 1.0, [6])
        truth = ((lanczos.basis[:, 0] @ vectors).square() * (values > threshold)).sum(1)
    low, high = rules.above(threshold)
    assert (low <= truth + 1e-9).all()
    assert (truth <= high + 1e-9).all()
    if 0 < threshold < 1:
        assert (high > low).all()


def test_remaining_error_of_known_sequences():
    k = 32 * torch.tensor([1.0, 0.75, 0.5, 0.375, 0.25], dtype=torch.float64)
    for rate in (1.0, 2.0, 4.0):
        assert 0.5 < float(remaining(1 + k**-rate)) / float(k[0] ** -rate) < 3
    assert float(remaining(1 + 0.5**k)) < 1e-5
    assert float(remaining(torch.ones(5).double())) == 0


def test_what_is_held_and_the_probes_make_the_whole():
    """tr(Qᵀ f(A) Q) + mean ⟨g, f(A) g⟩ with its parts by dense algebra."""
    a = matrix("slow power law", N)
    first = Sums(lambda x, _delta: x[..., None].exp(), lambda s: s[..., 0])
    measure = SpectralMeasure(Dense(a), first, Effort.of(None, 200), seeded(), deflated=True, steps=12)
    reading = measure.read(200)
    q = measure.basis
    f = torch.linalg.matrix_exp(a)
    assert q.shape == (30, N)  # six of thirteen blocks of five
    held, samples = measure.held, measure.samples
    assert held is not None
    assert samples is not None
    exponential = lambda x: x[..., None].exp()  # noqa: E731
    assert float(held.sums(exponential)) == pytest.approx(float((q @ f * q).sum()), rel=1e-10)
    rest = float(f.trace() - (q @ f * q).sum())
    z = (samples.sums(exponential)[:, 0].mean() - rest) / reading.error
    assert abs(float(z)) < 4
    assert float(samples.weights[0].sum(1)[0]) == pytest.approx(N - len(q), rel=1e-12)


HONEST = [
    ("root", "slow power law", "slq"),
    ("log det", "power law", "deflated"),
    ("count", "power law", "slq"),
    ("entropy", "slow power law", "slq"),
    ("entropy", "exponential", "deflated"),
]


@pytest.mark.parametrize(("estimator", "name", "method"), HONEST)
def test_error_bars_are_honest(estimator, name, method):
    function, truth = ESTIMATORS[estimator]
    operator, right = Dense(matrix(name, N)), truth(SPECTRA[name](N))
    budget = 72 if method == "deflated" else 144  # deflation leaves nothing to chance beyond 80
    estimates = [function(operator, method=method, budget=budget, generator=seeded(seed)) for seed in range(100)]
    z = torch.tensor([(e.value - right) / e.standard_error for e in estimates])
    assert (z[:3].abs() < 4).all()
    assert 0.6 < float(z.square().mean().sqrt()) < 1.5
    assert all(0 < e.num_matvecs <= budget for e in estimates)


CONVERGING = [("root", "power law"), ("log det", "slow power law"), ("entropy", "power law")]


@pytest.mark.parametrize(("estimator", "name"), CONVERGING)
def test_converged_means_within_twice_the_tolerance(estimator, name):
    function, truth = ESTIMATORS[estimator]
    n, rtol = 150, 2e-2
    operator, right = Dense(matrix(name, n)), truth(SPECTRA[name](n))
    estimates = [function(operator, method="deflated", rtol=rtol, generator=seeded(seed)) for seed in range(20)]
    converged = [e for e in estimates if e.status is Status.CONVERGED]
    assert len(converged) >= 19
    assert all(e.standard_error <= rtol * abs(e.value) for e in converged)
    assert sum(abs(e.value - right) <= 2 * rtol * abs(right) for e in converged) >= 0.95 * len(converged)


def test_larger_operators_by_default():
    a = matrix("power law", 260)
    estimate = entropy_rank(Dense(a), rtol=1e-2)
    assert (estimate.method, estimate.status) == ("deflated", Status.CONVERGED)
    assert estimate.value == pytest.approx(entropy_of(SPECTRA["power law"](260)), rel=3e-2)
    assert estimate.num_matvecs < 1000


KNOWN_FAILURES = {
    "a band that no node meets": (
        lambda: spectral_sum(
            Diagonal(torch.linspace(0, 1, 1001).double()),
            lambda x: ((x - 0.5).abs() < 1e-9).double(),
            method="slq",
            budget=200,
        ),
        1.0,
        "f is 1 at one eigenvalue inside the bulk only; nodes fall beside it, and all numbers of steps agree on 0",
    ),
    "an entropy rank that is stationary in the trace": (
        lambda: entropy_rank(Dense(matrix("step", 220)), method="slq", rtol=2e-2, generator=seeded(15)),
        entropy_of(SPECTRA["step"](220)),
        "its derivative by the number of large eigenvalues vanishes near the truth; the jackknife is linear",
    ),
}
"""Sums whose error bar is too small, and why."""


@pytest.mark.parametrize("name", KNOWN_FAILURES)
def test_known_failures(name):
    compute, truth, reason = KNOWN_FAILURES[name]
    estimate = compute()
    assert reason
    assert abs(estimate.value - truth) > 4 * estimate.standard_error


@pytest.mark.parametrize("method", ["slq", "deflated"])
@pytest.mark.parametrize("budget", [1, 7, 30, 75])
def test_budget_is_a_hard_limit(method, budget):
    counter = Counter(Dense(matrix("slow power law", N)))
    estimate = spectral_sum(counter, root, method=method, budget=budget, rtol=1e-12)
    assert counter.total == estimate.num_matvecs <= budget
    assert estimate.status is Status.BUDGET_EXHAUSTED
    if budget < 16:
        assert estimate.standard_error == math.inf


def test_more_products_for_a_smaller_tolerance():
    a = Dense(matrix("slow power law", 150))
    estimates = [spectral_sum(a, root, method="slq", rtol=rtol) for rtol in (3e-2, 3e-3)]
    assert estimates[0].num_matvecs < estimates[1].num_matvecs
    assert all(e.status is Status.CONVERGED for e in estimates)


def test_steps_as_given():
    counter = Counter(Dense(matrix("slow power law", N)))
    estimate = log_determinant(counter, shift=1.0, method="slq", steps=5, budget=60)
    assert counter.total == estimate.num_matvecs == 60


def test_more_steps_where_functions_are_steep():
    """The truncation of few steps is in the error."""
    a, truth = Dense(matrix("exponential", N)), float((SPECTRA["exponential"](N) + 1e-4).log().sum())
    few = log_determinant(a, shift=1e-4, method="slq", steps=4, budget=4000)
    many = log_determinant(a, shift=1e-4, method="slq", budget=4000)
    assert abs(few.value - truth) > 20 * many.standard_error
    assert abs(few.value - truth) < 4 * few.standard_error
    assert abs(many.value - truth) < 4 * many.standard_error


def test_entropy_rank_of_any_operator_is_that_of_its_squared_singular_values():
    g = randn(30, 50)
    estimate = entropy_rank(Dense(g))
    assert estimate.value == pytest.approx(entropy_of(torch.linalg.svdvals(g).square()), rel=1e-10)
    assert estimate.num_matvecs == 60
    large = entropy_rank(Dense(randn(300, 4) @ randn(4, 220)), budget=400)
    right = entropy_of(torch.linalg.svdvals(randn(300, 4) @ randn(4, 220)).square())
    assert large.value == pytest.approx(right, rel=1e-8)
    assert large.num_matvecs <= 400


def test_float32_says_what_rounding_does():
    """Half of the basis is the whole space here, so rounding is all there is to it."""
    a = wishart(150, 20)
    single = spectral_sum(Dense(a.float()), lambda x: x.clamp(min=0).sqrt(), method="deflated", budget=1000)
    truth = float(torch.linalg.eigvalsh(a).clamp(min=0).sqrt().sum())
    assert abs(single.value - truth) < 4 * single.standard_error
    assert single.standard_error > 0.1  # 130 eigenvalues 0, known to 1e-4


def test_probes_are_on_the_sphere_of_the_complement():
    basis = torch.linalg.qr(randn(30, 8))[0].mT
    probes = sphere(Space.of((30,)), 4000, basis, seeded())
    assert (probes @ basis.mT).abs().max() < 1e-14
    torch.testing.assert_close(probes.norm(dim=1), torch.ones(4000).double())
    mean = 22 * probes.mT @ probes / 4000
    torch.testing.assert_close(mean, torch.eye(30).double() - basis.mT @ basis, rtol=0, atol=0.1)


def test_seeds_and_scale():
    a, before = matrix("slow power law", N), torch.random.get_rng_state()
    run = lambda c, seed: entropy_rank(Dense(c * a), method="deflated", budget=60, generator=seed)  # noqa: E731
    first = run(1, seeded(1))
    assert run(1, seeded(1)) == first != run(1, seeded(2))
    assert run(1, None) == run(1, seeded(0))
    assert run(8, seeded(1)).value == pytest.approx(first.value, rel=1e-10)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("method", ["slq", "deflated", "exact"])
def test_not_finite(method):
    broken = Function(lambda v: v / 0.0, None, Space.of((N,)))
    with pytest.raises(FloatingPointError, match=r"`spectral_sum` of Function: .* a product holds NaN or inf"):
        spectral_sum(broken, torch.exp, method=method)
    assert spectral_sum(broken, torch.exp, method=method, raise_on_failure=False).status is Status.NOT_FINITE
    zero = 0.0 * Identity(Space.of((N,)))
    with pytest.raises(FloatingPointError, match=r"`entropy_rank` of .* has no value .* an operator is zero"):
        entropy_rank(zero, method=method)


@pytest.mark.parametrize("method", ["slq", "deflated", "exact"])
@pytest.mark.parametrize(
    ("compute", "match"),
    [
        (
            lambda a, **k: spectral_sum(a, lambda x: (x - 9).log(), **k),
            r"`spectral_sum` of Dense: .* `function` must be finite at all eigenvalues; got nan at .* Clamp",
        ),
        (
            lambda a, **k: log_determinant(a, shift=1e-20, **k),
            r"`log_determinant` of Dense: .* A \+ λ I must be positive definite .* at shift 1e-20. Give a larger",
        ),
        (
            lambda a, **k: entropy_rank(Dense(-a.matrix), **k),
            r"`entropy_rank` of Dense: .* must be positive semi-definite .* Take that of A @ A",
        ),
    ],
)
def test_where_functions_are_not_defined(compute, match, method):
    a = Dense(wishart(N, 3))
    with pytest.raises(ValueError, match=match):
        compute(a, method=method)
    estimate = compute(a, method=method, raise_on_failure=False)
    assert estimate.status is Status.NOT_FINITE
    assert estimate.num_matvecs > 0


@pytest.mark.parametrize(
    ("function", "error", "match"),
    [
        (lambda x: 3.0, TypeError, r"`function` must give a tensor; got float. Write it with torch functions"),
        (
            lambda x: x.sum(),
            ValueError,
            r"`function` must give a tensor of the shape that it takes, \(1, 10\); got \(\)",
        ),
    ],
)
def test_refuses_functions_that_give_something_else(function: Any, error, match):
    with pytest.raises(error, match=match):
        spectral_sum(Dense(matrix("bulk", 10)), function)


@pytest.mark.parametrize(
    ("compute", "match"),
    [
        (lambda a: spectral_sum(Dense(randn(3, 4)), root), r"`operator` must map a space to itself; .* take A @ A.T"),
        (lambda a: count_above(Dense(randn(4, 4)), 0.5), r"`operator` must be known to be symmetric; .* Take A @ A.T"),
        (
            lambda a: spectral_sum(a, root, method="magic"),
            r"`method` must be one of 'auto', 'deflated', 'slq', 'exact'",
        ),
        (lambda a: spectral_sum(a, root, steps=0), r"`steps` must be a positive whole number; got 0"),
        (lambda a: spectral_sum(a, root, rtol=0.0), r"`rtol` must be a positive number; got 0.0"),
        (lambda a: log_determinant(a, shift=-1.0), r"`shift` must be a number at least 0; got -1.0"),
        (lambda a: count_above(a, math.inf), r"`threshold` must be a number .*; got inf"),
        (
            lambda a: entropy_rank(Dense(randn(3, 4)), budget=1),
            r"`budget` must be at least 2 here, for one probe; got 1",
        ),
        (lambda a: spectral_sum(a, root, method="exact", budget=9), r"`budget` must be at least 10 for method 'exact'"),
    ],
)
def test_refusals(compute, match):
    with pytest.raises(ValueError, match=match):
        compute(Dense(matrix("bulk", 10)))


def test_refuses_what_is_no_function():
    with pytest.raises(TypeError, match=r"`function` must be a function of a tensor; got str"):
        check_function("sqrt")
