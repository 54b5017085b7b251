"""curvlinops: products with the Jacobian and its transpose."""

from collections.abc import Callable

import torch
from curvlinops import JacobianLinearOperator
from torch import Tensor

from ..problems import Problem
from .peer import Peer

__all__ = ["PEER"]

COLUMNS = 256
"""Columns of the matrix that are done at once; all would hold as many Jacobians."""


def _product(problem: Problem) -> Callable[[Tensor], Tensor]:
    data = [(problem.inputs, problem.inputs[:, :1])]
    J = JacobianLinearOperator(problem.model, list(problem.model.parameters()), data, check_deterministic=False)
    return lambda block: (J @ (J.adjoint() @ block.mT)).mT


def _gram(problem: Problem) -> Tensor:
    product = _product(problem)
    with torch.no_grad():
        entries = torch.eye(problem.model(problem.inputs).numel(), dtype=problem.inputs.dtype)
    return torch.cat([product(some) for some in entries.split(COLUMNS)])


PEER = Peer("curvlinops J @ J.adjoint()", "curvlinops-for-pytorch", "products", _gram, product=_product)
