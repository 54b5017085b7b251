"""The curvature of a loss through a model: F = Jᵀ H J, from products with the Jacobian J of its outputs."""

import dataclasses
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow.states.tapes import Tape, recording

__all__ = ["Curvature", "Leading"]


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


@final
class Curvature:
    """F = Jᵀ H J, with J = ∂y/∂θ of outputs y and H = ∂²L/∂y²: the Gauss–Newton matrix, or generalised Fisher matrix.

    For squared errors H is a multiple of the identity and F has the non-zero spectrum of that multiple of the NTK J Jᵀ.
    For a loss that is linear in y, H is taken as 1/n for n outputs.

    Args:
        shards: Pairs of a loss and outputs with their graph, one for each shard of the trials.
        parameters: The parameters.
    """

    def __init__(self, shards: Sequence[tuple[Tensor, Tensor]], parameters: Sequence[Tensor]) -> None:
        self._parameters = tuple(parameters)
        self._jacobians = [Tape([outputs], parameters) for _, outputs in shards]
        self._metrics = [_loss_curvature(loss, outputs) for loss, outputs in shards]
        self._count = sum(outputs.numel() for _, outputs in shards)

    def __call__(self, block: Float[Tensor, "S P"]) -> Float[Tensor, "S P"]:
        """F v, for a block of vectors."""
        tangents = split(block, self._parameters)
        total = torch.zeros_like(block)
        for jacobian, metric in zip(self._jacobians, self._metrics, strict=True):
            moved = jacobian.jvp(tangents)
            total += joined(jacobian.vjp([m / self._count for m in moved] if metric is None else metric.vjp(moved)))
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
    return torch.cat([part.reshape(len(part), -1) for part in parts], dim=1)
