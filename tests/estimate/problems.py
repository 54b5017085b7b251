"""Operators with known answers: a table of spectra, a Gramian, a counter of products, all sign vectors."""

import dataclasses
import functools
import itertools
from typing import final

import torch
from torch import Tensor

from kpflow.operators import Dense, Gramian, Operator
from kpflow.spaces import Space


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


@functools.cache
def rotation(n: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(randn(n, n, seed=seed))[0]


def _index(n: int) -> Tensor:
    return torch.arange(1, n + 1, dtype=torch.float64)


SPECTRA = {
    "flat": lambda n: torch.ones(n, dtype=torch.float64),
    "bulk": lambda n: 1 + _index(n) / n,
    "step": lambda n: torch.where(_index(n) <= 10, 1.0, 1e-2).double(),
    "exponential": lambda n: 0.8 ** _index(n),
    "power law": lambda n: _index(n) ** -1.0,
    "slow power law": lambda n: _index(n) ** -0.5,
    "rank one": lambda n: torch.where(_index(n) <= 1, 3.0, 0.0).double(),
    "indefinite": lambda n: _index(n) ** -0.5 * (-1.0) ** _index(n),
}
"""Eigenvalues by name, for any n; all positive semi-definite but the last."""

POSITIVE = [name for name in SPECTRA if name != "indefinite"]


def matrix(name: str, n: int, seed: int = 7) -> Tensor:
    """Symmetric, with the spectrum `name` and random eigenvectors; the flat one is the identity, whatever they are."""
    q = rotation(n, seed)
    product = q @ torch.diag(SPECTRA[name](n)) @ q.mT
    return (product + product.mT) / 2


def wishart(n: int, rank: int, seed: int = 0) -> Tensor:
    """Positive, of the given rank, and symmetric to the last bit (a matrix product need not be)."""
    factor = randn(n, rank, seed=seed)
    product = factor @ factor.mT
    return (product + product.mT) / 2


def toeplitz(a: float, steps: int) -> Tensor:
    """The propagator of h' = a h: 1, a, a², ... below the diagonal."""
    lag = torch.arange(steps)[:, None] - torch.arange(steps)[None, :]
    return torch.where(lag >= 0, a ** lag.clamp(min=0).double(), 0.0)


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FactorGramian(Gramian):
    """F M Fᵀ with an explicit F."""

    jacobian_: Operator
    middle: Operator | None = None

    @property
    def jacobian(self) -> Operator:
        return self.jacobian_

    @property
    def factor(self) -> Operator:
        return self.jacobian_

    @property
    def metric(self) -> Operator | None:
        return self.middle

    @property
    def structure(self) -> None:
        return None


@final
class Counter(Operator):
    """Another operator, with the vectors that went through it counted."""

    def __init__(self, base: Operator) -> None:
        self.base = base
        self.forward = 0
        self.backward = 0

    @property
    def in_space(self) -> Space:
        return self.base.in_space

    @property
    def out_space(self) -> Space:
        return self.base.out_space

    @property
    def symmetric(self) -> bool:
        return self.base.symmetric

    def _apply(self, vector: Tensor) -> Tensor:
        self.forward += len(vector)
        return self.base._apply(vector)

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        self.backward += len(vector)
        return self.base._apply_adjoint(vector)

    @property
    def total(self) -> int:
        return self.forward + self.backward


def all_signs(n: int) -> Tensor:
    """All 2ⁿ sign vectors of n entries."""
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=n)), dtype=torch.float64)


def factorised(matrix: Tensor) -> FactorGramian:
    """F Fᵀ = matrix, with F a root whose right singular vectors are random too."""
    values, vectors = torch.linalg.eigh(matrix)
    return FactorGramian(Dense(vectors * values.clamp(min=0).sqrt() @ rotation(len(matrix), 11)))
