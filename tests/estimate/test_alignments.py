"""Alignment: closed forms, exact where sampling is finite, budgets, refusals."""

import math

import pytest
import torch

from kpflow.estimate import Status, alignment, effective_rank, sketch
from kpflow.estimate.sketch import Sketch
from kpflow.operators import Dense, Function, Identity
from kpflow.spaces import Space

from .problems import Counter, matrix, randn, seeded, wishart
from .test_traces import enumerate_signs


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


@pytest.mark.parametrize("a", [matrix("bulk", 90), matrix("indefinite", 90), randn(90, 70), randn(70, 90)])
def test_with_itself_is_one(a):
    operator = Dense(a)
    for budget in (2, 3, 10, 60):
        assert alignment(operator, operator, method="deflated", budget=budget).value == 1.0
        assert alignment(operator, 3.0 * operator, method="deflated", budget=budget).value == pytest.approx(
            1, rel=1e-12
        )
        assert alignment(operator, -operator, method="deflated", budget=budget).value == pytest.approx(-1, rel=1e-12)


def test_with_the_identity_is_the_root_of_the_effective_rank():
    a = Dense(wishart(40, 5))
    truth = math.sqrt(effective_rank(a).value / 40)
    assert alignment(Identity(a.in_space), a).value == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize("shape", [(30, 30), (20, 30), (30, 20)])
def test_exact(shape):
    a, b = randn(*shape), randn(*shape, seed=1) + randn(*shape)
    estimate = alignment(Dense(a), Dense(b))
    assert estimate.value == pytest.approx(cosine(a, b), rel=1e-12)
    assert (estimate.standard_error, estimate.num_matvecs, estimate.method) == (0.0, 2 * shape[1], "exact")


def test_normalisation_is_of_both_operators():
    """The denominator is ‖A‖‖B‖; with tr(ABᵀ) in it, the value would not be symmetric nor below one."""
    a, b = Dense(wishart(30, 3)), Dense(wishart(30, 9, seed=2) + 5 * wishart(30, 3))
    assert alignment(a, b).value == pytest.approx(alignment(b, a).value, rel=1e-12)
    assert abs(alignment(a, b).value) < 1


@pytest.mark.parametrize("symmetric", [True, False])
def test_over_all_signs(monkeypatch, symmetric):
    a, b = (matrix("bulk", 8), matrix("indefinite", 8)) if symmetric else (randn(6, 8), randn(6, 8, seed=1))
    enumerate_signs(monkeypatch, sketch, 8)
    budget = 2 * 256 + 3 * 2
    both = Sketch([Dense(a), Dense(b)], 5 / budget, seeded(), two_sided=symmetric)
    both.grow(budget)
    assert (len(both.basis), len(both.probes), both.spent) == (2, 256, budget)
    for i, x in enumerate((a, b)):
        for j, y in enumerate((a, b)):
            held, samples = both.inner(i, j)
            assert held + float(samples.mean()) == pytest.approx(float((x * y).sum()), rel=1e-11, abs=1e-12)


@pytest.mark.parametrize("budget", [2, 3, 10, 37])
@pytest.mark.parametrize("symmetric", [True, False])
def test_budget_is_a_hard_limit(budget, symmetric):
    make = wishart if symmetric else randn
    left, right = Counter(Dense(make(80, 80))), Counter(Dense(make(80, 80, seed=1)))
    estimate = alignment(left, right, budget=budget, rtol=1e-9)
    assert budget - 1 <= left.total + right.total == estimate.num_matvecs <= budget
    assert estimate.status is Status.BUDGET_EXHAUSTED


def test_seeds_and_scale():
    a, b, before = matrix("bulk", 80), matrix("slow power law", 80), torch.random.get_rng_state()
    run = lambda c, seed: alignment(Dense(c * a), Dense(b), budget=60, generator=seed)  # noqa: E731
    first = run(1, seeded(1))
    assert run(1, seeded(1)) == first != run(1, seeded(2))
    assert run(9, seeded(1)).value == pytest.approx(first.value, rel=1e-12)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_float32():
    a, b = matrix("bulk", 80), matrix("slow power law", 80)
    single = alignment(Dense(a.float()), Dense(b.float()), rtol=1e-3)
    assert single.value == pytest.approx(cosine(a, b), rel=5e-3)


def test_zero_and_not_finite():
    a = Dense(matrix("bulk", 80))
    with pytest.raises(
        FloatingPointError, match=r"`alignment` of Dense: .* an operator is zero, so that the ratio is 0/0"
    ):
        alignment(a, 0.0 * a)
    assert alignment(0.0 * a, a, raise_on_failure=False).status is Status.NOT_FINITE
    broken = Function(lambda v: v / 0.0, None, a.in_space)
    with pytest.raises(FloatingPointError, match=r"a product holds NaN or inf"):
        alignment(a, broken)


def test_refuses_different_spaces():
    with pytest.raises(
        ValueError, match=r"`left` and `right` must act between the same spaces; .* NTKs of their outputs"
    ):
        alignment(Identity(Space.of((2, 3, 4))), Identity(Space.of((2, 3, 5))))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"method": "magic"}, r"`method` must be one of 'auto', 'deflated', 'exact'; got 'magic'"),
        ({"method": "exact", "budget": 19}, r"`budget` must be at least 20 for method 'exact'"),
        ({"budget": 1}, r"`budget` must be at least 2 here, for one probe; got 1"),
        ({"rtol": 0.0}, r"`rtol` must be a positive number"),
    ],
)
def test_refusals(arguments, match):
    with pytest.raises(ValueError, match=match):
        alignment(Dense(matrix("bulk", 10)), Dense(matrix("bulk", 10)), **arguments)
