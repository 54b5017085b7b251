"""Products of blocks from products of pieces of them, as far as the cache and the memory allow."""

import abc
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from .base import Linearisation
from .derivatives import linear

__all__ = ["PiecewiseLinearisation"]


class PiecewiseLinearisation(Linearisation):
    """A linearisation whose products are done for a few probes at a time; gradients of any order go through them.

    A subclass gives the products for one piece, which they may overwrite, and its sizes.
    """

    _piece: int
    """Probes that are done at once."""

    @property
    @abc.abstractmethod
    def _fixed_bytes(self) -> int:
        """What is taken whatever the number of probes is."""

    @property
    @abc.abstractmethod
    def _probe_bytes(self) -> int:
        """Between the block and the result, for each probe of a piece."""

    @abc.abstractmethod
    def _propagate(self, state: Tensor) -> Tensor:
        """P q."""

    @abc.abstractmethod
    def _propagate_adjoint(self, state: Tensor) -> Tensor:
        """Pᵀ q."""

    @abc.abstractmethod
    def _residual(self, state: Tensor) -> Tensor:
        """P⁻¹ q."""

    @abc.abstractmethod
    def _residual_adjoint(self, state: Tensor) -> Tensor:
        """P⁻ᵀ q."""

    @abc.abstractmethod
    def _parameter_jvp(self, parameter: Tensor) -> Tensor:
        """J v."""

    @abc.abstractmethod
    def _parameter_vjp(self, state: Tensor) -> Tensor:
        """Jᵀ q."""

    @abc.abstractmethod
    def _core_jvp(self, core: Tensor) -> Tensor:
        """C c, with K = C Cᵀ."""

    @abc.abstractmethod
    def _core_vjp(self, state: Tensor) -> Tensor:
        """Cᵀ q."""

    def peak_bytes(self, probes: int) -> int:
        ends = 2 * probes * max(self.states.nbytes, self._parameter_bytes)
        return self._fixed_bytes + ends + min(probes, self._piece) * self._probe_bytes

    def propagate(self, state: Tensor) -> Tensor:
        return self._by_pieces(self._propagate, state, self.propagate_adjoint)

    def propagate_adjoint(self, state: Tensor) -> Tensor:
        return self._by_pieces(self._propagate_adjoint, state, self.propagate)

    def residual(self, state: Tensor) -> Tensor:
        return self._by_pieces(self._residual, state, self.residual_adjoint)

    def residual_adjoint(self, state: Tensor) -> Tensor:
        return self._by_pieces(self._residual_adjoint, state, self.residual)

    def parameter_jvp(self, parameter: Tensor) -> Tensor:
        return self._by_pieces(self._parameter_jvp, parameter, self.parameter_vjp)

    def parameter_vjp(self, state: Tensor) -> Tensor:
        return self._by_pieces(self._parameter_vjp, state, self.parameter_jvp)

    def state_jvp(self, parameter: Tensor) -> Tensor:
        return self._by_pieces(lambda v: self._propagate(self._parameter_jvp(v)), parameter, self.state_vjp)

    def state_vjp(self, state: Tensor) -> Tensor:
        return self._by_pieces(lambda q: self._parameter_vjp(self._propagate_adjoint(q)), state, self.state_jvp)

    def core_jvp(self, core: Tensor) -> Tensor:
        return self._by_pieces(self._core_jvp, core, self.core_vjp)

    def core_vjp(self, state: Tensor) -> Tensor:
        return self._by_pieces(self._core_vjp, state, self.core_jvp)

    def state_core_jvp(self, core: Tensor) -> Tensor:
        return self._by_pieces(lambda c: self._propagate(self._core_jvp(c)), core, self.state_core_vjp)

    def state_core_vjp(self, state: Tensor) -> Tensor:
        return self._by_pieces(lambda q: self._core_vjp(self._propagate_adjoint(q)), state, self.state_core_jvp)

    @property
    def _parameter_bytes(self) -> int:
        return self.parameters.size * self.states.element_size()

    def _by_pieces(
        self, function: Callable[[Tensor], Tensor], block: Tensor, adjoint: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The linear function on a block of probes; `adjoint` is what its gradient is taken with."""
        return linear(functools.partial(self._in_pieces, function), adjoint, block)

    def _in_pieces(self, function: Callable[[Tensor], Tensor], block: Tensor) -> Tensor:
        if len(block) <= self._piece:
            return function(block.clone(memory_format=torch.contiguous_format))
        result: Tensor | None = None
        for start in range(0, len(block), self._piece):
            piece = function(block[start : start + self._piece].clone(memory_format=torch.contiguous_format))
            result = piece.new_empty(len(block), *piece.shape[1:]) if result is None else result
            result[start : start + len(piece)] = piece
        assert result is not None  # the block is longer than a piece
        return result
