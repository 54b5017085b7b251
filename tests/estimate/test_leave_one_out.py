"""XTrace and XNysTrace against the papers' definitions, and over all sign vectors; their variance too."""

import itertools
import math

import pytest
import torch

from kpflow.estimate import Status, leave_one_out, trace
from kpflow.estimate.leave_one_out import NystromSketch, RangeSketch, variance, xnystrace, xtrace
from kpflow.operators import Dense, Diagonal

from .problems import Counter, all_signs, factorised, matrix, randn, seeded, wishart

METHODS = {"xtrace": (RangeSketch, xtrace), "xnystrace": (NystromSketch, xnystrace)}


class Given:
    """Test vectors that are given, for the random ones."""

    kind = "signs"

    def __init__(self, vectors):
        self.vectors = vectors

    def draw(self, count):
        return self.vectors[:count]


def projector(rows):
    """On the span of the rows."""
    return torch.linalg.pinv(rows, rtol=1e-9) @ rows


def naive_value(method, a, vectors, i, left_out, resphered):
    """tᵢ by its definition, with the test vectors `left_out` (i among them) not in the sketch."""
    keep = [k for k in range(len(vectors)) if k not in left_out]
    if method == "xtrace":
        known = projector(vectors[keep] @ a.mT)
        held, rest = (known @ a @ known).trace(), (torch.eye(len(a)) - known) @ vectors[i]
        residual = a
    else:
        known, y = projector(vectors[keep]), a @ vectors[keep].mT
        approximation = y @ torch.linalg.pinv(vectors[keep] @ y, rtol=1e-9) @ y.mT
        held, rest, residual = approximation.trace(), (torch.eye(len(a)) - known) @ vectors[i], a - approximation
    if resphered:
        rest = rest * math.sqrt(len(a) - round(float(known.trace()))) / rest.norm()
    return held + rest @ residual @ rest


def naive_pairs(method, a, vectors, resphered=False):
    count = range(len(vectors))
    rows = [[naive_value(method, a, vectors, i, {i, j}, resphered) for i in count] for j in count]
    return torch.tensor(rows, dtype=torch.float64)


def given_pairs(method, a, vectors):
    """All leave-two-out values of the module, for given test vectors."""
    kind, values = METHODS[method]
    sketch = kind(Dense(a), "signs", seeded())
    sketch.draw, sketch.size = Given(vectors), 20  # so that the basis is not completed
    sketch.grow(len(vectors) * (2 if method == "xtrace" else 1))
    return values(sketch)


@pytest.mark.parametrize("kind", ["sphere", "signs"])
@pytest.mark.parametrize("name", ["bulk", "step", "power law", "unsymmetric"])
@pytest.mark.parametrize("method", METHODS)
def test_against_the_definition(method, name, kind):
    if name == "unsymmetric" and method == "xnystrace":
        return
    a = randn(30, 30) if name == "unsymmetric" else matrix(name, 30)
    make, values = METHODS[method]
    sketch = make(Dense(a), kind, seeded(3))
    sketch.grow(24 if method == "xtrace" else 12)
    vectors = leave_one_out.Probes(kind, Dense(a).in_space, seeded(3)).draw(12)
    truth = naive_pairs(method, a, vectors, resphered=kind == "sphere")
    torch.testing.assert_close(values(sketch), truth, rtol=0, atol=1e-9 * float(a.norm()))


def sign_tuples(n, count):
    """All tuples of sign vectors, up to the sign of each, which is of no effect."""
    half = all_signs(n)[: 2 ** (n - 1)]
    return [torch.stack(vectors) for vectors in itertools.product(half, repeat=count)]


@pytest.mark.parametrize(("n", "count"), [(5, 2), (4, 3)])
@pytest.mark.parametrize("method", METHODS)
def test_unbiased_over_all_signs(method, n, count):
    """Also where test vectors are the same, or the others span their image."""
    a = matrix("power law", n)
    values = [given_pairs(method, a, vectors).diagonal().mean() for vectors in sign_tuples(n, count)]
    assert float(torch.stack(values).mean()) == pytest.approx(float(a.trace()), rel=1e-12)


def test_xtrace_of_an_unsymmetric_matrix_is_unbiased_over_all_signs():
    a = randn(4, 4)
    values = [given_pairs("xtrace", a, vectors).diagonal().mean() for vectors in sign_tuples(4, 2)]
    assert float(torch.stack(values).mean()) == pytest.approx(float(a.trace()), rel=1e-12)


@pytest.mark.parametrize(("n", "count"), [(4, 3)])
@pytest.mark.parametrize("method", METHODS)
def test_variance_is_unbiased_over_all_signs(method, n, count):
    """The mean of the two parts over all test vectors is the variance of the estimate."""
    a = matrix("power law", n)
    pairs = [naive_pairs(method, a, vectors) for vectors in sign_tuples(n, count)]
    estimates = torch.stack([p.diagonal().mean() for p in pairs])
    truth = float(estimates.var(unbiased=False))
    assert float(torch.stack([sum(variance(p)) for p in pairs]).mean()) == pytest.approx(truth, rel=1e-10)


@pytest.mark.parametrize("kind", ["sphere", "signs"])
@pytest.mark.parametrize("method", METHODS)
def test_growing_is_drawing_at_once(method, kind):
    a = matrix("slow power law", 64)  # normal numbers are drawn in blocks of 16
    make, values = METHODS[method]
    whole, grown = make(Dense(a), kind, seeded(1)), make(Dense(a), kind, seeded(1))
    whole.grow(40)
    for total in (8, 9, 32, 40):
        grown.grow(total)
    assert grown.spent == whole.spent == 40
    torch.testing.assert_close(values(grown), values(whole), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_no_product_is_taken_twice(method):
    a = Counter(Dense(matrix("slow power law", 100)))
    estimate = trace(a, method=method, rtol=3e-3)
    assert estimate.num_matvecs == a.total > 36


@pytest.mark.parametrize("probes", ["sphere", "signs"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rank", [1, 5])
@pytest.mark.parametrize("method", METHODS)
def test_exact_to_rounding_if_the_sketch_holds_the_range(method, rank, dtype, probes):
    a = wishart(300, rank)
    estimate = trace(Dense(a.to(dtype)), method=method, budget=60, probes=probes)
    rounding = 300 * torch.finfo(dtype).eps
    assert estimate.value == pytest.approx(float(a.trace()), rel=rounding)
    assert 0 < estimate.standard_error < rounding * estimate.value
    assert estimate.status is Status.CONVERGED


@pytest.mark.parametrize("method", METHODS)
def test_a_multiple_of_the_identity_is_exact(method):
    """The resphered probes leave nothing to chance but what differs between directions."""
    estimate = trace(Diagonal(torch.full((200,), 3.0, dtype=torch.float64)), method=method, budget=20)
    assert estimate.value == pytest.approx(600, rel=1e-13)
    assert estimate.standard_error < 1e-11


@pytest.mark.parametrize("probes", ["sphere", "signs"])
@pytest.mark.parametrize("name", ["bulk", "exponential", "rank one"])
@pytest.mark.parametrize("method", METHODS)
def test_exact_with_as_many_products_as_entries(method, name, probes):
    a = matrix(name, 50)
    for effort in ({"budget": 50}, {"rtol": 1e-9}):
        estimate = trace(Dense(a), method=method, probes=probes, **effort)
        assert estimate.value == pytest.approx(float(a.trace()), rel=1e-12)
        assert estimate.standard_error < 1e-13 * estimate.value
        assert estimate.status is Status.CONVERGED
        assert estimate.num_matvecs <= (50 if "budget" in effort or method == "xnystrace" else 100)


@pytest.mark.parametrize("method", METHODS)
def test_nearly_all_of_the_space(method):
    a = matrix("exponential", 50)
    estimate = trace(Dense(a), method=method, budget=49)
    assert estimate.num_matvecs == (48 if method == "xtrace" else 46)
    assert abs(estimate.value - float(a.trace())) < 5 * estimate.standard_error


@pytest.mark.parametrize("method", METHODS)
def test_one_small_value_beyond_large_ones(method):
    """Without two test vectors the sketch misses a large mode; without one it misses the small one only."""
    d = torch.cat([torch.ones(11), 1e-9 * torch.ones(189)]).double()
    estimate = trace(Diagonal(d), method=method, budget=24 if method == "xtrace" else 12)
    assert abs(estimate.value - float(d.sum())) < 5 * estimate.standard_error < 1


@pytest.mark.parametrize("name", ["bulk", "step", "exponential", "power law", "slow power law"])
@pytest.mark.parametrize("method", METHODS)
def test_converged_means_within_twice_the_tolerance(method, name):
    """In at least 95 % of 200 runs, at a tolerance that takes a few looks or is met at the first."""
    a, rtol = matrix(name, 80), 1e-2
    estimates = [trace(Dense(a), method=method, rtol=rtol, generator=seeded(seed)) for seed in range(200)]
    assert all(e.status is Status.CONVERGED and e.standard_error <= rtol * e.value for e in estimates)
    assert sum(abs(e.value / float(a.trace()) - 1) <= 2 * rtol for e in estimates) >= 190


@pytest.mark.parametrize("method", METHODS)
def test_few_products(method):
    a = factorised(matrix("bulk", 80))
    estimate = trace(a, method=method, budget=7)
    assert estimate.standard_error == math.inf
    assert estimate.num_matvecs == (6 if method == "xtrace" else 7)
    assert math.isfinite(estimate.value)


def test_indefinite_operators_are_refused():
    with pytest.raises(ValueError, match=r"'xnystrace' needs a positive semi-definite operator; got .*Use 'xtrace'"):
        trace(Dense(matrix("indefinite", 80)), method="xnystrace")
    with pytest.raises(ValueError, match=r"'xnystrace' needs a symmetric, .* not known to be symmetric. Use 'xtrace'"):
        trace(Dense(randn(80, 80)), method="xnystrace")
