"""The resolvent beyond the contract of operators: its tolerance, its effort and its refusals."""

import pytest
import torch

from helpers import randn
from kpflow.operators import Dense, Diagonal, Function, Resolvent
from kpflow.spaces import Space


def test_the_residual_is_within_the_tolerance_for_every_vector_of_a_block():
    spectrum = torch.logspace(-4, 2, 60, dtype=torch.float64)
    operator = Diagonal(spectrum)
    vectors = torch.cat([randn(3, 60, seed=1), 1e-9 * randn(2, 60, seed=2), torch.zeros(1, 60, dtype=torch.float64)])
    solved = Resolvent(operator, 0.01, tolerance=1e-6)(vectors)
    residual = (spectrum + 0.01) * solved - vectors
    assert bool((residual.norm(dim=1) <= 1.01e-6 * vectors.norm(dim=1)).all())
    assert not bool((residual[:5].norm(dim=1) < 1e-10 * vectors[:5].norm(dim=1)).any())  # no more than was asked


def test_a_system_that_is_not_solved_is_an_error():
    operator = Diagonal(torch.logspace(-6, 3, 200, dtype=torch.float64))
    with pytest.raises(FloatingPointError, match="was not reached in 5 products to a relative residual of 1e-08"):
        Resolvent(operator, 1e-6, steps=5)(randn(200, seed=1))
    with pytest.raises(FloatingPointError, match="is A positive"):
        Resolvent(Function(lambda v: v * torch.nan, None, Space.of((3,))), 1.0)(torch.ones(3, dtype=torch.float64))


def test_refusals():
    with pytest.raises(ValueError, match="`operator` must be symmetric"):
        Resolvent(Dense(randn(3, 3, seed=1)), 1.0)
    with pytest.raises(TypeError, match="`operator` must be an operator; got int"):
        Resolvent(3, 1.0)
    for keywords in ({"shift": 0.0}, {"shift": 1.0, "tolerance": 0.0}, {"shift": 1.0, "steps": 0}):
        with pytest.raises(ValueError, match=f"`{list(keywords)[-1]}` must be a positive"):
            Resolvent(Diagonal(torch.ones(2)), **keywords)
