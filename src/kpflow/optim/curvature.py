"""The curvature of a loss through a model: F = Jᵀ H J, from products with the Jacobian J of its outputs."""

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow.operators import Operator
from kpflow.states.tapes import Tape, recording

__all__ = ["Curvature", "Jacobian", "Leading", "OfGraph", "OfOperator"]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Leading:
    """Leading eigenpairs of F.

    Args:
        values: Eigenvalues, largest first.
        vectors: Orthonormal eigenvectors, a row each.
    """

    values: Float[Tensor, " K"]
    vectors: Float[Tensor, "K P"]


class Jacobian(abc.ABC):
    """J = ∂y/∂θ of the outputs of one shard, by its products with blocks."""

    @abc.abstractmethod
    def jvp(self, tangents: Sequence[Tensor]) -> Tensor:
        """J: from a block `[S, *shape]` for each parameter to one `[S, *outputs.shape]`."""

    @abc.abstractmethod
    def vjp(self, cotangent: Tensor) -> list[Tensor]:
        """Jᵀ, its transpose."""


@final
class OfGraph(Jacobian):
    """The Jacobian of recorded outputs, by reverse mode."""

    def __init__(self, outputs: Tensor, parameters: Sequence[Tensor]) -> None:
        self._tape = Tape([outputs], parameters)

    def jvp(self, tangents: Sequence[Tensor]) -> Tensor:
        return self._tape.jvp(tangents)[0]

    def vjp(self, cotangent: Tensor) -> list[Tensor]:
        return self._tape.vjp([cotangent])


@final
class OfOperator(Jacobian):
    """The Jacobian as an operator from parameters by name, such as that of an `Ntk`, to the outputs.

    Raises:
        ValueError: The operator has a parameter that is not trained, in another shape, or another number of outputs.
    """

    def __init__(self, operator: Operator, outputs: Tensor, parameters: dict[str, Tensor]) -> None:
        self._operator = operator
        self._shape = outputs.shape
        self._names = tuple(parameters)
        self._shapes = {name: p.shape for name, p in parameters.items()}
        own = {part.name: tuple(part.shape) for part in operator.in_space.parts}
        unknown = [name for name, shape in own.items() if self._shapes.get(name) != shape]
        if unknown:
            raise ValueError(
                f"`jacobian` must be one with respect to the trained parameters {list(parameters)}; it has {unknown} "
                "in other shapes or names. Linearise the model that the optimiser was made with."
            )
        if operator.out_space.size != outputs.numel():
            raise ValueError(
                f"`jacobian` must be that of the outputs that the closure gives, {tuple(outputs.shape)}; it gives "
                f"{operator.out_space}. For states return the states, for outputs take Ntk(lin, readout='outputs')."
            )

    def jvp(self, tangents: Sequence[Tensor]) -> Tensor:
        named = dict(zip(self._names, tangents, strict=True))
        block = self._operator.in_space.join({part.name: named[part.name] for part in self._operator.in_space.parts})
        return self._operator(block).reshape(len(block), *self._shape)

    def vjp(self, cotangent: Tensor) -> list[Tensor]:
        pulled = self._operator.T(cotangent.reshape(len(cotangent), *self._operator.out_shape))
        parts = self._operator.in_space.split(pulled)
        return [
            parts[name] if name in parts else pulled.new_zeros(len(pulled), *self._shapes[name]) for name in self._names
        ]


@final
class Curvature:
    """F = Jᵀ H J, with J = ∂y/∂θ of outputs y and H = ∂²L/∂y²: the Gauss–Newton matrix, or generalised Fisher matrix.

    For squared errors H is a multiple of the identity and F has the non-zero spectrum of that multiple of the NTK J Jᵀ.
    For a loss that is linear in y, H is taken as 1/n for n outputs.

    Args:
        shards: Pairs of a loss and outputs with their graph, one for each shard of the trials.
        jacobians: J of each.
        parameters: The parameters.
    """

    def __init__(
        self, shards: Sequence[tuple[Tensor, Tensor]], jacobians: Sequence[Jacobian], parameters: Sequence[Tensor]
    ) -> None:
        self._parameters = tuple(parameters)
        self._jacobians = tuple(jacobians)
        self._metrics = [_loss_curvature(loss, outputs) for loss, outputs in shards]
        self._count = sum(outputs.numel() for _, outputs in shards)

    def __call__(self, block: Float[Tensor, "S P"]) -> Float[Tensor, "S P"]:
        """F v, for a block of vectors."""
        tangents = split(block, self._parameters)
        total = torch.zeros_like(block)
        for jacobian, metric in zip(self._jacobians, self._metrics, strict=True):
            moved = jacobian.jvp(tangents)
            total += joined(jacobian.vjp(moved / self._count if metric is None else metric.vjp([moved])[0]))
        return total

    def leading(self, start: Float[Tensor, "S P"], passes: int) -> Leading:
        """Leading eigenpairs by subspace iteration and a Nyström approximation, F ≈ Y (QᵀY)⁻¹ Yᵀ with Y = F Q.

        Args:
            start: Rows that span the first subspace.
            passes: Products of F with the whole subspace.
        """
        basis = image = start
        for _ in range(passes):
            basis = torch.linalg.qr(image.mT).Q.mT  # orthonormal rows
            image = self(basis)
        return _nystrom(basis, image)


def _loss_curvature(loss: Tensor, outputs: Tensor) -> Tape | None:
    """H of one shard; None where the loss is linear in the outputs."""
    with recording():
        (error,) = torch.autograd.grad(loss, outputs, create_graph=True, materialize_grads=True)
    return Tape([error], [outputs]) if error.requires_grad else None


def _nystrom(basis: Float[Tensor, "S P"], image: Float[Tensor, "S P"]) -> Leading:
    """Eigenpairs of Y (QᵀY)⁻¹ Yᵀ, from a square root of QᵀY without what is lost in rounding."""
    core = (basis.double() @ image.mT.double()).to(torch.float64)
    values, vectors = torch.linalg.eigh((core + core.mT) / 2)
    kept = values > values[-1] * torch.finfo(basis.dtype).eps * len(values)
    root = vectors[:, kept] / values[kept].sqrt()
    _, sizes, rows = torch.linalg.svd(root.mT.to(image.dtype) @ image, full_matrices=False)
    return Leading(sizes.square(), rows)


def split(block: Float[Tensor, "S P"], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Blocks of the parameters' shapes, views."""
    pieces = block.split([p.numel() for p in parameters], dim=1)
    return [piece.unflatten(1, p.shape) if p.ndim else piece[:, 0] for piece, p in zip(pieces, parameters, strict=True)]


def joined(parts: Sequence[Tensor]) -> Float[Tensor, "S P"]:
    """The inverse of `split`."""
    return torch.cat([part.reshape(len(part), math.prod(part.shape[1:])) for part in parts], dim=1)
