"""Krylov compressions of a symmetric operator: Lanczos for many probes at once, and a block basis to deflate them."""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow.spaces import Space

from .products import Products, gram, inner, piece_length
from .sketch import orthonormal_rows, project_out

__all__ = ["BlockBasis", "Lanczos", "sphere"]


@final
class Lanczos:
    """S Lanczos recurrences at once, one block of products for each step, with full reorthogonalisation.

    A Vₛᵀ = Vₛᵀ Tₛ + β wₛ e_kᵀ for the s-th probe, with Tₛ tridiagonal. A probe whose Krylov space ends before (its β
    vanishes to rounding, or its space is full) takes no more products. It keeps S k vectors.

    Args:
        products: With A.
        starts: The probes; their lengths do not matter.
        full: Dimension at which a Krylov space is full.
    """

    def __init__(self, products: Products, starts: Float[Tensor, "S N"], full: int) -> None:
        self.products = products
        self.full = full
        self.steps = 0
        self.basis: Float[Tensor, "S k N"] = (starts / inner(starts, starts).sqrt().to(starts.dtype)[:, None])[:, None]
        self.diagonal: Float[Tensor, "S k"] = starts.new_zeros(len(starts), 0, dtype=torch.float64)
        self.coupling: Float[Tensor, "S k"] = self.diagonal
        self.active = torch.arange(len(starts), device=starts.device)

    def extend(self, steps: int) -> None:
        """Go on until `steps` steps are taken, or every Krylov space is full."""
        extra = self.basis.new_zeros(len(self.basis), max(steps + 1 - self.basis.shape[1], 0), self.basis.shape[2])
        self.basis = torch.cat([self.basis, extra], dim=1)
        while self.steps < steps and len(self.active):
            self._step()

    def pad(self, steps: int) -> None:
        """Write down steps that were not taken, where every Krylov space is full before `steps`."""
        missing = max(steps - self.steps, 0)
        self.diagonal = torch.nn.functional.pad(self.diagonal, (0, missing))
        self.coupling = torch.nn.functional.pad(self.coupling, (0, missing))
        self.steps += missing

    def matrices(self) -> Float[Tensor, "S k k"]:
        """The Tₛ; where a recurrence ended, the rest repeats its first entry, and has no weight."""
        ended = (self.coupling == 0).cumsum(1).roll(1, 1)
        ended[:, 0] = 0
        diagonal = torch.where(ended > 0, self.diagonal[:, :1], self.diagonal)
        off = self.coupling[:, :-1]
        return torch.diag_embed(diagonal) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)

    def _step(self) -> None:
        whole = len(self.active) == len(self.basis)
        known = self.basis[:, : self.steps + 1] if whole else self.basis[self.active, : self.steps + 1]
        fresh = self.products(known[:, -1])
        coefficients = _inner_all(known, fresh)
        self.diagonal = self._with_column(self.diagonal, coefficients[:, -1])
        fresh = _subtract(fresh, coefficients, known)
        fresh = _subtract(fresh, _inner_all(known, fresh), known)
        length = inner(fresh, fresh).sqrt()
        self.steps += 1
        goes_on = (length > self._floor()) & (self.steps < self.full)
        self.coupling = self._with_column(self.coupling, torch.where(goes_on, length, 0.0))
        self.active = self.active[goes_on]
        if len(self.active):
            self.basis[self.active, self.steps] = fresh[goes_on] / length[goes_on].to(fresh.dtype)[:, None]

    def _with_column(self, table: Tensor, column: Tensor) -> Tensor:
        fresh = table.new_zeros(len(table), 1)
        fresh[self.active, 0] = column
        return torch.cat([table, fresh], dim=1)

    def _floor(self) -> Float[Tensor, " A"]:
        """The length below which what is left of A v is rounding."""
        scale = torch.cat([self.diagonal.abs(), self.coupling], dim=1).amax(1)[self.active]
        return rounding(self.basis) * scale


@final
class BlockBasis:
    """An orthonormal basis V of the block Krylov space of A and a block, random if not given, which can grow by blocks.

    A Vᵀ = Vᵀ T + Wᵀ B with W the next block. It keeps two vectors for each product.
    """

    def __init__(
        self, products: Products, block: int, generator: torch.Generator, start: Float[Tensor, "b N"] | None = None
    ) -> None:
        self.products = products
        self.space = products.in_space
        self.block = block
        self.generator = generator
        self.basis: Float[Tensor, "D N"] = self.space.zeros(0).reshape(0, self.space.size)
        self.images: Float[Tensor, "D N"] = self.basis
        self.ends: list[int] = []
        self.fresh: Float[Tensor, "b N"] = self._random() if start is None else orthonormal_rows(start, self.basis)
        self.longest = 0.0

    @property
    def complete(self) -> bool:
        """Whether A maps V to itself."""
        return len(self.fresh) == 0

    def extend(self, room: int) -> None:
        """Add blocks as long as their products are at most `room`; another random one where A maps V to itself."""
        limit = self.products.count + room
        while True:
            fresh = self._random() if self.complete else self.fresh
            if not len(fresh) or self.products.count + self.products.cost * len(fresh) > limit:
                return
            image = self.products(fresh)
            self.longest = max(self.longest, float(inner(image, image).max()) ** 0.5)
            self.basis, self.images = torch.cat([self.basis, fresh]), torch.cat([self.images, image])
            self.ends.append(len(self.basis))
            self.fresh = orthonormal_rows(image, self.basis, floor=self.longest * rounding(self.basis))

    def _random(self) -> Float[Tensor, "b N"]:
        """A block orthogonal to the basis; empty if that is all."""
        space, count = self.space, min(self.block, self.space.size - len(self.basis))
        rows = torch.randn(count, space.size, generator=self.generator, dtype=space.dtype, device=space.device)
        return orthonormal_rows(rows, self.basis)

    def matrix(self) -> Float[Tensor, "D D"]:
        """T = V A Vᵀ."""
        core = gram(self.basis, self.images)
        return (core + core.mT) / 2

    def coupling(self) -> Float[Tensor, "b D"]:
        """B = W A Vᵀ, which only the last block of V has."""
        coupling = gram(self.fresh, self.images)
        coupling[:, : self.ends[-2] if len(self.ends) > 1 else 0] = 0
        return coupling


def rounding(vectors: Tensor) -> float:
    """What is left of a vector of length 1 and all of whose parts are subtracted, by rounding."""
    return 10 * torch.finfo(vectors.dtype).eps * math.sqrt(vectors.shape[-1])


def sphere(space: Space, count: int, basis: Float[Tensor, "Q N"], generator: torch.Generator) -> Float[Tensor, "S N"]:
    """Uniform on the unit sphere of what is orthogonal to `basis`: E g gᵀ = (I − Q Qᵀ)/(N − q)."""
    rows = torch.randn(count, space.size, generator=generator, dtype=space.dtype, device=space.device)
    rows = project_out(project_out(rows, basis), basis)
    return rows / inner(rows, rows).sqrt().to(rows.dtype)[:, None]


def _inner_all(known: Float[Tensor, "S k N"], fresh: Float[Tensor, "S N"]) -> Float[Tensor, "S k"]:
    """⟨vₛⱼ, fₛ⟩, accumulated in float64 over pieces of the long axis."""
    total = torch.zeros(known.shape[:2], dtype=torch.float64, device=known.device)
    length = piece_length(len(known) * (known.shape[1] + 1), known.device)
    for piece, other in zip(known.split(length, dim=2), fresh.split(length, dim=1), strict=True):
        total += (piece.double() @ other.double()[:, :, None])[:, :, 0]
    return total


def _subtract(fresh: Float[Tensor, "S N"], coefficients: Float[Tensor, "S k"], known: Float[Tensor, "S k N"]) -> Tensor:
    """fₛ − Σⱼ cₛⱼ vₛⱼ."""
    return fresh - (coefficients.to(fresh.dtype)[:, None] @ known)[:, 0]
