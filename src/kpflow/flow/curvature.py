"""The curvature of a loss in what it is a function of."""

from collections.abc import Callable

import torch
from torch import Tensor

from kpflow.operators import Function
from kpflow.spaces import Space
from kpflow.states.tapes import Tape, recording

from .response import error_signal

__all__ = ["loss_curvature"]


def loss_curvature(loss: Callable[[Tensor], Tensor], at: Tensor, space: Space) -> Function:
    """H = ∂²L/∂y² at y, as an operator.

    Raises:
        ValueError: The loss is linear in y, or no finite scalar that depends on it.
    """
    error_signal(loss, at)
    with recording():
        point = at.detach().clone().requires_grad_()
        (error,) = torch.autograd.grad(loss(point), point, create_graph=True)
    if not error.requires_grad:
        raise ValueError("`loss` must be curved in the outputs, as squared errors are; this one is linear in them.")
    tape = Tape([error], [point])

    def product(block: Tensor) -> Tensor:
        return tape.vjp([block.reshape(len(block), *at.shape)])[0].reshape(block.shape)

    return Function(product, None, space)
