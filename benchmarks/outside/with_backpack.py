"""BackPACK: gradients of every trial, contracted."""

import copy

import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad
from torch import Tensor

from ..problems import Problem
from .peer import Peer

__all__ = ["PEER"]


def _gram(problem: Problem) -> Tensor:
    model = extend(copy.deepcopy(problem.model))
    outputs = model(problem.inputs)
    rows = []
    for output in outputs.unbind(1):
        with backpack(BatchGrad(), retain_graph=True):
            output.sum().backward(retain_graph=True)
        rows.append([value.grad_batch.flatten(1) for value in model.parameters()])
    jacobians = [torch.stack(parts, dim=1).flatten(0, 1) for parts in zip(*rows, strict=True)]
    return torch.stack([part @ part.mT for part in jacobians]).sum(0)


PEER = Peer("BackPACK BatchGrad, contracted", "backpack-for-pytorch", "Jacobian", _gram)
