"""Errors where what is summed cancels, or where so little was done that it tells nothing."""

import math

import pytest
import torch

from kpflow.estimate import Status, alignment, density, diagonal, entropy_rank, operator_norm, spectral_sum, trace
from kpflow.operators import Dense, Diagonal, Identity

from .problems import randn

NILPOTENT = torch.triu(randn(90, 90, seed=4).float(), 1)
"""Its trace and its diagonal vanish; what is left of them in float32 is rounding, of the size of the whole matrix."""


@pytest.mark.parametrize("method", ["hutch++", "hutch++-nonadaptive", "xtrace"])
def test_rounding_of_traces_that_cancel(method):
    estimate = trace(Dense(NILPOTENT), method=method)
    assert abs(estimate.value) <= 3 * estimate.standard_error
    assert estimate.standard_error < 1e-3


def test_rounding_of_orthogonal_probes():
    estimate = trace(Dense(NILPOTENT), method="hutchinson", probes="orthogonal")
    assert estimate.num_matvecs == 90
    assert abs(estimate.value) <= 3 * estimate.standard_error < 1e-3


def test_rounding_of_diagonals_that_cancel():
    estimate = diagonal(Dense(NILPOTENT), method="xdiag")
    assert bool((estimate.values.abs() <= 3 * estimate.standard_errors).all())
    assert float(estimate.standard_errors.max()) < 1e-4


def test_rounding_of_alignments_that_cancel():
    a = Dense(NILPOTENT[:5, :5].contiguous())
    estimate = alignment(a, Identity(a.in_space), method="deflated")
    assert 0 < abs(estimate.value) <= 3 * estimate.standard_error < 1e-4


@pytest.mark.parametrize("symmetric", [True, False])
def test_norms_from_too_few_products(symmetric):
    """A spike that 4 random directions miss."""
    a = Diagonal(torch.cat([torch.ones(1), torch.zeros(299)]).double() + 1e-3)
    a = a if symmetric else Dense(torch.diag(a.diagonal) + 1e-9 * randn(300, 300))
    estimate = operator_norm(a, budget=4)
    assert estimate.status is Status.BUDGET_EXHAUSTED
    assert estimate.standard_error == math.inf
    assert operator_norm(a).standard_error < 1e-2


def test_one_lanczos_step_tells_nothing():
    a = Diagonal(torch.linspace(0, 1, 300, dtype=torch.float64))
    for estimate in (
        spectral_sum(a, torch.sqrt, method="slq", steps=1),
        entropy_rank(a, method="deflated", steps=1, budget=300),
    ):
        assert estimate.standard_error == math.inf
        assert estimate.status is Status.BUDGET_EXHAUSTED
    assert bool((density(a, method="slq", steps=1, budget=300).count_error == math.inf).all())
    assert spectral_sum(a, torch.sqrt, method="slq", steps=2, budget=300).standard_error < 60
    assert spectral_sum(2.0 * Identity(a.in_space), torch.sqrt, method="slq", steps=1).status is Status.CONVERGED
