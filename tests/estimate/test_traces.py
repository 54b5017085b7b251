"""The trace: exact where sampling is finite, within budget, and every refusal."""

import math

import pytest
import torch

from kpflow.estimate import Status, nonadaptive, products, sketch, trace
from kpflow.operators import Dense, Diagonal, Function, Identity, LowRank
from kpflow.spaces import Space

from .problems import Counter, FactorGramian, all_signs, factorised, matrix, randn, seeded, wishart

METHODS = ["hutchinson", "hutch++", "hutch++-nonadaptive", "one-sided-reverse", "one-sided-forward", "exact"]
SQUARE = ["hutchinson", "hutch++", "hutch++-nonadaptive", "xtrace", "xnystrace"]


def enumerate_signs(monkeypatch, module, n: int) -> None:
    """Let a draw of 2ⁿ probes be all sign vectors; smaller draws, of a sketch, stay random."""
    drawn = module.signs

    def signs(space, count, generator):
        return all_signs(n) if count == 2**n else drawn(space, count, generator)

    monkeypatch.setattr(module, "signs", signs)


@pytest.mark.parametrize("name", ["bulk", "exponential", "indefinite"])
def test_hutchinson_over_all_signs(monkeypatch, name):
    a = matrix(name, 8)
    enumerate_signs(monkeypatch, products, 8)
    estimate = trace(Dense(a), method="hutchinson", budget=256)
    variance = 2 * float(a.square().sum() - a.diagonal().square().sum())
    assert estimate.value == pytest.approx(float(a.trace()), rel=1e-12, abs=1e-12)
    assert estimate.standard_error == pytest.approx(math.sqrt(variance / 253), rel=1e-12)


def test_hutchinson_over_all_signs_of_an_unsymmetric_matrix(monkeypatch):
    a = randn(8, 8)
    enumerate_signs(monkeypatch, products, 8)
    assert trace(Dense(a), method="hutchinson", budget=256).value == pytest.approx(float(a.trace()), rel=1e-12)


@pytest.mark.parametrize("columns", [0, 3])
@pytest.mark.parametrize("method", ["one-sided-reverse", "one-sided-forward"])
def test_one_sided_over_all_signs(monkeypatch, method, columns):
    f = randn(8, 8, seed=3)
    enumerate_signs(monkeypatch, products, 8)
    budget = 256 + columns
    fraction = (columns + 0.5) / budget if columns else None
    estimate = trace(FactorGramian(Dense(f)), method=method, budget=budget, sketch_fraction=fraction)
    assert estimate.num_matvecs == budget
    assert estimate.value == pytest.approx(float(f.square().sum()), rel=1e-12)
    if not columns:
        a = f @ f.mT if method == "one-sided-reverse" else f.mT @ f
        variance = 2 * float(a.square().sum() - a.diagonal().square().sum())
        assert estimate.standard_error == pytest.approx(math.sqrt(variance / 253), rel=1e-12)


def test_one_sided_takes_a_metric(monkeypatch):
    f, metric = randn(8, 5, seed=3), matrix("bulk", 5)
    enumerate_signs(monkeypatch, products, 8)
    gramian = FactorGramian(Dense(f), Dense(metric))
    truth = float((f @ metric @ f.mT).trace())
    assert trace(gramian, method="one-sided-reverse", budget=256).value == pytest.approx(truth, rel=1e-12)
    assert trace(gramian, method="exact").value == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize("symmetric", [True, False])
def test_hutchpp_over_all_signs(monkeypatch, symmetric):
    a = matrix("slow power law", 8) if symmetric else randn(8, 8)
    enumerate_signs(monkeypatch, sketch, 8)
    estimate = trace(Dense(a), method="hutch++", budget=260, sketch_fraction=2.5 / 260)
    assert estimate.value == pytest.approx(float(a.trace()), rel=1e-12)
    assert estimate.num_matvecs == 260


def test_hutchpp_against_its_formula():
    """The algorithm of the paper, transcribed."""
    a, m = matrix("slow power law", 50), 36
    generator = seeded(5)
    draw = lambda: products.signs(Dense(a).in_space, 12, generator)  # noqa: E731
    q = torch.linalg.qr(a @ draw().mT)[0]
    g = draw().mT
    g = g - q @ (q.mT @ g)
    naive = (q.mT @ a @ q).trace() + (g.mT @ a @ g).trace() / 12
    assert trace(Dense(a), method="hutch++", budget=m, generator=seeded(5)).value == pytest.approx(float(naive))


@pytest.mark.parametrize("symmetric", [True, False])
def test_nonadaptive_hutchpp_over_all_signs(monkeypatch, symmetric):
    a = matrix("slow power law", 8) if symmetric else randn(8, 8)
    enumerate_signs(monkeypatch, nonadaptive, 8)
    estimate = trace(Dense(a), method="hutch++-nonadaptive", budget=265, sketch_fraction=3.5 / 265)
    assert estimate.value == pytest.approx(float(a.trace()), rel=1e-12)
    assert estimate.num_matvecs == 265


def test_nonadaptive_hutchpp_against_its_formula():
    """The algorithm of the paper, transcribed."""
    a, m = matrix("power law", 50), 40
    generator = seeded(5)
    s, r, g = (products.signs(Dense(a).in_space, count, generator).mT for count in (10, 20, 10))
    z, w = a @ r, a @ s
    inverse = torch.linalg.pinv(s.mT @ z)
    rest = (g.mT @ a @ g).trace() - (g.mT @ z @ inverse @ w.mT @ g).trace()
    naive = (inverse @ w.mT @ z).trace() + rest / 10
    estimate = trace(Dense(a), method="hutch++-nonadaptive", budget=m, generator=seeded(5))
    assert estimate.value == pytest.approx(float(naive), rel=1e-10)


@pytest.mark.parametrize("kind", ["signs", "sphere", "orthogonal"])
def test_variance_of_the_kinds_of_probes(kind):
    """As in the docstring of `trace`; the orthogonal ones are a sample without replacement, of known error."""
    n, m, runs = 6, 4, 1500
    a, space = randn(n, n, seed=2) @ randn(n, n, seed=2).mT, Space.of((n,))
    if kind == "orthogonal":
        draws = torch.stack([products.Probes(kind, space, seeded(seed)).draw(m) for seed in range(runs)])
        torch.testing.assert_close(draws @ draws.mT, n * torch.eye(m).double().expand(runs, m, m))
    else:
        draws = products.Probes(kind, space, seeded()).draw(runs * m).reshape(runs, m, n)
    samples = torch.einsum("rmi,ij,rmj->rm", draws, a, draws)
    square, trace_a = float(a.square().sum()), float(a.trace())
    sphere = 2 * n / (n + 2) * (square - trace_a**2 / n) / m
    signs = 2 * (square - float(a.diagonal().square().sum())) / m
    truth = {"signs": signs, "sphere": sphere, "orthogonal": sphere * (n - m) / (n - 1)}[kind]
    assert float(samples.mean()) == pytest.approx(trace_a, abs=4 * math.sqrt(truth / runs))
    assert float(samples.mean(1).var()) == pytest.approx(truth, rel=0.15)
    shrink = products.Probes(kind, space, seeded()).shrink(m)
    assert float(samples.var(1).mean()) / m * shrink**2 == pytest.approx(truth, rel=0.15)


@pytest.mark.parametrize("method", ["hutchinson", "one-sided-reverse", "one-sided-forward"])
def test_orthogonal_probes_are_exact_when_there_are_no_more(method):
    a = matrix("power law", 70)
    estimate = trace(factorised(a), method=method, probes="orthogonal", rtol=1e-12)
    assert estimate.value == pytest.approx(float(a.trace()), rel=1e-12)
    assert estimate.num_matvecs == 70
    assert estimate.status is Status.CONVERGED
    assert estimate.standard_error < 1e-14 * estimate.value


def test_orthogonal_probes_and_a_sketch_exclude_each_other():
    with pytest.raises(ValueError, match=r"`probes` 'orthogonal' cannot go with `sketch_fraction`"):
        trace(factorised(matrix("bulk", 9)), method="one-sided-reverse", probes="orthogonal", sketch_fraction=0.5)


@pytest.mark.parametrize(("fraction", "columns", "probes"), [(1 / 3, 20, 20), (1 / 6, 10, 40)])
def test_splits(fraction, columns, probes):
    both = sketch.Sketch([Dense(matrix("bulk", 80))], fraction, seeded(), two_sided=True)
    both.grow(60)
    assert (both.sketched, len(both.basis), len(both.probes), both.spent) == (columns, columns, probes, 60)


@pytest.mark.parametrize("method", ["hutch++", "auto"])
def test_exact_to_rounding_if_the_sketch_holds_the_range(method):
    a = wishart(300, 5)
    estimate = trace(Dense(a), method=method, budget=60)
    assert estimate.value == pytest.approx(float(a.trace()), rel=1e-12)
    assert 0 < estimate.standard_error < 1e-10 * estimate.value


@pytest.mark.parametrize("make", [Dense, factorised, lambda a: FactorGramian(Dense(a), Dense(torch.linalg.inv(a)))])
def test_exact(make):
    a = matrix("bulk", 30)
    estimate = trace(make(a))
    assert estimate.value == pytest.approx(float(a.trace()), rel=1e-12)
    assert (estimate.standard_error, estimate.num_matvecs) == (0.0, 30)
    assert (estimate.method, estimate.status) == ("exact", Status.CONVERGED)


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_exact_takes_the_cheaper_side(shape):
    f = Counter(Dense(randn(*shape)))
    estimate = trace(FactorGramian(f), method="exact")
    assert estimate.value == pytest.approx(float(randn(*shape).square().sum()), rel=1e-12)
    assert f.total == estimate.num_matvecs == 6


def test_auto_says_what_it_took():
    assert trace(Dense(matrix("bulk", 100))).method == "hutch++"
    assert trace(Dense(matrix("bulk", 100)), budget=100).method == "exact"
    assert trace(factorised(matrix("bulk", 100))).method == "one-sided-reverse"
    assert trace(factorised(matrix("rank one", 100))).method == "xnystrace"
    assert trace(factorised(matrix("bulk", 100)), rtol=1e-3).method == "one-sided-reverse"
    assert trace(FactorGramian(Dense(randn(100, 99)), Identity(Space.of((99,))))).method == "one-sided-reverse"
    assert trace(FactorGramian(Dense(matrix("rank one", 100)), Identity(Space.of((100,))))).method == "hutch++"
    assert trace(factorised(matrix("rank one", 100)), budget=50).method == "one-sided-reverse"
    assert trace(FactorGramian(Dense(randn(100, 9)))).method == "exact"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [1, 2, 3, 7, 30, 61])
@pytest.mark.parametrize("rtol", [None, 1e-6])
def test_budget_is_a_hard_limit(method, budget, rtol):
    factor = Counter(Dense(randn(70, 70)))
    if method == "exact" and budget < 70:
        with pytest.raises(ValueError, match=r"`budget` must be at least 70 for method 'exact'"):
            trace(FactorGramian(factor), method=method, budget=budget)
        return
    estimate = trace(FactorGramian(factor), method=method, budget=budget, rtol=rtol)
    spent = factor.total if method.startswith("one") else factor.backward
    assert spent == estimate.num_matvecs == budget
    assert estimate.status is Status.BUDGET_EXHAUSTED


def test_auto_keeps_the_budget_when_it_changes_its_mind():
    factor = Counter(Dense(randn(200, 2)))
    assert trace(FactorGramian(factor, Diagonal(torch.ones(2).double())), rtol=1e-6, budget=60).num_matvecs <= 60
    assert factor.backward <= 60


@pytest.mark.parametrize("method", METHODS)
def test_chunks_do_not_change_the_result(monkeypatch, method):
    gramian = factorised(matrix("slow power law", 50))
    whole = trace(gramian, method=method, budget=60)
    monkeypatch.setattr("kpflow.estimate.products.BLOCK_ENTRIES", 50 * 7)
    assert trace(gramian, method=method, budget=60).value == pytest.approx(whole.value, rel=1e-12)


@pytest.mark.parametrize("method", [*METHODS[:-1], "xtrace", "xnystrace"])
def test_seeds_and_scaling(method):
    f = randn(80, 90)
    before = torch.random.get_rng_state()
    run = lambda c, seed: trace(FactorGramian(Dense(c * f)), method=method, budget=30, generator=seed)  # noqa: E731
    first = run(1.0, seeded(1))
    assert run(1.0, seeded(1)) == first
    assert run(1.0, None) == run(1.0, seeded(0))
    assert run(1.0, seeded(2)).value != first.value
    assert run(2.0, seeded(1)).value == pytest.approx(4 * first.value, rel=1e-12)
    assert run(2.0, seeded(1)).standard_error == pytest.approx(4 * first.standard_error, rel=1e-9)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("method", METHODS)
def test_float32(method):
    a = matrix("slow power law", 100)
    estimate = trace(FactorGramian(Dense(factorised(a).factor.matrix.float())), method=method)
    double = trace(factorised(a), method=method)
    assert estimate.value == pytest.approx(double.value, rel=1e-5)


@pytest.mark.parametrize("method", [*SQUARE, "exact", "auto"])
def test_zero_operator(method):
    zero = torch.zeros(40, 40, dtype=torch.float64)
    estimate = trace(Dense(zero), method=method)
    assert (estimate.value, estimate.standard_error, estimate.status) == (0.0, 0.0, Status.CONVERGED)


@pytest.mark.parametrize("method", [*SQUARE, "exact", "auto"])
def test_not_finite(method):
    space = Space.of((80,))
    broken = Function(lambda v: v / 0.0, None, space)
    with pytest.raises(FloatingPointError, match=r"`trace` of Function: .* is not finite: a product holds NaN or inf"):
        trace(broken, method=method)
    estimate = trace(broken, method=method, raise_on_failure=False)
    assert math.isnan(estimate.value)
    assert estimate.standard_error == math.inf
    assert estimate.status is Status.NOT_FINITE
    assert estimate.num_matvecs > 0


def test_overflow_is_said():
    huge = Function(lambda v: v * 1e300, None, Space.of((80,)))
    assert trace(huge).value > 1e301
    with pytest.raises(FloatingPointError, match=r"has no value .* squares overflow"):
        trace(Function(lambda v: v.sign() * 1e308, None, Space.of((80,))), method="hutchinson")


def test_a_tensor_state_with_axes():
    space = Space.of((2, 5, 7), ("trial", "time", "unit"))
    a = matrix("bulk", 70)
    assert trace(Dense(a, (space, space)), method="exact").value == pytest.approx(float(a.trace()), rel=1e-12)
    assert trace(LowRank(randn(70, 3), None, (space, space)), budget=20).value == pytest.approx(
        float(randn(70, 3).square().sum()), rel=1e-12
    )


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"method": "magic"}, r"`method` must be one of 'auto', 'hutchinson', .*; got 'magic'"),
        ({"method": "one-sided-reverse"}, r"`method` 'one-sided-reverse' needs an operator A = F Fᵀ.*Use 'hutch\+\+'"),
        ({"method": "hutch++", "sketch_fraction": 0.5}, r"`sketch_fraction` must be between 0 and 0.5 .*; got 0.5"),
        ({"method": "hutchinson", "sketch_fraction": 0.1}, r"`sketch_fraction` is for the 'hutch\+\+' and the one-"),
        ({"method": "hutch++-nonadaptive", "sketch_fraction": 0.4}, r"must be between 0 and 0.333 .*; got 0.4"),
        ({"method": "hutch++", "probes": "sphere"}, r"`probes` is for 'hutchinson', .*; got it with 'hutch\+\+'"),
        ({"method": "auto", "probes": "sphere"}, r"`probes` is for 'hutchinson', .*; got it with 'auto'"),
        ({"method": "hutchinson", "probes": "gauss"}, r"`probes` must be one of 'signs', .*; got 'gauss'"),
        ({"method": "xtrace", "probes": "orthogonal"}, r"'orthogonal' cannot go with method 'xtrace', .*use 'signs'"),
        ({"method": "xtrace", "budget": 1}, r"`budget` must be at least 2 here, for one probe; got 1"),
        ({"method": "exact", "budget": 9}, r"`budget` must be at least 10 for method 'exact'.*got 9. Give budget=10"),
        ({"rtol": -0.1}, r"`rtol` must be a positive number"),
        ({"budget": 0}, r"`budget` must be a positive whole number"),
    ],
)
def test_refusals(arguments, match):
    with pytest.raises(ValueError, match=match):
        trace(Dense(matrix("bulk", 10)), **arguments)


def test_refuses_a_rectangle():
    with pytest.raises(ValueError, match=r"`operator` must map a space to itself; .*frobenius_norm\(A\) squared"):
        trace(Dense(randn(3, 4)))


def test_forward_refuses_a_metric():
    with pytest.raises(ValueError, match=r"'one-sided-forward' needs a Gramian without a metric.*'one-sided-reverse'"):
        trace(FactorGramian(Dense(randn(9, 4)), Dense(matrix("bulk", 4))), method="one-sided-forward")
