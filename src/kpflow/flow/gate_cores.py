"""Cores of recurrent networks: D (M Mᵀ ⊗ I) Dᵀ for every gate of a weight site."""

import dataclasses
from typing import final

from jaxtyping import Float
from torch import Tensor

from kpflow.operators import Gramian, Operator, Structure
from kpflow.spaces import Space
from kpflow.states import Site

from .core import Core
from .exact import KernelStructure

__all__ = ["GateCore"]


@final
class GateCore(Core):
    """The core of one gate of one weight site of a recurrent network: its part of K is D (M Mᵀ ⊗ I) Dᵀ.

    Its factor M is `[B·T, F]` in row-major order of trials and times, with a column of ones for each bias.

    Args:
        site: The weight site.
        gate: Which of its gates.
        space: Of the states.
    """

    slope: Float[Tensor, "B T R H"]
    """D's diagonal: how the gate moves each of R blocks of H state entries."""

    offset: int
    """Where these entries start on the unit axis."""

    mixing: Float[Tensor, "H U"] | None
    """The constant matrix of D from gate units to state entries; None for the identity."""

    def __init__(self, site: Site, gate: int, space: Space) -> None:
        self.parameters = site.parameters
        self.slope = site.slope[..., gate, :]
        self.offset = site.offset
        self.mixing = site.mixing
        self.space = space
        self._factor = site.features.flatten(0, 1)

    @property
    def factor(self) -> Float[Tensor, "BT F"]:
        """M."""
        return self._factor

    @property
    def multiplicity(self) -> int:
        """U, the units of the gate."""
        return self.slope.shape[-1] if self.mixing is None else self.mixing.shape[1]

    @property
    def kernel(self) -> Gramian:
        """D (M Mᵀ ⊗ I) Dᵀ on the states."""
        return CoreOperator(self)


@final
class CoreOperator(Gramian):
    """D (M Mᵀ ⊗ I) Dᵀ of one core, as an operator on the states."""

    def __init__(self, core: GateCore) -> None:
        self._core = core
        self._jacobian = CoreFactor(core)

    @property
    def jacobian(self) -> Operator:
        """D (M ⊗ I)."""
        return self._jacobian

    @property
    def metric(self) -> None:
        """The identity."""
        return

    @property
    def structure(self) -> Structure:
        """Exact quantities, from the Gram matrix of what the weight sees."""
        core = self._core
        features = core.factor.unflatten(0, core.slope.shape[:2])
        site = Site(features, core.slope.unsqueeze(3), core.offset, core.parameters, ("gate",), core.mixing)
        return KernelStructure(core.space, (site,))

    @property
    def factor(self) -> Operator:
        """D (M ⊗ I)."""
        return self._jacobian


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CoreFactor(Operator):
    """D (M ⊗ I), from weights `[U, F]` to the states."""

    core: GateCore

    @property
    def in_space(self) -> Space:
        core = self.core
        shape = (core.multiplicity, core.factor.shape[1])
        return Space.of(shape, ("gate", "feature"), core.space.dtype, core.space.device)

    @property
    def out_space(self) -> Space:
        return self.core.space

    @property
    def symmetric(self) -> bool:
        return False

    def _apply(self, vector: Tensor) -> Tensor:
        core = self.core
        gates = (vector @ core.factor.mT).mT  # [S, B·T, U]
        if core.mixing is not None:
            gates = gates @ core.mixing.mT
        moved = core.slope * gates.unflatten(1, core.slope.shape[:2]).unsqueeze(-2)  # [S, B, T, R, H]
        state = core.space.zeros(len(vector))
        state[..., self._units] = moved.flatten(-2)
        return state

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        core = self.core
        rows = vector[..., self._units].unflatten(-1, core.slope.shape[2:])
        gates = (core.slope * rows).sum(-2).flatten(1, 2)  # [S, B·T, H]
        if core.mixing is not None:
            gates = gates @ core.mixing
        return gates.mT @ core.factor

    @property
    def _units(self) -> slice:
        return slice(self.core.offset, self.core.offset + self.core.slope[0, 0].numel())
