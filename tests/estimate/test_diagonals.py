"""The diagonal: exact where sampling is finite, honest entry by entry, converged as a whole, and every refusal."""

import itertools
import math

import pytest
import torch

from kpflow.estimate import Status, diagonal, diagonals
from kpflow.estimate.leave_one_out import RangeSketch, xdiag
from kpflow.operators import Dense, Diagonal, Function
from kpflow.spaces import Space

from .problems import Counter, FactorGramian, all_signs, factorised, matrix, randn, seeded, wishart
from .test_leave_one_out import Given, projector, sign_tuples
from .test_structured import Structured

METHODS = ["hutchinson", "xdiag", "one-sided-forward", "exact"]


def enumerate_signs(monkeypatch, n: int) -> None:
    """Let a draw of 2ⁿ probes be all sign vectors."""
    drawn = diagonals.signs
    monkeypatch.setattr(
        diagonals, "signs", lambda space, count, g: all_signs(n) if count == 2**n else drawn(space, count, g)
    )


@pytest.mark.parametrize("symmetric", [True, False])
def test_hutchinson_over_all_signs(monkeypatch, symmetric):
    a = matrix("power law", 8) if symmetric else randn(8, 8)
    enumerate_signs(monkeypatch, 8)
    estimate = diagonal(Dense(a), method="hutchinson", budget=256)
    torch.testing.assert_close(estimate.values, a.diagonal(), rtol=0, atol=1e-12)
    variance = a.square().sum(1) - a.diagonal().square()
    torch.testing.assert_close(estimate.standard_errors, (variance / 253).sqrt(), rtol=1e-10, atol=0)


def test_one_sided_over_all_signs(monkeypatch):
    f = randn(5, 8, seed=3)
    enumerate_signs(monkeypatch, 8)
    estimate = diagonal(FactorGramian(Dense(f)), method="one-sided-forward", budget=256)
    truth = f.square().sum(1)
    torch.testing.assert_close(estimate.values, truth, rtol=1e-12, atol=0)
    variance = 2 * (truth.square() - f.pow(4).sum(1))
    torch.testing.assert_close(estimate.standard_errors, (variance / 253).sqrt(), rtol=1e-10, atol=0)


def naive(a, vectors, i, left_out):
    """tᵢ by its definition, with the test vectors `left_out` (i among them) not in the sketch."""
    keep = [k for k in range(len(vectors)) if k not in left_out]
    known = projector(vectors[keep] @ a.mT)
    return (known @ a).diagonal() + vectors[i] * (a @ vectors[i] - known @ (a @ vectors[i]))


@pytest.mark.parametrize("symmetric", [True, False])
def test_xdiag_over_all_signs(symmetric):
    """Unbiased; also where test vectors are the same, or the others span their image."""
    a = matrix("power law", 4) if symmetric else randn(4, 4)
    values = []
    for vectors in sign_tuples(4, 2):
        sketch = RangeSketch(Dense(a), "signs", seeded(), adjoint=True)
        sketch.draw, sketch.size = Given(vectors), 20  # so that the basis is not completed
        sketch.grow(4)
        values.append(xdiag(sketch)[0])
    torch.testing.assert_close(torch.stack(values).mean(0), a.diagonal(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("symmetric", [True, False])
def test_xdiag_against_its_definition(monkeypatch, symmetric):
    """The mean, and the variance from all pairs of test vectors."""
    monkeypatch.setattr("kpflow.estimate.leave_one_out.OFFSETS", 9)
    monkeypatch.setattr("kpflow.estimate.leave_one_out.PIECE", 77)
    a, count = matrix("power law", 40) if symmetric else randn(40, 40), 10
    sketch = RangeSketch(Dense(a), "signs", seeded(3), adjoint=True)
    sketch.grow(2 * count)
    values, variances = xdiag(sketch)
    rows = [[naive(a, sketch.vectors, i, {i, j}) for i in range(count)] for j in range(count)]
    pairs = torch.stack([torch.stack(row) for row in rows])
    own = pairs[range(count), range(count)]
    torch.testing.assert_close(values, own.mean(0), rtol=0, atol=1e-10)
    change = own[None] - pairs
    covariance = (change * change.transpose(0, 1)).sum((0, 1)) / (count * (count - 1))
    truth = (own.var(0) / count + covariance.clamp(min=0)) * (count - 1) / (count - 3)
    torch.testing.assert_close(variances, truth, rtol=1e-6, atol=1e-10)


PAIRS = list(itertools.product(["hutchinson", "xdiag", "one-sided-forward"], ["bulk", "step", "exponential"]))


@pytest.mark.parametrize(("method", "spectrum"), [*PAIRS, ("xdiag", "power law"), ("xdiag", "indefinite")])
def test_error_bars_are_honest(method, spectrum):
    """Errors in standard errors, over all entries and 40 seeds, are one in root mean square."""
    a = matrix(spectrum, 80)
    operator = factorised(a) if method == "one-sided-forward" else Dense(a)
    runs = [diagonal(operator, method=method, budget=48, generator=seeded(seed)) for seed in range(40)]
    z = torch.stack([(run.values - a.diagonal()) / run.standard_errors for run in runs])
    assert 0.8 < float(z.square().mean().sqrt()) < 1.2
    claimed = torch.tensor([float(run.standard_errors.norm()) for run in runs]).square().mean()
    found = torch.tensor([float((run.values - a.diagonal()).norm()) for run in runs]).square().mean()
    assert 0.6 < float((found / claimed).sqrt()) < 1.2


@pytest.mark.parametrize(
    ("method", "spectrum", "rtol"),
    [
        ("hutchinson", "bulk", 5e-2),
        ("one-sided-forward", "bulk", 1e-1),
        ("xdiag", "step", 3e-2),
        ("xdiag", "exponential", 3e-2),
        ("xdiag", "power law", 1e-1),
    ],
)
def test_converged_means_within_twice_the_tolerance(method, spectrum, rtol):
    a = matrix(spectrum, 80)
    operator = factorised(a) if method == "one-sided-forward" else Dense(a)
    runs = [diagonal(operator, method=method, rtol=rtol, generator=seeded(seed)) for seed in range(40)]
    assert all(run.status is Status.CONVERGED and run.relative_error <= rtol for run in runs)
    errors = [float((run.values - a.diagonal()).norm() / a.diagonal().norm()) for run in runs]
    assert sum(error <= 2 * rtol for error in errors) >= 38


@pytest.mark.parametrize("make", [Dense, factorised, lambda a: FactorGramian(Dense(a), Dense(torch.linalg.inv(a)))])
def test_exact(make):
    a = matrix("bulk", 30)
    estimate = diagonal(make(a))
    torch.testing.assert_close(estimate.values, a.diagonal(), rtol=1e-12, atol=0)
    assert (estimate.num_matvecs, estimate.method, estimate.status) == (30, "exact", Status.CONVERGED)
    assert not estimate.standard_errors.any()


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_exact_takes_the_cheaper_side(monkeypatch, shape):
    monkeypatch.setattr("kpflow.estimate.products.BLOCK_ENTRIES", 40 * 4)
    f = Counter(Dense(randn(*shape)))
    estimate = diagonal(FactorGramian(f), method="exact")
    torch.testing.assert_close(estimate.values, randn(*shape).square().sum(1), rtol=1e-12, atol=0)
    assert f.total == estimate.num_matvecs == 6


@pytest.mark.parametrize("rank", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_xdiag_is_exact_to_rounding_if_the_sketch_holds_the_range(rank, dtype):
    a = wishart(300, rank)
    estimate = diagonal(Dense(a.to(dtype)), method="xdiag", budget=40)
    rounding = 300 * torch.finfo(dtype).eps
    torch.testing.assert_close(estimate.values.double(), a.diagonal(), rtol=0, atol=rounding * float(a.max()))
    assert estimate.relative_error < rounding


def test_xdiag_completes_the_basis():
    a = randn(90, 90)
    for effort in ({"budget": 90}, {"rtol": 1e-9}):
        estimate = diagonal(Dense(a), method="xdiag", **effort)
        torch.testing.assert_close(estimate.values, a.diagonal(), rtol=0, atol=1e-11)
        assert estimate.relative_error < 1e-13
        assert estimate.num_matvecs <= 2 * 90


def test_auto_says_what_it_took():
    assert diagonal(Dense(matrix("bulk", 50))).method == "exact"
    assert diagonal(Dense(matrix("exponential", 100))).method == "xdiag"
    assert diagonal(Dense(randn(100, 100)), budget=50).method == "xdiag"
    assert diagonal(factorised(matrix("exponential", 100))).method == "xdiag"
    assert diagonal(factorised(matrix("bulk", 100)), budget=20).method == "one-sided-forward"
    broad = diagonal(factorised(wishart(300, 300)), rtol=0.1)
    assert broad.method == "one-sided-forward"
    assert broad.status is Status.CONVERGED
    assert 2 / 0.1**2 < broad.num_matvecs < 3 / 0.1**2


@pytest.mark.parametrize(
    ("price", "arguments", "method", "spent"),
    [
        (63.0, {}, "exact", 0),
        (299.0, {"method": "exact"}, "exact", 0),
        (301.0, {"method": "exact"}, "exact", 300),
        (301.0, {"budget": 302}, "exact", 300),
        (150.0, {"rtol": 0.1}, "exact", 36),
        (250.0, {"rtol": 0.1}, "one-sided-forward", None),
        (150.0, {"rtol": 0.01, "budget": 100}, "one-sided-forward", 100),
        (150.0, {"budget": 60}, "one-sided-forward", 60),
    ],
)
def test_structure_where_it_is_cheaper(price, arguments, method, spent):
    """Unit vectors take 300 products, one-sided probes 2/rtol², XDiag more."""
    factor = randn(300, 300)
    operator = Structured(factor, price)
    estimate = diagonal(operator, **arguments)
    assert (estimate.method, estimate.num_matvecs) == (method, estimate.num_matvecs if spent is None else spent)
    if method == "exact":
        torch.testing.assert_close(estimate.values, factor.square().sum(1), rtol=1e-12, atol=0)
        assert not estimate.standard_errors.any()


@pytest.mark.parametrize("method", [*METHODS, "auto"])
@pytest.mark.parametrize("budget", [2, 3, 7, 30, 50])
@pytest.mark.parametrize("rtol", [None, 1e-6])
def test_budget_is_a_hard_limit(method, budget, rtol):
    factor = Counter(Dense(randn(90, 90)))
    if method == "exact":
        with pytest.raises(ValueError, match=r"`budget` must be at least 90 for method 'exact'"):
            diagonal(FactorGramian(factor), method=method, budget=budget)
        return
    estimate = diagonal(FactorGramian(factor), method=method, budget=budget, rtol=rtol)
    assert budget - 1 <= estimate.num_matvecs <= budget
    assert estimate.status is Status.BUDGET_EXHAUSTED
    assert (estimate.relative_error == math.inf) == (budget < 16 and (method == "xdiag" or budget < 8))


@pytest.mark.parametrize("method", ["hutchinson", "xdiag", "one-sided-forward"])
def test_seeds_scaling_and_chunks(monkeypatch, method):
    f = randn(80, 90)
    run = lambda c, seed: diagonal(FactorGramian(Dense(c * f)), method=method, budget=30, generator=seed)  # noqa: E731
    first, again, default = run(1.0, seeded(1)), run(1.0, seeded(1)), run(1.0, None)
    assert torch.equal(first.values, again.values)
    assert torch.equal(default.values, run(1.0, seeded(0)).values)
    assert not torch.equal(first.values, default.values)
    torch.testing.assert_close(run(2.0, seeded(1)).values, 4 * first.values)
    torch.testing.assert_close(run(2.0, seeded(1)).standard_errors, 4 * first.standard_errors)
    monkeypatch.setattr("kpflow.estimate.products.BLOCK_ENTRIES", 90 * 7)
    torch.testing.assert_close(run(1.0, None).values, default.values)


@pytest.mark.parametrize("method", ["hutchinson", "xdiag", "exact", "auto"])
def test_zero_operator(method):
    estimate = diagonal(Dense(torch.zeros(80, 80)), method=method)
    assert not estimate.values.any()
    assert (estimate.relative_error, estimate.status) == (0.0, Status.CONVERGED)


def test_shape_dtype_and_repr():
    space = Space.of((2, 5, 7), ("trial", "time", "unit"), torch.float32)
    estimate = diagonal(Dense(matrix("bulk", 70).float(), (space, space)), budget=40)
    assert estimate.values.shape == estimate.standard_errors.shape == (2, 5, 7)
    assert estimate.values.dtype == estimate.standard_errors.dtype == torch.float32
    assert repr(estimate).startswith("DiagonalEstimate(2 × 5 × 7 values, relative error 0.")
    assert repr(estimate).endswith("(40 products, xdiag; budget exhausted: the tolerance is not met))")


@pytest.mark.parametrize("method", ["hutchinson", "xdiag", "exact", "auto"])
def test_not_finite(method):
    broken = Function(lambda v: v / 0.0, None, Space.of((80,)))
    with pytest.raises(FloatingPointError, match=r"`diagonal` of Function: .* is not finite: a product holds NaN or"):
        diagonal(broken, method=method)
    estimate = diagonal(broken, method=method, raise_on_failure=False)
    assert estimate.values.isnan().all()
    assert estimate.status is Status.NOT_FINITE
    assert estimate.num_matvecs > 0


@pytest.mark.parametrize(
    ("operator", "arguments", "match"),
    [
        (Diagonal(torch.ones(9)), {"method": "magic"}, r"`method` must be one of 'auto', 'exact', .*; got 'magic'"),
        (Diagonal(torch.ones(9)), {"method": "one-sided-forward"}, r"needs an operator A = F Fᵀ .* Use 'xdiag'"),
        (Diagonal(torch.ones(9)), {"method": "xdiag", "budget": 1}, r"`budget` must be at least 2 here, .*; got 1"),
        (Diagonal(torch.ones(9)), {"rtol": 0.0}, r"`rtol` must be a positive number; got 0.0"),
        (Dense(torch.ones(3, 4)), {}, r"`operator` must map a space to itself; .*squared rows of A"),
        (
            FactorGramian(Dense(torch.ones(9, 4)), Dense(torch.eye(4))),
            {"method": "one-sided-forward"},
            r"a Gramian without a metric\); got",
        ),
    ],
)
def test_refusals(operator, arguments, match):
    with pytest.raises(ValueError, match=match):
        diagonal(operator, **arguments)
