"""Gramian, the abstract symmetric operator A = F M Fᵀ whose factor F is known."""

import abc

from torch import Tensor

from kpflow.spaces import Space

from .core import Operator
from .structure import Structure

__all__ = ["Gramian"]


class Gramian(Operator):
    """A symmetric operator A = F Fᵀ, or A = F M Fᵀ with a symmetric metric M in the middle.

    Knowing F, estimators need only one side: ‖Fᵀ g‖² has expectation tr A for white noise g.
    """

    @property
    @abc.abstractmethod
    def jacobian(self) -> Operator:
        """F."""

    @property
    @abc.abstractmethod
    def metric(self) -> Operator | None:
        """M, or None for the identity."""

    @property
    @abc.abstractmethod
    def structure(self) -> Structure | None:
        """The exact quantities that cost far less than a product for every unit vector, or None."""

    @property
    @abc.abstractmethod
    def factor(self) -> Operator:
        """The cheapest known C with A = C Cᵀ, through which products go; F where there is a metric, or no better."""

    @property
    def in_space(self) -> Space:
        return self.jacobian.out_space

    @property
    def out_space(self) -> Space:
        return self.jacobian.out_space

    @property
    def symmetric(self) -> bool:
        return True

    def _apply(self, vector: Tensor) -> Tensor:
        inner = self.factor._apply_adjoint(vector)
        return self.factor._apply(inner if self.metric is None else self.metric._apply(inner))

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        return self._apply(vector)
