"""kpflow itself, and the contraction of PyTorch's tutorial."""

from collections.abc import Callable

from torch import Tensor

import kpflow as kp

from .. import kernels
from ..problems import Problem
from .peer import Peer

__all__ = ["CONTRACTION", "PEER", "trace_of"]


def trace_of(ntk: kp.Ntk) -> float:
    return float(kp.estimate.trace(ntk, method="exact"))


def _ntk(problem: Problem) -> kp.Ntk:
    return kp.Ntk(kp.linearise(problem.model, problem.inputs), readout="outputs")


def _product(problem: Problem) -> Callable[[Tensor], Tensor]:
    ntk = _ntk(problem)
    return lambda block: ntk(block.reshape(-1, *ntk.in_space.shape)).flatten(1)


PEER = Peer(
    "kpflow",
    "kpflow",
    "layers",
    lambda problem: kp.operators.to_dense(_ntk(problem)),
    lambda problem: trace_of(_ntk(problem)),
    _product,
)

CONTRACTION = Peer("torch.func, the tutorial's contraction", "torch", "Jacobian", kernels.by_contraction)
