"""Bounds that the structure NTK = P K Pᵀ puts on rank, effective rank and eigenvalues of the NTK."""

import dataclasses
import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow.operators.convert import to_dense
from kpflow.states import Linearisation

from .core import Core
from .cores import cores
from .gate_cores import GateCore
from .parameter import ParameterKernel

__all__ = ["RankBounds", "rank_bounds"]

LARGEST_MATRIX = 4096
"""Entries of the state up to which K may be formed, where its spectrum is not known from structure."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class RankBounds:
    """What K's rank and spectrum, and the least and largest singular value of P, allow the NTK.

    Bounds of effective ranks are pairs (low, high). They hold for every network with this K and such a P, so a NTK near
    `high` is as free as the structure lets it be, and the gap from the number of states to `high` is what the network
    takes away whatever the task is.

    Args:
        axes: Sizes of the axes of the states, n_S their product.
        num_parameters: n_θ.
        sites: For every weight site U rank M, the most that its part of K can have; empty where they are not all known.
        spectrum: The eigenvalues of K that are not zero to rounding, largest first.
        core_norm: Σ σ_1(M)² max ‖D‖² over the sites, a bound of K's largest eigenvalue from a forward pass alone; inf
            where sites are not all known.
        singular_values: σ_min(P) and σ_max(P).
    """

    axes: dict[str, int]
    num_parameters: int
    sites: dict[str, int]
    spectrum: Float[Tensor, " K"]
    core_norm: float
    singular_values: tuple[float, float]

    @property
    def num_states(self) -> int:
        """n_S."""
        return math.prod(self.axes.values())

    @property
    def rank(self) -> int:
        """min(n_S, n_θ, Σ_sites U rank M) ≥ rank K = rank NTK: the equality holds since P is invertible."""
        return min(self.num_states, self.num_parameters, sum(self.sites.values()) if self.sites else self.num_states)

    @property
    def kernel_rank(self) -> int:
        """rank K to rounding, which is rank NTK."""
        return len(self.spectrum)

    @property
    def kernel_effective_rank(self) -> float:
        """(tr K)² / ‖K‖²_F: that of the NTK if P were orthogonal."""
        return float(self.spectrum.sum().square() / self.spectrum.square().sum())

    @property
    def effective_rank(self) -> tuple[float, float]:
        """Of the whole NTK, over all P with these singular values.

        By Ostrowski's theorem λ_i(P K Pᵀ) = θ_i λ_i(K) with θ_i in [σ_min², σ_max²]. `high` is the largest
        participation ratio of such numbers, where x_i is the point of [σ_min² λ_i, σ_max² λ_i] next to one common
        level. `low` is the larger of q² (Σ λ)² / Σ λ² and q Σ λ / λ_1, with q = (σ_min / σ_max)², and at least 1.
        """
        q = (self.singular_values[0] / self.singular_values[1]) ** 2
        trace, first = float(self.spectrum.sum()), float(self.spectrum[0])
        return max(1.0, q**2 * self.kernel_effective_rank, q * trace / first), self._most_even()

    @property
    def norm(self) -> tuple[float, float]:
        """σ_min(P)² λ_1(K) and σ_max(P)² λ_1(K): between them is the NTK's largest eigenvalue, its operator norm."""
        low, high = (value**2 * float(self.spectrum[0]) for value in self.singular_values)
        return low, high

    @property
    def norm_from_cores(self) -> float:
        """σ_max(P)² Σ σ_1(M)² max ‖D‖², a larger bound of the norm that needs no spectrum."""
        return self.singular_values[1] ** 2 * self.core_norm

    @property
    def smallest(self) -> float:
        """σ_min(P)² λ_r(K), the least that the NTK's r-th eigenvalue can be, r = rank K."""
        return self.singular_values[0] ** 2 * float(self.spectrum[-1])

    def along(self, *axes: str) -> tuple[float, float]:
        """Of the NTK's partial trace on some axes, as `estimate.effective_rank(ntk, axes=...)`.

        With D_x the size of the axes kept and D_y of those traced out, the effective rank r_x of the partial trace and
        r of the whole are within a factor D_y of each other (their logarithms are Rényi entropies of order 2, which
        differ by at most log D_y). So (low / D_y, D_y high), at least 1 and at most D_x. Often that is the
        trivial D_x: P may spread along one axis what K has on others.

        Raises:
            ValueError: An axis is unknown or twice there.
        """
        if not axes or len(set(axes)) < len(axes) or not set(axes) <= set(self.axes):
            raise ValueError(
                f"`axes` must be different ones of {', '.join(self.axes)}; got {', '.join(axes) or 'none'}."
            )
        kept = math.prod(self.axes[axis] for axis in axes)
        traced = self.num_states // kept
        low, high = self.effective_rank
        return max(1.0, low / traced), min(float(kept), traced * high)

    def _most_even(self) -> float:
        """The largest (Σ x)² / Σ x² over x_i in [σ_min² λ_i, σ_max² λ_i]."""
        least, most = (value**2 * self.spectrum for value in self.singular_values)
        if not bool(torch.isfinite(most).all()):
            return float(len(self.spectrum))  # every level can be reached
        low, high = 0.0, float(most[0])
        for _ in range(200):  # Σ x (x − level) falls in `level`, and vanishes at the best
            level = (low + high) / 2
            x = least.clamp_min(level).minimum(most)
            low, high = (level, high) if float((x * (x - level)).sum()) > 0 else (low, level)
        x = least.clamp_min(high).minimum(most)
        return float(x.sum().square() / x.square().sum())


def rank_bounds(
    linearisation: Linearisation, singular_values: Sequence[float] | None = None, *, tol: float | None = None
) -> RankBounds:
    """Bound rank, effective rank and eigenvalues of the NTK by its structure (arXiv 2605.08746).

    rank NTK = rank K ≤ Σ_sites U rank M, and σ_min(P)² λ_i(K) ≤ λ_i(NTK) ≤ σ_max(P)² λ_i(K) for every i. K's spectrum
    is exact, from what the weights see.

    Args:
        linearisation: The linearised state equation.
        singular_values: σ_min(P) and σ_max(P), or a lower and an upper bound of them, e.g.
            1 / `estimate.operator_norm(P.inverse)` and `estimate.operator_norm(P)`; those estimates approach σ_max from
            below. None for 0 and ∞, which leaves what K alone implies.
        tol: Eigenvalues of K below `tol` times the largest are zero; 10 √n_S times the rounding error of the dtype if
            None, but 0.1 at most.

    Raises:
        ValueError: `singular_values` are not two numbers with 0 ≤ σ_min ≤ σ_max, `tol` is not between 0 and 1, K is
            zero, or K's spectrum is not known from its structure and the state is too large to form K.

    Example:
        >>> import torch, kpflow as kp
        >>> model = kp.states.cells.RateRNN(2, 16)
        >>> lin = kp.linearise(model, torch.ones(3, 10, 2))  # constant inputs, no noise: few directions are seen
        >>> bounds = rank_bounds(lin)
        >>> bounds.num_states, bounds.rank == 16 * kp.flow.cores(lin)["weight_hh"].rank
        (480, True)
    """
    low, high = _singular_values(singular_values)
    space = linearisation.space
    if tol is None:
        tol = min(0.1, 10 * math.sqrt(space.size) * torch.finfo(space.dtype).eps)
    if not 0 < tol < 1:
        raise ValueError(f"`tol` must be a number between 0 and 1, both excluded; got {tol}.")
    K = ParameterKernel(linearisation)
    spectrum = _spectrum(K)
    if not float(spectrum[0]) > 0:
        raise ValueError("`linearisation` must have parameters that move its states; got K = 0.")
    known = _all_cores(linearisation, K)
    return RankBounds(
        axes=dict(zip(space.axes, space.shape, strict=True)),
        num_parameters=linearisation.parameters.size,
        sites={name: core.rank * core.multiplicity for name, core in known.items()},
        spectrum=spectrum[spectrum > tol * spectrum[0]],
        core_norm=sum(_norm(core) for core in known.values()) if known else math.inf,
        singular_values=(low, high),
    )


def _singular_values(given: Sequence[float] | None) -> tuple[float, float]:
    values = (0.0, math.inf) if given is None else tuple(map(float, given))
    if len(values) != 2 or not 0 <= values[0] <= values[1] or values[1] == 0 or values[0] == math.inf:
        raise ValueError(
            f"`singular_values` must be σ_min(P) ≤ σ_max(P), not negative; got {tuple(values)}. They are "
            "1 / estimate.operator_norm(P.inverse) and estimate.operator_norm(P)."
        )
    return values[0], values[1]


def _spectrum(K: ParameterKernel) -> Float[Tensor, " K"]:
    """The eigenvalues of K, largest first, in float64."""
    exact = K.structure.spectrum() if K.structure is not None else None
    if exact is not None:
        return exact.compute()
    size = K.in_space.size
    if size > LARGEST_MATRIX:
        raise ValueError(
            f"K's spectrum is not known from its structure, and K is too large to be formed: {size} states, at most "
            f"{LARGEST_MATRIX}. Linearise on fewer trials."
        )
    return torch.linalg.eigvalsh(to_dense(K).double()).flip(0).clamp_min(0)


def _all_cores(linearisation: Linearisation, K: ParameterKernel) -> dict[str, Core]:
    """The cores, if their kernels are all of K: a trainable initial state, or an encoder, acts at no known site."""
    return cores(linearisation) if linearisation.linear_sites() is not None or K.structure is not None else {}


def _norm(core: Core) -> float:
    """σ_1(M)² max ‖D‖²."""
    first = float(core.spectrum[0])
    if not isinstance(core, GateCore):
        return first
    mixing = 1.0 if core.mixing is None else float(torch.linalg.matrix_norm(core.mixing.double(), ord=2)) ** 2
    return first * mixing * float(core.slope.double().square().sum(2).max())
