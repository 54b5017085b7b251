"""Kronecker cores: K as a sum over weight sites of Gram matrices times identities."""

import dataclasses
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow.operators import Gramian, Operator, Structure
from kpflow.spaces import Space
from kpflow.states import Linearisation, Site

from .exact import KernelStructure

__all__ = ["Core", "CoreOperator", "cores"]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Core:
    """The core of one gate of one weight site: its part of K is D (M Mᵀ ⊗ I) Dᵀ.

    Args:
        factor: M, what the weight sees, shape `[B·T, F]` in row-major order of trials and times, a column of ones for
            each bias. C = M Mᵀ is the Gram matrix over trials and times.
        multiplicity: The size U of the identity: how often every eigenvalue of C counts.
        slope: D's diagonal, shape `[B, T, R, H]`: how the gate moves each of R blocks of H state entries.
        offset: Where these entries start on the unit axis.
        mixing: Shape `[H, U]`, the constant matrix of D from gate units to state entries; None for the identity.
        parameters: Names of the parameters that the columns of M belong to.
        space: Of the states.
    """

    factor: Float[Tensor, "BT F"]
    multiplicity: int
    slope: Float[Tensor, "B T R H"]
    offset: int
    mixing: Float[Tensor, "H U"] | None
    parameters: tuple[str, ...]
    space: Space

    @property
    def gram(self) -> Float[Tensor, "BT BT"]:
        """C = M Mᵀ, formed: `[B·T, B·T]`."""
        return self.factor @ self.factor.mT

    @property
    def spectrum(self) -> Float[Tensor, " K"]:
        """Eigenvalues of C, largest first, in float64: the min(B·T, F) that need not vanish."""
        return torch.linalg.svdvals(self.factor.double()).square()

    @property
    def rank(self) -> int:
        """Numerical rank of M; K's part has at most `rank * multiplicity` non-zero eigenvalues."""
        return int(torch.linalg.matrix_rank(self.factor.double()))

    @property
    def effective_rank(self) -> float:
        """(tr C)² / ‖C‖_F², the participation ratio of the (uncentred) activity that the weight sees."""
        values = self.spectrum
        return float(values.sum().square() / values.square().sum())

    @property
    def kernel(self) -> "CoreOperator":
        """D (M Mᵀ ⊗ I) Dᵀ on the states."""
        return CoreOperator(self)


@final
class CoreOperator(Gramian):
    """D (M Mᵀ ⊗ I) Dᵀ of one core, as an operator on the states."""

    def __init__(self, core: Core) -> None:
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

    core: Core

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


def cores(linearisation: Linearisation) -> dict[str, Core]:
    """The Kronecker cores of K, K = Σ D (M Mᵀ ⊗ I) Dᵀ, by weight site and gate.

    The universal Kronecker-core theorem (arXiv 2605.08746): what a weight matrix can change at once is the Gram matrix
    of what it sees, times an identity, between the slopes of its gate. For a rate network the slopes are constant and K
    has the eigenvalues α² σ_i(M)², each `multiplicity` times.

    Args:
        linearisation: The linearised state equation.

    Returns:
        Cores by name: the site (its first parameter), and the gate where it has several: `weight_hh_l0.reset`.

    Raises:
        ValueError: The weight sites are not known, because the step is known by automatic differentiation only.

    Example:
        >>> import kpflow as kp
        >>> model = kp.states.cells.RateRNN(2, 4)
        >>> lin = kp.linearise(model, torch.ones(1, 3, 2))
        >>> core = cores(lin)["weight_hh"]
        >>> core.factor.shape, core.multiplicity
        (torch.Size([3, 6]), 4)
    """
    found = {
        name if len(site.gates) == 1 else f"{name}.{gate}": _core(site, index, linearisation.space)
        for name, site in linearisation.sites().items()
        for index, gate in enumerate(site.gates)
    }
    if not found:
        raise ValueError(
            "`linearisation` has no known weight sites, since its step is known by automatic differentiation only. "
            "Use a named cell (nn.RNN, nn.GRU, nn.LSTM, kpflow.states.cells), or ParameterKernel for K itself."
        )
    return found


def _core(site: Site, gate: int, space: Space) -> Core:
    slope = site.slope[..., gate, :]
    units = slope.shape[-1] if site.mixing is None else site.mixing.shape[1]
    factor = site.features.flatten(0, 1)
    return Core(factor, units, slope, site.offset, site.mixing, site.parameters, space)
