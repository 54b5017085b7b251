"""Transitions: A_t = ∂f/∂z, the derivative of a step with respect to the previous state, along a trajectory."""

import abc
import dataclasses
from typing import final

from jaxtyping import Float
from torch import Tensor

from .gates import Gates, Times

__all__ = ["DenseTransition", "GatedTransition", "Transition"]


class Transition(abc.ABC):
    """A_t for every step t and trial. `times` is one step, or a range of steps to do at once."""

    @abc.abstractmethod
    def add_product(self, times: Times, state: Tensor, out: Tensor) -> None:
        """Add A_t state to `out`, blocks `[S, B, *T, n]`."""

    @abc.abstractmethod
    def add_product_adjoint(self, times: Times, state: Tensor, out: Tensor) -> None:
        """Add A_tᵀ state to `out`."""

    @property
    @abc.abstractmethod
    def nbytes(self) -> int:
        """Bytes that its tensors take."""

    def propagate(self, block: Tensor) -> None:
        """y_t = q_t + A_t y_{t−1}, in the place of q `[S, B, T, n]`."""
        for t in range(1, block.shape[2]):
            self.add_product(t, block[:, :, t - 1], block[:, :, t])

    def propagate_adjoint(self, block: Tensor) -> None:
        """a_t = v_t + A_{t+1}ᵀ a_{t+1}, in the place of v."""
        for t in reversed(range(block.shape[2] - 1)):
            self.add_product_adjoint(t + 1, block[:, :, t + 1], block[:, :, t])


@final
@dataclasses.dataclass(frozen=True, eq=False)
class DenseTransition(Transition):
    """The Jacobians as one tensor: best where forming them once saves work in every product.

    Args:
        jacobian: A, shape `[B, T, n, n]`.
    """

    jacobian: Float[Tensor, "B T n n"]

    def add_product(self, times: Times, state: Tensor, out: Tensor) -> None:
        _add_batched(state, self.jacobian[:, times].mT, out)

    def add_product_adjoint(self, times: Times, state: Tensor, out: Tensor) -> None:
        _add_batched(state, self.jacobian[:, times], out)

    @property
    def nbytes(self) -> int:
        return self.jacobian.nbytes


@final
@dataclasses.dataclass(frozen=True, eq=False)
class GatedTransition(Transition):
    """A_t = D_t W E_t + carry_t, never formed: one product with W for all trials and probes.

    Args:
        weight: W, shape `[G·U, H]`, acting on the first H state entries.
        gates: D.
        gain: E, shape `[B, T, H]`; None for the identity.
        carry: What passes straight from the last block of H entries to each of the R blocks, shape `[B, T, R, H]`;
            None for nothing.
    """

    weight: Float[Tensor, "GU H"]
    gates: Gates
    gain: Float[Tensor, "B T H"] | None = None
    carry: Float[Tensor, "B T R H"] | None = None

    def add_product(self, times: Times, state: Tensor, out: Tensor) -> None:
        size = self.weight.shape[1]
        seen = state[..., :size]
        if self.gain is not None:
            seen = seen * self.gain[:, times]
        self.gates.add_to_state(seen @ self.weight.mT, times, out)
        if self.carry is not None:
            rows = out.unflatten(-1, (-1, size))
            rows.addcmul_(self.carry[:, times], state[..., -size:].unsqueeze(-2))

    def add_product_adjoint(self, times: Times, state: Tensor, out: Tensor) -> None:
        size = self.weight.shape[1]
        seen = self.gates.to_gates(state, times) @ self.weight
        if self.gain is None:
            out[..., :size].add_(seen)
        else:
            out[..., :size].addcmul_(seen, self.gain[:, times])
        if self.carry is not None:
            carry, rows = self.carry[:, times], state.unflatten(-1, (-1, size))
            for r in range(rows.shape[-2]):
                out[..., -size:].addcmul_(carry[..., r, :], rows[..., r, :])

    @property
    def nbytes(self) -> int:
        tensors = (self.weight, self.gates.slope, self.gain, self.carry)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def within(self, memory: int) -> Transition:
        """The same transition with its Jacobians formed, if that saves work and they fit: of a GRU and an LSTM.

        A step takes G·U·H multiplications and R·G passes over the state with W, n² = (R·H)² and none with A.
        """
        trials, steps, blocks, _, size = self.gates.slope.shape
        formed = trials * steps * (blocks * size) ** 2 * self.weight.element_size()
        saves = self.gates.slope.shape[3] > 1 and self.weight.numel() >= (blocks * size) ** 2
        return self.formed() if saves and self.gates.mixing is None and formed <= memory else self

    def formed(self) -> DenseTransition:
        """A = Σ_g diag(slope_g) mixing W_g E + diag(carry), in blocks of H rows."""
        trials, steps, blocks, count, size = self.gates.slope.shape
        jacobian = self.weight.new_zeros(trials, steps, blocks * size, blocks * size)
        mixing = self.gates.mixing
        weights = [weight if mixing is None else mixing @ weight for weight in self.weight.chunk(count)]
        for r, rows in enumerate(jacobian.split(size, dim=-2)):
            for g, weight in enumerate(weights):
                rows[..., :size].addcmul_(self.gates.slope[:, :, r, g, :, None], weight)
            if self.gain is not None:
                rows[..., :size].mul_(self.gain.unsqueeze(-2))
            if self.carry is not None:
                rows[..., -size:].diagonal(dim1=-2, dim2=-1).add_(self.carry[:, :, r])
        return DenseTransition(jacobian)


def _add_batched(state: Tensor, matrices: Tensor, out: Tensor) -> None:
    """out += state · matrices for `[S, B, *T, n]` and `[B, *T, n, n]`; in the place of `out` for one step."""
    rows, target = state.movedim(0, -2), out.movedim(0, -2)  # [B, *T, S, n]
    if rows.ndim == 3:
        target.baddbmm_(rows, matrices)
    else:
        target.add_(rows @ matrices)
