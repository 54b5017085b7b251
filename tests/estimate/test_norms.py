"""Norms: golden numbers of propagators, exact where sampling is finite, bounds that hold, and every refusal."""

import math

import pytest
import torch

from kpflow.estimate import Status, frobenius_norm, operator_norm, products, sketch
from kpflow.estimate.products import signs
from kpflow.estimate.sketch import Sketch
from kpflow.operators import Dense, Function
from kpflow.spaces import Space

from .problems import SPECTRA, Counter, FactorGramian, factorised, matrix, randn, rotation, seeded, toeplitz, wishart
from .test_traces import enumerate_signs

METHODS = ["deflated", "hutchinson", "one-sided-reverse", "exact"]


@pytest.mark.parametrize(("a", "square"), [(0.5, 7.5556640625), (1.0, 21.0), (1.3, 70.4552906)])
def test_golden_norms_of_a_propagator(a, square):
    assert frobenius_norm(Dense(toeplitz(a, 6))).value ** 2 == pytest.approx(square, rel=1e-8)


@pytest.mark.parametrize("steps", [6, 300])
def test_golden_operator_norm_of_the_integrator(steps):
    truth = 1 / (2 * math.sin(math.pi / (2 * (2 * steps + 1))))
    estimate = operator_norm(Dense(toeplitz(1.0, steps)), rtol=1e-6)
    assert estimate.value == pytest.approx(truth, rel=1e-10)
    assert estimate.method == ("dense" if steps == 6 else "block Krylov")
    if steps == 6:
        assert estimate.value == pytest.approx(4.148114905, rel=1e-9)


def test_plain_over_all_signs(monkeypatch):
    a = randn(5, 8)
    enumerate_signs(monkeypatch, products, 8)
    estimate = frobenius_norm(Dense(a), method="hutchinson", budget=256)
    assert estimate.value == pytest.approx(float(a.norm()), rel=1e-12)


@pytest.mark.parametrize("kind", ["symmetric", "square", "wide", "tall"])
def test_deflated_over_all_signs(monkeypatch, kind):
    a = {"symmetric": matrix("indefinite", 8), "square": randn(8, 8), "wide": randn(5, 8), "tall": randn(12, 8)}[kind]
    enumerate_signs(monkeypatch, sketch, 8)
    both = Sketch([Dense(a)], 2.5 / 260, seeded(), two_sided=kind == "symmetric")
    both.grow(260)
    assert (len(both.basis), len(both.probes)) == (2, 256)
    held, samples = both.inner()
    assert held + float(samples.mean()) == pytest.approx(float(a.square().sum()), rel=1e-12)


@pytest.mark.parametrize("metric", [False, True])
def test_one_sided_is_the_mean_over_pairs(metric):
    f, middle = randn(30, 12), matrix("bulk", 12)
    gramian = FactorGramian(Dense(f), Dense(middle) if metric else None)
    estimate = frobenius_norm(gramian, method="one-sided-reverse", budget=10, generator=seeded(4))
    probes = signs(gramian.in_space, 10, seeded(4))
    core = probes @ f @ (middle if metric else torch.eye(12).double()) @ f.mT @ probes.mT

    def naive(kept: list[int]) -> float:
        return math.sqrt(
            sum(float(core[i, j]) ** 2 for i in kept for j in kept if i != j) / len(kept) / (len(kept) - 1)
        )

    out = torch.tensor([naive([j for j in range(10) if j != i]) for i in range(10)], dtype=torch.float64)
    assert estimate.value == pytest.approx(naive(list(range(10))), rel=1e-12)
    assert estimate.standard_error == pytest.approx(
        math.sqrt(9 / 10 * float((out - out.mean()).square().sum()) * 9 / 7), rel=1e-10
    )


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (30, 30)])
def test_exact_takes_the_smaller_side(shape):
    counter = Counter(Dense(randn(*shape)))
    estimate = frobenius_norm(counter)
    assert estimate.value == pytest.approx(float(randn(*shape).norm()), rel=1e-12)
    assert (estimate.standard_error, estimate.num_matvecs, counter.total) == (0.0, min(shape), min(shape))


@pytest.mark.parametrize("transpose", [False, True])
def test_exact_to_rounding_if_the_sketch_holds_the_range(transpose):
    a = randn(300, 4) @ randn(4, 200, seed=1)
    estimate = frobenius_norm(Dense(a.mT if transpose else a), budget=40)
    assert estimate.method == "deflated"
    assert estimate.value == pytest.approx(float(a.norm()), rel=1e-12)
    assert 0 < estimate.standard_error < 1e-10 * estimate.value


def test_a_shared_sketch_beats_plain_probes_on_leading_modes():
    operator = Dense(matrix("power law", 300))
    plain = frobenius_norm(operator, method="hutchinson", budget=48)
    deflated = frobenius_norm(operator, method="deflated", budget=48)
    assert deflated.standard_error < plain.standard_error / 5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [1, 2, 5, 33])
def test_budget_is_a_hard_limit(method, budget):
    factor = Counter(Dense(randn(40, 30)))
    if method == "exact":  # FᵀF, which is smaller
        if budget >= 30:
            assert (
                frobenius_norm(FactorGramian(factor), method=method, budget=budget).num_matvecs == factor.forward == 30
            )
            return
        with pytest.raises(ValueError, match=r"`budget` must be at least 30 for method 'exact'"):
            frobenius_norm(FactorGramian(factor), method=method, budget=budget)
        return
    estimate = frobenius_norm(FactorGramian(factor), method=method, budget=budget, rtol=1e-9)
    assert estimate.num_matvecs == factor.backward == budget
    assert estimate.status is Status.BUDGET_EXHAUSTED


@pytest.mark.parametrize("method", ["deflated", "hutchinson", "one-sided-reverse"])
def test_seeds(method):
    before = torch.random.get_rng_state()
    run = lambda seed: frobenius_norm(factorised(matrix("bulk", 70)), method=method, budget=30, generator=seed)  # noqa: E731
    assert run(seeded(1)) == run(seeded(1)) != run(seeded(2))
    assert run(None) == run(seeded(0))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("method", METHODS)
def test_float32_and_zero(method):
    f = randn(70, 70)
    double = frobenius_norm(FactorGramian(Dense(f)), method=method)
    assert frobenius_norm(FactorGramian(Dense(f.float())), method=method).value == pytest.approx(double.value, rel=1e-5)
    zero = frobenius_norm(FactorGramian(Dense(0 * f)), method=method)
    assert (zero.value, zero.standard_error, zero.status) == (0.0, 0.0, Status.CONVERGED)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", SPECTRA)
def test_operator_norm_within_its_bound(name, symmetric):
    a = matrix(name, 250) @ (torch.eye(250).double() if symmetric else rotation(250, 3))
    truth = float(torch.linalg.matrix_norm(a, 2))
    for seed in range(3):
        estimate = operator_norm(Dense(a), generator=seeded(seed))
        assert estimate.status is Status.CONVERGED
        assert estimate.standard_error <= 1e-2 * estimate.value
        assert abs(estimate.value - truth) <= estimate.standard_error
        assert estimate.value <= truth * (1 + 1e-12)


@pytest.mark.parametrize("budget", [2, 5, 11, 24])
@pytest.mark.parametrize("shape", [(250, 250), (220, 300), (300, 220)])
def test_operator_norm_keeps_its_budget(shape, budget):
    counter = Counter(Dense(randn(*shape)))
    estimate = operator_norm(counter, rtol=1e-9, budget=budget)
    assert counter.total == estimate.num_matvecs <= budget
    assert estimate.status is Status.BUDGET_EXHAUSTED
    assert estimate.standard_error > 0


def test_operator_norm_of_zero_and_of_an_indefinite_operator():
    assert operator_norm(Dense(torch.zeros(300, 300))).value == 0.0
    assert operator_norm(Dense(-wishart(300, 2))).value == pytest.approx(
        float(torch.linalg.matrix_norm(wishart(300, 2), 2)), rel=1e-10
    )


@pytest.mark.parametrize("norm", [frobenius_norm, operator_norm])
def test_not_finite(norm):
    broken = Function(lambda v: v / 0.0, None, Space.of((300,)))
    with pytest.raises(FloatingPointError, match=r"_norm` of Function: .* is not finite: a product holds NaN or inf"):
        norm(broken)
    estimate = norm(broken, raise_on_failure=False)
    assert math.isnan(estimate.value)
    assert estimate.status is Status.NOT_FINITE


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"method": "magic"}, r"`method` must be one of 'auto', 'deflated', .*; got 'magic'"),
        ({"method": "one-sided-reverse"}, r"'one-sided-reverse' needs an operator A = F Fᵀ .*Use 'deflated'"),
        ({"method": "exact", "budget": 9}, r"`budget` must be at least 10 for method 'exact'"),
        ({"rtol": 0.0}, r"`rtol` must be a positive number"),
    ],
)
def test_refusals(arguments, match):
    with pytest.raises(ValueError, match=match):
        frobenius_norm(Dense(matrix("bulk", 10)), **arguments)


def test_operator_norm_refuses_too_small_a_budget():
    with pytest.raises(ValueError, match=r"`budget` must be at least 2 here, for one probe; got 1"):
        operator_norm(Dense(randn(300, 300)), budget=1)


def test_the_basis_grows_only_where_there_are_leading_modes():
    """After the pilot of 36 products a third of the rest goes into the basis, or none."""
    for name, columns in (("bulk", 12), ("power law", 40)):
        both = Sketch([Dense(matrix(name, 100))], 1 / 3, seeded(), two_sided=True, least_share=0.25)
        both.grow(36)
        both.inner()
        both.grow(120)
        assert both.sketched == columns
        assert both.spent == 120
