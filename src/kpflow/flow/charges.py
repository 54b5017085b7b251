"""Conserved charges: what gradient flow leaves as it is, found as null vectors of the Jacobian."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kpflow._checks import check_generator, check_one_of, check_positive, check_range
from kpflow.operators import to_dense
from kpflow.spaces import Space
from kpflow.states import Linearisation, linearise

from .jacobians import OutputJacobian, StateJacobian

__all__ = ["Charges", "find_charges"]

GAP = 1e-9
"""Singular values below this, relative to the largest, are zero: rounding leaves 1e-14, a broken symmetry far more."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Charges:
    """Q_i(θ) = ½ Σ_p a_ip θ_p² + Σ_p c_ip θ_p, each with a generator ξ_i = a_i ∘ θ + c_i for which J ξ_i = 0.

    Along gradient flow dQ_i/dt = −⟨ξ_i, Jᵀ ∂L/∂y⟩ = 0, whatever the loss. ξ_i is a null vector of JᵀJ, so that motion
    along it is invisible in the outputs and in their NTK.

    Args:
        scalings: a.
        shifts: c.
        singular_values: Of the equations that a and c solve, largest first; as many as charges are zero.
        parameters: Space of θ.
    """

    scalings: Float[Tensor, "C P"]
    shifts: Float[Tensor, "C P"]
    singular_values: Float[Tensor, " M"]
    parameters: Space

    def __len__(self) -> int:
        return len(self.scalings)

    def values(self, parameters: Float[Tensor, "*S P"]) -> Float[Tensor, "*S C"]:
        """Q at θ."""
        theta = parameters.double()
        return 0.5 * theta.square() @ self.scalings.mT + theta @ self.shifts.mT

    def generators(self, parameters: Float[Tensor, " P"]) -> Float[Tensor, "C P"]:
        """ξ at θ."""
        return self.scalings * parameters.double() + self.shifts

    def after_step(
        self,
        parameters: Float[Tensor, " P"],
        gradient: Float[Tensor, " P"],
        learning_rate: float,
        weight_decay: float = 0.0,
    ) -> Float[Tensor, " C"]:
        """Q after one step θ ← (1 − ηλ) θ − η g of any size, exactly, of a loss of the outputs.

        Q ← (1 − ηλ)² ½ a·θ² + (1 − ηλ) c·θ + ½ η² a·g² − η² λ c·g: the step of `along`, which tells the arguments.
        """
        return self.along(parameters, gradient[None], learning_rate, weight_decay)[1]

    def along(
        self, parameters: Float[Tensor, " P"], gradients: Tensor, learning_rate: float, weight_decay: float = 0.0
    ) -> Float[Tensor, "S C"]:
        """Q at all steps θ ← (1 − ηλ) θ − η g of any size, exactly, of any losses of the outputs, without the later θ.

        Q = Qₐ + Q_c, with Qₐ = ½ a·θ² ← (1 − ηλ)² Qₐ + ½ η² a·g² + (1 − ηλ) η c·g and Q_c = c·θ ← (1 − ηλ) Q_c − η c·g
        since ⟨a ∘ θ + c, g⟩ = 0. Without decay a step adds ½ η² a·g² to Q, and nothing else (Kunin et al. 2021, arXiv
        2012.04728; Tanaka and Kunin 2021, arXiv 2105.02716).

        Args:
            parameters: θ before the first step.
            gradients: g at every step, without weight decay; shape `[T, P]`.
            learning_rate: η.
            weight_decay: λ.

        Returns:
            Before the first step and after each: shape `[T + 1, C]`.

        Raises:
            ValueError: η is not positive, λ is negative, or the gradients do not fit the parameters of the charges.

        Example:
            >>> one = torch.ones(1, 2, dtype=torch.float64)
            >>> charges = Charges(one, 0 * one, one[0, :1], Space.of((2,), ("parameter",)))  # ½ ‖w‖² of w/‖w‖
            >>> gradients = torch.tensor([[0.0, 1.0], [0.2, 2.0]])  # across w
            >>> charges.along(torch.tensor([1.0, 0.0]), gradients, learning_rate=0.1)[:, 0]
            tensor([0.5000, 0.5050, 0.5252], dtype=torch.float64)
        """
        check_positive("learning_rate", learning_rate)
        check_range("weight_decay", weight_decay, 0)
        if gradients.ndim != 2 or gradients.shape[1] != self.parameters.size:
            raise ValueError(
                f"`gradients` must be one row of {self.parameters.size} parameters for each step; "
                f"got shape {tuple(gradients.shape)}. Join the gradients of all parameters, then stack the steps."
            )
        theta, g, kept = parameters.double(), gradients.double(), 1 - learning_rate * weight_decay
        shifted = learning_rate * g @ self.shifts.mT  # [T, C]
        kicks = 0.5 * learning_rate**2 * g.square() @ self.scalings.mT + kept * shifted
        square, linear = 0.5 * self.scalings @ theta.square(), self.shifts @ theta
        path = [square + linear]
        for kick, shift in zip(kicks, shifted, strict=True):
            square, linear = kept**2 * square + kick, kept * linear - shift
            path.append(square + linear)
        return torch.stack(path)


def find_charges(
    model: nn.Module,
    inputs: Any,
    *,
    of: str = "outputs",
    points: int | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Charges:
    """The charges of a model that are sums of squares and linear terms of single parameters.

    a and c solve J(θ) (a ∘ θ + c) = 0 at several random θ: a null space, found by singular values. So are found that of
    rescaling (ReLU units: ‖incoming‖² − ‖outgoing‖²), of scaling (normalised weights: ‖w‖²) and of shifts (softmax:
    the sum of the output biases). Not those of products of different parameters, as W₁W₁ᵀ − W₂ᵀW₂ off its diagonal in
    linear networks. See Kunin et al. 2021, arXiv 2012.04728; Tanaka and Kunin 2021, arXiv 2105.02716.

    Args:
        model: In float64 for a clear gap; it is not changed.
        inputs: As for `linearise`; all that is invariant for these inputs counts.
        of: Which Jacobian: of the "outputs" or of the "states".
        points: Number of random θ, each parameter tensor of the size of the model's own; None for so many that there
            are twice as many equations as unknowns, at least 8. A ReLU unit that is silent at all of them adds charges
            that are none elsewhere.
        generator: Draws them; a fresh one with seed 0 if None.
        options: Others of `linearise`.

    Returns:
        The charges, scaled so that every one has an entry 1 where the others have 0.

    Raises:
        ValueError: `of` is neither, `points` is not positive, or the model has no outputs.
        TypeError: `generator` is no generator.

    Example:
        >>> nn = torch.nn
        >>> net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1)).double()
        >>> inputs = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> charges = find_charges(net, inputs)
        >>> len(charges)
        3
        >>> charges.scalings.abs().sum(dim=1).round()  # of each unit, two weights in and one out
        tensor([3., 3., 3.], dtype=torch.float64)
    """
    check_one_of("of", of, ("outputs", "states"))
    if points is not None:
        check_positive("points", points, integer=True)
    generator = check_generator("generator", generator, torch.device("cpu"))
    twin = copy.deepcopy(model)
    sizes = {name: _size(value) for name, value in twin.named_parameters()}
    equations, count = [], points
    while True:
        theta = _draw(twin, sizes, generator)
        linearisation = linearise(twin, inputs, **options)
        space, jacobian = linearisation.parameters, to_dense(_jacobian_of(linearisation, of)).double().cpu()
        count = max(8, -(-4 * space.size // len(jacobian))) if count is None else count
        flat = space.join({part.name: theta[part.name] for part in space.parts}).double().cpu()
        equations.append(torch.cat([jacobian * flat, jacobian], dim=1))  # [rows, 2 P]
        if len(equations) == count:
            return _solved(torch.cat(equations), space)


def _jacobian_of(linearisation: Linearisation, of: str) -> StateJacobian | OutputJacobian:
    if of == "states":
        return StateJacobian(linearisation)
    if linearisation.readout is None:
        raise ValueError('`of` "outputs" needs a model with outputs; this one has states only. Give of="states".')
    return OutputJacobian(linearisation, linearisation.readout)


def _size(value: Tensor) -> float:
    size = float(value.detach().double().square().mean().sqrt())
    return size if size > 0 else 1.0


def _draw(model: nn.Module, sizes: Mapping[str, float], generator: torch.Generator) -> dict[str, Tensor]:
    """New values for all trainable parameters, in the model and by name."""
    drawn = {}
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad:
                noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                value.copy_(sizes[name] * noise)
            drawn[name] = value.detach().clone()
    return drawn


def _solved(equations: Float[Tensor, "R U"], space: Space) -> Charges:
    """Null vectors, in the basis that has the unit matrix at some entries."""
    scale = torch.linalg.vector_norm(equations, dim=0)
    scale = torch.where(scale > 0, scale, 1.0)
    _, values, rotation = torch.linalg.svd(torch.linalg.qr(equations / scale, mode="r").R)
    precision = max(GAP, 1e3 * torch.finfo(space.dtype).eps)
    basis = rotation[int((values > precision * values[0]).sum()) :] / scale
    for row in range(len(basis)):  # Gauss–Jordan with the largest entry of each row as the pivot
        pivot = int(basis[row].abs().argmax())
        basis[row] /= basis[row, pivot].clone()
        others = torch.arange(len(basis)) != row
        basis[others] -= basis[others, pivot, None] * basis[row]
    half = equations.shape[1] // 2
    return Charges(basis[:, :half], basis[:, half:], values, space)
