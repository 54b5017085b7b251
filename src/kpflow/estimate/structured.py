"""Exact quantities that operators declare beside their products, and when to take them."""

from collections.abc import Callable
from typing import Any, TypeVar

from kpflow.operators import Exact, Gramian, Operator, Structure

from .base import EXACT_SIZE, Effort, Estimate, Status

__all__ = ["by_structure", "declared", "is_worth", "smaller_side"]

Value = TypeVar("Value")


def declared(operator: Operator, select: Callable[[Structure], Value | None]) -> Value | None:
    """What `select` asks the operator's structure for, an exact quantity or samples of one, if it has a structure."""
    structure = operator.structure if isinstance(operator, Gramian) else None
    return None if structure is None else select(structure)


def is_worth(quantity: Exact[Any] | None, method: str, effort: Effort, products: int, cost: int = 1) -> bool:
    """Whether to take the quantity by structure.

    Args:
        quantity: What the operator declares.
        method: "exact" takes it unless unit vectors are cheaper; "auto" if it costs no more than an estimate would.
        effort: What an estimate may take.
        products: How many products the exact method takes without structure.
        cost: What one of these products costs in those that `quantity.cost` counts: 2 with A = F Fᵀ, 1 with F.
    """
    if quantity is None or method not in ("exact", "auto"):
        return False
    limit = products if method == "exact" else min(products, effort.budget if effort.whole else EXACT_SIZE)
    return quantity.cost <= cost * limit


def by_structure(value: float) -> Estimate:
    """An exact result that took no product."""
    return Estimate(value, 0.0, 0, Status.CONVERGED, "exact")


def smaller_side(operator: Operator) -> Operator:
    """CᵀC of A = C Cᵀ if smaller: the same norm, and the same eigenvalues but for zeros. Or Aᵀ, if narrower."""
    if isinstance(operator, Gramian) and operator.metric is None:
        factor = operator.factor
        return factor.T @ factor if factor.in_space.size < factor.out_space.size else operator
    return operator if operator.in_space.size <= operator.out_space.size else operator.T
