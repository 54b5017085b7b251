"""Transitions: A_t = ∂f/∂z, the derivative of a step with respect to the previous state, along a trajectory."""

import abc
import dataclasses
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from .gates import Gates, Times

__all__ = ["DenseTransition", "GatedTransition", "Transition"]


class Transition(abc.ABC):
    """A_t for every step t and trial. `times` is one step, or a range of steps to do at once."""

    @abc.abstractmethod
    def forward(self, times: Times, state: Tensor, added: Tensor) -> Tensor:
        """added + A_t state, for blocks `[*T, B, S, n]`."""

    @abc.abstractmethod
    def backward(self, times: Times, state: Tensor, added: Tensor) -> Tensor:
        """added + A_tᵀ state."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class DenseTransition(Transition):
    """The Jacobians as one tensor: best where forming them once saves work in every product.

    Args:
        jacobian: A, shape `[T, B, n, n]`.
    """

    jacobian: Float[Tensor, "T B n n"]

    def forward(self, times: Times, state: Tensor, added: Tensor) -> Tensor:
        return _add_product(added, state, self.jacobian[times].mT)

    def backward(self, times: Times, state: Tensor, added: Tensor) -> Tensor:
        return _add_product(added, state, self.jacobian[times])


@final
@dataclasses.dataclass(frozen=True, eq=False)
class GatedTransition(Transition):
    """A_t = D_t W E_t + carry_t, never formed: one product with W for all trials and probes.

    Args:
        weight: W, shape `[G·U, H]`, acting on the first H state entries.
        gates: D.
        gain: E, shape `[T, B, H]`; None for the identity.
        carry: What passes straight from the last block of H entries to each of the R blocks, shape `[T, B, R, H]`;
            None for nothing.
    """

    weight: Float[Tensor, "GU H"]
    gates: Gates
    gain: Float[Tensor, "T B H"] | None = None
    carry: Float[Tensor, "T B R H"] | None = None

    def forward(self, times: Times, state: Tensor, added: Tensor) -> Tensor:
        size = self.weight.shape[1]
        seen = state[..., :size]
        if self.gain is not None:
            seen = seen * self.gain[times].unsqueeze(-2)
        result = self.gates.to_state(seen @ self.weight.mT, times).add_(added)
        if self.carry is not None:
            rows = result.unflatten(-1, (-1, size))
            rows.addcmul_(self.carry[times].unsqueeze(-3), state[..., -size:].unsqueeze(-2))
        return result

    def backward(self, times: Times, state: Tensor, added: Tensor) -> Tensor:
        size = self.weight.shape[1]
        seen = self.gates.to_gates(state, times) @ self.weight
        if self.gain is not None:
            seen *= self.gain[times].unsqueeze(-2)
        result = added.clone()
        result[..., :size] += seen
        if self.carry is not None:
            rows = state.unflatten(-1, (-1, size))
            result[..., -size:] += (self.carry[times].unsqueeze(-3) * rows).sum(-2)
        return result

    def dense(self) -> DenseTransition:
        """The same transition with its Jacobians formed."""
        steps, trials, blocks, size = self.gates.slope.shape[0], *self.gates.slope.shape[1:3], self.weight.shape[1]
        identity = torch.eye(blocks * size, dtype=self.weight.dtype, device=self.weight.device)
        probes = identity.expand(steps, trials, -1, -1)
        return DenseTransition(self.forward(slice(None), probes, torch.zeros_like(probes)).mT.contiguous())


def _add_product(added: Tensor, state: Tensor, matrices: Tensor) -> Tensor:
    """added + state · matrices; one fused kernel for one step."""
    if state.ndim == 3:
        return torch.baddbmm(added, state, matrices)
    return added + state @ matrices
