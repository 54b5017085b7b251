"""Products with operators, in blocks that fit, counted and checked; probes; sums in float64."""

import math
from collections.abc import Callable, Iterator
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kpflow.operators import Function, Operator
from kpflow.spaces import Space

__all__ = [
    "BLOCK_ENTRIES",
    "PROBES",
    "NotFiniteError",
    "Probes",
    "Products",
    "Samples",
    "basis_blocks",
    "gram",
    "gram_operator",
    "inner",
    "norm",
    "piece_length",
    "signs",
    "sphere",
    "triangle",
]

PROBES = ("signs", "sphere", "orthogonal")
"""Kinds of random vectors g, all with E g gᵀ = I."""

BLOCK_ENTRIES = 2**22
"""Entries of one block of probes, on the larger side of the operator: 32 MB in float64. Chosen by experience."""

PIECE_ENTRIES = {"cpu": 2**18}
"""Entries that are converted to float64 at a time, by the kind of device: on a CPU they stay in the cache, and what is
larger is up to six times slower (measured, and most of it the fresh memory); elsewhere 2²⁴."""


class NotFiniteError(FloatingPointError):
    """A product holds NaN or inf; carries the products spent."""

    def __init__(self, spent: int) -> None:
        self.spent = spent


@final
class Products:
    """Products with an operator, on flat vectors `[S, N]`, in blocks that fit, counted and checked.

    Args:
        operator: The operator.
        cost: What one product counts: 2 for A Aᵀ.
    """

    def __init__(self, operator: Operator, cost: int = 1) -> None:
        self.operator = operator
        self.in_space, self.out_space = operator.in_space, operator.out_space
        self.cost = cost
        self.count = 0

    @property
    def block(self) -> int:
        """Vectors in one block."""
        return max(1, BLOCK_ENTRIES // max(self.in_space.size, self.out_space.size, 1))

    def __call__(self, vectors: Tensor) -> Tensor:
        """A v for `[S, N]`."""
        if not len(vectors):
            return vectors.new_zeros(0, self.out_space.size)
        return torch.cat([self._apply(block) for block in vectors.split(self.block)])

    def _apply(self, block: Tensor) -> Tensor:
        result = self.operator(block.reshape(len(block), *self.in_space.shape)).detach()
        self.count += self.cost * len(block)
        if not bool(torch.isfinite(result).all()):
            raise NotFiniteError(self.count)
        return result.reshape(len(block), self.out_space.size)


@final
class Probes:
    """Random flat vectors g with E g gᵀ = I, drawn block by block.

    "signs" and "sphere" are independent: see the functions. "orthogonal" probes are all orthogonal to each other, of
    length √n: a sample without replacement, and the mean of ⟨g, A g⟩ over all n is the trace. They are kept.

    Args:
        kind: One of `PROBES`.
        space: What they are vectors of.
        generator: Draws them.
    """

    def __init__(self, kind: str, space: Space, generator: torch.Generator) -> None:
        self.kind = kind
        self.space = space
        self.generator = generator
        self._basis = torch.zeros(0, space.size, dtype=space.dtype, device=space.device)

    def draw(self, count: int) -> Float[Tensor, "S N"]:
        """`count` more probes; fewer if there are no more."""
        if self.kind == "signs":
            return signs(self.space, count, self.generator)
        if self.kind == "sphere":
            return sphere(self.space, count, self.generator)
        count = min(count, self.space.size - len(self._basis))
        fresh = _orthonormal(_normal(self.space, count, self.generator), self._basis)
        self._basis = torch.cat([self._basis, fresh])
        return math.sqrt(self.space.size) * fresh

    def shrink(self, count: int) -> float:
        """Standard error of a mean over `count` probes, in units of that of independent samples of the same spread.

        √(1 − s/n) for s orthogonal ones: n exchangeable samples with a fixed sum have covariance −V/(n−1), so that
        E s² = V n/(n−1) and the mean of s has variance V/s · (n−s)/(n−1) (sampling without replacement).
        """
        return math.sqrt(1 - count / self.space.size) if self.kind == "orthogonal" else 1.0


@final
class Samples:
    """One float64 sample per probe, of which more can be drawn: measure(g, A g).

    Args:
        products: With A.
        generator: Draws the probes.
        measure: Takes blocks of probes and of their images.
        prepare: Changes the probes before the product.
        kind: Kind of the probes.
    """

    def __init__(
        self,
        products: Products,
        generator: torch.Generator,
        measure: Callable[[Tensor, Tensor], Tensor],
        prepare: Callable[[Tensor], Tensor] | None = None,
        kind: str = "signs",
    ) -> None:
        self.products = products
        self.probes = Probes(kind, products.in_space, generator)
        self.measure = measure
        self.prepare = prepare
        self.space = products.in_space
        self.values: Float[Tensor, " S"] = torch.zeros(0, dtype=torch.float64, device=self.space.device)

    @property
    def eps(self) -> float:
        """Rounding unit of the vectors."""
        return torch.finfo(self.space.dtype).eps

    def draw(self, total: int) -> None:
        """Draw until `total` products are spent, or there are no more probes."""
        while (room := total - self.products.count) > 0:
            probes = self.probes.draw(min(room, self.products.block))
            if not len(probes):
                return
            probes = probes if self.prepare is None else self.prepare(probes)
            self.values = torch.cat([self.values, self.measure(probes, self.products(probes))])


def gram_operator(operator: Operator) -> Operator:
    """A Aᵀ, known to be symmetric; one product with it is two with A."""
    adjoint = operator.T
    return Function(lambda block: operator(adjoint(block)), None, operator.out_space)


def signs(space: Space, count: int, generator: torch.Generator) -> Float[Tensor, "S N"]:
    """`count` flat vectors of independent random signs: E g gᵀ = I, and gᵢ² = 1."""
    draw = torch.empty(count, -(-space.size // 8), dtype=torch.uint8, device=space.device)
    draw.random_(0, 256, generator=generator)
    bits = torch.arange(256, device=space.device).unsqueeze(1) >> torch.arange(8, device=space.device)
    table = (2 * (bits & 1) - 1).to(space.dtype)  # the 8 signs of every byte: 15 times faster than one draw a sign
    return functional.embedding(draw.int(), table).flatten(1)[:, : space.size]


def sphere(space: Space, count: int, generator: torch.Generator) -> Float[Tensor, "S N"]:
    """`count` flat vectors of independent uniform directions, of length √n."""
    block = _normal(space, count, generator)
    length = inner(block, block).sqrt()[:, None].to(block.dtype)
    return block.mul_(math.sqrt(space.size) / length)


def _normal(space: Space, count: int, generator: torch.Generator) -> Float[Tensor, "S N"]:
    block = torch.empty(count, space.size, dtype=space.dtype, device=space.device)
    return block.normal_(generator=generator)


def _orthonormal(rows: Float[Tensor, "S N"], basis: Float[Tensor, "Q N"]) -> Float[Tensor, "S N"]:
    """Uniformly random orthonormal rows out of normal ones, orthogonal to the basis; twice, for rounding."""
    for _ in range(2):
        rows = rows - gram(rows, basis).to(rows.dtype) @ basis
        rows = torch.linalg.qr(rows.mT)[0].mT.contiguous()
    return rows


def basis_blocks(space: Space, block: int) -> Iterator[Float[Tensor, "S N"]]:
    """The unit vectors of the space, flat, `block` at a time."""
    for start in range(0, space.size, block):
        count = min(block, space.size - start)
        unit = torch.zeros(count, space.size, dtype=space.dtype, device=space.device)
        unit[torch.arange(count), torch.arange(start, start + count)] = 1
        yield unit


def inner(left: Float[Tensor, "S N"], right: Float[Tensor, "S N"]) -> Float[Tensor, " S"]:
    """⟨left, right⟩ of each pair of rows, in float64, over pieces of the long axis.

    Norms accumulated in float32 are wrong by 1e-3 at 1e7 entries; products in float32 vanish below 1e-45, so that the
    norm of what is 1e-25 would be 0, and overflow above 1e38.
    """
    length = piece_length(2 * len(left), left.device)
    total = torch.zeros(len(left), dtype=torch.float64, device=left.device)
    for piece, other in zip(left.split(length, dim=1), right.split(length, dim=1), strict=True):
        total += (piece.double() * other).sum(1)
    return total


def piece_length(rows: int, device: torch.device) -> int:
    """Columns of so many rows that are converted to float64 at a time."""
    return max(64, PIECE_ENTRIES.get(device.type, 2**24) // max(rows, 1))


def norm(rows: Float[Tensor, "S N"]) -> float:
    """‖rows‖_F."""
    return math.sqrt(float(inner(rows, rows).sum()))


def gram(left: Float[Tensor, "S N"], right: Float[Tensor, "K N"]) -> Float[Tensor, "S K"]:
    """⟨leftᵢ, rightⱼ⟩ of all pairs of rows, accumulated in float64 over pieces of the long axis."""
    length = piece_length(len(left) + len(right), left.device)
    total = torch.zeros(len(left), len(right), dtype=torch.float64, device=left.device)
    for piece, other in zip(left.split(length, dim=1), right.split(length, dim=1), strict=True):
        total += piece.double() @ other.double().mT
    return total


def triangle(rows: Float[Tensor, "S N"]) -> Float[Tensor, "R S"]:
    """R, upper triangular in float64, with Rᵀ R = rows rowsᵀ, from QR over pieces of the long axis.

    The Gram matrix itself would lose half the digits of what is small in it.
    """
    length = max(piece_length(len(rows), rows.device), 8 * len(rows))  # R comes with every piece
    result = torch.zeros(0, len(rows), dtype=torch.float64, device=rows.device)
    for piece in rows.split(max(length, 1), dim=1):
        result = torch.linalg.qr(torch.cat([result, piece.double().mT]), mode="r")[1]
    return result
