"""Operator, the abstract linear map between two spaces, and its closed algebra: adjoint, product, sum, multiple."""

import abc
import dataclasses
import math
from numbers import Real
from typing import Any, final

from torch import Tensor

from kpflow.spaces import Space

__all__ = ["Adjoint", "Composed", "Operator", "Scaled", "Sum"]


class Operator(abc.ABC):
    """A linear map A from `in_space` to `out_space`, known by its products with blocks of vectors.

    A subclass gives the two spaces, `symmetric`, and the products `_apply` and `_apply_adjoint` on blocks
    `[probes, *shape]`; it is final and overrides nothing else. Operators make operators by `.T`, `@`, `+`, `-`,
    `* scalar` and `/ scalar`.

    Example:
        >>> import torch
        >>> from kpflow.operators import Dense
        >>> A = Dense(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        >>> A(torch.tensor([1.0, 1.0])), (A.T @ A)(torch.eye(2))
        (tensor([3., 1.]), tensor([[1., 2.],
                [2., 5.]]))
    """

    __array_ufunc__ = None  # so that numpy scalars leave `scalar * operator` to us

    @property
    @abc.abstractmethod
    def in_space(self) -> Space:
        """The space of the vectors that the operator takes."""

    @property
    @abc.abstractmethod
    def out_space(self) -> Space:
        """The space of the vectors that the operator gives."""

    @property
    @abc.abstractmethod
    def symmetric(self) -> bool:
        """Whether A = Aᵀ is known from how the operator was made."""

    @abc.abstractmethod
    def _apply(self, vector: Tensor) -> Tensor:
        """A v for a block `[probes, *in_shape]`."""

    @abc.abstractmethod
    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        """Aᵀ v for a block `[probes, *out_shape]`."""

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one vector that the operator takes."""
        return self.in_space.shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of one vector that the operator gives."""
        return self.out_space.shape

    @property
    def T(self) -> "Operator":
        """The adjoint Aᵀ."""
        return _adjoint(self)

    @final
    def __call__(self, vector: Tensor) -> Tensor:
        """A v for `vector [*, *in_shape]` with any number of leading probe axes, done as one block.

        Raises:
            TypeError: `vector` is no tensor or has another dtype than `in_space`.
            ValueError: `vector` has another shape or device than `in_space`.
        """
        space = self.in_space
        space.check("vector", vector)
        probes = vector.shape[: vector.ndim - space.ndim]  # [*probes, *in_shape]
        result = self._apply(vector.reshape(math.prod(probes), *space.shape))
        return result.reshape((*probes, *self.out_shape))

    def __matmul__(self, other: "Operator") -> "Operator":
        _check_operator("@", other)
        (c, left), (d, right) = _unscaled(self), _unscaled(other)
        return _multiple(c * d, Composed((*_factors(left), *_factors(right))))

    def __add__(self, other: "Operator") -> "Operator":
        _check_operator("+", other)
        return Sum((*_terms(self), *_terms(other)))

    def __sub__(self, other: "Operator") -> "Operator":
        _check_operator("-", other)
        return Sum((*_terms(self), *(-term for term in _terms(other))))

    def __neg__(self) -> "Operator":
        return -1.0 * self

    def __mul__(self, scale: Real | float) -> "Operator":
        c, base = _unscaled(self)
        return _multiple(_check_scale("*", scale) * c, base)

    def __rmul__(self, scale: Real | float) -> "Operator":
        return self * scale

    def __truediv__(self, scale: Real | float) -> "Operator":
        return self * (1.0 / _check_scale("/", scale))

    def __repr__(self) -> str:
        return f"{_formula(self)}: {self.in_space} → {self.out_space}"


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Adjoint(Operator):
    """Aᵀ of an operator A that has no closed form for it."""

    base: Operator

    @property
    def in_space(self) -> Space:
        return self.base.out_space

    @property
    def out_space(self) -> Space:
        return self.base.in_space

    @property
    def symmetric(self) -> bool:
        return self.base.symmetric

    def _apply(self, vector: Tensor) -> Tensor:
        return self.base._apply_adjoint(vector)

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        return self.base._apply(vector)


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Composed(Operator):
    """The product A₁ A₂ … Aₙ of operators, applied from the right; chains are flat."""

    factors: tuple[Operator, ...]

    def __post_init__(self) -> None:
        if not self.factors:
            raise ValueError("`factors` must hold at least one operator; got none.")
        for left, right in zip(self.factors, self.factors[1:], strict=False):
            _check_same(left.in_space, right.out_space, f"{_formula(left)} @ {_formula(right)}", "the left one takes")

    @property
    def in_space(self) -> Space:
        return self.factors[-1].in_space

    @property
    def out_space(self) -> Space:
        return self.factors[0].out_space

    @property
    def symmetric(self) -> bool:
        return _all_adjoint(self.factors, self.factors[::-1])

    def _apply(self, vector: Tensor) -> Tensor:
        for factor in reversed(self.factors):
            vector = factor._apply(vector)
        return vector

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        for factor in self.factors:
            vector = factor._apply_adjoint(vector)
        return vector


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Sum(Operator):
    """The sum A₁ + … + Aₙ of operators between the same spaces."""

    terms: tuple[Operator, ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("`terms` must hold at least one operator; got none.")
        first = self.terms[0]
        for term in self.terms[1:]:
            formula = f"{_formula(first)} + {_formula(term)}"
            _check_same(first.in_space, term.in_space, formula, "the first one takes")
            _check_same(first.out_space, term.out_space, formula, "the first one gives")

    @property
    def in_space(self) -> Space:
        return self.terms[0].in_space

    @property
    def out_space(self) -> Space:
        return self.terms[0].out_space

    @property
    def symmetric(self) -> bool:
        return self.in_space == self.out_space and _closed_under_adjoint(self.terms)

    def _apply(self, vector: Tensor) -> Tensor:
        result = self.terms[0]._apply(vector)
        for term in self.terms[1:]:
            result = result + term._apply(vector)
        return result

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        result = self.terms[0]._apply_adjoint(vector)
        for term in self.terms[1:]:
            result = result + term._apply_adjoint(vector)
        return result


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Scaled(Operator):
    """The multiple c A of an operator by a real number."""

    scale: float
    base: Operator

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"`scale` must be finite; got {self.scale}.")

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
        return self.scale * self.base._apply(vector)

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        return self.scale * self.base._apply_adjoint(vector)


def _adjoint(operator: Operator) -> Operator:
    """Aᵀ in closed form: (AB)ᵀ = BᵀAᵀ, (A+B)ᵀ = Aᵀ+Bᵀ, (cA)ᵀ = cAᵀ, Aᵀᵀ = A."""
    match operator:
        case _ if operator.symmetric:
            return operator
        case Adjoint():
            return operator.base
        case Composed():
            return Composed(tuple(factor.T for factor in reversed(operator.factors)))
        case Sum():
            return Sum(tuple(term.T for term in operator.terms))
        case Scaled():
            return Scaled(operator.scale, operator.base.T)
        case _:
            return Adjoint(operator)


def _are_adjoint(left: Operator, right: Operator) -> bool:
    """Whether left = rightᵀ is known from how the two were made."""
    match left, right:
        case _ if left is right:
            return left.symmetric
        case Adjoint(), _:
            return left.base is right
        case _, Adjoint():
            return right.base is left
        case Scaled(), Scaled():
            return left.scale == right.scale and _are_adjoint(left.base, right.base)
        case Composed(), Composed():
            return _all_adjoint(left.factors, right.factors[::-1])
        case Sum(), Sum():
            return _all_adjoint(left.terms, right.terms)
        case _:
            return False


def _all_adjoint(left: tuple[Operator, ...], right: tuple[Operator, ...]) -> bool:
    return len(left) == len(right) and all(map(_are_adjoint, left, right))


def _closed_under_adjoint(terms: tuple[Operator, ...]) -> bool:
    """Whether every term is symmetric or meets its adjoint among the others, as in A + Aᵀ."""
    alone = [term for term in terms if not term.symmetric]
    while alone:
        term = alone.pop()
        partner = next((other for other in alone if _are_adjoint(term, other)), None)
        if partner is None:
            return False
        alone.remove(partner)
    return True


def _factors(operator: Operator) -> tuple[Operator, ...]:
    return operator.factors if isinstance(operator, Composed) else (operator,)


def _terms(operator: Operator) -> tuple[Operator, ...]:
    c, base = _unscaled(operator)
    return tuple(c * term for term in base.terms) if isinstance(base, Sum) else (operator,)


def _unscaled(operator: Operator) -> tuple[float, Operator]:
    return (operator.scale, operator.base) if isinstance(operator, Scaled) else (1.0, operator)


def _multiple(scale: float, operator: Operator) -> Operator:
    return operator if scale == 1.0 else Scaled(scale, operator)


def _formula(operator: Operator) -> str:
    """The operator as a formula of the names of its parts."""
    match operator:
        case Adjoint():
            return f"{_in_brackets(operator.base, Composed, Sum, Scaled)}.T"
        case Composed():
            return " @ ".join(_in_brackets(factor, Sum, Scaled) for factor in operator.factors)
        case Sum():
            return " + ".join(_in_brackets(term, Sum) for term in operator.terms).replace(" + -", " - ")
        case Scaled():
            sign = "-" if operator.scale == -1.0 else f"{operator.scale:g} * "
            return sign + _in_brackets(operator.base, Sum, Scaled)
        case _:
            return type(operator).__name__


def _in_brackets(operator: Operator, *kinds: type[Operator]) -> str:
    return f"({_formula(operator)})" if isinstance(operator, kinds) else _formula(operator)


def _check_operator(sign: str, other: Any) -> None:
    """Raise unless `other` is an operator, and say what to do with it."""
    if isinstance(other, Operator):
        return
    remedy = "Wrap a matrix in Dense(matrix), a SciPy operator in from_scipy(operator), c in c * Identity(space)."
    if sign == "@" and isinstance(other, Tensor):
        remedy = "To apply A to a tensor v, call it: A(v)."
    raise TypeError(f"`A {sign} B` needs two operators; got {type(other).__name__} for B. {remedy}")


def _check_scale(sign: str, scale: Any) -> float:
    """Return the real number `scale`, or raise and say what to write instead."""
    if isinstance(scale, Real) and not isinstance(scale, bool):
        return float(scale)
    remedy = "For the product of operators write A @ B." if isinstance(scale, Operator) else "Convert it with float(c)."
    raise TypeError(f"`A {sign} c` needs a real number c; got {type(scale).__name__}. {remedy}")


def _check_same(expected: Space, got: Space, formula: str, role: str) -> None:
    if not expected.same_vectors(got):
        raise ValueError(
            f"The spaces of `{formula}` do not match: {role} {expected}, the other has {got}. "
            f"Shape, dtype and device must agree."
        )
