"""Whether libraries agree on the NTK of a model's outputs, in float64."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import kernels
from ..measures import relative_difference
from ..problems import Problem, cnn, mlp
from . import with_kpflow
from .peer import Peer

__all__ = ["agreement", "layer_used_twice"]

TRIALS = 24


def agreement(peers: Sequence[Peer]) -> list[dict[str, Any]]:
    """max |kpflow − other| / max |other| of the matrix, of the trace, and of a block of products."""
    return [_row(peer, build(TRIALS, torch.float64)) for build in (mlp, cnn) for peer in peers]


def layer_used_twice(peers: Sequence[Peer]) -> list[dict[str, Any]]:
    """‖library − dense Jacobian‖ / ‖dense Jacobian‖ where a layer acts twice; or why there is no number."""
    problem = _shared()
    expected = kernels.by_contraction(problem)
    return [
        {"problem": problem.name, "library": peer.name} | _difference(peer, problem, expected)
        for peer in (with_kpflow.PEER, *peers)
    ]


class _Shared(nn.Module):
    """A network whose middle layer acts twice."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.first, self.middle, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs).tanh()
        return self.last(self.middle(self.middle(hidden).tanh()).tanh())


def _shared() -> Problem:
    generator = torch.Generator().manual_seed(1)
    model = _Shared().double()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=generator, dtype=value.dtype) / value.shape[-1] ** 0.5)
    inputs = torch.randn(TRIALS, 8, generator=generator, dtype=torch.float64)
    return Problem("8-16-16-16-3, the middle layer used twice", model, inputs, readout="outputs")


def _row(peer: Peer, problem: Problem) -> dict[str, Any]:
    ours = with_kpflow.PEER
    got = ours.gram(problem)
    found = {"problem": problem.name, "library": peer.name, "matrix": _largest(got, peer.gram(problem))}
    if peer.trace and ours.trace:
        found["trace"] = abs(ours.trace(problem) / peer.trace(problem) - 1)
    if peer.product and ours.product:
        block = torch.randn(3, len(got), generator=torch.Generator().manual_seed(2), dtype=got.dtype)
        found["products"] = _largest(ours.product(problem)(block), peer.product(problem)(block))
    return found


def _largest(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


def _difference(peer: Peer, problem: Problem, expected: Tensor) -> dict[str, Any]:
    try:
        return {"relative_difference": relative_difference(peer.gram(problem), expected)}
    except Exception as error:  # whatever a library says of what it cannot do
        return {"refused": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
