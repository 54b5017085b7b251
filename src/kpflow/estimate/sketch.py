"""Sketch: the products that estimators share, with probes deflated by a basis of the operators' leading range."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow.operators import Operator

from .products import Products, gram, inner, norm, signs

__all__ = ["LEAST_SHARE", "Sketch", "orthonormal_rows", "project_out"]

LEAST_SHARE = 0.25
"""Part of ‖A‖²_F that the first basis must hold to grow, where the trace counts too. Chosen by experience."""


@final
class Sketch:
    """Products of k operators Aᵢ with one basis Q and one set of random signs g, all kept so that both can grow.

    Q is an orthonormal basis of the range of the operators on random signs, A S, and P = I − Q Qᵀ. What Q holds is
    exact and the rest is Monte Carlo, unbiased for every Q because the probes g are independent of it.

    Two-sided (for the trace, and for symmetric operators), with W = A Q and R = P A P g:
        tr A    = tr(Qᵀ W) + E ⟨g, R⟩                                                  (Hutch++, Meyer et al. 2021)
        ⟨A, B⟩_F = 2 ⟨W_A, W_B⟩ − ⟨Qᵀ W_A, Qᵀ W_B⟩ + E ⟨R_A, R_B⟩
    Left-sided (for the inner products of operators between two spaces), with W = Aᵀ Q and R = P A g:
        ⟨A, B⟩_F = ⟨W_A, W_B⟩ + E ⟨R_A, R_B⟩

    Memory: (q + s)(k + 1) + s k vectors for q basis vectors and s probes.

    Args:
        operators: Between the same two spaces.
        fraction: f, the part of the products that goes into the basis: q = ⌊f m⌋ of m products for one operator,
            which then take q products more for W, and s = m − 2q probes. 1/3 is the classical split.
        generator: Draws the signs.
        two_sided: Which of the two deflations.
        cost: What one product counts.
        least_share: If after the first products Q holds less than this part of every ‖Aᵢ‖²_F, there are no leading
            modes: Q grows no more, and all further products go to probes. On flat spectra that halves the errors.
    """

    def __init__(
        self,
        operators: Sequence[Operator],
        fraction: float,
        generator: torch.Generator,
        *,
        two_sided: bool,
        cost: int = 1,
        least_share: float = 0.0,
    ) -> None:
        self.least_share = least_share
        self.products = [Products(operator, cost) for operator in operators]
        self.adjoints = self.products if two_sided else [Products(operator.T, cost) for operator in operators]
        self.fraction = fraction
        self.generator = generator
        self.two_sided = two_sided
        domain, codomain = operators[0].in_space, operators[0].out_space
        empty = torch.zeros(0, codomain.size, dtype=codomain.dtype, device=codomain.device)
        self.domain = domain
        self.basis: Float[Tensor, "Q N"] = empty
        self.sketched = 0
        self.images = [empty.new_zeros(0, domain.size) for _ in operators]
        self.probes: Float[Tensor, "S N"] = empty.new_zeros(0, domain.size)
        self.probe_images = [empty for _ in operators]
        self._residuals: dict[int, Tensor] = {}

    @property
    def spent(self) -> int:
        """Products so far."""
        parts = self.products if self.two_sided else [*self.products, *self.adjoints]
        return sum(part.count for part in parts)

    def scale(self, i: int = 0) -> float:
        """‖Aᵢ Q‖_F, the size of what is added up to the trace."""
        return norm(self.images[i])

    @property
    def eps(self) -> float:
        """Rounding unit of the vectors."""
        return torch.finfo(self.basis.dtype).eps

    def grow(self, total: int) -> None:
        """Add basis vectors and probes until `total` products are spent."""
        if self.spent and not self._has_leading_modes():
            self.fraction = 0.0
        self._residuals.clear()
        operators, cost = len(self.products), self.products[0].cost
        columns = min(int(self.fraction * total / (operators * cost)), self.basis.shape[1])
        self._grow_basis(columns - self.sketched)
        probes = (total - self.spent) // (operators * cost)
        self._add_probes(max(probes, 0))

    def trace(self, i: int = 0) -> tuple[float, Float[Tensor, " S"]]:
        """tr Aᵢ as the part that Q holds, and the samples whose mean is the rest."""
        return float(inner(self.basis, self.images[i]).sum()), inner(self.probes, self.residual(i))

    def inner(self, i: int = 0, j: int = 0) -> tuple[float, Float[Tensor, " S"]]:
        """⟨Aᵢ, Aⱼ⟩_F as the part that Q holds, and the samples whose mean is the rest."""
        held = inner(self.images[i], self.images[j]).sum()
        if self.two_sided:
            held = 2 * held - (self.core(i) * self.core(j)).sum()
        return float(held), inner(self.residual(i), self.residual(j))

    def core(self, i: int = 0) -> Float[Tensor, "Q Q"]:
        """Qᵀ Aᵢ Q."""
        return gram(self.basis, self.images[i])

    def residual(self, i: int = 0) -> Float[Tensor, "S N"]:
        """P Aᵢ P g, or P Aᵢ g if left-sided, for each probe; kept until the sketch grows."""
        if i not in self._residuals:
            image = self.probe_images[i]
            if self.two_sided:
                image = image - gram(self.probes, self.basis).to(image.dtype) @ self.images[i]
            self._residuals[i] = project_out(image, self.basis)
        return self._residuals[i]

    def _has_leading_modes(self) -> bool:
        for i in range(len(self.products)):
            held, samples = self.inner(i, i)
            if not len(samples) or held >= self.least_share * (held + float(samples.mean())):
                return True
        return False

    def _grow_basis(self, columns: int) -> None:
        """Add the range of the operators on `columns` random signs, which they take in turn."""
        if columns <= 0:
            return
        draw = signs(self.domain, columns, self.generator)
        number = len(self.products)
        images = [product(draw[(i - self.sketched) % number :: number]) for i, product in enumerate(self.products)]
        fresh = orthonormal_rows(torch.cat(images), self.basis)
        self.sketched += columns
        self.basis = torch.cat([self.basis, fresh])
        for i, adjoint in enumerate(self.adjoints):
            self.images[i] = torch.cat([self.images[i], adjoint(fresh)])

    def _add_probes(self, count: int) -> None:
        probes = signs(self.domain, count, self.generator)
        self.probes = torch.cat([self.probes, probes])
        for i, product in enumerate(self.products):
            self.probe_images[i] = torch.cat([self.probe_images[i], product(probes)])


def orthonormal_rows(
    rows: Float[Tensor, "K N"], basis: Float[Tensor, "Q N"], *, floor: float = 0.0
) -> Float[Tensor, "R N"]:
    """An orthonormal basis of the span of `rows` beyond that of the orthonormal `basis`, down to rounding.

    Directions below √N eps of the longest row, or below `floor`, are dropped. They are noise.
    """
    eps = torch.finfo(rows.dtype).eps
    longest = float(inner(rows, rows).max()) ** 0.5 if len(rows) else 0.0
    threshold = max(floor, longest * eps * rows.shape[1] ** 0.5)
    for _ in range(2):  # twice is enough for orthogonality to rounding
        rows = project_out(rows, basis)
        if not len(rows) or longest == 0:
            return rows[:0]
        q, r = torch.linalg.qr(rows.mT)
        left, values, _ = torch.linalg.svd(r)
        rows = (q @ left[:, values > threshold]).mT.contiguous()
        threshold = 0.5  # the rows are orthonormal now: a direction that loses half its length was noise
    return rows


def project_out(rows: Float[Tensor, "S N"], basis: Float[Tensor, "Q N"]) -> Float[Tensor, "S N"]:
    """rows (I − Q Qᵀ)."""
    return rows - gram(rows, basis).to(rows.dtype) @ basis
