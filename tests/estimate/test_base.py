"""What estimators share: how results print, sums in float64, the jackknife, effort and its checks."""

import itertools
import math

import pytest
import torch

from kpflow.estimate import Estimate, Status, base, products
from kpflow.estimate.base import Effort, Reading, check_operator, jackknife, settle
from kpflow.estimate.products import gram, inner
from kpflow.estimate.sketch import orthonormal_rows
from kpflow.operators import Dense

from .problems import randn


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (61682.4, 123.4, "61680 ± 120"),
        (2.34567, 0.0123, "2.346 ± 0.012"),
        (-2.34567, 3.1, "-2.3 ± 3.1"),
        (0.0, 0.5, "0.00 ± 0.50"),
        (1.5e9, 2.2e7, "1.500e+09 ± 2.2e+07"),
        (3e-9, 1e-11, "3.000e-09 ± 1.0e-11"),
        (0.25, 1.8e-15, "0.25 ± 1.8e-15"),
        (2314.232, 0.0, "2314.232 ± 0"),
        (5.0, math.inf, "5 ± inf"),
    ],
)
def test_prints_significant_digits(value, error, text):
    assert str(Estimate(value, error, 36, Status.CONVERGED, "hutch++")) == f"{text} (36 products, hutch++)"


def test_says_how_it_ended():
    estimate = Estimate(1.0, 0.5, 4, Status.BUDGET_EXHAUSTED, "hutchinson")
    assert repr(estimate).endswith("hutchinson; budget exhausted: the tolerance is not met))")
    assert float(estimate) == 1.0


def test_estimate_is_frozen_and_no_number_by_accident():
    estimate = Estimate(1.0, 0.5, 4, Status.CONVERGED, "hutchinson")
    with pytest.raises(AttributeError):
        estimate.value = 2.0
    with pytest.raises(TypeError):
        estimate + 1


def test_sums_of_float32_are_in_float64():
    x = torch.ones(1, 20_000_001)  # which float32 cannot count to
    assert inner(x, x).item() == gram(x, x).item() == 20_000_001


def test_sums_go_over_pieces(monkeypatch):
    x, y = randn(2, 100, seed=1), randn(4, 100, seed=2)
    assert products.piece_length(200, x.device) < 100_000 // 50 <= products.piece_length(1, x.device)
    monkeypatch.setattr(products, "piece_length", lambda _rows, _device: 3)
    torch.testing.assert_close(gram(x, y), x @ y.mT, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(inner(x, y[:2]), (x * y[:2]).sum(1), rtol=1e-13, atol=1e-13)
    r = products.triangle(y)
    torch.testing.assert_close(r.mT @ r, y @ y.mT, rtol=1e-13, atol=1e-13)


def test_jackknife_of_a_mean_is_its_standard_error():
    samples = randn(20, 1)
    value, error = jackknife(lambda mean: mean[..., 0], samples)
    assert value == pytest.approx(float(samples.mean()), rel=1e-13)
    assert error == pytest.approx(float(samples.std()) / math.sqrt(20) * math.sqrt(19 / 17), rel=1e-12)


def test_jackknife_leaves_each_out():
    samples = 3 + randn(12, 2)
    ratio = lambda mean: mean[..., 0].square() / mean[..., 1]  # noqa: E731
    _, error = jackknife(ratio, samples)
    out = torch.stack([ratio(torch.cat([samples[:i], samples[i + 1 :]]).mean(0)) for i in range(12)])
    naive = 11 / 12 * (out - out.mean()).square().sum() * 11 / 9
    assert error == pytest.approx(float(naive.sqrt()), rel=1e-10)


def test_few_probes_give_no_error_bar():
    assert jackknife(lambda mean: mean[..., 0], torch.ones(7, 1, dtype=torch.float64)) == (1.0, math.inf)


def test_settle_stays_within_the_budget_and_stops_at_the_tolerance():
    asked = []

    def read(total: int) -> Reading:
        asked.append(total)
        return Reading(1.0, 1 / math.sqrt(total), total, total)

    estimate = settle(Effort.of(0.05, 1000), "test", read)
    assert asked[0] == base.PILOT
    assert all(1.2 < b / a <= 2.1 for a, b in itertools.pairwise(asked))
    assert estimate.status is Status.CONVERGED
    assert estimate.standard_error <= 0.05
    exhausted = settle(Effort.of(0.05, 100), "test", read)
    assert exhausted.num_matvecs == 100
    assert exhausted.status is Status.BUDGET_EXHAUSTED


def test_a_budget_alone_is_spent_as_a_whole():
    assert settle(Effort.of(None, 77), "test", lambda total: Reading(1.0, 0.0, total, total)).num_matvecs == 77


def test_error_bar_is_never_below_rounding():
    estimate = settle(Effort.of(None, 50), "test", lambda total: Reading(1.0, 0.0, total, total), eps=1e-16)
    assert estimate.standard_error == pytest.approx(8e-16)


def test_orthonormal_rows_drop_what_is_known():
    rows = randn(5, 30, seed=1)
    basis = orthonormal_rows(rows, rows[:0])
    mixed = torch.cat([randn(3, 5, seed=2) @ rows, randn(2, 30, seed=3)])
    fresh = orthonormal_rows(mixed, basis)
    assert fresh.shape == (2, 30)
    both = torch.cat([basis, fresh])
    torch.testing.assert_close(both @ both.mT, torch.eye(7, dtype=torch.float64), rtol=0, atol=1e-14)
    assert orthonormal_rows(torch.zeros(3, 30, dtype=torch.float64), basis).shape == (0, 30)


@pytest.mark.parametrize(
    ("rtol", "budget", "match"),
    [
        (0.0, None, r"`rtol` must be a positive number; got 0.0"),
        (-1.0, None, r"`rtol` must be a positive number; got -1.0"),
        (None, 0, r"`budget` must be a positive whole number; got 0"),
    ],
)
def test_numbers_out_of_range(rtol, budget, match):
    with pytest.raises(ValueError, match=match):
        Effort.of(rtol, budget)


def test_no_operator():
    with pytest.raises(
        TypeError, match=r"`operator` must be a kpflow operator; got Tensor. Wrap a matrix in operators"
    ):
        check_operator("operator", torch.eye(2))


def test_not_square():
    with pytest.raises(ValueError, match=r"`operator` must map a space to itself; got Dense: .* Because"):
        check_operator("operator", Dense(randn(2, 3)), square=True, why="Because.")
