"""Hutch++ in one pass: a low-rank approximation and probes whose products do not wait for each other."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow.operators import Operator

from .products import Products, gram, inner, norm, signs

__all__ = ["OnePassSketch"]


@final
class OnePassSketch:
    """Random signs S, R and G and their products, from which tr A follows (Meyer et al. 2021, algorithm 2).

    Ã = Z (Sᵀ Z)⁺ Wᵀ with Z = A R, W = Aᵀ S is an approximation of rank ≤ q of A, and

        tr A = tr Ã + E ⟨g, (A − Ã) g⟩,

    unbiased because G is independent of S and R. No product is with the result of another, so that all can be done in
    one block, or on stored data. It keeps m vectors for m products: S, Z, W, and G for the quarter of each.

    Args:
        operator: A, from a space to itself; the paper's is symmetric, which makes W = A S.
        fraction: f: q = ⌊f m⌋ products go into W, twice as many into Z, and the rest into G.
        generator: Draws the signs.
    """

    def __init__(self, operator: Operator, fraction: float, generator: torch.Generator) -> None:
        self.products, self.adjoint = Products(operator), Products(operator.T)
        self.fraction = fraction
        self.generator = generator
        self.space = operator.in_space
        empty = signs(self.space, 0, generator)
        self.left, self.left_images = empty, empty  # S, W
        self.right_images = empty  # Z
        self.probes: Float[Tensor, "S N"] = empty
        self.forms: Float[Tensor, " S"] = inner(empty, empty)  # ⟨g, A g⟩

    @property
    def spent(self) -> int:
        """Products so far."""
        return self.products.count + self.adjoint.count

    def grow(self, total: int) -> None:
        """Add columns to S, R and G until `total` products are spent."""
        fresh = min(int(self.fraction * total), self.space.size) - len(self.left)
        if fresh > 0:
            left = self._signs(fresh)
            self.left = torch.cat([self.left, left])
            self.left_images = torch.cat([self.left_images, self.adjoint(left)])
            self.right_images = torch.cat([self.right_images, self.products(self._signs(2 * fresh))])
        probes = self._signs(max(total - self.spent, 0))
        self.probes = torch.cat([self.probes, probes])
        self.forms = torch.cat([self.forms, inner(probes, self.products(probes))])

    def trace(self) -> tuple[float, Float[Tensor, " S"]]:
        """tr Ã, and the samples whose mean is tr(A − Ã).

        Singular values of Sᵀ Z below √n eps of the first are noise, and dropped.
        """
        rounding = torch.finfo(self.left.dtype).eps * self.space.size**0.5
        inverse = torch.linalg.pinv(gram(self.left, self.right_images), rtol=rounding)  # [2q, q]
        held = (inverse * gram(self.right_images, self.left_images)).sum()
        known = gram(self.probes, self.right_images) @ inverse  # [S, q]
        return float(held), self.forms - (known * gram(self.probes, self.left_images)).sum(1)

    def scale(self) -> float:
        """‖A‖_F, roughly, from the probes: the size of what is added up to the trace."""
        return norm(self.left_images) / max(len(self.left_images), 1) ** 0.5

    def _signs(self, count: int) -> Tensor:
        return signs(self.space, count, self.generator)
