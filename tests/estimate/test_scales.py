"""The scale of an operator changes the scale of the result and nothing else, as far as float32 reaches."""

import math

import pytest
import torch

from kpflow import estimate
from kpflow.operators import Dense, Gram

from .problems import matrix, randn

SCALES = [2.0**-86, 2.0**70]
"""About 1e-26 and 1e21: the squares of entries are far beyond what float32 can hold."""

METHODS = {
    estimate.trace: ["hutchinson", "hutch++", "hutch++-nonadaptive", "xtrace", "xnystrace", "exact"],
    estimate.frobenius_norm: ["deflated", "hutchinson", "exact"],
    estimate.effective_rank: ["deflated", "exact"],
    estimate.stable_rank: ["deflated", "exact"],
    estimate.entropy_rank: ["deflated", "slq"],
}
POWERS = {estimate.trace: 1, estimate.frobenius_norm: 1}


def psd(scale: float) -> Dense:
    a = matrix("power law", 100).float()
    return Dense(scale * (a + a.mT) / 2)


def same(found: estimate.Estimate, reference: estimate.Estimate, factor: float) -> None:
    assert found.num_matvecs == reference.num_matvecs
    assert found.status is reference.status
    assert found.value == pytest.approx(factor * reference.value, rel=1e-5)
    assert found.standard_error == pytest.approx(factor * reference.standard_error, rel=1e-2)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("function", "method"), [(f, m) for f, ms in METHODS.items() for m in ms])
def test_numbers_of_symmetric_operators(function, method, scale):
    factor = scale ** POWERS.get(function, 0)
    same(function(psd(scale), method=method), function(psd(1.0), method=method), factor)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", ["one-sided-reverse", "one-sided-forward", "xnystrace"])
def test_traces_of_gramians(method, scale):
    f = randn(100, 80, seed=3).float()
    same(
        estimate.trace(Gram(Dense(math.sqrt(scale) * f)), method=method),
        estimate.trace(Gram(Dense(f)), method=method),
        scale,
    )


@pytest.mark.parametrize("scale", SCALES)
def test_numbers_of_unsymmetric_operators(scale):
    a = randn(300, 250, seed=5).float()
    for function, factor in ((estimate.frobenius_norm, scale), (estimate.stable_rank, 1.0)):
        same(function(Dense(scale * a)), function(Dense(a)), factor)
    same(estimate.alignment(Dense(scale * a), Dense(a)), estimate.alignment(Dense(a), Dense(a)), 1.0)
    values = [estimate.modes(Dense(c * a), k=3, method="krylov").values / c for c in (scale, 1.0)]
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", ["hutchinson", "xdiag", "one-sided-forward"])
def test_diagonals(method, scale):
    f = randn(100, 80, seed=3).float()
    found, reference = (estimate.diagonal(Gram(Dense(math.sqrt(c) * f)), method=method) for c in (scale, 1.0))
    torch.testing.assert_close(found.values / scale, reference.values, rtol=1e-4, atol=1e-4)
    assert found.relative_error == pytest.approx(reference.relative_error, rel=1e-2)


@pytest.mark.parametrize("scale", SCALES)
def test_counts_and_low_rank(scale):
    assert float(estimate.count_above(psd(scale), 0.1 * scale, method="deflated")) == pytest.approx(
        float(estimate.count_above(psd(1.0), 0.1, method="deflated")), rel=1e-5
    )
    found, reference = (estimate.nystrom(psd(c), rtol=0.1) for c in (scale, 1.0))
    assert len(found.values) == len(reference.values)
    assert found.relative_error == pytest.approx(reference.relative_error, rel=1e-3, abs=1e-6)
    found, reference = (estimate.summary(psd(c), budget=60) for c in (scale, 1.0))
    same(found.effective_rank, reference.effective_rank, 1.0)
    same(found.operator_norm, reference.operator_norm, scale)


def test_relative_errors_of_nothing():
    """Nothing with an error, or an error of nothing, is no division by zero."""
    zero = Dense(torch.zeros(100, 100))
    few = estimate.diagonal(zero, method="hutchinson", budget=4)
    assert few.relative_error == math.inf
    assert "relative error inf" in repr(few)
    assert estimate.diagonal(zero, method="hutchinson").relative_error == 0
    broken = Dense(torch.full((100, 100), 3e38))
    assert estimate.nystrom(broken, rank=3, raise_on_failure=False).relative_error == math.inf
    assert estimate.nystrom(zero, rank=3).relative_error == 0
