"""Whether learning near a bifurcation is that of a scalar: the critical propagator, cross-talk, two conditions."""

import dataclasses
import enum
import math
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_generator, check_positive
from kpflow.operators import Function
from kpflow.spaces import Space
from kpflow.states import Linearisation

from .channels import Channels, check_units

__all__ = ["Conditions", "Dominance", "Separability", "conditions", "critical_propagator", "crosstalk"]


@final
class Dominance(str, enum.Enum):
    """Condition 1 of arXiv 2605.12763: does the bifurcation dominate dS/dθ?"""

    HOLDS = "holds: the scalar field outweighs its own error and all other directions of parameter space together"
    RESIDUAL = "fails: the other directions of parameter space together move the states more"
    FIELD = "fails: the field differs from the scalar form's by as much as that is long, so that it explains nothing"


@final
class Separability(str, enum.Enum):
    """Condition 2 of arXiv 2605.12763: do critical and other directions of the states go their own ways?"""

    HOLDS = "holds: cross-talk is below 1, so that P is the two propagators apart and a small correction"
    CROSSTALK = "fails: cross-talk is 1 or more, and the two propagators apart say little about P"


@final
@dataclasses.dataclass(frozen=True)
class Conditions:
    """The two conditions under which learning is that of a scalar normal form.

    Args:
        dominance: The verdict of condition 1.
        separability: The verdict of condition 2.
        ratio: ‖D_R h‖_F / ‖D_μ h‖ as it is, √(tr residual) / ‖J p̂‖.
        bound: M_R / (‖d_μ α‖ − M_μ), the bound of it by the scalar form; inf where that explains nothing.
        error: M_μ / ‖d_μ α‖, the error of the scalar field relative to its length.
        crosstalk: ‖A₀⁻¹ E‖.
    """

    dominance: Dominance
    separability: Separability
    ratio: float
    bound: float
    error: float
    crosstalk: float


def conditions(
    parts: Channels,
    sensitivity: Tensor,
    right: Tensor,
    left: Tensor,
    *,
    generator: torch.Generator | None = None,
) -> Conditions:
    """Test the two conditions: dominance of the critical direction, and separability of its propagator.

    Condition 1 bounds ‖D_R h‖_F / ‖D_μ h‖ by M_R / (‖d_μ α‖ − M_μ), here with both sides times ‖∇μ‖: M_R is
    √(tr residual), ‖d_μ α‖ the length of the field that the scalar form predicts, M_μ the distance of that from J p̂.

    Args:
        parts: Of `channels`.
        sensitivity: d_μ α, as of `Channels.predicted`.
        right: v, shape `[H]`.
        left: u with uᵀ v = 1, shape `[H]`.
        generator: For `crosstalk`.

    Raises:
        ValueError: As `Channels.predicted`, `Channels.dominance` and `crosstalk`.

    Example:
        >>> import kpflow as kp
        >>> from kpflow.flow import channels
        >>> rnn = kp.states.cells.RateRNN(1, 1, dtype=torch.float64, nonlinearity=lambda h: h)
        >>> _ = torch.nn.init.ones_(rnn.weight_hh)
        >>> found = kp.dynamics.critical(rnn, torch.zeros(1), torch.zeros(1))
        >>> start = torch.full((1, 1), 0.1, dtype=torch.float64)
        >>> lin = kp.linearise(rnn, torch.zeros(1, 9, 1, dtype=torch.float64), initial=start)
        >>> form = kp.dynamics.PolynomialForm()  # α' = (1 + μ) α
        >>> slope = kp.dynamics.sensitivity(form, start[:, 0], 0.0, 9)
        >>> found = conditions(channels(lin, found.named_gradient), slope, found.right, found.left)
        >>> found.dominance.name, found.ratio < 1e-6, found.crosstalk
        ('HOLDS', True, 0.0)
    """
    predicted = parts.predicted(sensitivity, right)
    length, error = float(predicted.norm()), float((parts.field.double() - predicted).norm())
    rest = math.sqrt(max(0.0, parts.trace - parts.energy))
    ratio = rest / math.sqrt(parts.energy) if parts.energy else math.inf
    bound = rest / (length - error) if length > error else math.inf
    dominance = Dominance.FIELD if error >= length else Dominance.HOLDS if bound < 1 else Dominance.RESIDUAL
    talk = crosstalk(parts.linearisation, right, left, generator=generator)
    separability = Separability.HOLDS if talk < 1 else Separability.CROSSTALK
    return Conditions(dominance, separability, ratio, bound, error / length if length else math.inf, talk)


def crosstalk(
    linearisation: Linearisation,
    right: Tensor,
    left: Tensor,
    *,
    probes: int = 4,
    iterations: int = 20,
    generator: torch.Generator | None = None,
) -> float:
    """‖A₀⁻¹ E‖ of P⁻¹ = A₀ + E, with A₀ = Π P⁻¹ Π + (I − Π) P⁻¹ (I − Π) for Π = v uᵀ: what E mixes.

    Below 1 the series of P in A₀⁻¹ E converges at once. By power iteration, thus from below; A₀ is inverted exactly
    by its series, T products with P⁻¹ each time.

    Args:
        linearisation: The linearised state equation of a recurrent network.
        right: v, shape `[H]`; complex for a pair, where Π = 2 Re v uᵀ.
        left: u with uᵀ v = 1.
        probes: Starting vectors.
        iterations: Of the power iteration.
        generator: Source of the starting vectors; None for a fresh one seeded with 0.

    Raises:
        ValueError: The states are not those of a recurrent network, the vectors do not fit, or uᵀ v is not 1.

    Example:
        >>> import kpflow as kp
        >>> rnn = kp.states.cells.RateRNN(1, 2, dtype=torch.float64)
        >>> lin = kp.linearise(rnn, torch.zeros(1, 3, 1).double(), initial=torch.zeros(1, 2).double())
        >>> found = kp.dynamics.critical(rnn, torch.zeros(2), torch.zeros(1))
        >>> crosstalk(lin, found.right, found.left) < 1e-12  # nothing bends: the states are zero
        True
    """
    check_positive("probes", probes, integer=True)
    check_positive("iterations", iterations, integer=True)
    projector = _projector(linearisation, right, left)
    space = linearisation.space
    random = check_generator("generator", generator, space.device)
    vectors = torch.randn(probes, *space.shape, generator=random, dtype=space.dtype, device=space.device)
    there = _Split(linearisation.residual, projector, space.shape[1])
    back = _Split(linearisation.residual_adjoint, projector.mT, space.shape[1])
    size = 0.0
    for _ in range(iterations):
        norms = vectors.flatten(1).norm(dim=1).clamp_min(1e-300)
        vectors = vectors / norms[:, None, None, None]
        moved = there.solve(there.mixed(vectors))
        before, size = size, float(moved.flatten(1).norm(dim=1).max())
        if size == 0 or abs(size - before) <= 1e-4 * size:
            break
        vectors = back.mixed(back.solve(moved))
    return size


def critical_propagator(space: Space, transitions: Float[Tensor, "B T T *d"], right: Tensor, left: Tensor) -> Function:
    """P_c = P_α ⊗ v uᵀ, the scalar propagator along the critical direction: (P_c q)_t = v Σ_s P_α[t, s] uᵀ q_s.

    Args:
        space: Of the states, with axes trial, time, unit.
        transitions: P_α, shape `[B, T, T]` as of `kpflow.dynamics.scalar_propagator`; `[B, T, T, 2, 2]` for a pair.
        right: v, shape `[H]`; complex for a pair.
        left: u with uᵀ v = 1.

    Raises:
        ValueError: A shape does not fit.

    Example:
        >>> states = Space.of((1, 2, 2), ("trial", "time", "unit"))
        >>> v, u = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
        >>> P_c = critical_propagator(states, torch.tensor([[[1.0, 0.0], [0.5, 1.0]]]), v, u)
        >>> P_c(torch.tensor([[[0.0, 2.0], [0.0, 0.0]]], dtype=torch.float64))
        tensor([[[2., 0.],
                 [1., 0.]]], dtype=torch.float64)
    """
    pair = right.is_complex()
    wanted = (*space.shape[:2], space.shape[1] if space.ndim == 3 else -1, *((2, 2) if pair else ()))
    if space.ndim != 3 or tuple(transitions.shape) != wanted:
        raise ValueError(
            f"`transitions` must have shape (B, T, T) for states (B, T, H), and (B, T, T, 2, 2) for a complex pair; "
            f"got {tuple(transitions.shape)} for {space}."
        )
    if tuple(right.shape) != space.shape[2:] or tuple(left.shape) != space.shape[2:]:
        raise ValueError(
            f"`right` and `left` must have shape {space.shape[2:]}; got {tuple(right.shape)}, {tuple(left.shape)}."
        )
    # [H, d]: h = ins·c for the coordinates c = outs ᵀ q; z = uᵀ q and h = 2 Re(v z) for a pair
    ins = torch.stack([2 * right.real, -2 * right.imag], dim=1) if pair else right[:, None]
    outs = torch.stack([left.real, left.imag], dim=1) if pair else left[:, None]
    ins, outs = ins.to(space.device, space.dtype), outs.to(space.device, space.dtype)
    phi = (transitions if pair else transitions[..., None, None]).to(space.device, space.dtype)  # [B, T, T, d, d]
    return Function(
        lambda q: torch.einsum("btscd,nbsd->nbtc", phi, q @ outs) @ ins.mT,
        lambda q: torch.einsum("btscd,nbtc->nbsd", phi, q @ ins) @ outs.mT,
        space,
        space,
    )


@final
@dataclasses.dataclass(frozen=True, eq=False)
class _Split:
    """P⁻¹ = A₀ + E (or the adjoint) at a projector of the units; `steps` is more than the index of nilpotence."""

    residual: Callable[[Tensor], Tensor]
    projector: Tensor
    steps: int

    def mixed(self, vectors: Tensor) -> Tensor:
        """E q = −[Π L (I − Π) + (I − Π) L Π] q."""
        along = vectors @ self.projector.mT
        first, second = self._moved(vectors - along), self._moved(along)
        return -(first @ self.projector.mT + second - second @ self.projector.mT)

    def solve(self, vectors: Tensor) -> Tensor:
        """A₀⁻¹ q = Σ_k L₀ᵏ q, which ends as L₀ goes forward in time."""
        total = term = vectors
        for _ in range(self.steps - 1):
            along = term @ self.projector.mT
            first, second = self._moved(along), self._moved(term - along)
            term = first @ self.projector.mT + second - second @ self.projector.mT
            total = total + term
        return total

    def _moved(self, vectors: Tensor) -> Tensor:
        """L q = q − P⁻¹ q."""
        return vectors - self.residual(vectors)


def _projector(linearisation: Linearisation, right: Tensor, left: Tensor) -> Tensor:
    check_units(linearisation, right, "right")
    check_units(linearisation, left, "left")
    product = torch.dot(left.to(torch.complex128), right.to(torch.complex128))
    if not abs(complex(product) - 1) < 1e-5:
        raise ValueError(
            f"`left` and `right` must have uᵀ v = 1, without a conjugate; got {complex(product):.6g}. Divide `left` by "
            "it."
        )
    matrix = torch.outer(right, left)
    matrix = 2 * matrix.real if matrix.is_complex() else matrix
    return matrix.to(linearisation.space.device, linearisation.space.dtype)
