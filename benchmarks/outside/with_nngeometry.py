"""nngeometry: contraction during back-propagation, layer by layer."""

import copy

from nngeometry.gram import GramMatrix
from nngeometry.metrics import FIM
from nngeometry.object import PMatImplicit
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ..problems import Problem
from .peer import Peer

__all__ = ["PEER"]


def _gram(problem: Problem) -> Tensor:
    kernel = GramMatrix(copy.deepcopy(problem.model), _loader(problem)).to_torch().detach()  # [O, N, O, N]
    return kernel.permute(1, 0, 3, 2).flatten(2).flatten(0, 1)


def _trace(problem: Problem) -> float:
    """Of the Fisher information of a regression, which is the NTK's over the number of trials."""
    fisher = FIM(copy.deepcopy(problem.model), _loader(problem), PMatImplicit, variant="regression")
    return float(fisher.trace()) * len(problem.inputs)


def _loader(problem: Problem) -> DataLoader:
    return DataLoader(TensorDataset(problem.inputs), batch_size=len(problem.inputs))


PEER = Peer("nngeometry GramMatrix, PMatImplicit", "nngeometry", "layers", _gram, _trace)
