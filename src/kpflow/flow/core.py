"""Core, the part of K that one weight makes: a Gram matrix of what it sees, times an identity."""

import abc

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow.operators import Gramian

__all__ = ["Core"]


class Core(abc.ABC):
    """The core of one weight: its part of K is M Mᵀ ⊗ I up to where it acts, C = M Mᵀ (arXiv 2605.08746)."""

    parameters: tuple[str, ...]
    """Names of the parameters that the columns of M belong to."""

    @property
    @abc.abstractmethod
    def factor(self) -> Float[Tensor, "*G N F"]:
        """M, what the weight sees at every position: `[N, F]`, or `[G, N, F]` for G groups that do not meet."""

    @property
    @abc.abstractmethod
    def multiplicity(self) -> int:
        """The size U of the identity: how often every eigenvalue of C counts."""

    @property
    @abc.abstractmethod
    def kernel(self) -> Gramian:
        """The part of K, as an operator on the states."""

    @property
    def gram(self) -> Float[Tensor, "*G N N"]:
        """C = M Mᵀ, formed."""
        return self.factor @ self.factor.mT

    @property
    def spectrum(self) -> Float[Tensor, " K"]:
        """Eigenvalues of C, of all groups, largest first, in float64: those that need not vanish."""
        return torch.linalg.svdvals(self.factor.double()).square().flatten().sort(descending=True).values

    @property
    def rank(self) -> int:
        """Numerical rank of M; K's part has at most `rank * multiplicity` non-zero eigenvalues."""
        return int(torch.linalg.matrix_rank(self.factor.double()).sum())

    @property
    def effective_rank(self) -> float:
        """(tr C)² / ‖C‖_F², the participation ratio of the (uncentred) activity that the weight sees; 0 of none."""
        values = self.spectrum
        total = float(values.sum())
        return total**2 / float(values.square().sum()) if total else 0.0
