"""Inertia and the ends of the spectrum against dense matrices: signed kernels, degenerate cases, what is unresolved."""

import math

import pytest
import torch
from torch import nn

from kpflow import linearise
from kpflow.estimate import Status, extreme_eigenvalues, inertia
from kpflow.estimate.inertias import signs_for_sure
from kpflow.estimate.quadrature import Rules
from kpflow.flow import Ntk
from kpflow.operators import Dense, Diagonal, Function, Gram, Identity, to_dense
from kpflow.spaces import Space

from .problems import SPECTRA, Counter, matrix, randn, seeded


def signed(n, parameters, flips, seed=0):
    """J D Jᵀ with Gaussian J and so many signs −1, and its eigenvalues."""
    jacobian, signs = randn(n, parameters, seed=seed) / math.sqrt(parameters), torch.ones(parameters).double()
    signs[:flips] = -1
    return Gram(Dense(jacobian), signs), torch.linalg.eigvalsh((jacobian * signs) @ jacobian.mT)


def counts(found):
    return found.positive.value, found.zero.value, found.negative.value


def truth(values, zero_below=1e-8):
    above, below = int((values > zero_below).sum()), int((values < -zero_below).sum())
    return above, len(values) - above - below, below


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("parameters", "flips"), [(20, 0), (20, 7), (20, 20), (90, 30), (90, 1)])
def test_signed_kernels_small_enough_for_the_matrix(parameters, flips, seed):
    operator, values = signed(40, parameters, flips, seed)
    found = inertia(operator)
    assert counts(found) == (found.sure[0], 40 - sum(found.sure), found.sure[1]) == truth(values)
    assert found.negative.value <= flips, "Sylvester's law"
    assert (found.positive.method, found.positive.standard_error, found.num_matvecs) == ("exact", 0, 40)
    assert found.least.value == pytest.approx(float(values[0]), abs=1e-12)
    assert found.largest.value == pytest.approx(float(values[-1]), abs=1e-12)
    assert 0 < found.least.standard_error < 1e-12
    assert found.positive_definite is bool(values[0] > 1e-8)


@pytest.mark.parametrize("method", ["slq", "deflated"])
def test_counts_with_a_gap_at_zero_are_resolved(method):
    """Few parameters, few signs: the brackets close, and what is left is the spread over the probes."""
    operator, values = signed(300, 30, 9)
    found = inertia(operator, method=method, budget=1200, generator=seeded(1))
    for estimate, right in zip((found.positive, found.zero, found.negative), truth(values), strict=True):
        assert abs(estimate.value - right) <= 4 * estimate.standard_error + 1e-6
        assert estimate.standard_error < 5
    if method == "deflated":  # all modes are held, and nothing is left to chance
        assert counts(found) == pytest.approx(truth(values), abs=1e-6)
        assert found.sure == (21, 9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", ["slq", "deflated"])
def test_counts_in_a_continuum_say_how_far_they_are_known(method, seed):
    operator, values = signed(300, 600, 150, seed)
    found = inertia(operator, method=method, budget=400, generator=seeded(seed))
    for estimate, right in zip((found.positive, found.zero, found.negative), truth(values), strict=True):
        assert abs(estimate.value - right) <= 4 * estimate.standard_error
        assert 0 < estimate.standard_error < 60
    assert sum(counts(found)) == pytest.approx(300)
    assert 0 < found.sure[0] <= truth(values)[0]
    assert 0 < found.sure[1] <= truth(values)[2]
    assert found.positive_definite is False
    assert found.zero.standard_error == found.positive.standard_error + found.negative.standard_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_ends_of_larger_operators(name, dtype):
    found = extreme_eigenvalues(Dense(matrix(name, 260).to(dtype)))
    for end, right in ((found.least, SPECTRA[name](260).min()), (found.largest, SPECTRA[name](260).max())):
        clustered = "power law" in name and end is found.least
        assert end.status is (Status.BUDGET_EXHAUSTED if clustered else Status.CONVERGED)
        assert abs(end.value - float(right)) <= end.standard_error < (1e-3 if clustered else 1e-4)
    rounding = 10 * torch.finfo(dtype).eps * float(SPECTRA[name](260).abs().max())
    assert found.least.value >= float(SPECTRA[name](260).min()) - rounding, "never beyond the ends"
    assert found.largest.value <= float(SPECTRA[name](260).max()) + rounding


def test_ends_that_few_products_cannot_know():
    few = extreme_eigenvalues(Dense(matrix("slow power law", 260)), budget=24)
    assert few.least.status is few.largest.status is Status.BUDGET_EXHAUSTED
    assert math.isinf(few.least.standard_error)
    more = extreme_eigenvalues(Dense(matrix("slow power law", 260)), budget=80)
    assert abs(more.least.value - 260**-0.5) <= more.least.standard_error < 0.2


@pytest.mark.parametrize("method", ["exact", "slq", "deflated"])
def test_multiples_of_the_identity(method):
    space = Space.of((80,))
    for scale, right, definite in ((0.0, (0, 80, 0), False), (2.0, (80, 0, 0), True), (-2.0, (0, 0, 80), False)):
        found = inertia(scale * Identity(space), method=method, budget=100)
        assert counts(found) == pytest.approx(right, abs=1e-9)
        assert found.positive_definite is definite
        assert (found.least.value, found.largest.value) == pytest.approx((scale, scale), rel=1e-12)


@pytest.mark.parametrize("method", ["exact", "deflated"])
def test_two_values_and_rank_one(method):
    mirror = Diagonal(torch.tensor([1.0] * 30 + [-1.0] * 50).double())
    found = inertia(mirror, method=method, budget=160)
    assert counts(found) == pytest.approx((30, 0, 50), abs=4 * found.positive.standard_error + 1e-9)
    assert (found.least.value, found.largest.value) == pytest.approx((-1, 1))
    one = inertia(-1.0 * Dense(matrix("rank one", 80)), method=method, budget=100)
    assert counts(one) == pytest.approx((0, 79, 1), abs=1e-9)
    assert one.sure == (0, 1)
    assert one.positive_definite is False


def test_what_counts_as_zero():
    operator = Diagonal(torch.tensor([-1.0, -1e-3, 1e-9, 1e-3, 1.0]).double())
    assert counts(inertia(operator)) == (2, 1, 2)
    assert inertia(operator).zero_below == pytest.approx(1.5e-8, rel=0.01)
    assert counts(inertia(operator, zero_below=1e-2)) == (1, 3, 1)
    assert counts(inertia(operator, zero_below=1e-12)) == (3, 0, 2)
    positive = Diagonal(torch.tensor([0.5, 1.0]).double())
    assert inertia(positive).positive_definite is True
    assert inertia(positive, zero_below=0.6).positive_definite is False


def test_a_sign_that_is_not_resolved_is_neither():
    operator = Dense(matrix("bulk", 260))
    found = inertia(operator, method="slq", budget=8)
    assert found.positive_definite is None
    assert math.isinf(found.least.standard_error)
    assert inertia(operator, method="slq", budget=400).positive_definite is True


def test_recurrences_that_ended_count_for_nothing_that_is_sure():
    """Their matrices are padded with the first entry, whose sign would be counted again."""
    matrices = torch.diag_embed(torch.tensor([[2.0, 2, 2], [2, 3, -1]])).double()
    coupling = torch.tensor([[[0.0, 0, 0]], [[0, 0, 1]]]).double()
    rules = Rules.of(matrices, coupling, 1, 1.0, [3])
    assert signs_for_sure(None, rules, 1e-9) == (2, 1)
    assert signs_for_sure(Rules.of(-matrices[:1], coupling[:1], 1, 1.0, [3]), rules, 1e-9) == (2, 3)


def test_budgets_are_of_counts_and_of_ends():
    counter = Counter(Dense(matrix("indefinite", 260)))
    found = inertia(counter, method="slq", budget=150)
    assert counter.total == found.num_matvecs <= 300
    assert found.positive.num_matvecs <= 150
    assert str(found).startswith("positive 1")
    whole = inertia(Dense(matrix("indefinite", 260)), budget=260)
    assert whole.positive.method == "exact"
    assert counts(whole) == (130, 0, 130)
    assert whole.num_matvecs == 260


def test_the_ntk_of_a_rule_with_signs():
    """P J D Jᵀ Pᵀ of a network some of whose synapses learn with the wrong sign, against its matrix."""
    torch.manual_seed(0)
    lin = linearise(nn.RNN(2, 12, batch_first=True).double(), randn(3, 8, 2, seed=1))
    signs = torch.ones(lin.parameters.size).double()
    signs[torch.randperm(len(signs), generator=seeded())[:60]] = -1
    ntk = Ntk(lin, metric=signs)
    values = torch.linalg.eigvalsh(to_dense(ntk))
    found = inertia(ntk, method="deflated", budget=900)
    scale = float(values.abs().max())
    assert counts(found) == pytest.approx(truth(values, found.zero_below), abs=0.5)
    assert found.least.value == pytest.approx(float(values[0]), abs=1e-6 * scale)
    assert found.positive_definite is False


@pytest.mark.parametrize("function", [inertia, extreme_eigenvalues])
def test_refusals(function):
    with pytest.raises(ValueError, match=r"`operator` must be known to be symmetric; got .* Take A @ A.T for squared"):
        function(Dense(randn(9, 9)))
    with pytest.raises(ValueError, match=r"`operator` must map a space to itself; .* needs eigenvalues"):
        function(Dense(randn(9, 8)))
    broken = Function(lambda v: v / 0.0, None, Space.of((300,)))
    with pytest.raises(FloatingPointError, match=rf"`{function.__name__}` of Function: .* a product holds NaN or inf"):
        function(broken)
    found = function(broken, raise_on_failure=False)
    assert found.least.status is Status.NOT_FINITE
    with pytest.raises(ValueError, match=r"`budget` must be"):
        function(Identity(Space.of((300,))), budget=0)


def test_refusals_of_numbers():
    operator = Identity(Space.of((300,)))
    with pytest.raises(ValueError, match="`zero_below` must be"):
        inertia(operator, zero_below=-1.0)
    with pytest.raises(ValueError, match="`tol` must be"):
        extreme_eigenvalues(operator, tol=0.0)
    with pytest.raises(ValueError, match=r"`budget` must be at least 2 here, for one product for each end; got 1"):
        extreme_eigenvalues(operator, budget=1)
    assert (
        inertia(Function(lambda v: v / 0.0, None, Space.of((300,))), raise_on_failure=False).positive_definite is None
    )
