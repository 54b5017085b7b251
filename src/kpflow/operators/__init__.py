"""Linear algebra without matrices: operators between spaces, and their closed algebra."""

from .core import Adjoint, Composed, Gramian, Operator, Scaled, Sum
from .leaves import Dense, Diagonal, Function, Identity, LowRank

__all__ = [
    "Adjoint",
    "Composed",
    "Dense",
    "Diagonal",
    "Function",
    "Gramian",
    "Identity",
    "LowRank",
    "Operator",
    "Scaled",
    "Sum",
]
