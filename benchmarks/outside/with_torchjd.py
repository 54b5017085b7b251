"""TorchJD: the Gram matrix of the Jacobian, accumulated module by module."""

import copy

from torch import Tensor
from torchjd.autogram import Engine

from ..problems import Problem
from .peer import Peer

__all__ = ["PEER"]


def _gram(problem: Problem) -> Tensor:
    model = copy.deepcopy(problem.model)
    engine = Engine(model, batch_dim=0)
    return engine.compute_gramian(model(problem.inputs)).detach()


PEER = Peer("TorchJD autogram.Engine", "torchjd", "Jacobian", _gram)
