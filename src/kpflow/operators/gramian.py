"""Gramian, the abstract symmetric operator A = F M Fᵀ whose factor F is known, and Gram, that of any F."""

import abc
from typing import final

from torch import Tensor

from kpflow.spaces import Space

from .core import Operator
from .leaves import Diagonal
from .structure import Structure

__all__ = ["Gram", "Gramian", "metric_on"]


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


@final
class Gram(Gramian):
    """A = F Fᵀ, or F M Fᵀ, of any operator F: the kernel of a Jacobian of your own, with its one-sided estimates.

    As an operator it is `F @ F.T`; unlike that product it remembers F, so that the trace, the norm and others can be
    had from Fᵀ or from F alone.

    Args:
        jacobian: F, from parameters (or anything) to the space of A.
        metric: M, a symmetric operator on the space that F takes, or a tensor of its shape for a diagonal; None for
            the identity.

    Raises:
        TypeError: `jacobian` is no operator, or `metric` neither operator nor floating-point tensor.
        ValueError: `metric` is not symmetric, or acts on another space than the one that F takes.

    Example:
        >>> import torch, kpflow as kp
        >>> from kpflow.operators import Function
        >>> x, w = torch.tensor([[1.0, 2.0], [0.0, 3.0], [1.0, 1.0]]), torch.tensor([0.5, -0.5])
        >>> outputs, vjp = torch.func.vjp(lambda w: torch.tanh(x @ w), w)
        >>> _, jvp = torch.func.vjp(lambda u: vjp(u)[0], outputs)  # F is the adjoint of u ↦ Fᵀ u
        >>> forward, backward = (lambda v, f=f: torch.func.vmap(f)(v)[0] for f in (jvp, vjp))
        >>> spaces = kp.Space.of((2,), ("weight",), w.dtype), kp.Space.of((3,), ("trial",), w.dtype)
        >>> ntk = Gram(Function(forward, backward, *spaces))
        >>> print(f"{kp.estimate.trace(ntk).value:.4f}, from {kp.estimate.trace(ntk).num_matvecs} products with F")
        5.3864, from 2 products with F
    """

    def __init__(self, jacobian: Operator, metric: Tensor | Operator | None = None) -> None:
        if not isinstance(jacobian, Operator):
            raise TypeError(
                f"`jacobian` must be an operator; got {type(jacobian).__name__}. Wrap a matrix in Dense(matrix), a "
                f"pair of functions in Function(jvp, vjp, in_space, out_space)."
            )
        self._jacobian = jacobian
        self._metric = metric_on(jacobian.in_space, metric)

    @property
    def jacobian(self) -> Operator:
        """F."""
        return self._jacobian

    @property
    def metric(self) -> Operator | None:
        """M, or None for the identity."""
        return self._metric

    @property
    def structure(self) -> None:
        """None: of an F in general nothing is known but its products."""
        return None

    @property
    def factor(self) -> Operator:
        """F."""
        return self._jacobian


def metric_on(space: Space, metric: Tensor | Operator | None) -> Operator | None:
    """The metric as a symmetric operator on `space`; a tensor is a diagonal."""
    if metric is None:
        return None
    operator = Diagonal(metric, space) if isinstance(metric, Tensor) else metric
    if not isinstance(operator, Operator):
        raise TypeError(f"`metric` must be an operator or a tensor (a diagonal); got {type(metric).__name__}.")
    if not operator.in_space.same_vectors(space) or not operator.out_space.same_vectors(space):
        raise ValueError(f"`metric` must act on {space}, the space that `jacobian` takes; got {operator}.")
    if not operator.symmetric:
        raise ValueError(
            f"`metric` must be symmetric; got {operator}, which is not known to be. Take (M + M.T) / 2, or for "
            f"F G (F G)ᵀ the Gram of the product F @ G."
        )
    return operator
