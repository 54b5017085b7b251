"""The part of the NTK that a bifurcation carries: one or two directions of parameter space, and all others."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import SupportsFloat, final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_finite, check_tensor
from kpflow.operators import Gram, Identity, LowRank, Operator
from kpflow.spaces import Part, Space
from kpflow.states import Linearisation

from .ntk import Ntk

__all__ = ["Channels", "FieldComparison", "channels"]

DEPENDENT = 1e-10
"""Sine of the angle between two directions below which they count as one."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class FieldComparison:
    """How well the scalar normal form predicts the field of a channel.

    Args:
        predicted: Σᵢ ⟨∇μᵢ, p̂⟩ d_μᵢ α ⊗ v, of the field's shape; for one direction ‖∇μ‖ d_μ α ⊗ v.
        relative_error: ‖J p̂ − predicted‖ / ‖J p̂‖.
        cosine: Between the two.
    """

    predicted: Tensor
    relative_error: float
    cosine: float


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Channels:
    """NTK = channel + residual, with the field J p̂ that the critical direction p̂ of parameter space makes.

    Args:
        linearisation: The linearised state equation.
        directions: p̂, orthonormal, shape `[k, P]`.
        scales: ⟨∇μᵢ, p̂ⱼ⟩, shape `[k, k]`, float64, lower triangular: the gradients in the directions; ‖∇μ‖ for one.
        fields: J p̂, shape `[k, *S]` in the space of the states.
        single: Whether the gradient was one vector, and not rows.
        given_trace: tr NTK as it was handed in.
    """

    linearisation: Linearisation
    directions: Float[Tensor, "k P"]
    scales: Float[Tensor, "k k"]
    fields: Tensor
    single: bool
    given_trace: float | None = None

    @property
    def field(self) -> Tensor:
        """J p̂, shaped like the states; `[k, *S]` if the gradient was rows."""
        return self.fields[0] if self.single else self.fields

    @functools.cached_property
    def channel(self) -> LowRank:
        """(J P̂)(J P̂)ᵀ, of rank one or two: the NTK restricted to the critical directions."""
        space = self.linearisation.space
        return LowRank(self.fields.reshape(len(self.fields), space.size).mT, spaces=(space, space))

    @functools.cached_property
    def residual(self) -> Gram:
        """J (I − P̂ P̂ᵀ) Jᵀ, as the Gram of its Jacobian J (I − P̂ P̂ᵀ), for which traces and norms are cheap."""
        return Gram(self._jacobian @ (Identity(self._parameters) - LowRank(self.directions.mT, spaces=self._both)))

    @functools.cached_property
    def ntk(self) -> Ntk:
        """channel + residual."""
        return Ntk(self.linearisation)

    @functools.cached_property
    def trace(self) -> float:
        """tr NTK: as handed in, or exact where structure makes that cheap.

        Raises:
            ValueError: Neither.
        """
        if self.given_trace is not None:
            return self.given_trace
        structure = self.ntk.structure
        known = None if structure is None else structure.trace()
        if known is None:
            raise ValueError(
                "`dominance` needs tr NTK, which has no cheap exact value for this model. Hand it in: channels(..., "
                "trace=float(kpflow.estimate.trace(kpflow.Ntk(lin))))."
            )
        return known.compute()

    @property
    def energy(self) -> float:
        """‖J P̂‖²_F = tr channel."""
        return float(self.fields.double().square().sum())

    @property
    def dominance(self) -> float:
        """ρ = ‖J P̂‖²_F / tr NTK, in [0, 1]; over an orthonormal basis of parameter space it sums to 1.

        Raises:
            ValueError: tr NTK is unknown.
        """
        return self.energy / self.trace

    @property
    def singular_values(self) -> Float[Tensor, "k"]:
        """Of J P̂, largest first, float64: two of one size say that the channel has rank two."""
        return torch.linalg.svdvals(self.fields.double().flatten(1))

    def predicted(self, sensitivity: Tensor, right: Tensor) -> Tensor:
        """The field of the scalar normal form, Σᵢ ⟨∇μᵢ, p̂⟩ d_μᵢ α ⊗ v; 2 Re(d_μ z ⊗ v) for a complex pair.

        Args:
            sensitivity: d_μ α for each trial and time, shape `[B, T]`; `[k, B, T]` if the gradient was rows, of
                d_μ z and d_ω z for a complex pair.
            right: v, shape `[H]`.

        Returns:
            Of the shape of `field`, float64.

        Raises:
            ValueError: A shape does not fit, or the states are not those of a recurrent network.
        """
        space = self.linearisation.space
        check_units(self.linearisation, right, "right")
        wanted = (*(() if self.single else (len(self.fields),)), *space.shape[:2])
        if tuple(sensitivity.shape) != wanted:
            raise ValueError(
                f"`sensitivity` must have shape {wanted}, d_μ α for each trial and time; got "
                f"{tuple(sensitivity.shape)}. The first time is after one step."
            )
        product = sensitivity.reshape(-1, *space.shape[:2])[..., None] * right  # [k, B, T, H]
        moved = 2 * product.real if product.is_complex() else product
        mixed = torch.tensordot(self.scales.mT, moved.to(self.scales), dims=1)
        return mixed[0] if self.single else mixed

    def compare(self, sensitivity: Tensor, right: Tensor) -> FieldComparison:
        """The field beside that of the scalar normal form; arguments and errors are those of `predicted`."""
        predicted, field = self.predicted(sensitivity, right), self.field.double()
        size, expected = field.norm(), predicted.norm()
        cosine = float((field * predicted).sum() / (size * expected).clamp_min(1e-300))
        return FieldComparison(predicted, float((field - predicted).norm() / size.clamp_min(1e-300)), cosine)

    @property
    def _jacobian(self) -> Operator:
        return self.ntk.jacobian

    @property
    def _parameters(self) -> Space:
        return self.linearisation.parameters

    @property
    def _both(self) -> tuple[Space, Space]:
        return self._parameters, self._parameters


def channels(
    linearisation: Linearisation,
    gradient: Tensor | Mapping[str, Tensor],
    *,
    prefix: str = "",
    trace: SupportsFloat | None = None,
) -> Channels:
    """Split the NTK at the critical directions of parameter space: NTK = J p̂ p̂ᵀ Jᵀ + J (I − p̂ p̂ᵀ) Jᵀ.

    With J = dS/dθ and p̂ = ∇_θ μ / ‖∇_θ μ‖, the direction that drives a multiplier, of `kpflow.dynamics.critical`. Near
    a bifurcation the first part is predicted to be ‖∇μ‖² (d_μ α ⊗ v)(d_μ α ⊗ v)ᵀ with the sensitivity d_μ α of a scalar
    normal form, and to dominate (arXiv 2605.12763). Complex pairs have two directions, ∇μ and ∇ω.

    Args:
        linearisation: The linearised state equation.
        gradient: ∇_θ μ, flat `[P]` in the order of `linearisation.parameters`, or rows `[k, P]`; or by parameter, each
            of its shape or with a leading k, where those that are missing count as zero.
        prefix: Of the names of parameters in the model, before those of `gradient`, such as "rnn.".
        trace: tr NTK, where it is not known exactly: a number, or an estimate, taken by its value.

    Returns:
        The channels; nothing that costs more than k products is computed before it is asked for.

    Raises:
        TypeError: `gradient` holds no floating-point tensors.
        ValueError: `gradient` has the wrong length or an unknown name, is zero or not finite, or its rows are
            dependent; `trace` is not positive.

    Example:
        >>> import kpflow as kp
        >>> rnn = kp.states.cells.RateRNN(1, 4, dtype=torch.float64)
        >>> start = torch.full((2, 4), 0.1, dtype=torch.float64)
        >>> found = kp.dynamics.critical(rnn, torch.zeros(4), torch.zeros(1))
        >>> lin = kp.linearise(rnn, torch.zeros(2, 5, 1, dtype=torch.float64), initial=start)
        >>> parts = channels(lin, found.named_gradient)
        >>> parts.field.shape, 0 < parts.dominance < 1
        (torch.Size([2, 5, 4]), True)
        >>> q = torch.ones(2, 5, 4, dtype=torch.float64)
        >>> torch.allclose((parts.channel + parts.residual)(q), kp.Ntk(lin)(q))
        True
    """
    space = linearisation.parameters
    rows = _by_name(space, gradient, prefix) if isinstance(gradient, Mapping) else _flat(space, gradient, prefix)
    check_finite("gradient", rows)
    single, rows = rows.ndim == 1, rows.reshape(-1, space.size).to(space.device, torch.float64)
    directions, scales = _orthonormal(rows)
    directions = directions.to(space.dtype)
    fields = linearisation.state_jvp(directions)
    check_finite("the field J p̂", fields, remedy="The states amplify a change of this parameter beyond the range.")
    return Channels(linearisation, directions, scales, fields, single, _checked_trace(trace))


def check_units(linearisation: Linearisation, vector: Tensor, name: str) -> None:
    """Raise unless the states are [B, T, H] and `vector` is `[H]`."""
    space = linearisation.space
    if space.axes != ("trial", "time", "unit"):
        raise ValueError(f"The states must have axes trial, time, unit, of a recurrent network; got {space}.")
    if tuple(vector.shape) != space.shape[2:]:
        raise ValueError(
            f"`{name}` must have shape {space.shape[2:]}, one entry a unit; got {tuple(vector.shape)}. It is an "
            "eigenvector of the step that `linearisation` has."
        )


def _orthonormal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """P̂ and G P̂ᵀ of G = `rows`, by Gram and Schmidt, the first direction along the first row."""
    sizes = rows.norm(dim=1)
    if not bool((sizes > 0).all()):
        raise ValueError(
            "`gradient` must not be zero: no parameter of `linearisation` moves the multiplier. Unfreeze those that do."
        )
    q, r = torch.linalg.qr((rows / sizes[:, None]).mT)
    diagonal = r.diagonal()
    if len(rows) > rows.shape[1] or not float(diagonal.abs().min()) > DEPENDENT:
        raise ValueError(
            f"`gradient` must have independent rows; the {len(rows)} rows span fewer directions. Give one of them, for "
            "a channel of rank one."
        )
    signs = torch.where(diagonal < 0, -1.0, 1.0)
    return q.mT * signs[:, None], sizes[:, None] * (r * signs[:, None]).mT


def _flat(space: Space, gradient: Tensor, prefix: str) -> Tensor:
    check_tensor("gradient", gradient)
    if prefix:
        raise ValueError(f"`prefix` belongs to names; got {prefix!r} with a flat gradient. Give `named_gradient`.")
    if gradient.ndim not in (1, 2) or gradient.shape[-1] != space.size or not gradient.numel():
        raise ValueError(
            f"`gradient` must have shape ({space.size},) or (k, {space.size}), over the parameters "
            f"{[part.name for part in space.parts]}; got {tuple(gradient.shape)}. Give it by name, as a mapping, where "
            "the model has other parameters than the step."
        )
    return gradient


def _by_name(space: Space, gradient: Mapping[str, Tensor], prefix: str) -> Tensor:
    """The flat gradient, zero where no name is given."""
    parts = {part.name: part for part in space.parts}
    given = {prefix + name: value for name, value in gradient.items()}
    unknown = [name for name in given if name not in parts]
    if unknown or not given:
        raise ValueError(
            f"`gradient` must name parameters of `linearisation`, {list(parts)}; got {unknown or 'none'}. Give "
            "`prefix` where the step is a part of the model, and leave out what is frozen in it."
        )
    rows = {name: _rows(parts[name], value) for name, value in given.items()}
    counts = {value.shape[:-1] for value in rows.values()}
    if len(counts) > 1:
        raise ValueError(
            f"`gradient` must have equally many rows for every parameter; got {sorted(map(tuple, counts))}."
        )
    leading = counts.pop()
    blank = next(iter(rows.values()))
    return torch.cat([rows.get(name, blank.new_zeros(*leading, part.size)) for name, part in parts.items()], dim=-1)


def _rows(part: Part, value: Tensor) -> Tensor:
    """`[k, *shape]` or `[*shape]` to `[k, size]` or `[size]`."""
    check_tensor(f"gradient[{part.name!r}]", value)
    leading = value.ndim - len(part.shape)
    if leading not in (0, 1) or tuple(value.shape[leading:]) != part.shape or not value.numel():
        shape = ", ".join(map(str, part.shape))
        raise ValueError(
            f"`gradient[{part.name!r}]` must have shape ({shape}) or (k, {shape}), as the parameter; got "
            f"{tuple(value.shape)}."
        )
    return value.reshape(*value.shape[:leading], part.size)


def _checked_trace(trace: SupportsFloat | None) -> float | None:
    if trace is None:
        return None
    value = float(trace)
    if not 0 < value < float("inf"):
        raise ValueError(f"`trace` must be a positive number, tr NTK; got {value!r}.")
    return value
