"""Tapes: products of a recorded Jacobian, from reverse mode alone."""

import pytest
import torch

from kpflow.states.tapes import Tape
from models import randn


def recorded(function, *shape):
    leaf = randn(*shape, seed=0).requires_grad_()
    return Tape([function(leaf)], [leaf]), torch.func.jacrev(function)(leaf.detach())


@pytest.mark.parametrize(
    "function",
    [torch.tanh, lambda x: torch.logcumsumexp(x, 0), lambda x: torch.softmax(x, 0) * x, lambda x: x.sort().values],
    ids=["tanh", "logcumsumexp", "softmax", "sort"],
)
def test_both_products_are_those_of_the_jacobian(function):
    tape, jacobian = recorded(function, 5)
    block = randn(3, 5, seed=1)
    torch.testing.assert_close(tape.jvp([block])[0], block @ jacobian.mT)
    torch.testing.assert_close(tape.vjp([block])[0], block @ jacobian)


def test_an_output_without_a_graph_has_no_derivative():
    leaf = randn(4, seed=0).requires_grad_()
    tape = Tape([torch.ones(2, dtype=leaf.dtype), 2 * leaf], [leaf])
    block = randn(3, 4, seed=1)
    constant, doubled = tape.jvp([block])
    assert not constant.any()
    torch.testing.assert_close(doubled, 2 * block)
    torch.testing.assert_close(tape.vjp([torch.ones(3, 2, dtype=leaf.dtype), block])[0], 2 * block)


def test_an_operation_that_cannot_be_differentiated_twice_is_named():
    tape, _ = recorded(lambda x: torch.cdist(x, x + 1), 3, 2)
    assert tape.vjp([randn(2, 3, 3, seed=1)])[0].shape == (2, 3, 2)
    with pytest.raises(ValueError, match=r"whose derivative cannot be differentiated: .*_cdist_backward"):
        tape.jvp([randn(2, 3, 2, seed=1)])
